# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The contract of a transition: one stochastic-gradient step of the weights.

A transition is a frozen dataclass of options with two pure functions, ``init`` and ``step``, and
knows no model. Its state is a ``NamedTuple`` of tensors whose first field is ``position``, the flat
weights. Gradient, noise, and the numbers of the step are arguments, so that a step can be replayed
exactly. This is a whole one, Langevin dynamics with averaged noise, whose law on a Gaussian is
exact at any stable step size::

    from dataclasses import dataclass
    from typing import NamedTuple

    import torch
    import pyro_aeb as aeb

    class NoisyState(NamedTuple):
        position: torch.Tensor
        noise: torch.Tensor

    @dataclass(frozen=True)
    class AveragedNoise:
        step_size: aeb.schedules.Schedule

        def init(self, position):
            return NoisyState(position, torch.zeros_like(position))

        def step(self, state, gradient, noise, numbers):
            epsilon, tau = numbers
            noise = (2 * epsilon / tau) ** 0.5 * noise
            position = state.position + epsilon * gradient + (state.noise + noise) / 2
            return NoisyState(position, noise)

    kernel = aeb.AEBKernel(model, AveragedNoise(aeb.Constant(0.05)))

In a compiled step epsilon and tau are tensors of one number each, which ``math`` cannot take.
Operations are elementwise, or along the last axis, so that a leading axis of chains needs no
further code; :func:`pyro_aeb.testing.check_transition` checks that and the stationary law.

A transition that needs the value of Q, or its gradient at other positions, has ``move`` instead of
``step``; see :class:`TargetTransition`. With the class attribute ``rejects = True`` it gets
``-inf`` from ``whole`` where the model has no density (a matrix that cannot be factored), and must
reject such a position; otherwise that ends the run.

Pruning holds weights at zero in ``position`` and in ``momentum``, or in the fields that the state's
class names as ``held``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from pyro_aeb.schedules import Schedule

State = TypeVar("State")


class StepNumbers(NamedTuple):
    """
    The numbers of one step; tensors of one number each where the step is compiled.

    :param step_size: the transition's own schedule at this step.
    :param inverse_temperature: tau; the target is proportional to exp(tau Q).
    """

    step_size: float
    inverse_temperature: float


class Transition(Protocol[State]):
    """A step of stochastic-gradient MCMC; see :mod:`pyro_aeb.transitions.base`."""

    @property
    def step_size(self) -> Schedule: ...

    def init(self, position: Tensor) -> State:
        """
        Return the state before the first step.

        :param Tensor position: flat weights, shape (..., D).
        """
        ...

    def step(self, state: State, gradient: Tensor, noise: Tensor, numbers: StepNumbers) -> State:
        """
        Return the state after one step.

        :param state: before the step.
        :param Tensor gradient: an unbiased estimate of the gradient of Q, equation (2), for the
            whole data set (a sum, not a mean), at ``state.position``; shape (..., D).
        :param Tensor noise: standard normal numbers, shape (..., D).
        :param StepNumbers numbers: step size and inverse temperature.
        """
        ...


class Evaluated(NamedTuple):
    """
    Q at one position, estimated from the data of a step or computed from all data.

    :param Tensor log_density: Q, for the whole data set (a sum, not a mean), without terms that do
        not depend on the weights; shape (...).
    :param Tensor gradient: of Q, equation (2); shape (..., D).
    """

    log_density: Tensor
    gradient: Tensor


class Target(Protocol):
    """Q at the current step, for a :class:`TargetTransition`."""

    @property
    def step(self) -> int:
        """The number of the current step, from 1."""
        ...

    def batch(self, position: Tensor, prior: bool = True) -> Evaluated:
        """
        Estimate Q at a position from the data of the step.

        :param Tensor position: shape (..., D).
        :param bool prior: whether to include the closed-form priors.
        """
        ...

    def whole(self, position: Tensor, prior: bool = True) -> Evaluated:
        """
        Compute Q at a position from all data, by N / n runs of the model if a plate takes n of N.

        :param Tensor position: shape (..., D).
        :param bool prior: whether to include the closed-form priors.
        :raises ModelError: if the data come from a DataLoader, or two plates subsample.
        """
        ...


@runtime_checkable
class TargetTransition(Protocol[State]):
    """A step that needs the value of Q, or its gradient at other positions."""

    @property
    def step_size(self) -> Schedule: ...

    def init(self, position: Tensor) -> State:
        """See :meth:`Transition.init`."""
        ...

    def noise_size(self, size: int) -> int:
        """
        Return the number of standard normal numbers a step takes. If it exceeds the number of
        weights, some numbers decide something else, and the kernel refuses three-point noise.

        :param int size: the number of weights, D.
        """
        ...

    def move(
        self,
        state: State,
        evaluated: Evaluated,
        noise: Tensor,
        numbers: StepNumbers,
        target: Target,
    ) -> State:
        """
        Return the state after one step.

        :param state: before the step.
        :param Evaluated evaluated: Q at ``state.position``, estimated from the data of the step.
        :param Tensor noise: standard normal numbers, shape (..., noise_size(D)).
        :param StepNumbers numbers: step size and inverse temperature.
        :param Target target: Q at other positions, and the number of the step.
        """
        ...


AnyTransition = Transition[Any] | TargetTransition[Any]
"""What a kernel steps with."""


@runtime_checkable
class HasStatistics(Protocol):
    """
    A transition that records statistics of its own with every draw; optional.

    They are stored in ``sample_stats`` under their names. Three names have a meaning elsewhere:
    ``kinetic_temperature``, see :func:`kinetic_temperature`, and ``acceptance_rate`` are read by
    :func:`pyro_aeb.check`; and ``log_weight``, the logarithm of the importance weight of the draw,
    for transitions whose law is not the target, by
    :func:`~pyro_aeb.testing.transition.check_transition`.
    """

    def statistics(
        self, before: Any, after: Any, numbers: StepNumbers, *target: Target
    ) -> Mapping[str, Tensor]:
        """
        Return statistics of one step. Called at the last step before a draw, before pruning. It
        must not wait for a value (no ``.item()``).

        :param before: the state before the step.
        :param after: the state after the step.
        :param StepNumbers numbers: of the step.
        :param Target target: of the step, for a :class:`TargetTransition` only.
        :returns: name to one number a chain, shape (...); the same names at every step.
        """
        ...


def statistics_of(
    transition: AnyTransition,
    before: Any,
    after: Any,
    numbers: StepNumbers,
    target: Target | None = None,
) -> Mapping[str, Tensor]:
    """
    Return a transition's statistics of one step, an empty dict if it has none.

    :param transition: any transition.
    :param before: its state before the step.
    :param after: its state after the step.
    :param StepNumbers numbers: of the step.
    :param Target target: of the step, for a :class:`TargetTransition`.
    """
    statistics: Any = getattr(transition, "statistics", None)
    if statistics is None:
        return {}
    # The check of a protocol takes longer than a compiled step.
    needs_target = target is not None and isinstance(transition, TargetTransition)
    arguments = (target,) if needs_target else ()
    measured: Mapping[str, Tensor] = statistics(before, after, numbers, *arguments)
    return measured


def noise_size(transition: AnyTransition, size: int) -> int:
    """Return the number of standard normal numbers that a step of ``size`` weights takes."""
    return transition.noise_size(size) if isinstance(transition, TargetTransition) else size


def kinetic_temperature(displacement: Tensor, position: Tensor, expected: float) -> Tensor:
    r"""
    Return the mean square of the displacement over its expected value at the target temperature and
    small steps: 1 is as it should be. Weights that are zero before the step, which pruning may
    hold there, do not count; NaN if all are.

    :param Tensor displacement: of the weights in one step, or their momentum; shape (..., D).
    :param Tensor position: before the step, shape (..., D).
    :param float expected: expected mean square.
    :returns: shape (...).
    """
    moving = (position != 0.0).to(displacement.dtype)
    total = (displacement * displacement).mul_(moving).sum(-1)
    return total / (moving.sum(-1) * expected)
