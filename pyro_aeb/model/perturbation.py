# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Find dependences between sites by perturbing values and tracing the model again.

Provenance and gradients follow tensors only, and miss what went through ``float(x)``; a gradient is
then silently wrong. A perturbation shows every dependence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_aeb.errors import ModelError
from pyro_aeb.model.tracing import Site, Tracer, remove_mask, unwrap


def perturb(
    sites: Mapping[str, Site], values: Mapping[str, Tensor], names: Collection[str]
) -> dict[str, Tensor]:
    """
    Return the values with every number of some sites moved up or down, in unconstrained space, by
    an amount of its own. The amounts are about the square root of 2 over the fan-in, so that a deep
    network's outputs stay in range.

    :param values: latent site name to constrained value.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    perturbed = dict(values)
    for name in sorted(names):
        transform = biject_to(sites[name]["fn"].support)
        free = transform.inv(values[name])
        fan_in = free.numel() / (free.shape[0] if free.dim() > 1 else 1)
        sign = 1.0 - 2.0 * torch.randint(2, free.shape, generator=generator, device="cpu")
        size = 0.75 + 0.5 * torch.rand(free.shape, generator=generator, device="cpu")
        perturbed[name] = transform(free + (sign * size * (2.0 / fan_in) ** 0.5).to(free))
    return perturbed


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


def find_gradient_paths(sites: Mapping[str, Site], trace: Tracer) -> dict[str, frozenset[str]]:
    """
    Return, for every site, the other latent sites with respect to which its log density has a
    gradient.

    :param sites: the sites of a trace, without plates and deterministic ones.
    """
    latent = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
    leaves = {n: value.clone().requires_grad_() for n, value in latent.items()}
    traced = {n: s for n, s in trace(leaves, grad=True).items() if n in sites}
    paths = {}
    names = {id(leaf): name for name, leaf in leaves.items()}
    for name, site in traced.items():
        with torch.enable_grad():  # also where the caller has turned gradients off
            density = remove_mask(site["fn"]).log_prob(site["value"]).sum()
        ancestors = [n for n in _find_ancestors(density, names) if n != name]
        gradients: tuple[Tensor | None, ...] = ()
        if ancestors:  # a custom autograd function may return no gradient
            inputs = [leaves[n] for n in ancestors]
            gradients = torch.autograd.grad(density, inputs, retain_graph=True, allow_unused=True)
        pairs = zip(ancestors, gradients, strict=True)
        paths[name] = frozenset(n for n, g in pairs if g is not None)
    return paths


def _find_ancestors(value: Tensor, names: Mapping[int, str]) -> list[str]:
    """
    Return the leaves that a value was computed from. The time does not grow with the number of
    other leaves.
    """
    ancestors, visited, pending = [], set(), [value.grad_fn]
    while pending:
        node: Any = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in names:
            ancestors.append(names[id(leaf)])
        pending.extend(parent for parent, _ in node.next_functions)
    return ancestors


def check_gradients(
    sites: Mapping[str, Site],
    paths: Mapping[str, frozenset[str]],
    sampled: Collection[str],
    trace: Tracer,
) -> None:
    """
    Check that gradients show every dependence of a distribution on the sampled sites.

    :param sites: the sites of a trace at feasible values.
    :param sampled: names of the sites that are sampled by gradient.
    :raises ModelError: if a dependence has no gradient, or a support depends on another site.
    """
    values = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
    by_path: dict[frozenset[str], list[str]] = {frozenset(): []}
    for name in sites:
        by_path.setdefault(paths[name].intersection(sampled), []).append(name)
    for path, names in by_path.items():
        hidden = frozenset(sampled) - path
        if not hidden:
            continue
        perturbed = trace(perturb(sites, values, hidden))
        if not path:
            for name in values.keys() & perturbed.keys():
                _check_support(sites[name], perturbed[name])
        for name in (n for n in names if n in perturbed):
            if not has_same_density(sites[name], perturbed[name]):
                raise ModelError(
                    f"the distribution of site {name!r} depends on one of the sites "
                    f"{sorted(hidden)} without a gradient, as after float(x), x.item() or "
                    "x.detach(); pass the tensor itself"
                )


def _check_support(site: Site, perturbed: Site) -> None:
    transforms = [biject_to(s["fn"].support) for s in (site, perturbed)]
    free = transforms[0].inv(site["value"])
    if not is_close(transforms[0](free), transforms[1](free)):
        raise ModelError(
            f"site {site['name']!r} ~ {type(unwrap(site['fn'])).__name__} has a support that "
            "depends on another site, expected a fixed one; sample a number of fixed support and "
            "scale it in the model"
        )
