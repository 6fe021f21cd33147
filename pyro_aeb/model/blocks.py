# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The blocks of a structure, and the numbers that they share, from the latent sites of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_aeb.errors import ModelError
from pyro_aeb.model.links import Links, describe
from pyro_aeb.model.sites import Site, is_plain, unwrap
from pyro_aeb.model.structure import Block, Delta, NormalBlock, Sigma, SparseBlock, Width
from pyro_aeb.priors.group import group_size
from pyro_aeb.priors.scales import scale_terms


def sparse_blocks(
    latent: Mapping[str, Site],
    sparse: list[str],
    links: Mapping[tuple[str, str], str],
    uses: Links,
) -> tuple[tuple[SparseBlock, ...], tuple[Sigma, ...], tuple[Delta, ...], dict[str, Tensor]]:
    """
    Return the blocks of the sparse sites, their distinct sigmas and deltas, and the
    ``sigmas_of_data`` of the structure.
    """
    blocks, sigmas, deltas = [], dict[Sigma, int](), dict[Delta, int]()
    for name in sparse:
        site = latent[name]
        of_sigma, of_delta = links.get((name, "sigma")), links.get((name, "delta"))
        fn, shape = unwrap(site["fn"]), site["value"].shape
        block = SparseBlock(
            name,
            shape,
            prior=type(fn),
            parameters={n: _number_or_tensor(v, shape) for n, v in fn.shape_parameters.items()},
            sigma=_add(_sigmas(site, of_sigma, latent, uses), sigmas)
            + uses.weights.get((name, "sigma"), 0),
            delta=_add(_deltas(site, of_delta, latent), deltas)
            + uses.weights.get((name, "delta"), 0),
            group=group_size(site["fn"]),
        )
        blocks.append(block)
    first = {sigma.site: index for sigma, index in reversed(sigmas.items())}
    several = {n: first[s] + i for n, (s, i) in uses.data.items() if isinstance(i, Tensor)}
    return tuple(blocks), tuple(sigmas), tuple(deltas), several


def _add(numbers: list[Any], known: dict[Any, int]) -> int:
    """Add a site's numbers to those that are known, in order; return the index of the first."""
    for number in numbers:
        known.setdefault(number, len(known))
    return known[numbers[0]]


def _sigmas(site: Site, link: str | None, latent: Mapping[str, Site], uses: Links) -> list[Sigma]:
    """Return the numbers of the site that a sparse site's sigma is linked to."""
    if link is None:
        return [Sigma(None, fixed=_fixed(site, "sigma"))]
    prior, shape = unwrap(latent[link]["fn"]), latent[link]["value"].shape
    of_data = {n: torch.as_tensor(index) for n, (s, index) in uses.data.items() if s == link}
    likelihoods = [
        frozenset(n for n, index in of_data.items() if bool((index == k).any()))
        for k in range(shape.numel())
    ]
    sigmas = [
        Sigma(link, likelihoods=names, shape=shape, index=k) for k, names in enumerate(likelihoods)
    ]
    if not isinstance(prior, dist.InverseGamma):
        terms = scale_terms(prior, shape)
        return [replace(s, terms=own) for s, own in zip(sigmas, terms, strict=True)]
    # sigma^2 ~ InverseGamma(nu / 2, nu lambda / 2)
    numbers = _numbers(shape, prior.concentration, prior.rate)
    return [
        replace(s, nu=2.0 * a, nu_lambda=2.0 * b) for s, (a, b) in zip(sigmas, numbers, strict=True)
    ]


def _deltas(site: Site, link: str | None, latent: Mapping[str, Site]) -> list[Delta]:
    """Return the numbers of the site that a sparse site's delta is linked to."""
    if link is None:
        return [Delta(None, fixed=_fixed(site, "delta"))]
    prior, shape = unwrap(latent[link]["fn"]), latent[link]["value"].shape
    numbers = _numbers(shape, prior.concentration1, prior.concentration0)
    return [Delta(link, None, a, b, shape, k) for k, (a, b) in enumerate(numbers)]


def width_of(latent: Mapping[str, Site], links: Mapping[tuple[str, str], str]) -> Width | None:
    """Return the width of the spikes, where it is a latent site's."""
    for (_, parameter), site in links.items():
        if parameter == "v0":
            prior = unwrap(latent[site]["fn"])
            shape = latent[site]["value"].shape
            return Width(site, float(prior.concentration), float(prior.rate), shape)
    return None


def _numbers(shape: torch.Size, *parameters: Tensor) -> list[tuple[float, ...]]:
    """Return a prior's parameters for each number of a site of some shape."""
    columns = [torch.as_tensor(p).detach().expand(shape).flatten().tolist() for p in parameters]
    return list(zip(*columns, strict=True))


def _number_or_tensor(value: Any, shape: torch.Size) -> float | Tensor:
    """Return a parameter as one number where all are equal, else as a tensor of a shape."""
    if not isinstance(value, Tensor):
        return float(value)
    value = value.detach()
    first = value.reshape(-1)[0]
    if bool((value == first).all()):
        return float(first)
    return value.expand(shape).clone()


def _fixed(site: Site, parameter: str) -> float:
    value = _number_or_tensor(unwrap(site["fn"]).given[parameter], site["value"].shape)
    if isinstance(value, Tensor):
        raise ModelError(
            f"{describe(site)}: {parameter} is a tensor of different numbers, expected "
            "one number a site; split the site, or use adaptation=None"
        )
    return value


def is_plain_normal(site: Site) -> bool:
    """Whether a site has a normal prior, unmasked and of scale 1."""
    return type(unwrap(site["fn"])) is dist.Normal and is_plain(site)


def normal_block(site: Site) -> NormalBlock:
    """Return the block of a site with a plain normal prior."""
    shape = site["value"].shape
    fn = unwrap(site["fn"])
    loc, scale = (x.detach().expand(shape).clone() for x in (fn.loc, fn.scale))
    return NormalBlock(site["name"], shape, loc=loc, scale=scale)


def general_block(site: Site) -> Block:
    """Return the block of a site with any other prior, in unconstrained space."""
    value = site["value"]
    support = site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real:
        return Block(site["name"], value.shape)
    transform = biject_to(site["fn"].support)
    return Block(site["name"], transform.inv(value).shape, transform)
