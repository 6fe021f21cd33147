# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Find dependences between sites by perturbing values and tracing the model again.

Provenance and gradients follow tensors only, and miss what went through ``float(x)``; a gradient is
then silently wrong. A perturbation shows every dependence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_aeb.errors import ModelError, first_line, is_domain_error
from pyro_aeb.model.sites import Site, log_density, remove_mask

SIZES = (1.0, 0.3, 0.1, 0.03)
"""The sizes of perturbations that are tried one after the other."""


def perturb(
    sites: Mapping[str, Site],
    values: Mapping[str, Tensor],
    names: Collection[str],
    size: float = 1.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """
    Return the values with every number of some sites moved up or down, in unconstrained space, by
    an amount of its own. The amounts are about the square root of 2 over the fan-in, so that a deep
    network's outputs stay in range.

    :param values: latent site name to constrained value.
    :param float size: a factor of the amounts.
    :param int seed: of signs and amounts.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    perturbed = dict(values)
    for name in sorted(names):
        transform = biject_to(sites[name]["fn"].support)
        free = transform.inv(values[name])
        fan_in = free.numel() / (free.shape[0] if free.dim() > 1 else 1)
        sign = 1.0 - 2.0 * torch.randint(2, free.shape, generator=generator, device="cpu")
        amount = 0.75 + 0.5 * torch.rand(free.shape, generator=generator, device="cpu")
        amount *= size * (2.0 / fan_in) ** 0.5
        perturbed[name] = transform(free + (sign * amount).to(free))
    return perturbed


def log_densities(sites: Collection[Site]) -> Iterable[Tensor]:
    """Return the log densities of some sites of a trace."""
    return map(log_density, sites)


def trace_perturbed(
    sites: Mapping[str, Site],
    values: Mapping[str, Tensor],
    names: Collection[str],
    trace: Callable[[Mapping[str, Tensor]], dict[str, Site]],
    densities: Callable[[Collection[Site]], Iterable[Tensor]] = log_densities,
) -> tuple[dict[str, Tensor], dict[str, Site]]:
    """
    Perturb values, and trace the model there; nearer, where its density does not exist there.

    :param densities: those of a trace's sites that are to be finite.
    :returns: the perturbed values, and the sites of the trace.
    :raises ModelError: if its density does not exist nearby.
    """
    for size in SIZES:
        moved = perturb(sites, values, names, size)
        try:
            traced = trace(moved)
            common = [site for name, site in traced.items() if name in sites]
            if all(bool(torch.isfinite(density).all()) for density in densities(common)):
                break
        except Exception as error:
            if not is_domain_error(error):
                raise
            if size == SIZES[-1]:
                raise ModelError(
                    f"the model fails at values near its first ones, where its dependences "
                    f"are looked for: {first_line(error)}. Give its sites other first values by "
                    "init_strategy=init_to_value(values=...)"
                ) from error
    return moved, traced


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, up to rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=0.0, equal_nan=True)


def has_same_density(a: Site, b: Site) -> bool:
    """
    Whether a site's value in the first trace has the same density in both, masks aside; for an
    observed site, of which each trace may have computed its own, whether the densities are the
    same.
    """
    value = b["value"] if b["is_observed"] else a["value"]
    before, after = (remove_mask(site["fn"]) for site in (a, b))
    return is_close(before.log_prob(a["value"]), after.log_prob(value))
