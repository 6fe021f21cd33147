# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The order in which a chain is tuned: rounds of adaptation, each followed by a pilot of the frozen
chain, which says whether another is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.transitions import TunedBAOAB, TunedState
from pyro_aeb.transitions.base import kinetic_temperature
from pyro_aeb.tuning.diagonal import Diagonal
from pyro_aeb.tuning.largest import Largest
from pyro_aeb.tuning.noise import GradientNoise, excess_temperature
from pyro_aeb.tuning.path import Path
from pyro_aeb.tuning.pilot import ENOUGH, EVERY, MONITORED, Pilot, steps_per_draw
from pyro_aeb.tuning.report import WARM, Tuning, hot_sites, temperature_warnings
from pyro_aeb.tuning.saved import Saved
from pyro_aeb.tuning.step_size import (
    cap,
    floor,
    friction_of,
    friction_of_slowest,
    next_step_size,
)
from pyro_aeb.tuning.temperature import Temperatures, standard_error

ADAPTATION = 3000
"""The fewest steps of a round of adaptation."""

PILOT = 1000
"""The fewest steps of a pilot."""

LONGEST_PILOT = 4
"""The most steps of a pilot, in rounds of adaptation."""

ROUNDS = 2
"""The most rounds of adaptation."""

WINDOW = 50
"""Steps between two changes of the settings."""

RECOVERIES = 20
"""How often a chain that diverges in warm-up is put back, with half of the step size."""

LOWERINGS = 3
"""How often the friction is lowered for slow directions, each time with another pilot."""

WORSE = 2.0
"""The growth of an autocorrelation time by which a lower friction is clearly no good."""

SETTLED = 1.5
"""The largest growth of the largest curvature in a pilot that needs no other round."""

RADIUS = 0.5
"""Displacement of a probe, in units of the scale."""

Gradient = Callable[[Tensor], Tensor]


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


class Tuner:
    """
    Tunes a chain, or several that step together and share all settings.

    :param TunedBAOAB transition: its settings that are given are left as they are.
    :param sites: site to its place in the position.
    :param shapes: site to its shape.
    :param Tensor position: where the chain starts, shape (..., D).
    :param int warmup: draws of warm-up, at least 1.
    :param steps: steps per draw, ``"auto"`` to choose them.
    :param bool minibatches: whether gradients are of minibatches.
    :param int seed: of the random numbers of tuning.
    :param parents: site to the sites that its prior depends on, for warnings.
    :param int multiple: the steps from scan to scan, which divides those per draw that are chosen.
    """

    def __init__(
        self,
        transition: TunedBAOAB,
        sites: Mapping[str, slice],
        shapes: Mapping[str, torch.Size],
        position: Tensor,
        warmup: int,
        steps: int | str,
        minibatches: bool,
        seed: int,
        parents: Mapping[str, Sequence[str]] | None = None,
        multiple: int = 1,
    ) -> None:
        self._tuned, self._sites, self._shapes = transition.tuned, sites, shapes
        self._warmup, self._chooses, self._minibatches = warmup, steps == "auto", minibatches
        self._parents, self._multiple = parents or {}, multiple
        least = ADAPTATION + PILOT
        self._spacing = math.ceil(least / warmup) if isinstance(steps, str) else steps
        planned = max(least, warmup * self._spacing)
        self._generator = torch.Generator().manual_seed(seed)
        length = max(ADAPTATION, 3 * planned // 4)
        self.progress = Progress(length, planned - length, self._spacing)
        zeros = torch.zeros_like(position[(0,) * (position.dim() - 1)])
        self._diagonal = Diagonal(zeros, zeros)
        self._largest = Largest.start(position, self._normal(position))
        self._noise = GradientNoise(zeros)
        self._temperatures = Temperatures(torch.zeros_like(position))
        self._window, self._path = Temperatures(torch.zeros_like(position)), Path()
        order = torch.randperm(len(zeros), generator=self._generator)
        self._pilot = Pilot(order[:MONITORED].to(position.device))
        self._safe = position.clone()
        self._heat = Heat(position.new_zeros(len(sites)))
        self._scale = torch.ones_like(zeros)

    # -- steps and draws

    @property
    def finished(self) -> bool:
        """Whether the settings are frozen."""
        return self.progress.finished

    @property
    def planned(self) -> int:
        """Return the steps of warm-up, unless it is made longer."""
        return self.progress.length + self.progress.pilot

    def steps_left(self, draws: int, step: int, thinning: int = 1) -> int:
        """
        Return the steps until the next draw is made, or until that is to be asked again.

        :param int draws: made so far, those of warm-up included.
        :param int step: of the chain.
        :param int thinning: of the draws after warm-up.
        """
        progress = self.progress
        if draws >= self._warmup:
            return progress.drawn_at + thinning * progress.steps_per_draw - step
        left = progress.drawn_at + self._spacing - step
        if draws == self._warmup - 1 and not progress.finished:
            return max(left, self._decision - step)
        return left

    @property
    def _decision(self) -> int:
        return self.progress.begin + self.progress.length + self.progress.pilot

    def _share_done(self, step: int) -> float:
        """Return the share of the round that is done; a later round has no way to the target."""
        progress = self.progress
        done = (step - progress.begin) / progress.length
        return done if progress.rounds == 0 else 0.15 + 0.85 * done

    def draw(self, draws: int, step: int) -> None:
        """Count a draw, after as many others, which is made after a step."""
        self.progress.drawn_at = step
        if draws < self._warmup:
            self.progress.warmup_end = step

    # -- before a step

    def before(
        self, state: TunedState, step: int, gradients: Callable[[], Gradient], tau: float
    ) -> TunedState:
        """
        Estimate what is due before a step.

        :param int step: its number, from 1.
        :param gradients: takes the next batch, and returns the gradient of Q with it as a function
            of the position.
        :param float tau: the inverse temperature.
        """
        if step == 1:
            return self._start(state, gradients)
        since = step - self.progress.begin
        if since > self.progress.length:
            return state
        if since % (10 if since > 200 else 3) == 0:
            rate = 0.05 if self._share_done(step) < 0.2 else 0.01
            self._probe(state.position, gradients, rate)
        if since % 100 == 0:
            self._measure_largest(state.position, gradients(), 3)
        return state

    def _start(self, state: TunedState, gradients: Callable[[], Gradient]) -> TunedState:
        """Find a first scale, and a small first step size."""
        position = state.position
        self._scale = state.scale[(0,) * (position.dim() - 1)].clone()
        for repetition in range(6 if "scale" in self._tuned else 1):
            self._diagonal = Diagonal(torch.zeros_like(self._scale), torch.zeros_like(self._scale))
            for _ in range(10):
                self._probe(position, gradients, 0.05)
            before = self._scale
            self._take_scale()
            change = (self._scale / before).log().abs().max()
            if repetition >= 2 and float(change) < 0.7:
                break
        self._measure_largest(position, gradients(), 10)
        self._set(0.25 * self._cap, 0.0)
        return self._settings(state)

    def _probe(self, position: Tensor, gradients: Callable[[], Gradient], rate: float) -> None:
        """Estimate the diagonal of the curvature, and the noise of the gradient."""
        signs = torch.randint(0, 2, position.shape, generator=self._generator).to(position) * 2 - 1
        gradient, step = gradients(), RADIUS * self._scale * signs
        above, below = gradient(position + step), gradient(position - step)
        curvature = (below - above) / (2.0 * step)
        if not bool(torch.isfinite(curvature).all()):
            return
        self._diagonal.add(curvature, rate)
        if self._minibatches:
            other = gradients()(position)
            if bool(torch.isfinite(other).all()):
                self._noise.add(0.5 * (above + below), other, rate)

    def _measure_largest(self, position: Tensor, gradient: Gradient, iterations: int) -> None:
        rest = self._normal(position)
        self._largest.update(gradient, position, self._scale, rest, iterations)

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator).to(like)

    # -- after a step

    def after(
        self, state: TunedState, step: int, gradients: Callable[[], Gradient], tau: float
    ) -> TunedState:
        """Change the settings where a window, a round or the pilot ends with a step."""
        progress = self.progress
        self._temperatures.add(state.momentum, tau)
        self._window.add(state.momentum, tau)
        progress.steps = step
        since = step - progress.begin
        if since % WINDOW == 0:
            self._record_window(step, tau)
        if since <= progress.length:
            if since % WINDOW == 0:
                self._end_window(state.position, step, tau)
                state = self._settings(state)
            if since == progress.length:
                self._freeze()
                state = self._settings(state)
            return state
        if since % EVERY == 0:
            self._pilot.add(state.position)
        if step == self._decision:
            self._decide(state.position, step, gradients)
            state = self._settings(state)
        return state

    def _end_window(self, position: Tensor, step: int, tau: float) -> None:
        progress, done = self.progress, self._share_done(step)
        if bool(torch.isfinite(position).all()):
            self._safe = position.clone()
        if done < 0.85:
            self._take_scale()
        if "step_size" not in self._tuned:
            self._set(progress.step_size, done)
            return
        measured, step_size = self._temperatures, progress.step_size
        if not self._minibatches:
            self._set(min(step_size * math.exp(0.3), self._cap), done)
        elif done <= 0.15 or measured.steps * progress.friction >= 4.0 or measured.steps >= 400:
            excess = measured.excess(self._sites, progress.friction)
            noise = self._noise.of_worst_site(self._scale, self._sites)
            largest = self._largest.value / progress.share
            gain = 0.5 if done < 0.5 else 0.2
            if done < 0.15 and excess > 0.05:  # hot on its way
                gain = 0.0
            lowest = floor(noise, tau, largest)
            self._set(next_step_size(step_size, excess, gain, lowest, largest), done)
            measured.restart()
        if done > 0.75:
            progress.logarithms.append(math.log(progress.step_size))

    def _record_window(self, step: int, tau: float) -> None:
        """Record the settings of a window, which may change now, and its temperatures."""
        temperatures, progress = self._window.by_site(self._sites), self.progress
        noise = self._noise.of_worst_site(self._scale, self._sites)
        progress.noise = excess_temperature(noise, progress.step_size, progress.friction, tau)
        self._path.add(
            {
                "step": step,
                "step_size": progress.step_size,
                "friction": progress.friction,
                "largest_curvature": self._largest.value,
                "minibatch_noise": progress.noise,
                **{f"kinetic_temperature_{site}": heat for site, heat in temperatures.items()},
            }
        )
        self._window.restart()

    def _freeze(self) -> None:
        """Fix the step size at the geometric mean of the last windows, and begin the pilot."""
        last = self.progress.logarithms
        if last:
            last = last[len(last) // 3 :]
            self._set(min(math.exp(sum(last) / len(last)), self._cap), 1.0)
        self._begin_pilot()

    def _begin_pilot(self) -> None:
        self._temperatures.restart()
        self._pilot.records.clear()

    def _decide(self, position: Tensor, step: int, gradients: Callable[[], Gradient]) -> None:
        """Extend the pilot, begin another one or another round, or finish."""
        progress = self.progress
        progress.autocorrelation, place = self._pilot.slowest()
        inside = (n for n, part in self._sites.items() if part.start <= place < part.stop)
        progress.slowest = next(inside)
        progress.temperatures = self._temperatures.by_site(self._sites)
        if self._change_friction():
            progress.begin = step - progress.length
            progress.pilot = max(progress.pilot, 2 * PILOT)  # the times are compared
            self._begin_pilot()
            return
        short = progress.pilot < ENOUGH * progress.autocorrelation
        if short and progress.pilot < LONGEST_PILOT * progress.length:
            progress.pilot *= 2
            return
        before = self._largest.value
        self._measure_largest(position, gradients(), 5)
        hot = self._minibatches and max(progress.temperatures.values(), default=1.0) > WARM
        grown = self._largest.value > SETTLED * before
        if "step_size" in self._tuned and (hot or grown) and progress.rounds + 1 < ROUNDS:
            progress.rounds, progress.begin = progress.rounds + 1, step
            progress.length, progress.pilot = 2 * progress.length, PILOT
            progress.logarithms.clear()
            progress.lowered = 0
            self._temperatures.restart()
            return
        if self._chooses:
            progress.steps_per_draw = steps_per_draw(progress.autocorrelation, self._multiple)
        progress.finished = True
        self._pilot.records.clear()

    def _change_friction(self) -> bool:
        """
        Lower the friction where it holds back the slowest direction, or take that back where the
        chain has become slower; return whether it has changed. With minibatches it stays: a low
        friction does not carry off their heat.
        """
        progress, time = self.progress, self.progress.autocorrelation
        if self._minibatches or "friction" not in self._tuned:
            return False
        is_worse, progress.time_before = time > WORSE * progress.time_before, math.inf
        if is_worse:
            progress.friction, progress.lowered = progress.friction_before, LOWERINGS
            return True
        lower = friction_of_slowest(progress.friction, time)
        if lower > 0.7 * progress.friction or progress.lowered >= LOWERINGS:
            return False
        progress.friction_before, progress.time_before = progress.friction, time
        progress.friction, progress.lowered = lower, progress.lowered + 1
        return True

    # -- settings

    @property
    def _cap(self) -> float:
        return cap(self._largest.value / self.progress.share)

    def _take_scale(self) -> None:
        if "scale" in self._tuned and self._diagonal.probes:
            self._scale = self._diagonal.scale(self._sites)

    def _set(self, step_size: float, done: float) -> None:
        progress = self.progress
        progress.step_size = step_size
        progress.friction = friction_of(step_size, 0.3 if done < 0.1 else 0.003)

    def _settings(self, state: TunedState) -> TunedState:
        """Return the state with the current settings."""
        progress = self.progress
        new: dict[str, Any] = {}
        for name in ("step_size", "friction"):
            if name in self._tuned:
                new[name] = torch.full_like(getattr(state, name), getattr(progress, name))
        if "scale" in self._tuned:
            new["scale"] = self._scale.expand_as(state.position).clone()
        return state._replace(**new)

    # -- divergence

    def recover(self, state: TunedState) -> TunedState | None:
        """Return the chain at rest at its last safe position; None where that will not help."""
        progress = self.progress
        if progress.finished or progress.recoveries >= RECOVERIES:
            return None
        if "step_size" not in self._tuned:
            return None
        progress.recoveries += 1
        progress.share *= 0.5
        self._set(min(0.25 * progress.step_size, self._cap), 0.0)
        self._temperatures.restart()
        self._window.restart()
        rest = torch.zeros_like(state.momentum)
        return self._settings(state._replace(position=self._safe.clone(), momentum=rest))

    # -- reports

    def temperatures(
        self, position: Tensor, momentum: Tensor, tau: float, draw: bool
    ) -> dict[str, Tensor]:
        """
        Return the kinetic temperature of every site at one step, shape (...).

        :param bool draw: whether it counts for the warnings of the run.
        """
        measured = {
            f"kinetic_temperature_{name}": kinetic_temperature(
                momentum[..., place], position[..., place], 1.0 / tau
            )
            for name, place in self._sites.items()
        }
        if draw and self.finished:
            self._heat.add(torch.stack(list(measured.values()), -1))
        figures = {"largest_curvature": self._largest.value}
        if self._minibatches:
            figures["minibatch_noise"] = self.progress.noise
        same = {name: position.new_tensor(value) for name, value in figures.items()}
        return {**measured, **{name: x.expand(position.shape[:-1]) for name, x in same.items()}}

    def report(self) -> Tuning:
        """Return the settings."""
        progress = self.progress
        return Tuning(
            step_size=progress.step_size,
            friction=progress.friction,
            steps_per_draw=progress.steps_per_draw,
            scale={
                name: self._scale[place].reshape(self._shapes[name])
                for name, place in self._sites.items()
            },
            largest_curvature=self._largest.value,
            kinetic_temperature=dict(progress.temperatures),
            autocorrelation=progress.autocorrelation,
            slowest=progress.slowest,
            steps=progress.steps,
            minibatches=self._minibatches,
            finished=progress.finished,
            parents=self._parents,
        )

    def path(self) -> dict[str, Tensor]:
        """Return settings and temperatures of every window of warm-up, shape (windows,)."""
        return self._path.tensors()

    def warnings_of_draws(self) -> list[str]:
        """Return what the temperatures at the draws show to be wrong."""
        return temperature_warnings(self._clear_heat(), self._minibatches, self._parents)

    def new_warnings_of_draws(self) -> list[str]:
        """Return warnings of the sites that no earlier call has returned one of."""
        said, heat = self._heat.said, self._clear_heat()
        new = {site: value for site, value in heat.items() if site not in said}
        said.extend(hot_sites(new, self._minibatches))
        return temperature_warnings(new, self._minibatches, self._parents)

    def _clear_heat(self) -> dict[str, float]:
        """Return the temperatures at the draws, less three standard errors; none if it was said."""
        if hot_sites(self.progress.temperatures, self._minibatches):
            return {}  # at the end of warm-up
        chains = self._temperatures.total.numel() // max(len(self._scale), 1)
        clear = {}
        for (name, place), heat in zip(self._sites.items(), self._heat.means(), strict=False):
            numbers = chains * (place.stop - place.start)
            clear[name] = heat - 3.0 * standard_error(numbers, self._heat.count, 1.0)
        return clear

    # -- checkpoints

    def _parts(self) -> dict[str, Saved]:
        return {
            "progress": self.progress,
            "diagonal": self._diagonal,
            "largest": self._largest,
            "noise": self._noise,
            "temperatures": self._temperatures,
            "window": self._window,
            "path": self._path,
            "pilot": self._pilot,
            "heat": self._heat,
        }

    def state(self) -> dict[str, Any]:
        """Return all that the next steps depend on, as tensors and plain values."""
        return {
            "scale": self._scale,
            "safe": self._safe,
            "generator": self._generator.get_state(),
            **{name: part.state() for name, part in self._parts().items()},
        }

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore another's :meth:`state` on a device."""
        self._scale, self._safe = state["scale"].to(device), state["safe"].to(device)
        self._generator.set_state(state["generator"])
        for name, part in self._parts().items():
            part.load(state[name], device)


@dataclass
class Heat(Saved):
    """
    Sums of the sites' temperatures over draws, shape (sites,).

    :param said: the sites that have been warned of.
    """

    total: Tensor
    count: int = 0
    said: list[str] = field(default_factory=list)

    def add(self, temperatures: Tensor) -> None:
        """Add those of a draw, shape (..., sites); NaN where all weights are held at zero."""
        self.count += 1
        sites = temperatures.shape[-1]
        self.total = self.total + temperatures.nan_to_num(1.0).reshape(-1, sites).mean(0)

    def means(self) -> list[float]:
        """Return the means over the draws; none before the first."""
        return [] if self.count == 0 else (self.total / self.count).tolist()
