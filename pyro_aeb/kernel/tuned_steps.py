# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Steps of a chain that is tuned in warm-up; see :mod:`pyro_aeb.tuning`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_aeb.adaptation.gibbs import Gibbs
from pyro_aeb.errors import ModelError, NonFiniteError, TuningWarning, inform, is_domain_error
from pyro_aeb.kernel.algorithm import step, step_numbers
from pyro_aeb.kernel.chain import Chain
from pyro_aeb.kernel.options import KernelOptions
from pyro_aeb.kernel.seeds import tuning_seed
from pyro_aeb.model.structure import Structure
from pyro_aeb.posterior.data_parallel import ranks_of_data
from pyro_aeb.tuning import Tuner
from pyro_aeb.tuning.probes import Gradient


def make_tuner(
    options: KernelOptions,
    structure: Structure,
    position: Tensor,
    numbers: Sequence[int],
    warmup: int,
    from_loader: bool,
) -> Tuner | None:
    """
    Return the tuner of a chain, None where nothing is to be tuned.

    :param numbers: of the chains.
    :param int warmup: draws of warm-up.
    :param bool from_loader: whether the data come in batches from outside.
    :raises ModelError: if there is no warm-up.
    """
    if not options.is_tuned:
        return None
    if warmup < 1:
        raise ModelError(
            'warm-up has 0 draws, and settings that are "auto" are chosen in warm-up; expected '
            "warmup_steps=1 or more, or a transition with a step size, such as SGLD(1e-5)"
        )
    sites, start = {}, 0
    for block in structure.blocks:
        sites[block.name] = slice(start, start + block.size)
        start += block.size
    return Tuner(
        options.transition,  # type: ignore[arg-type]
        sites,
        {block.name: block.shape for block in structure.blocks},
        position,
        warmup,
        options.steps_per_draw,
        minibatches=from_loader or any(n < size for size, n in structure.plates.values()),
        seed=tuning_seed(options.seed, numbers[0]),
        parents=_sampled_parents(structure),
        multiple=options.adaptation.every if isinstance(options.adaptation, Gibbs) else 1,
    )


def _sampled_parents(structure: Structure) -> dict[str, list[str]]:
    """Return the sites whose priors depend on other sampled sites, with those."""
    sampled = {block.name for block in structure.normal + structure.general}
    parents = {child: names for child, names in structure.parents.items() if child in sampled}
    among = {child: [n for n in names if n in sampled] for child, names in parents.items()}
    return {child: names for child, names in among.items() if names}


def planned_steps(options: KernelOptions, tuner: Tuner | None, warmup: int) -> int:
    """Return the steps of warm-up, unless tuning makes it longer."""
    return warmup * options.given_steps if tuner is None else tuner.planned


def advance_while_tuning(
    options: KernelOptions,
    chain: Chain,
    tuner: Tuner,
    thinning: int,
    between: Callable[[], object] | None,
) -> int:
    """
    Make steps of the next draw, and tune the chain between them, until that is finished.

    :param int thinning: of the draws after warm-up.
    :param between: called before every step; it may raise.
    :returns: the steps that remain until the draw, 0 if it is due.
    """
    while (left := tuner.steps_left(chain.draws, chain.step, thinning)) > 0:
        if tuner.finished:
            return left
        if between is not None:
            between()
        _tuned_step(options, chain, tuner, measure=left == 1)
    return 0


def _tuned_step(options: KernelOptions, chain: Chain, tuner: Tuner, measure: bool) -> None:
    """Make one step, with what is due before and after it."""

    def gradients() -> Gradient:
        return _gradient_of_next_batch(chain)

    k = chain.step + 1
    tau = step_numbers(options, k).inverse_temperature
    with torch.no_grad():
        chain.state = tuner.before(chain.state, k, gradients)
    try:
        step(options, chain, measure)
    except NonFiniteError as error:
        state = None if error.in_data else tuner.recover(chain.state)
        if state is None:
            raise
        chain.state, chain.torn, chain.step = state, False, k
    with torch.no_grad():
        chain.state = tuner.after(chain.state, k, gradients, tau)
    if tuner.finished and ranks_of_data(options.data_parallel).rank == 0:
        report = tuner.report()
        inform(str(report))
        warn_of_tuning(report.warnings())


def _gradient_of_next_batch(chain: Chain) -> Gradient:
    """Take the next batch; return the gradient of Q with it, NaN where there is no density."""
    target = chain.target(chain.data.next())

    def gradient(position: Tensor) -> Tensor:
        try:
            return target.batch(position).gradient
        except Exception as error:
            if not is_domain_error(error):
                raise
            return torch.full_like(position, torch.nan)

    return gradient


def warn_of_tuning(messages: Sequence[str]) -> None:
    """Warn of what tuning cannot mend."""
    for message in messages:
        warnings.warn(message, TuningWarning, stacklevel=6)
