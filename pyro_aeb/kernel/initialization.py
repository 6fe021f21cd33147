# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Start a chain: inspect the model, find first values, and assemble what a chain owns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_aeb.adaptation.gibbs import Gibbs
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.data.loaders import ArgumentSource
from pyro_aeb.data.minibatches import ChainMinibatches, Minibatches, StepData
from pyro_aeb.errors import ModelError, first_line, inform, is_domain_error
from pyro_aeb.kernel.algorithm import FiniteCheck, Update, scan_weight
from pyro_aeb.kernel.chain import Chain
from pyro_aeb.kernel.compiled_step import AUTO_STEPS, CompiledStep, first_compiled_step
from pyro_aeb.kernel.draws import Recording, names_to_save
from pyro_aeb.kernel.noise import Noise
from pyro_aeb.kernel.options import KernelOptions
from pyro_aeb.kernel.scan import make_scan
from pyro_aeb.kernel.seeds import generator_of
from pyro_aeb.kernel.tuned_steps import make_tuner, planned_steps
from pyro_aeb.model.initial_values import draw_initial_values, init_in_spikes, init_to_default
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.model.model_failures import explain_failures, named_arguments
from pyro_aeb.model.side_effects import Buffers, preserve_buffers
from pyro_aeb.model.sites import EnumeratedSite
from pyro_aeb.model.structure import Structure
from pyro_aeb.model.summed_out import SummedOut
from pyro_aeb.model.tracing import find_latent_device
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
from pyro_aeb.transitions.base import noise_size

INITIAL_TRIES = 100
"""How often a starting point is drawn before giving up, as Pyro's own kernels do."""


def start_chain(
    options: KernelOptions,
    source: ArgumentSource,
    numbers: Sequence[int],
    vectorized: bool,
    warmup: int,
    given: Mapping[str, Tensor] | None,
    recorder: Recorder,
) -> Chain:
    """
    Start a chain, or several that step together.

    :param numbers: of the chains, from which their seeds follow.
    :param bool vectorized: whether the chain has a leading axis.
    :param given: first values in unconstrained space, with the leading axis.
    :raises ModelError: if the model or the data cannot be sampled.
    """
    model, structure = _inspect(options, source)
    saved = names_to_save(structure, options.save, isinstance(options.adaptation, Gibbs))
    ranks = ranks_of_data(options.data_parallel)
    generators = tuple(generator_of(options.seed, n, structure.device) for n in numbers)
    minibatches = [
        Minibatches(structure.plates, options.minibatches, structure.device, generator, ranks)
        for generator in generators
    ]
    buffers = Buffers(structure.changed_buffers, len(numbers) if vectorized else None)
    average = Average(ranks, buffers) if options.data_parallel else None
    posterior = Posterior(model, structure, buffers, average, options.adaptation)
    batch = Batch(source.peek(), minibatches[0].first())
    position, latents = _find_starts(options, posterior, batch, generators, given, vectorized)
    transition: Any = options.transition
    needs_target = isinstance(transition, TargetTransition)
    update = Update(posterior, transition)
    shape = *position.shape[:-1], noise_size(transition, structure.size)
    like = position.new_empty(()).expand(shape)  # it is kept, and takes no memory
    whole = not (needs_target or options.data_parallel)
    announces = options.compile == "auto"
    data = StepData(source, ChainMinibatches(minibatches) if vectorized else minibatches[0])
    tuner = make_tuner(options, structure, position, numbers, warmup, source.sizes is not None)
    return Chain(
        structure=structure,
        posterior=posterior,
        data=data,
        generators=generators,
        state=transition.init(position),
        latents=latents,
        warmup=warmup,
        recording=Recording(structure, saved, position.shape[:-1], recorder),
        buffers=buffers,
        noise=Noise(options.noise, like, generators),
        update=update,
        make_compiled=partial(  # without the kernel, whose chain would then be a part of itself
            _compile, whole, announces, update, buffers, minibatches[0].partial, like
        ),
        compile_from=first_compiled_step(options.compile, planned_steps(options, tuner, warmup)),
        needs_target=needs_target,
        rejects=getattr(transition, "rejects", False),
        finite=FiniteCheck(structure.device, structure.dtype),
        pruner=None if options.pruning is None else Pruner(options.pruning, structure),
        scan=make_scan(posterior, data, buffers, partial(scan_weight, options), generators),
        tuner=tuner,
    )


def _compile(
    whole: bool,
    announces: bool,
    update: Update,
    buffers: Buffers,
    plates: Collection[str],
    like: Tensor,
) -> CompiledStep | None:
    """
    Compile the steps that follow.

    :param bool whole: whether steps are compiled as a whole; otherwise their gradient is.
    :param bool announces: whether nobody has asked for it, so that it is said.
    :returns: a whole step.
    """
    report = None
    if announces:
        report = inform
        inform(
            f"This run has {AUTO_STEPS:,} steps or more, and so they are compiled now: some "
            "seconds, up to a minute for a deep network. AEBKernel(..., compile=False) runs them "
            "as written."
        )
    if not whole:
        update.posterior.compile(buffers, plates, report)
        return None
    return CompiledStep(update, buffers, plates, like, report)


def _inspect(
    options: KernelOptions, source: ArgumentSource
) -> tuple[Callable[..., Any], Structure]:
    """
    Inspect the model on its first arguments. Return the model, whose discrete sites are summed out,
    and its structure.
    """
    try:
        return options.model, _inspect_model(options, options.model, source)
    except EnumeratedSite:
        args, kwargs = source.peek()
    with explain_failures(named_arguments(options.model, args, kwargs)):
        model = SummedOut(options.model, args, kwargs, options.init_strategy)
    return model, _inspect_model(options, model, source)


def _inspect_model(
    options: KernelOptions, model: Callable[..., Any], source: ArgumentSource
) -> Structure:
    """Inspect a model; a loader's data are moved to its device."""
    from_loader = source.sizes is not None
    if from_loader and (device := find_latent_device(model, *source.peek())):
        source.move_to(device)
    args, kwargs = source.peek()
    structure = inspect_model(
        model,
        args,
        kwargs,
        adapt=options.adaptation is not None,
        links=options.links,
        loader_sizes=source.sizes,
        latents={} if options.adaptation is None else options.adaptation.latents,
        init_strategy=options.init_strategy,
    )
    if options.adaptation is not None and not (structure.sparse or structure.learned):
        warnings.warn(
            "adaptation is given but the model has no SSGL site, so nothing is learned; give "
            "weights an SSGL prior, name other sites in latents=, or use adaptation=None",
            stacklevel=5,
        )
    if structure.width is not None:
        _check_width(options, structure.width.site)
    if options.data_parallel:
        ranks = ranks_of_data(options.data_parallel)
        check_shares(ranks, structure.plates)
        if not from_loader:
            check_same_data(ranks, args, kwargs)
    return structure


def _check_width(options: KernelOptions, site: str) -> None:
    """Check that a width v0 can be learned by some options."""
    transition = options.transition
    reason = None
    if options.is_tuned:
        reason = "settings are chosen in warm-up, for spikes of one width"
    elif options.data_parallel:
        reason = "data_parallel=True, and its moves take all data"
    elif not isinstance(options.adaptation, Gibbs) and isinstance(transition, TargetTransition):
        reason = f"the steps of {type(transition).__name__} do not shrink with the spikes"
    if reason is not None:
        raise ModelError(
            f"the width v0 of the spikes, site {site!r}, is learned, and {reason}; expected a "
            "transition with a step size, such as SGHMC(0.01), in units of sigma v0, and one "
            "process; or make v0 a number"
        )


def _find_starts(
    options: KernelOptions,
    posterior: Posterior,
    batch: Batch,
    generators: Sequence[torch.Generator | None],
    given: Mapping[str, Tensor] | None,
    vectorized: bool,
) -> tuple[Tensor, Latents | None]:
    """Find a start for every chain; stack them where chains step together."""
    model, strategy, structure = posterior.model, options.init_strategy, posterior.structure
    if strategy is init_to_default and posterior.adaptation.is_sampled:
        strategy = init_in_spikes  # a chain that begins in the slab may stay there
    starts = []
    for i, generator in enumerate(generators):
        own = {name: value[i] if vectorized else value for name, value in (given or {}).items()}
        draw = partial(
            draw_first_values, model, batch.arguments, structure, strategy, own, generator
        )
        starts.append(find_start(posterior, batch, draw))
    position, latents = _stack_starts(starts) if vectorized else starts[0]
    if options.data_parallel:
        check_agreement((position, *values_of(latents)))
    return position, latents


def _constrain_given(structure: Structure, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Check values in unconstrained space, and map them to constrained space.

    :raises ModelError: if they do not fit the model.
    """
    transforms = {block.name: block.transform for block in structure.blocks}
    transforms |= {s.site: biject_to(constraints.positive) for s in structure.sigmas if s.site}
    transforms |= {d.site: biject_to(constraints.unit_interval) for d in structure.deltas if d.site}
    shapes = {s.site: s.shape for s in structure.sigmas if s.site}
    shapes |= {d.site: d.shape for d in structure.deltas if d.site}
    shapes |= {block.name: block.shape for block in structure.blocks}
    if structure.width is not None:
        transforms[structure.width.site] = biject_to(constraints.positive)
        shapes[structure.width.site] = structure.width.shape
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


def draw_first_values(
    model: Callable[..., Any],
    arguments: Arguments,
    structure: Structure,
    strategy: Callable[..., Any],
    given: Mapping[str, Tensor],
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """
    Draw first values of the latent sites, in constrained space.

    :param given: values in unconstrained space that go before the strategy's.
    :param generator: source of randomness, None for torch's own.
    :raises ModelError: if ``given`` does not fit the model.
    """
    with torch.random.fork_rng() if generator is not None else nullcontext():
        if generator is not None:
            number = torch.empty((), dtype=torch.int64, device=generator.device)
            torch.manual_seed(int(number.random_(generator=generator)))
        values = draw_initial_values(model, *arguments, strategy)
    return {**values, **_constrain_given(structure, given)}


def find_start(
    posterior: Posterior,
    batch: Batch,
    draw: Callable[[], Mapping[str, Tensor]],
) -> tuple[Tensor, Latents | None]:
    """
    Find a starting point with a finite log density.

    :param draw: draws first values, in constrained space.
    :returns: position and latents.
    :raises ModelError: if none is found.
    """
    structure, adaptation = posterior.structure, posterior.adaptation
    failure = ""
    for _ in range(INITIAL_TRIES):
        try:
            values = draw()
            position, latents = structure.flatten(values), adaptation.init(values)
            with preserve_buffers():
                log_density = posterior.evaluate(position, latents, batch).log_density
        except Exception as error:
            if not is_domain_error(error):
                raise
            failure = f" The model failed at the last one: {first_line(error)}"
            continue
        numbers = [log_density, position.sum()]
        numbers += [value.sum() for value in adaptation.values(latents).values()]
        if all(bool(torch.isfinite(number)) for number in numbers):
            return position, latents
    raise ModelError(
        f"no starting point with a finite potential in {INITIAL_TRIES} tries; give one with "
        "init_strategy=init_to_value(values=...), and look for data outside the support of the "
        f"likelihood.{failure}"
    )


def _stack_starts(
    starts: Sequence[tuple[Tensor, Latents | None]],
) -> tuple[Tensor, Latents | None]:
    """Stack the positions and latents of several chains, with a leading axis."""
    position = torch.stack([position for position, _ in starts])
    latents = [latents for _, latents in starts if latents is not None]
    if not latents:
        return position, None
    names = latents[0].sites
    sites = {name: torch.stack([each.sites[name] for each in latents]) for name in names}
    ssgl = [each.ssgl for each in latents if each.ssgl is not None]
    if not ssgl:
        return position, Latents(None, sites)
    first = ssgl[0]
    # What is left of the first kappas is the same in every chain.
    own = [name for name in first._fields if name != "excess"]
    stacked = {name: torch.stack([getattr(each, name) for each in ssgl]) for name in own}
    return position, Latents(first._replace(**stacked), sites)
