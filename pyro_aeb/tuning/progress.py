# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The settings of a chain that is tuned, and the round and the pilot that it is in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pyro_aeb.tuning.saved import Saved
from pyro_aeb.tuning.step_size import friction_of, friction_of_slowest

LOWERINGS = 3
"""How often the friction is lowered for slow directions, each time with another pilot."""

WORSE = 2.0
"""The growth of an autocorrelation time by which a lower friction is clearly no good."""


@dataclass
class Progress(Saved):
    """
    The settings, and how far tuning has come.

    :param int length: steps of this round of adaptation.
    :param int pilot: steps of the pilot after it, so far.
    :param int begin: the step before the round.
    :param int rounds: finished ones.
    :param int drawn_at: the step of the last draw.
    :param int warmup_end: the step of the last draw of warm-up.
    :param float share: of the cap on the step size that recoveries have left.
    :param logarithms: of the step sizes at the end of the round.
    :param int lowered: how often the friction was lowered for slow directions.
    :param float noise: the share by which minibatch noise, were it independent between steps, would
        raise the temperature, in the last window.
    :param float friction_before: that before the last time.
    :param float time_before: the autocorrelation time with it; infinite once it was compared.
    """

    length: int
    pilot: int
    steps_per_draw: int
    step_size: float = 1.0
    friction: float = 1.0
    begin: int = 0
    rounds: int = 0
    drawn_at: int = 0
    warmup_end: int = 0
    share: float = 1.0
    recoveries: int = 0
    autocorrelation: float = math.nan
    slowest: str = ""
    steps: int = 0
    finished: bool = False
    lowered: int = 0
    noise: float = 0.0
    friction_before: float = 1.0
    time_before: float = math.inf
    logarithms: list[float] = field(default_factory=list)
    temperatures: dict[str, float] = field(default_factory=dict)

    @property
    def planned(self) -> int:
        """Return the steps of a round and its pilot."""
        return self.length + self.pilot

    @property
    def decision(self) -> int:
        """Return the step after which the pilot has ended."""
        return self.begin + self.planned

    def share_done(self, step: int) -> float:
        """Return the share of the round that is done; a later round has no way to the target."""
        done = (step - self.begin) / self.length
        return done if self.rounds == 0 else 0.15 + 0.85 * done

    def set_step_size(self, step_size: float, done: float) -> None:
        """Set the step size, and the friction with it, where so much of the round is done."""
        self.step_size = step_size
        self.friction = friction_of(step_size, 0.3 if done < 0.1 else 0.003)

    def begin_round(self, step: int, pilot: int) -> None:
        """Begin another round after a step, twice as long, with a pilot of some steps."""
        self.rounds, self.begin = self.rounds + 1, step
        self.length, self.pilot = 2 * self.length, pilot
        self.logarithms.clear()
        self.lowered = 0

    def change_friction(self) -> bool:
        """
        Lower the friction where it holds back the slowest direction, or take that back where the
        chain has become slower; return whether it has changed.
        """
        time = self.autocorrelation
        is_worse, self.time_before = time > WORSE * self.time_before, math.inf
        if is_worse:
            self.friction, self.lowered = self.friction_before, LOWERINGS
            return True
        lower = friction_of_slowest(self.friction, time)
        if lower > 0.7 * self.friction or self.lowered >= LOWERINGS:
            return False
        self.friction_before, self.time_before = self.friction, time
        self.friction, self.lowered = lower, self.lowered + 1
        return True
