# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``distributions`` of the pyroapi backend ``"aeb"``: :mod:`pyro.distributions` and SSGL."""

from typing import Any

import pyro.distributions

from pyro_aeb.priors import SSGL

__all__ = [*pyro.distributions.__all__, "SSGL"]


def __getattr__(name: str) -> Any:
    return getattr(pyro.distributions, name)
