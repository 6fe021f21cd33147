# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The state of tuning in a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from pyro_aeb.data.arguments import move_to_device


class Saved:
    """An estimate, as a dataclass of tensors and plain values, which a checkpoint holds."""

    def state(self) -> dict[str, Any]:
        """Return the fields, for :meth:`load`."""
        fields: Any = dataclasses.fields(self)  # type: ignore[arg-type]
        return {field.name: getattr(self, field.name) for field in fields}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore another's :meth:`state` on a device."""
        for name in self.state():
            setattr(self, name, move_to_device(state[name], device))
