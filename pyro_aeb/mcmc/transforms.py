# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of a run's ``transforms=``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.distributions import constraints
from torch.distributions.transforms import ComposeTransform, IndependentTransform


def check_transforms(transforms: Mapping[str, Any] | None) -> None:
    """
    Check that no transform leads from a support to unconstrained space, as those of Pyro's
    ``initialize_model`` do: their inverses would constrain draws that are in the support already.

    :param transforms: site name to a transform whose inverse is applied to the draws.
    :raises ValueError: if one does.
    """
    if wrong := sorted(name for name, value in (transforms or {}).items() if _unconstrains(value)):
        raise ValueError(
            f"the transforms of {wrong} lead to unconstrained space, as those of pyro's "
            "initialize_model do, expected none: draws of an AEBKernel are in the supports of "
            "their sites already, and the inverses would constrain them once more. Leave out "
            "transforms=, and change units in what get_samples() returns"
        )


def check_same_transforms(saved: Sequence[str], transforms: Mapping[str, Any] | None) -> None:
    """
    Check that a resumed run has the transforms that it was saved with.

    :param saved: the sites that had one, in order.
    :raises ValueError: if others have one now.
    """
    if sorted(transforms or {}) != saved:
        raise ValueError(
            f"there are transforms of {sorted(transforms or {})}, and the saved run has those of "
            f"{saved}, which a checkpoint cannot hold; give the same, MCMC.resume(path, model, "
            "transforms=...)"
        )


def _unconstrains(transform: Any) -> bool:
    """Whether a transform, or a part of it, is defined on some numbers only, but reaches all."""
    if isinstance(transform, ComposeTransform):  # its own domain is that of its first part
        return any(map(_unconstrains, transform.parts))
    if isinstance(transform, IndependentTransform):
        return _unconstrains(transform.base_transform)
    inverse = getattr(transform, "inv", None)
    if isinstance(inverse, IndependentTransform):
        return _unconstrains(inverse.base_transform.inv)
    domain, codomain = (getattr(transform, name, None) for name in ("domain", "codomain"))
    return _is_real(codomain) and not _is_real(domain)


def _is_real(constraint: Any) -> bool:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is constraints.real
