# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""How a kernel's chains begin: the look at the model, first values, and all that a chain owns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from pyro_aeb.adaptation import StochasticApproximation
from pyro_aeb.arguments import Batch
from pyro_aeb.buffers import Buffers
from pyro_aeb.chain import Chain
from pyro_aeb.data_parallel import (
    Average,
    check_agreement,
    check_same_data,
    check_shares,
    ranks_of_data,
    values_of,
)
from pyro_aeb.links import HandLinks
from pyro_aeb.look import device_of_latents
from pyro_aeb.minibatches import ChainMinibatches, Minibatches, Order
from pyro_aeb.model import inspect_model
from pyro_aeb.noise import Kind, Noise
from pyro_aeb.posterior import Posterior
from pyro_aeb.pruning import Pruner, Pruning
from pyro_aeb.sources import Source
from pyro_aeb.start import (
    changed_buffers,
    find_start,
    first_values,
    generator_of,
    stacked_starts,
)
from pyro_aeb.storage import names_to_save
from pyro_aeb.transitions import AnyTransition, TargetTransition
from pyro_aeb.update import Compile, Update


class Recipe(Protocol):
    """What a kernel says of its chains; see :class:`~pyro_aeb.kernel.AEBKernel`."""

    model: Callable[..., Any]
    transition: AnyTransition
    adaptation: StochasticApproximation | None
    pruning: Pruning | None
    init_strategy: Callable[..., Any]
    links: HandLinks | None
    minibatches: Order
    noise: Kind
    compile: Compile | None
    seed: int | None
    data_parallel: bool


def begin(
    recipe: Recipe,
    source: Source,
    numbers: Sequence[int],
    together: bool,
    warmup: int,
    save: Sequence[str] | None,
    given: Mapping[str, Tensor] | None,
) -> Chain:
    """
    Looks at the model and starts a chain, or several that step together.

    :param Recipe recipe: the kernel's options.
    :param Source source: the model's arguments.
    :param numbers: of the chains, from which their seeds follow.
    :param bool together: whether the chain has a leading axis.
    :param int warmup: draws of warm-up.
    :param save: names of the sites and summaries that a draw holds, None for the default.
    :param given: first values in unconstrained space, with the leading axis.
    :raises ModelError: if the model or the data cannot be sampled.
    """
    from_loader = source.sizes is not None
    if from_loader and (device := device_of_latents(recipe.model, *source.peek())):
        source.move_to(device)
    args, kwargs = source.peek()
    structure = inspect_model(
        recipe.model,
        args,
        kwargs,
        adapt=recipe.adaptation is not None,
        links=recipe.links,
        loader_sizes=source.sizes,
        latents={} if recipe.adaptation is None else recipe.adaptation.latents,
    )
    if recipe.adaptation is not None and not (structure.sparse or structure.learned):
        warnings.warn(
            "adaptation is given but the model has no SSGL site, so nothing is learned; give "
            "weights an SSGL prior, name other sites in latents=, or use adaptation=None",
            stacklevel=4,
        )
    ranks, average = ranks_of_data(recipe.data_parallel), None
    if recipe.data_parallel:
        average = Average(ranks)
        check_shares(ranks, structure.plates)
        if not from_loader:
            check_same_data(ranks, args, kwargs)
    saved = names_to_save(structure, save)
    generators = tuple(generator_of(recipe.seed, n, structure.device) for n in numbers)
    minibatches = [
        Minibatches(structure.plates, recipe.minibatches, structure.device, generator, ranks)
        for generator in generators
    ]
    posterior = Posterior(recipe.model, structure, average=average)
    batch = Batch(args, kwargs, minibatches[0].first())
    starts = []
    for i, generator in enumerate(generators):
        values = {n: v[i] for n, v in given.items()} if given and together else given
        draw = partial(
            first_values,
            *(recipe.model, args, kwargs, structure, recipe.init_strategy, values, generator),
        )
        starts.append(find_start(posterior, recipe.adaptation, batch, draw))
    buffers = Buffers(changed_buffers(posterior, starts[0], batch), None)
    if together:
        buffers = Buffers(buffers.places, len(numbers))
        posterior = Posterior(recipe.model, structure, buffers, average)
    if recipe.compile == "all":
        posterior.compile(buffers)
    position, latents = stacked_starts(starts) if together else starts[0]
    noise_size = structure.size
    if isinstance(recipe.transition, TargetTransition):
        noise_size = recipe.transition.noise_size(structure.size)
    if average is not None:
        average.buffers = buffers
        check_agreement(ranks, (position, *values_of(latents)))
    update = Update(posterior, recipe.transition, recipe.compile)
    like = position.new_empty(*position.shape[:-1], noise_size)
    return Chain(
        structure=structure,
        posterior=posterior,
        source=source,
        minibatches=ChainMinibatches(minibatches) if together else minibatches[0],
        generators=generators,
        state=recipe.transition.init(position),
        latents=latents,
        warmup=warmup,
        saved=saved,
        buffers=buffers,
        noise=Noise(recipe.noise, like, generators, bits=update.compiled),
        update=update,
        pruner=None if recipe.pruning is None else Pruner(recipe.pruning, structure),
    )
