# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``infer`` of the pyroapi backend ``"aeb"``: :mod:`pyro.infer` and AEBKernel."""

from typing import Any

import pyro.infer

from pyro_aeb.kernel.aeb_kernel import AEBKernel as AEBKernel


def __getattr__(name: str) -> Any:
    return getattr(pyro.infer, name)
