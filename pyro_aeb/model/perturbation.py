# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What depends on what, found out by moving values and looking again.

Provenance sees the tensors that a value went through. It does not see ``float(x)``; neither does
the gradient, which would be silently wrong. Moving a value sees everything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_aeb.errors import ModelError
from pyro_aeb.model.tracing import Site, base

Looker = Callable[[Mapping[str, Tensor]], dict[str, Site]]
"""Latent values by name, in constrained space, to the sites of a look with those values."""


def moved_values(
    sites: Mapping[str, Site], values: Mapping[str, Tensor], which: Collection[str]
) -> dict[str, Tensor]:
    """
    Moves every number of some sites by an amount of its own, in unconstrained space: up or down, by
    about the square root of 2 over the fan-in, so that a deep network's outputs stay in range.

    :param sites: of a look.
    :param values: latent site name to constrained value.
    :param which: the sites to move.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    moved = dict(values)
    for name in sorted(which):
        transform = biject_to(sites[name]["fn"].support)
        free = transform.inv(values[name])
        fan_in = free.numel() / (free.shape[0] if free.dim() > 1 else 1)
        sign = 1.0 - 2.0 * torch.randint(2, free.shape, generator=generator, device="cpu")
        size = 0.75 + 0.5 * torch.rand(free.shape, generator=generator, device="cpu")
        moved[name] = transform(free + (sign * size * (2.0 / fan_in) ** 0.5).to(free))
    return moved


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, up to rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=0.0, equal_nan=True)


def same_density(a: Site, b: Site) -> bool:
    """Whether two looks give the first one's value of a site the same density."""
    return same(a["fn"].log_prob(a["value"]), b["fn"].log_prob(a["value"]))


def gradient_reaches(
    sites: Mapping[str, Site], leaves: Mapping[str, Tensor]
) -> dict[str, frozenset[str]]:
    """
    The latent sites that a gradient of each site's log density reaches, itself left out.

    :param sites: of a look with gradients.
    :param leaves: the latent values of that look.
    """
    reached = {}
    names = {id(leaf): name for name, leaf in leaves.items()}
    for name, site in sites.items():
        with torch.enable_grad():  # also where the caller has turned gradients off
            density = site["fn"].log_prob(site["value"]).sum()
        behind = [n for n in _behind(density, names) if n != name]
        gradients: tuple[Tensor | None, ...] = ()
        if behind:  # a function of the user's may pass no gradient on
            inputs = [leaves[n] for n in behind]
            gradients = torch.autograd.grad(density, inputs, retain_graph=True, allow_unused=True)
        pairs = zip(behind, gradients, strict=True)
        reached[name] = frozenset(n for n, g in pairs if g is not None)
    return reached


def _behind(value: Tensor, names: Mapping[int, str]) -> list[str]:
    """
    The leaves that a value was computed from: in time that does not grow with the number of those
    that it was not.

    :param names: of the leaves, by id.
    """
    found, seen, waiting = [], set(), [value.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in names:
            found.append(names[id(leaf)])
        waiting.extend(inner for inner, _ in node.next_functions)
    return found


def check_gradient_sees(
    sites: Mapping[str, Site],
    reached: Mapping[str, frozenset[str]],
    sampled: Collection[str],
    look_at: Looker,
) -> None:
    """
    Checks that no distribution follows a sampled site in a way that a gradient cannot see.

    :param sites: of a look at feasible values.
    :param reached: from :func:`gradient_reaches`.
    :param sampled: names of the sites that are sampled by gradient.
    :param look_at: looks at the model with other values.
    :raises ModelError: if a link is lost, or a support moves.
    """
    values = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
    everything = frozenset(sampled)
    alike: dict[frozenset[str], list[str]] = {frozenset(): []}  # sites by what their gradient sees
    for name in sites:
        alike.setdefault(reached[name] & everything, []).append(name)
    for seen, names in alike.items():
        hidden = everything - seen
        if not hidden:
            continue
        moved = look_at(moved_values(sites, values, hidden))
        if not seen:
            for name in values.keys() & moved.keys():
                _check_support(sites[name], moved[name])
        for name in (n for n in names if n in moved):
            if not same_density(sites[name], moved[name]):
                raise ModelError(
                    f"the distribution of site {name!r} follows one of the sites {sorted(hidden)} "
                    "in a way that no gradient sees, as after float(x), x.item() or x.detach(); "
                    "pass the tensor itself"
                )


def _check_support(site: Site, moved: Site) -> None:
    transforms = [biject_to(s["fn"].support) for s in (site, moved)]
    free = transforms[0].inv(site["value"])
    if not same(transforms[0](free), transforms[1](free)):
        raise ModelError(
            f"site {site['name']!r} ~ {type(base(site['fn'])).__name__} has a support that moves "
            "with another site, expected a fixed one; sample a number of fixed support and "
            "scale it in the model"
        )
