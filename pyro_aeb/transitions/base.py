# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The contract of a transition: how one stochastic-gradient step moves the weights.

A transition knows no model. It is a frozen dataclass of hyperparameters with two pure functions,
``init`` and ``step``; its state is a ``NamedTuple`` of tensors whose first field is ``position``.
The gradient, the standard normal noise and the numbers of the step come in as arguments, so a step
can be replayed to the last digit. Every formula is elementwise over the last axis: a leading
axis of chains needs no change. A new sampler is one file in this folder.

A transition that has to know Q elsewhere than at the position of its state, or its value, has
``move`` in the place of ``step``; see :class:`TargetTransition`.

Two names of a state's fields have a meaning to others. ``position`` holds the flat weights. Where
pruning holds a weight at zero, it does so in ``momentum`` too, or in the fields that the state's
class names as ``held``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from pyro_aeb.schedules import Schedule


class HasPosition(Protocol):
    """A ``NamedTuple`` of tensors with the flat weights, shape (..., D), as ``position``."""

    @property
    def position(self) -> Tensor: ...

    def _replace(self, **fields: Any) -> Any: ...


State = TypeVar("State", bound=HasPosition)


class StepNumbers(NamedTuple):
    """
    The numbers of one step.

    :param float step_size: the transition's own schedule at this step.
    :param float inverse_temperature: tau; the target is proportional to exp(tau Q).
    """

    step_size: float
    inverse_temperature: float


class Transition(Protocol[State]):
    """One stochastic-gradient MCMC step; see the module's docstring."""

    @property
    def step_size(self) -> Schedule: ...

    def init(self, position: Tensor) -> State:
        """
        The state before the first step.

        :param Tensor position: flat weights, shape (..., D).
        """
        ...

    def step(self, state: State, gradient: Tensor, noise: Tensor, numbers: StepNumbers) -> State:
        """
        The state after one step.

        :param state: the state before it.
        :param Tensor gradient: an unbiased estimate of the gradient of Q, equation (2), for the
            whole data set (a sum, not a mean), at ``state.position``; shape (..., D).
        :param Tensor noise: standard normal draws, shape (..., D).
        :param StepNumbers numbers: step size and inverse temperature of this step.
        """
        ...


class Evaluated(NamedTuple):
    """
    Q at a position, estimated from the data of a step or from all.

    :param Tensor log_density: Q, for the whole data set (a sum, not a mean) and without terms that
        the weights do not enter; shape (...).
    :param Tensor gradient: of it, equation (2); shape (..., D).
    """

    log_density: Tensor
    gradient: Tensor


class Target(Protocol):
    """Q as it is at this step, for a :class:`TargetTransition`."""

    @property
    def step(self) -> int:
        """The number of the step under way, from 1."""
        ...

    def batch(self, position: Tensor, prior: bool = True) -> Evaluated:
        """
        Q at any position, estimated from the data of this step.

        :param Tensor position: shape (..., D).
        :param bool prior: whether the closed-form priors belong to it.
        """
        ...

    def whole(self, position: Tensor, prior: bool = True) -> Evaluated:
        """
        Q at any position, of all data: N / n runs of the model, where a plate takes n of N.

        :param Tensor position: shape (..., D).
        :param bool prior: whether the closed-form priors belong to it.
        :raises ModelError: if there is no telling what all data are (a DataLoader, two plates that
            subsample).
        """
        ...


@runtime_checkable
class TargetTransition(Protocol[State]):
    """One step of a transition that asks for Q itself, or for its gradient at other positions."""

    @property
    def step_size(self) -> Schedule: ...

    def init(self, position: Tensor) -> State:
        """
        The state before the first step.

        :param Tensor position: flat weights, shape (..., D).
        """
        ...

    def noise_size(self, size: int) -> int:
        """
        How many standard normal numbers a step takes. With more than there are weights they do not
        only move weights (a momentum, a decision), and the kernel refuses three-point noise.

        :param int size: D.
        """
        ...

    def move(
        self,
        state: State,
        here: Evaluated,
        noise: Tensor,
        numbers: StepNumbers,
        target: Target,
    ) -> State:
        """
        The state after one step.

        :param state: the state before it.
        :param Evaluated here: Q at ``state.position``, estimated from the data of this step.
        :param Tensor noise: standard normal draws, shape (..., noise_size(D)).
        :param StepNumbers numbers: step size and inverse temperature of this step.
        :param Target target: Q at other positions, and the number of the step.
        """
        ...


AnyTransition = Transition[Any] | TargetTransition[Any]
"""What a kernel steps with."""


@runtime_checkable
class HasStatistics(Protocol):
    """
    A transition with figures of its own for every draw, beside the contract above; optional.

    They go to ``sample_stats`` under their names, whatever these are. Two names have a meaning to
    others: ``kinetic_temperature``, by :func:`kinetic_temperature`, to :func:`pyro_aeb.check`; and
    ``log_weight``, the logarithm of the weight of the draw where the draws are not the target's but
    are to be weighted, to :func:`~pyro_aeb.testing.transition.check_transition`.
    """

    def statistics(
        self, before: Any, state: Any, numbers: StepNumbers, *target: Target
    ) -> Mapping[str, Tensor]:
        """
        Figures of one step. Called at the last step before a draw, and before anything is pruned;
        it must not wait for a value (no ``.item()``).

        :param before: the state before the step.
        :param state: the state after it.
        :param StepNumbers numbers: of the step.
        :param Target target: of the step, given to a :class:`TargetTransition` only.
        :returns: name to one number a chain, shape (...); the same names at every step.
        """
        ...


def statistics_of(
    transition: AnyTransition, before: Any, state: Any, numbers: StepNumbers, target: Target | None
) -> Mapping[str, Tensor]:
    """
    A transition's figures of one step, none where it has none.

    :param transition: any transition.
    :param before: its state before the step.
    :param state: its state after it.
    :param StepNumbers numbers: of the step.
    :param Target target: of the step, for a :class:`TargetTransition`.
    """
    if not isinstance(transition, HasStatistics):
        return {}
    if target is not None and isinstance(transition, TargetTransition):
        return transition.statistics(before, state, numbers, target)
    return transition.statistics(before, state, numbers)


def kinetic_temperature(displacement: Tensor, position: Tensor, expected: float) -> Tensor:
    r"""
    The mean square of what weights move by in a step, over what it is when the chain is at its
    target temperature and its steps are small: 1 where all is well. Weights that are zero before
    the step, which pruning may hold there, do not count; NaN where all are.

    :param Tensor displacement: momentum, or displacement of a step, shape (..., D).
    :param Tensor position: before the step, shape (..., D).
    :param float expected: the mean square to expect.
    :returns: shape (...).
    """
    moving = (position != 0.0).to(displacement.dtype)
    total = (displacement * displacement).mul_(moving).sum(-1)
    return total / (moving.sum(-1) * expected)
