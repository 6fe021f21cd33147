# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The check of a run's ``transforms=``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch.distributions import constraints

from pyro_aeb.model.structure import Structure


def unconstraining_sites(transforms: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the sites whose transforms lead from a support to unconstrained space."""
    return tuple(name for name, value in (transforms or {}).items() if _unconstrains(value))


def check_transforms(structure: Structure, unconstraining: Collection[str]) -> None:
    """
    Check that no transform takes a constrained site to unconstrained space, as those of
    ``initialize_model`` do: their inverse would constrain draws that are in the support already.

    :param unconstraining: the sites that have such a transform, from
        :func:`unconstraining_sites`. Names are sent to workers, which cannot unpickle an inverse.
    :raises ValueError: if one of them is constrained.
    """
    constrained = {block.name for block in structure.blocks if block.transform is not None}
    constrained.update(structure.latent_sites)
    if wrong := sorted(constrained.intersection(unconstraining)):
        raise ValueError(
            f"the transforms of {wrong} take these sites to unconstrained space, as those of "
            "pyro's initialize_model do; their inverses would be applied to draws that are in the "
            "sites' supports already. Leave out transforms=, and change units in what "
            "get_samples() returns"
        )


def _unconstrains(transform: Any) -> bool:
    domain, codomain = (getattr(transform, name, None) for name in ("domain", "codomain"))
    return _is_real(codomain) and not _is_real(domain)


def _is_real(constraint: Any) -> bool:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is constraints.real
