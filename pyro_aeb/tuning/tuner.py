# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The order in which a chain is tuned: rounds of adaptation, each followed by a pilot of the frozen
chain, which says whether another is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.transitions import TunedBAOAB, TunedState
from pyro_aeb.transitions.base import kinetic_temperature
from pyro_aeb.tuning.noise import excess_temperature
from pyro_aeb.tuning.path import Path
from pyro_aeb.tuning.pilot import ENOUGH, EVERY, MONITORED, Pilot, steps_per_draw
from pyro_aeb.tuning.probes import Gradients, Probes
from pyro_aeb.tuning.progress import Progress
from pyro_aeb.tuning.report import WARM, Tuning, hot_sites, temperature_warnings
from pyro_aeb.tuning.saved import Saved
from pyro_aeb.tuning.step_size import cap, floor, next_step_size
from pyro_aeb.tuning.temperature import Heat, Temperatures, standard_error

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

SETTLED = 1.5
"""The largest growth of the largest curvature in a pilot that needs no other round."""


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
        learns_scale = "scale" in self._tuned
        self._probes = Probes(sites, position, learns_scale, minibatches, self._generator)
        self._temperatures = Temperatures(torch.zeros_like(position))
        self._window, self._path = Temperatures(torch.zeros_like(position)), Path()
        order = torch.randperm(position.shape[-1], generator=self._generator)
        self._pilot = Pilot(order[:MONITORED].to(position.device))
        self._safe = position.clone()
        self._heat = Heat(position.new_zeros(len(sites)))

    # -- steps and draws

    @property
    def finished(self) -> bool:
        """Whether the settings are frozen."""
        return self.progress.finished

    @property
    def planned(self) -> int:
        """Return the steps of warm-up, unless it is made longer."""
        return self.progress.planned

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
            return max(left, progress.decision - step)
        return left

    def draw(self, draws: int, step: int) -> None:
        """Count a draw, after as many others, which is made after a step."""
        self.progress.drawn_at = step
        if draws < self._warmup:
            self.progress.warmup_end = step

    # -- before a step

    def before(self, state: TunedState, step: int, gradients: Gradients) -> TunedState:
        """
        Estimate what is due before a step.

        :param int step: its number, from 1.
        :param gradients: takes the next batch, and returns the gradient of Q with it as a function
            of the position.
        """
        if step == 1:
            self._probes.start(state.position, state.scale, gradients)
            self.progress.set_step_size(0.25 * self._cap, 0.0)
            return self._settings(state)
        since = step - self.progress.begin
        if since > self.progress.length:
            return state
        if since % (10 if since > 200 else 3) == 0:
            rate = 0.05 if self.progress.share_done(step) < 0.2 else 0.01
            self._probes.probe(state.position, gradients, rate)
        if since % 100 == 0:
            self._probes.measure_largest(state.position, gradients(), 3)
        return state

    # -- after a step

    def after(self, state: TunedState, step: int, gradients: Gradients, tau: float) -> TunedState:
        """
        Change the settings where a window, a round or the pilot ends with a step.

        :param float tau: the inverse temperature.
        """
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
        if step == self.progress.decision:
            self._decide(state.position, step, gradients)
            state = self._settings(state)
        return state

    def _end_window(self, position: Tensor, step: int, tau: float) -> None:
        progress = self.progress
        done = progress.share_done(step)
        if bool(torch.isfinite(position).all()):
            self._safe = position.clone()
        if done < 0.85:
            self._probes.take_scale()
        if "step_size" not in self._tuned:
            progress.set_step_size(progress.step_size, done)
            return
        measured, step_size = self._temperatures, progress.step_size
        if not self._minibatches:
            progress.set_step_size(min(step_size * math.exp(0.3), self._cap), done)
        elif done <= 0.15 or measured.steps * progress.friction >= 4.0 or measured.steps >= 400:
            excess = measured.excess(self._sites, progress.friction)
            largest = self._probes.largest / progress.share
            gain = 0.5 if done < 0.5 else 0.2
            if done < 0.15 and excess > 0.05:  # hot on its way
                gain = 0.0
            lowest = floor(self._probes.noise, tau, largest)
            step_size = next_step_size(step_size, excess, gain, lowest, largest)
            progress.set_step_size(step_size, done)
            measured.restart()
        if done > 0.75:
            progress.logarithms.append(math.log(progress.step_size))

    def _record_window(self, step: int, tau: float) -> None:
        """Record the settings of a window, which may change now, and its temperatures."""
        temperatures, progress = self._window.by_site(self._sites), self.progress
        progress.noise = excess_temperature(
            self._probes.noise, progress.step_size, progress.friction, tau
        )
        self._path.add(
            {
                "step": step,
                "step_size": progress.step_size,
                "friction": progress.friction,
                "largest_curvature": self._probes.largest,
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
            step_size = min(math.exp(sum(last) / len(last)), self._cap)
            self.progress.set_step_size(step_size, 1.0)
        self._begin_pilot()

    def _begin_pilot(self) -> None:
        self._temperatures.restart()
        self._pilot.records.clear()

    def _decide(self, position: Tensor, step: int, gradients: Gradients) -> None:
        """Extend the pilot, begin another one or another round, or finish."""
        progress = self.progress
        progress.autocorrelation, place = self._pilot.slowest()
        inside = (n for n, part in self._sites.items() if part.start <= place < part.stop)
        progress.slowest = next(inside)
        progress.temperatures = self._temperatures.by_site(self._sites)
        # With minibatches the friction stays: a low one does not carry off their heat.
        may_change = "friction" in self._tuned and not self._minibatches
        if may_change and progress.change_friction():
            progress.begin = step - progress.length
            progress.pilot = max(progress.pilot, 2 * PILOT)  # the times are compared
            self._begin_pilot()
            return
        short = progress.pilot < ENOUGH * progress.autocorrelation
        if short and progress.pilot < LONGEST_PILOT * progress.length:
            progress.pilot *= 2
            return
        before = self._probes.largest
        self._probes.measure_largest(position, gradients(), 5)
        hot = self._minibatches and max(progress.temperatures.values(), default=1.0) > WARM
        grown = self._probes.largest > SETTLED * before
        if "step_size" in self._tuned and (hot or grown) and progress.rounds + 1 < ROUNDS:
            progress.begin_round(step, PILOT)
            self._temperatures.restart()
            return
        if self._chooses:
            progress.steps_per_draw = steps_per_draw(progress.autocorrelation, self._multiple)
        progress.finished = True
        self._pilot.records.clear()

    # -- settings

    @property
    def _cap(self) -> float:
        return cap(self._probes.largest / self.progress.share)

    def _settings(self, state: TunedState) -> TunedState:
        """Return the state with the current settings."""
        progress = self.progress
        new: dict[str, Any] = {}
        for name in ("step_size", "friction"):
            if name in self._tuned:
                new[name] = torch.full_like(getattr(state, name), getattr(progress, name))
        if "scale" in self._tuned:
            new["scale"] = self._probes.scale.expand_as(state.position).clone()
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
        progress.set_step_size(min(0.25 * progress.step_size, self._cap), 0.0)
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
        figures = {"largest_curvature": self._probes.largest}
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
                name: self._probes.scale[place].reshape(self._shapes[name])
                for name, place in self._sites.items()
            },
            largest_curvature=self._probes.largest,
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
        chains = self._temperatures.total.numel() // max(len(self._probes.scale), 1)
        clear = {}
        for (name, place), heat in zip(self._sites.items(), self._heat.means(), strict=False):
            numbers = chains * (place.stop - place.start)
            clear[name] = heat - 3.0 * standard_error(numbers, self._heat.count, 1.0)
        return clear

    # -- checkpoints

    def _parts(self) -> dict[str, Saved]:
        return {
            "progress": self.progress,
            "temperatures": self._temperatures,
            "window": self._window,
            "path": self._path,
            "pilot": self._pilot,
            "heat": self._heat,
        }

    def state(self) -> dict[str, Any]:
        """Return all that the next steps depend on, as tensors and plain values."""
        return {
            **self._probes.state(),
            "safe": self._safe,
            "generator": self._generator.get_state(),
            **{name: part.state() for name, part in self._parts().items()},
        }

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore another's :meth:`state` on a device."""
        self._probes.load(state, device)
        self._safe = state["safe"].to(device)
        self._generator.set_state(state["generator"])
        for name, part in self._parts().items():
            part.load(state[name], device)
