# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Parameters and first values of spike-and-slab priors, read before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.errors import ModelError
from pyro_aeb.model.structure import Delta, Sigma, SparseBlock
from pyro_aeb.priors.base import SpikeAndSlab
from pyro_aeb.priors.components import Component
from pyro_aeb.priors.scales import ScaleTerms


def prior_of(blocks: Sequence[SparseBlock]) -> type[SpikeAndSlab]:
    """
    Return the kind of prior of all blocks.

    :raises ModelError: if they have priors of several kinds.
    """
    kinds = {block.prior: block.name for block in blocks}
    if len(kinds) > 1:
        found = ", ".join(f"{name!r} ~ {kind.__name__}" for kind, name in kinds.items())
        raise ModelError(
            f"the sparse sites have spike-and-slab priors of several kinds ({found}), expected one "
            "kind for all, whose parameters may differ from site to site; choose one, or use "
            "adaptation=None, which samples them under their densities"
        )
    return blocks[0].prior


def join_blocks(
    values: list[float | Tensor], sizes: tuple[int, ...], like: Tensor
) -> float | Tensor:
    """Return one number where all blocks share it, else a tensor of shape (P,)."""
    first = values[0]
    if isinstance(first, float) and all(
        isinstance(value, float) and value == first for value in values
    ):
        return first
    parts = [
        torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1).expand(size)
        for value, size in zip(values, sizes, strict=True)
    ]
    return torch.cat(parts)


def per_parameter(values: list[float], tensor: Callable[[list[float]], Tensor]) -> float | Tensor:
    """Return one value a parameter: a plain number where there is one, which saves operations."""
    return values[0] if len(values) == 1 else tensor(values)


def count_gammas(blocks: Sequence[SparseBlock], count: int) -> list[float]:
    """Return the number of gammas of each delta."""
    gammas = [0.0] * count
    for block in blocks:
        if isinstance(block.delta, int):
            gammas[block.delta] += block.size // block.group
            continue
        for delta, size in enumerate(torch.bincount(block.delta.flatten()).tolist()):
            gammas[delta] += size // block.group
    return gammas


def scale_terms_of(
    sigmas: Sequence[Sigma], tensor: Callable[[list[float]], Tensor]
) -> ScaleTerms | None:
    """
    Return the terms of the sigmas' priors, one number each or one a sigma; None where all priors
    are InverseGamma, which (6) solves in closed form.
    """
    if all(sigma.terms is None for sigma in sigmas):
        return None
    # InverseGamma: log p(sigma^2) = -(nu + 2) log(sigma) - nu lambda / 2 sigma^2, up to a constant
    terms = [sigma.terms or ScaleTerms(-(sigma.nu + 2.0)) for sigma in sigmas]
    columns: dict[str, Any] = {}
    for name, absent in zip(ScaleTerms._fields, (0.0, 0.0, 0.0, math.inf), strict=True):
        values = [getattr(each, name) for each in terms]
        if any(value is not None for value in values):
            numbers = [absent if value is None else value for value in values]
            columns[name] = per_parameter(numbers, tensor)
    return ScaleTerms(**columns)


def gather_sites(numbers: Sequence[Sigma | Delta], values: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the values of the sites of some numbers, each of its site's shape."""
    parts: dict[str, list[Tensor]] = {}
    for number, value in zip(numbers, values, strict=True):
        if number.site is not None:
            parts.setdefault(number.site, []).append(value)
    shapes = {number.site: number.shape for number in numbers}
    return {
        site: torch.stack(own, -1).reshape(own[0].shape + shapes[site])
        for site, own in parts.items()
    }


def wider_component(spike: Component, slab: Component, spike_is_narrow: Tensor) -> Component:
    """
    Return the wider component.

    :raises ModelError: if it is the slab for some weights and the spike for others.
    """
    if bool(spike_is_narrow.all()):
        return slab
    if not bool(spike_is_narrow.any()):
        return spike
    raise ModelError(
        "the component of gamma = 0 is the narrower one for some weights and the wider one for "
        "others, expected one of both for all with sigma_from='slab', which leaves the "
        "narrower one out; use sigma_from='all', or parameters of the prior in one order"
    )


def check_modes(deltas: Sequence[Delta], sizes: Sequence[float], kind: str) -> None:
    """
    Check that equation (7) has a solution.

    :param sizes: the number of gammas of each delta.
    :param str kind: of what has a gamma, for the error.
    :raises ModelError: if it has none.
    """
    for delta, size in zip(deltas, sizes, strict=True):
        if delta.site is not None and delta.a + delta.b + size - 2.0 <= 0.0:
            raise ModelError(
                f"site {delta.site!r} ~ Beta({delta.a}, {delta.b}) with {size:.0f} {kind} has "
                "no mode for equation (7); use parameters of at least 1"
            )


def first_inclusion(
    given: float | Mapping[str, Tensor], blocks: Sequence[SparseBlock], like: Tensor
) -> Tensor:
    """
    Return the first rho of all weights, shape (P,).

    :param given: one number, or tensors by site.
    :raises ModelError: if a tensor is missing or of another shape.
    """
    if not isinstance(given, Mapping):
        one = torch.tensor(given, dtype=like.dtype, device=like.device)
        return one.repeat(sum(block.size for block in blocks))
    expected = {block.name: tuple(block.shape) for block in blocks}
    found = {name: tuple(rho.shape) for name, rho in given.items()}
    if found != expected:
        raise ModelError(
            f"initial_inclusion has tensors of shapes {found}, expected one for every sparse "
            f"site, of its shape: {expected}"
        )
    return torch.cat([given[name].reshape(-1) for name in expected]).to(like)


def first_number(number: Sigma | Delta, initial: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Return the first value of a sigma or delta, from the values of the sites, by name."""
    if number.site is not None:
        return initial[number.site].detach().reshape(-1)[number.index].to(like)
    return torch.tensor(number.fixed, dtype=like.dtype, device=like.device)
