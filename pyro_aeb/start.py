# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""How a chain starts: its random numbers and its first values."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_aeb.adaptation import StochasticApproximation
from pyro_aeb.arguments import Batch
from pyro_aeb.buffers import Place, unchanged_buffers
from pyro_aeb.errors import ModelError
from pyro_aeb.look import initial_values, unchanged_random_numbers
from pyro_aeb.posterior import Latents, Posterior
from pyro_aeb.structure import Structure

INITIAL_TRIES = 100
"""How often a starting point is drawn before giving up, as Pyro's own kernels do."""


def chain_number(started_here: int) -> int:
    """
    Which chain of a run this is. Chains of ``pyro.infer.MCMC`` that run in processes of their own
    are told by the name that MCMC gives the process.

    :param int started_here: how many chains this kernel object has started.
    """
    name = multiprocessing.current_process().name
    in_worker = multiprocessing.parent_process() is not None and name.isdigit()
    return int(name) if in_worker else started_here


def generator_of(seed: int | None, chain: int, device: torch.device) -> torch.Generator | None:
    """The chain's own generator; None, torch's global one, where there is no seed."""
    if seed is None:
        return None
    return torch.Generator(device=device).manual_seed((seed + chain) % 2**64)


def loader_seed(seed: int | None, chain: int, rank: int = 0) -> int | None:
    """
    A seed for what a DataLoader draws, of its own: with the same number as :func:`generator_of` the
    loader's random numbers would be those of the noise.

    :param int rank: of the processes that share a chain's data, each of which has a loader.
    """
    if seed is None:
        return None
    entropy = [(seed + chain) % 2**64, 1, *([rank] if rank else [])]
    words = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(words[0] >> 1)


def first_values(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    structure: Structure,
    strategy: Callable[..., Any],
    given: Mapping[str, Tensor] | None,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """
    The latent sites' first values, in constrained space.

    :param strategy: Pyro's ``init_to_*``.
    :param given: values in unconstrained space that go before the strategy's.
    :param generator: source of randomness, None for torch's own.
    :raises ModelError: if ``given`` does not fit the model.
    """
    with torch.random.fork_rng() if generator is not None else nullcontext():
        if generator is not None:
            number = torch.empty((), dtype=torch.int64, device=generator.device)
            torch.manual_seed(int(number.random_(generator=generator)))
        values = initial_values(model, args, kwargs, strategy)
    return {**values, **_constrained(structure, given or {})}


def _constrained(structure: Structure, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values given in unconstrained space, checked, in constrained space."""
    transforms = {block.name: block.transform for block in structure.blocks}
    transforms |= {s.site: biject_to(constraints.positive) for s in structure.sigmas if s.site}
    transforms |= {d.site: biject_to(constraints.unit_interval) for d in structure.deltas if d.site}
    shapes = {s.site: s.shape for s in structure.sigmas if s.site}
    shapes |= {d.site: d.shape for d in structure.deltas if d.site}
    shapes |= {block.name: block.shape for block in structure.blocks}
    transforms |= {site.name: site.transform for site in structure.learned}
    shapes |= {s.name: s.transform.inverse_shape(s.shape) for s in structure.learned}
    values = {}
    for name, value in given.items():
        if name not in transforms:
            raise ModelError(
                f"initial_params names {name!r}, which is no latent site; latent sites are "
                f"{sorted(transforms)}"
            )
        if value.shape != shapes[name]:
            raise ModelError(
                f"initial_params[{name!r}] has shape {tuple(value.shape)}, expected "
                f"{tuple(shapes[name])}, the shape of the site in unconstrained space"
            )
        transform = transforms[name]
        values[name] = value if transform is None else transform(value)
    return values


def flatten(structure: Structure, values: Mapping[str, Tensor]) -> Tensor:
    """
    The position of constrained values, shape (D,).

    :param values: site name to constrained value.
    :raises ModelError: if a value is not of its site's shape.
    """
    parts = []
    for block in structure.blocks:
        value, transform = values[block.name], block.transform
        expected = block.shape if transform is None else transform.forward_shape(block.shape)
        if value.shape != expected:
            raise ModelError(
                f"site {block.name!r} has a value of shape {tuple(value.shape)}, expected "
                f"{tuple(expected)}; look at init_strategy"
            )
        if transform is not None:
            value = transform.inv(value)
        parts.append(value.detach().reshape(-1))
    return torch.cat(parts).to(structure.dtype)


def find_start(
    posterior: Posterior,
    adaptation: StochasticApproximation | None,
    batch: Batch,
    draw: Callable[[], Mapping[str, Tensor]],
) -> tuple[Tensor, Latents | None]:
    """
    A starting point with a finite potential.

    :param Posterior posterior: Q.
    :param StochasticApproximation adaptation: the first latents, None to learn none.
    :param Batch batch: the data to try it on.
    :param draw: draws first values, in constrained space.
    :returns: position and latents.
    :raises ModelError: if none is found.
    """
    structure = posterior.structure
    for _ in range(INITIAL_TRIES):
        values = draw()
        position, latents = flatten(structure, values), None
        if adaptation is not None:
            latents = posterior.init(values, adaptation)
        with unchanged_buffers():
            log_density = posterior.gradient(position, latents, batch).log_density
        finite = [log_density, position.sum()]
        finite += [value.sum() for value in posterior.site_values(latents).values()]
        if all(bool(torch.isfinite(number)) for number in finite):
            return position, latents
    raise ModelError(
        f"no starting point with a finite potential in {INITIAL_TRIES} tries; give one with "
        "init_strategy=init_to_value(values=...), and look for data outside the support of the "
        "likelihood"
    )


def changed_buffers(
    posterior: Posterior, start: tuple[Tensor, Latents | None], batch: Batch
) -> list[Place]:
    """
    The places of the buffers that a step changes. They and the random numbers stay as they were.

    :param start: position and latents.
    """
    with unchanged_random_numbers(), unchanged_buffers() as changed:
        posterior.gradient(*start, batch)
    return changed


def stacked_starts(
    starts: Sequence[tuple[Tensor, Latents | None]],
) -> tuple[Tensor, Latents | None]:
    """
    Starting points stacked, with a leading axis of chains.

    :param starts: position and latents of every chain.
    """
    position = torch.stack([position for position, _ in starts])
    found = [latents for _, latents in starts if latents is not None]
    if not found:
        return position, None
    names = found[0].sites
    sites = {name: torch.stack([own.sites[name] for own in found]) for name in names}
    ssgl = [own.ssgl for own in found if own.ssgl is not None]
    if not ssgl:
        return position, Latents(None, sites)
    together = ssgl[0]._replace(  # what is left of the first kappas is the same in every chain
        rho=torch.stack([own.rho for own in ssgl]),
        slab=torch.stack([own.slab for own in ssgl]),
        sigma=torch.stack([own.sigma for own in ssgl]),
        delta=torch.stack([own.delta for own in ssgl]),
    )
    return position, Latents(together, sites)
