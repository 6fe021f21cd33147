# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Sizes, lengths and schedules of both stages.

The paper's sparse stage takes :data:`PAPER_STEPS` steps. Its schedules of the step size, the
temperature and the sparsity are functions of the time relative to that: a run of T steps, shorter
by the factor r = 50,000 / T, takes r paper steps at each of its own. Step size times number of
steps stays what it is in the paper, and so do the annealing and the moments at which the step size
falls. At T = 50,000 all of them are the paper's own numbers. The weight of the stochastic
approximation is always the paper's, step by step: in a shorter run the latents go less far from
their first values. The CPU preset departs from all that by factors on the step size, which were
chosen on validation images, and by a faster pruning schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import pyro_aeb as aeb

PAPER_STEPS = 50_000
"""Length of the sparse stage: 1000 epochs of 50 batches of 1000 images."""

PAPER_STEP_SIZE = 2e-9
"""Step size of the sparse stage, for a gradient that is a sum over 50,000 images."""

#: Laplace scale v0 and Gaussian variance v1 of the SSGL priors, by target sparsity in percent.
WIDTHS = {30: (0.5, 1e-3), 50: (0.1, 5e-4), 70: (0.1, 5e-5), 90: (0.005, 1e-5)}

DENSE_SCALE = 0.2
"""Standard deviation of the Normal priors: a penalty of 25 ||.||^2 / 2 on the sum of losses."""


def weight(factor: float = 1.0) -> aeb.Polynomial:
    """Return omega, the weight of the stochastic approximation, times a factor."""
    return aeb.Polynomial(0.02 * factor, 1000.0, 0.75)


@dataclass(frozen=True)
class OneCycle:
    """
    A rise from zero to the peak over the first fifth of the steps, then a fall to zero, both
    linear.

    :param float peak: the largest value.
    :param int steps: the length of the run.
    """

    peak: float
    steps: int

    def __call__(self, k: int) -> float:
        rise = 0.2 * self.steps
        return self.peak * min(k / rise, max(self.steps + 1 - k, 1) / (self.steps + 1 - rise))


@dataclass(frozen=True)
class Changes:
    """
    Changes of the paper's settings, in rows that learn their latents; by default none.

    :param float v0: factor on the scale of the spikes.
    :param float v1: factor on the variance of the slab.
    :param float omega: factor on the weight of the stochastic approximation.
    :param str penalties: of :class:`pyro_aeb.StochasticApproximation`, and so is the next.
    """

    v0: float = 1.0
    v1: float = 1.0
    omega: float = 1.0
    penalties: Literal["averaged", "current"] = "averaged"
    sigma_from: Literal["all", "slab"] = "all"

    def __str__(self) -> str:
        changed = [f"{key}={value!r}" for key, value in vars(self).items()
                   if value != getattr(Changes, key)]  # fmt: skip
        return f", changed: {', '.join(changed)}" if changed else ""


@dataclass(frozen=True)
class Protocol:
    """
    Every setting that, if changed, makes other rows.

    :param int dense_epochs: of the dense stage.
    :param int sparse_epochs: of the sparse stage.
    :param int dense_batch: images a step of the dense stage.
    :param int sparse_batch: images a step of the sparse stage.
    :param float dense_step_size: the largest of the dense stage, for a gradient that is a sum over
        50,000 images.
    :param bool one_cycle: whether the dense stage's step size follows :class:`OneCycle`; else it is
        constant but for factors of 0.1 at 70 % and 90 % of the steps.
    :param float normal_scale: factor on the sparse stage's step size, in rows with Normal priors.
    :param float sa_scale: the same, in rows that learn by stochastic approximation.
    :param float em_scale: the same, in rows that learn by EM.
    :param float pruning_damping: D of the pruning schedule at the paper's scale, per epoch of it.
    :param int draws_per_epoch: draws that the sampler makes in an epoch.
    :param int averaged_draws: the last draws, over which the posterior average goes.
    :param int validation: training images held out, from both stages.
    :param bool erasing: whether augmentation ends with random erasing.
    :param str precision: ``"fp32"`` or ``"bf16"``, of the network's passes.
    :param int width: of the network; 16 is the ResNet20's.
    :param int depth: blocks a stage; 3 is the ResNet20's.
    :param int corrupted: of the images scored, the first so many are scored corrupted too.
    :param Changes changes: of the paper's settings.
    """

    dense_epochs: int = 1000
    sparse_epochs: int = 1000
    dense_batch: int = 1000
    sparse_batch: int = 1000
    dense_step_size: float = 2e-6
    one_cycle: bool = False
    normal_scale: float = 1.0
    sa_scale: float = 1.0
    em_scale: float = 1.0
    pruning_damping: float = 0.99
    draws_per_epoch: int = 1
    averaged_draws: int = 100
    validation: int = 0
    erasing: bool = True
    precision: str = "fp32"
    width: int = 16
    depth: int = 3
    corrupted: int = 2_000
    changes: Changes = field(default=Changes(), repr=False)


#: The paper's constants, whole training set.
FULL = Protocol()

#: A run of about an hour and a half on two cores.
CPU = Protocol(
    dense_epochs=6,
    sparse_epochs=1,
    dense_batch=128,
    sparse_batch=128,
    one_cycle=True,
    normal_scale=3.0,
    sa_scale=1.0,
    pruning_damping=0.98,
    draws_per_epoch=5,
    averaged_draws=5,
    validation=5_000,
    erasing=False,
    precision="bf16",
)

#: A run of days on one core; ``docs/results/deep_protocol.md``.
LONG = replace(
    CPU,
    dense_epochs=60,
    sparse_epochs=20,
    normal_scale=10.0,
    sa_scale=10.0,
    em_scale=10.0,
    draws_per_epoch=2,
    averaged_draws=10,
    precision="fp32",
    changes=Changes(v0=100.0, v1=100.0),
)

#: Ten minutes of an accelerator.
GPU = replace(
    LONG,
    dense_epochs=150,
    sparse_epochs=50,
    dense_batch=1000,
    sparse_batch=1000,
    dense_step_size=8e-6,
    draws_per_epoch=1,
    precision="bf16",
)

#: A run of seconds on made-up images, to see that everything works. Its figures mean nothing.
SMOKE = replace(
    CPU,
    dense_epochs=2,
    sparse_epochs=4,
    dense_batch=20,
    sparse_batch=20,
    draws_per_epoch=2,
    averaged_draws=4,
    validation=50,
    precision="fp32",
    normal_scale=1.0,
    sa_scale=1.0,
    em_scale=1.0,
    width=8,
    depth=1,
    corrupted=20,
)

PRESETS = {"full": FULL, "long": LONG, "gpu": GPU, "cpu": CPU, "smoke": SMOKE}


@dataclass(frozen=True)
class Clock:
    """
    The schedules of a sparse stage.

    :param int steps: T, its length.
    :param int data: N, the number of training images.
    """

    steps: int
    data: int

    @property
    def speed(self) -> float:
        """r, the paper's steps in one of this run's."""
        return PAPER_STEPS / self.steps

    def step_size(self, scale: float) -> aeb.Piecewise:
        """
        The paper's, times r; times 50,000 / N, because a gradient that is a sum over N images
        grows with N; and 0.1 of it after 70 % and 0.01 after 90 % of the steps.
        """
        initial = PAPER_STEP_SIZE * self.speed * (50_000 / self.data) * scale
        return falling(initial, self.steps)

    def inverse_temperature(self, annealed: bool) -> aeb.Constant | aeb.Geometric:
        """1000, times 1.005 every thousandth of the run (the paper's epoch) if annealed."""
        if not annealed:
            return aeb.Constant(1000.0)
        every = max(1, round(self.steps / 1000))
        return aeb.Geometric(1000.0, 1.005 ** (1000 * every / self.steps), every=every)

    def sparsity(self, target: float, damping: float) -> aeb.PruningSchedule:
        """target (1 - damping^(1000 k / T)): the paper's damping is per epoch, 1000 of them."""
        return aeb.PruningSchedule(target, damping, period=self.steps / 1000)


def falling(initial: float, steps: int) -> aeb.Piecewise:
    """``initial``, times 0.1 after 70 % and again after 90 % of the steps."""
    return aeb.Piecewise(initial, {7 * steps // 10 + 1: 0.1, 9 * steps // 10 + 1: 0.1})
