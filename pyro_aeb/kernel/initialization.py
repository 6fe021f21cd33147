# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""How a kernel's chains begin: the look at the model, first values, and all that a chain owns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Batch
from pyro_aeb.data.loaders import ArgumentSource
from pyro_aeb.data.minibatches import ChainMinibatches, Minibatches
from pyro_aeb.data.step_data import StepData
from pyro_aeb.errors import ModelError
from pyro_aeb.kernel.algorithm import Update
from pyro_aeb.kernel.chain import Chain
from pyro_aeb.kernel.draws import Recording, names_to_save
from pyro_aeb.kernel.noise import Noise
from pyro_aeb.kernel.options import KernelOptions
from pyro_aeb.kernel.seeds import generator_of
from pyro_aeb.kernel.update import CompiledUpdate
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.model.side_effects import Buffers, Place, preserve_buffers, preserve_random_state
from pyro_aeb.model.structure import Structure
from pyro_aeb.model.tracing import draw_initial_values, find_latent_device
from pyro_aeb.posterior.data_parallel import (
    Average,
    check_agreement,
    check_same_data,
    check_shares,
    ranks_of_data,
    values_of,
)
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.pruning import Pruner
from pyro_aeb.storage.recorder import Recorder
from pyro_aeb.transitions import TargetTransition


def begin(
    options: KernelOptions,
    source: ArgumentSource,
    numbers: Sequence[int],
    together: bool,
    warmup: int,
    save: Sequence[str] | None,
    given: Mapping[str, Tensor] | None,
    recorder: Recorder,
) -> Chain:
    """
    Looks at the model and starts a chain, or several that step together.

    :param KernelOptions options: of the kernel.
    :param ArgumentSource source: the model's arguments.
    :param numbers: of the chains, from which their seeds follow.
    :param bool together: whether the chain has a leading axis.
    :param int warmup: draws of warm-up.
    :param save: names of the sites and summaries that a draw holds, None for the default.
    :param given: first values in unconstrained space, with the leading axis.
    :param Recorder recorder: receives the draws.
    :raises ModelError: if the model or the data cannot be sampled.
    """
    from_loader = source.sizes is not None
    if from_loader and (device := find_latent_device(options.model, *source.peek())):
        source.move_to(device)
    args, kwargs = source.peek()
    structure = inspect_model(
        options.model,
        args,
        kwargs,
        adapt=options.adaptation is not None,
        links=options.links,
        loader_sizes=source.sizes,
        latents={} if options.adaptation is None else options.adaptation.latents,
    )
    if options.adaptation is not None and not (structure.sparse or structure.learned):
        warnings.warn(
            "adaptation is given but the model has no SSGL site, so nothing is learned; give "
            "weights an SSGL prior, name other sites in latents=, or use adaptation=None",
            stacklevel=4,
        )
    ranks, average = ranks_of_data(options.data_parallel), None
    if options.data_parallel:
        average = Average(ranks)
        check_shares(ranks, structure.plates)
        if not from_loader:
            check_same_data(ranks, args, kwargs)
    saved = names_to_save(structure, save)
    generators = tuple(generator_of(options.seed, n, structure.device) for n in numbers)
    minibatches = [
        Minibatches(structure.plates, options.minibatches, structure.device, generator, ranks)
        for generator in generators
    ]
    posterior = Posterior(options.model, structure, average=average)
    batch = Batch(source.peek(), minibatches[0].first())
    starts = []
    for i, generator in enumerate(generators):
        values = {n: v[i] for n, v in given.items()} if given and together else given
        draw = partial(
            first_values,
            *(options.model, args, kwargs, structure, options.init_strategy, values, generator),
        )
        starts.append(find_start(posterior, options.adaptation, batch, draw))
    buffers = Buffers(changed_buffers(posterior, starts[0], batch), None)
    if together:
        buffers = Buffers(buffers.places, len(numbers))
        posterior = Posterior(options.model, structure, buffers, average)
    if options.compile == "all":
        posterior.compile(buffers)
    position, latents = stacked_starts(starts) if together else starts[0]
    noise_size = structure.size
    if isinstance(options.transition, TargetTransition):
        noise_size = options.transition.noise_size(structure.size)
    if average is not None:
        average.buffers = buffers
        check_agreement(ranks, (position, *values_of(latents)))
    needs_target = isinstance(options.transition, TargetTransition)
    compiled = options.compile is not None and not needs_target
    update: Any = Update(posterior, options.transition)
    update = CompiledUpdate(update) if compiled else update
    like = position.new_empty(*position.shape[:-1], noise_size)
    return Chain(
        structure=structure,
        posterior=posterior,
        data=StepData(source, ChainMinibatches(minibatches) if together else minibatches[0]),
        generators=generators,
        state=options.transition.init(position),
        latents=latents,
        warmup=warmup,
        recording=Recording(structure, saved, position.shape[:-1], recorder),
        buffers=buffers,
        noise=Noise(options.noise, like, generators, bits=compiled),
        update=update,
        needs_target=needs_target,
        pruner=None if options.pruning is None else Pruner(options.pruning, structure),
    )


INITIAL_TRIES = 100
"""How often a starting point is drawn before giving up, as Pyro's own kernels do."""


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
        values = draw_initial_values(model, args, kwargs, strategy)
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
        position, latents = structure.flatten(values), None
        if adaptation is not None:
            latents = posterior.adaptation.init(values, adaptation)
        with preserve_buffers():
            log_density = posterior.evaluate(position, latents, batch).log_density
        finite = [log_density, position.sum()]
        finite += [value.sum() for value in posterior.adaptation.values(latents).values()]
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
    with preserve_random_state(), preserve_buffers() as changed:
        posterior.evaluate(*start, batch)
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
