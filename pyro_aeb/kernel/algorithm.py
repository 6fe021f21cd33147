# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Algorithm 1 of the paper [1]: one iteration, in the order of its box.

**References**

[1] Wei Deng, Xiao Zhang, Faming Liang, Guang Lin (2019), "An adaptive empirical Bayesian method
    for sparse deep learning", NeurIPS, arXiv 1910.10791.
"""

from __future__ import annotations

import math
from itertools import takewhile
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pyro_aeb.adaptation.options import WEIGHT, WEIGHT_RANGE, StochasticApproximation
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Batch, map_leaves
from pyro_aeb.errors import NonFiniteError, is_domain_error
from pyro_aeb.kernel.chain import Chain
from pyro_aeb.kernel.non_finite import (
    check_batch,
    divergence_error,
    first_non_finite,
    missing_density_error,
    non_finite_chains,
)
from pyro_aeb.kernel.options import KernelOptions
from pyro_aeb.kernel.random_bits import convert_bits
from pyro_aeb.kernel.step_units import step_in_units
from pyro_aeb.model.side_effects import preserve_buffers
from pyro_aeb.model.tracing import find_failing_site
from pyro_aeb.posterior.likelihood import Evaluation
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.posterior.step_target import StepTarget
from pyro_aeb.schedules import (
    INVERSE_TEMPERATURES,
    STEP_SIZES,
    Schedule,
    number_at,
    numbers_at,
)
from pyro_aeb.transitions import AnyTransition, StepNumbers

BLOCK = 128
"""Most steps of a block, after which a run may stop: some milliseconds of a small model."""


def step(options: KernelOptions, chain: Chain, measure: bool = False) -> None:
    """
    Advance a chain by one iteration.

    :param KernelOptions options: the kernel.
    :param Chain chain: its state is replaced.
    :param bool measure: whether to record the statistics of the step.
    :raises NonFiniteError: if the gradient or the log density is not finite, or the model fails as
        its density does not exist at the weights.
    """
    if chain.step == chain.compile_from:
        chain.compile()
    _step(options, chain, chain.step + 1, measure=measure)


def steps(options: KernelOptions, chain: Chain, most: int) -> int:
    """
    Advance a chain by at least one iteration, by more where they are compiled and small, and return
    by how many. They are the iterations of :func:`step`, whose statistics are not recorded.

    :raises NonFiniteError: see :func:`step`.
    """
    compiled, arguments = chain.compiled, chain.data.fixed
    if compiled is None or arguments is None or chain.pruner is not None or chain.needs_target:
        step(options, chain)
        return 1
    batch, learns = Batch(arguments, {}), sa_weight(options, chain, chain.step + 1) > 0.0
    most = min(most, BLOCK, compiled.ready(batch, learns))
    if chain.scan is not None:
        most = min(most, chain.scan.steps_left(chain.step))
    numbers = _numbers_ahead(options, chain, most) if most > 1 else ([], [], [])
    if len(numbers[0]) < 2:
        step(options, chain)
        return 1
    rows, draw_rows = chain.data.minibatches.ahead()
    noise, draw_noise = chain.noise.ahead(len(numbers[0]))

    def draw() -> None:
        next(draw_rows)
        next(draw_noise)

    chain.torn = True
    stepped, health = compiled.repeat(chain.state, chain.latents, batch, numbers, noise, rows, draw)
    if not chain.finite.passes(health):
        whole = chain.data.minibatches.whole
        for i, of_step in enumerate(noise):
            indices = {**whole, **{name: of_plate[i] for name, of_plate in rows.items()}}
            _step(options, chain, chain.step + 1, Batch(arguments, indices), of_step)
        return len(noise)
    chain.state, chain.latents = stepped.state, stepped.latents
    chain.step += len(noise)
    if chain.scan is not None:
        chain.scan(chain)
    chain.torn = False
    return len(noise)


def _numbers_ahead(
    options: KernelOptions, chain: Chain, count: int
) -> tuple[list[float], list[float], list[float]]:
    """
    Return step sizes, inverse temperatures and weights omega of the steps that follow, up to one
    that learns where others do not, or at which a schedule fails.
    """
    steps = range(chain.step + 1, chain.step + 1 + count)
    schedule, tau = _weight_schedule(options, chain), cast(Schedule, options.inverse_temperature)
    omegas = [0.0] * count
    if schedule is not None:
        omegas = numbers_at(WEIGHT, schedule, steps, 0.0, 1.0, WEIGHT_RANGE)
        omegas = [*takewhile(lambda omega: (omega > 0.0) == (omegas[0] > 0.0), omegas)]
    sizes = numbers_at("step_size", options.transition.step_size, steps, *STEP_SIZES)
    taus = numbers_at("inverse_temperature", tau, steps, *INVERSE_TEMPERATURES)
    end = min(len(omegas), len(sizes), len(taus))
    return sizes[:end], taus[:end], omegas[:end]


def _step(
    options: KernelOptions,
    chain: Chain,
    k: int,
    batch: Batch | None = None,
    noise: Tensor | None = None,
    measure: bool = False,
) -> None:
    """Make step k, on a batch and noise that are drawn here where they are not given."""
    numbers, omega = step_numbers(options, k), sa_weight(options, chain, k)
    batch = chain.data.next() if batch is None else batch
    target = chain.target(batch) if chain.needs_target else None
    try:
        stepped = _run(chain, k, batch, noise, numbers, omega, target)
    except Exception as error:
        if not is_domain_error(error):
            raise
        raise _domain_error(chain, batch, error, numbers.step_size) from error
    if measure:
        chain.measure(options.transition, stepped, numbers, omega, target)
    chain.state, chain.latents = stepped.state, stepped.latents
    if chain.pruner is not None:
        chain.state = chain.pruner.prune(chain.state, k, chain.wide_probability)  # (9), (10)
    chain.step = k
    if chain.scan is not None:
        chain.scan(chain)
    chain.torn = False


class Stepped(NamedTuple):
    """
    The result of an iteration, before pruning.

    :param state: the transition's.
    :param Tensor log_density: of the likelihood, where the gradient was taken.
    :param Tensor health: see :meth:`~pyro_aeb.posterior.likelihood.Evaluation.health`.
    """

    state: Any
    latents: Latents | None
    log_density: Tensor
    health: Tensor


def _run(
    chain: Chain,
    k: int,
    batch: Batch,
    noise: Tensor | None,
    numbers: StepNumbers,
    omega: float,
    target: StepTarget | None,
) -> Stepped:
    """Run the equations of step k on a batch, compiled or as written; the chain stays."""
    state, latents, compiled = chain.state, chain.latents, chain.compiled
    if compiled is not None:
        chain.torn = True  # until the state is that of step k
        noise = chain.noise.draw() if noise is None else noise
        stepped = compiled(state, latents, batch, noise, numbers, omega)
        if stepped is None:
            chain.compiled = None
        elif chain.finite.passes(stepped.health):
            compiled.warn()
            return stepped
    likelihood = chain.posterior.evaluate_likelihood(state.position, latents, batch)
    health = likelihood.health()
    if not chain.finite.passes(health):
        raise _gradient_error(chain, k, batch, likelihood, numbers.step_size)
    chain.torn = True
    noise = chain.noise.draw() if noise is None else noise
    if not noise.is_floating_point():
        noise = convert_bits(noise)
    state, latents = chain.update(state, latents, likelihood, noise, numbers, omega, target)
    if compiled is not None:
        compiled.warn()
    return Stepped(state, latents, likelihood.log_density, health)


class Update:
    """
    The part of an iteration that follows the likelihood's gradient.

    :param Posterior posterior: Q.
    :param transition: how the weights move.
    """

    def __init__(self, posterior: Posterior, transition: AnyTransition) -> None:
        self.posterior = posterior
        self.transition: Any = transition
        self._in_units = posterior.adaptation.learns_width

    @torch.no_grad()
    def __call__(
        self,
        state: Any,
        latents: Latents | None,
        likelihood: Evaluation,
        noise: Tensor,
        numbers: StepNumbers,
        omega: float | Tensor,
        target: StepTarget | None = None,
    ) -> tuple[Any, Latents | None]:
        """
        Return the transition's state and the latents after the step.

        :param state: the transition's state before it.
        :param Latents latents: the latents before it, None where there are none.
        :param Evaluation likelihood: at the state's position; its gradient is overwritten.
        :param Tensor noise: standard normal numbers, shape (..., D).
        :param StepNumbers numbers: step size and inverse temperature.
        :param omega: weight of (8); 0 leaves the latents as they are.
        :param StepTarget target: Q at this step, for a transition that asks for it.
        """
        gradient = self.posterior.add_prior(likelihood.gradient, state.position, latents)  # (2)
        if target is None:
            if self._in_units:
                unit = self.posterior.adaptation.step_unit(latents)
                state = step_in_units(self.transition, state, gradient, noise, numbers, unit)
            else:
                state = self.transition.step(state, gradient, noise, numbers)  # (3a), (3b)
        else:
            evaluated = target.evaluated(likelihood.log_density, gradient, state.position)
            state = self.transition.move(state, evaluated, noise, numbers, target)
        statistics, tau = likelihood.statistics, numbers.inverse_temperature
        return state, self.posterior.adaptation.update(  # (4) to (8)
            latents, state.position, statistics, omega, tau
        )


def scan_weight(options: KernelOptions, chain: Chain) -> float:
    """Return omega at the last step, as a scan takes it: 0 where tau is not 1."""
    is_cold = step_numbers(options, chain.step).inverse_temperature != 1.0
    return 0.0 if is_cold else sa_weight(options, chain, chain.step)


def step_numbers(options: KernelOptions, k: int) -> StepNumbers:
    """
    Return step size and inverse temperature at step k, in the range of single precision.

    :raises ValueError: if a schedule gives another number.
    """
    step_size, tau = options.transition.step_size, cast(Schedule, options.inverse_temperature)
    return StepNumbers(
        number_at("step_size", step_size, k, *STEP_SIZES),
        number_at("inverse_temperature", tau, k, *INVERSE_TEMPERATURES),
    )


def sa_weight(options: KernelOptions, chain: Chain, k: int) -> float:
    """Return omega, the weight of (8), at step k; 0 where no latent is learned by it."""
    schedule = _weight_schedule(options, chain)
    return 0.0 if schedule is None else number_at(WEIGHT, schedule, k, 0.0, 1.0, WEIGHT_RANGE)


def _weight_schedule(options: KernelOptions, chain: Chain) -> Schedule | None:
    """Return omega as a function of the step, None where no latent is learned by it now."""
    if not isinstance(options.adaptation, StochasticApproximation) or chain.latents is None:
        return None
    if options.freeze_after_warmup and not chain.warming_up:
        return None
    return options.adaptation.weight


class FiniteCheck:
    """
    Detects a non-finite log density or gradient by one number a step, which may overflow where they
    are merely enormous.

    On the CPU the number is read where it was written, so that a chain stops before the weights
    move. On an accelerator it is copied to the host without a synchronisation and may be seen some
    steps later; :meth:`settle` waits.

    :param torch.device device: of the position.
    :param torch.dtype dtype: of the position.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        pinned = device.type == "cuda"
        self._host = torch.zeros((), dtype=dtype, device="cpu", pin_memory=pinned)
        self._number = self._host.numpy()

    def passes(self, health: Tensor) -> bool:
        """Record a step's number; False where a step is known to have had a non-finite one."""
        self._host.copy_(health, non_blocking=True)
        return math.isfinite(self._number)

    def settle(self) -> bool:
        """Wait for the last step's numbers; False where they were not finite."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return math.isfinite(self._number)


def _gradient_error(
    chain: Chain, k: int, batch: Batch, likelihood: Evaluation, step_size: float
) -> NonFiniteError:
    """Say why the gradient of step k is not finite."""
    draws = chain.recording.recorder.read("posterior")
    if _is_finite_without_bad_data(chain, batch):
        check_batch(k, batch.arguments, draws)
    site = first_non_finite(chain.structure.unflatten(likelihood.gradient))
    what = f"the gradient of site {site!r}" if site else "the potential"
    chains = non_finite_chains(chain.shape, likelihood.gradient, likelihood.log_density)
    size, fastest = chain.given_step_size(step_size), chain.fastest_site()
    return divergence_error(k, site, what, chains, size, draws, fastest)


def _is_finite_without_bad_data(chain: Chain, batch: Batch) -> bool:
    """Whether the step's gradient is finite with 0 in the place of non-finite data."""
    filled = batch._replace(arguments=map_leaves(_fill, batch.arguments, objects=True))
    values = chain.posterior.adaptation.values(chain.latents)
    with preserve_buffers():
        found = chain.posterior.likelihood.evaluate(chain.state.position, values, filled)
    return bool(torch.isfinite(found.gradient).all() & torch.isfinite(found.log_density).all())


def _fill(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.nan_to_num(0.0, 0.0, 0.0)
    return value


def _domain_error(chain: Chain, batch: Batch, error: Exception, step_size: float) -> NonFiniteError:
    """Say at which site a model has failed in a step."""
    model = chain.posterior.model
    batches = enumerate(chain.values_by_chain())
    failing = (
        find_failing_site(model, *own.arguments, values, own.indices)
        for values, own in ((values, batch.of_chain(i)) for i, values in batches)
    )
    site = next((name for name in failing if name is not None), None)
    draws = chain.recording.recorder.read("posterior")
    size = chain.given_step_size(step_size)
    return missing_density_error(chain.step + 1, site, error, size, draws)
