# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The state of a running chain, and the objects that it owns. Several chains that step together are
one :class:`Chain` whose state has a leading axis of chains.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.latent_values import AnyLatents
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Batch
from pyro_aeb.data.minibatches import StepData
from pyro_aeb.kernel.draws import Recording, progress_figures
from pyro_aeb.kernel.noise import Noise
from pyro_aeb.kernel.non_finite import first_non_finite, sum_is_finite
from pyro_aeb.kernel.step_units import in_units
from pyro_aeb.model.side_effects import Buffers
from pyro_aeb.model.structure import Structure, gamma_name, rho_name
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.posterior.step_target import StepTarget
from pyro_aeb.pruning import Pruner
from pyro_aeb.transitions import AnyTransition, StepNumbers, statistics_of
from pyro_aeb.tuning import Tuner

if TYPE_CHECKING:
    from pyro_aeb.kernel.algorithm import FiniteCheck, Stepped
    from pyro_aeb.kernel.compiled_step import CompiledStep
    from pyro_aeb.kernel.scan import Scan


@dataclass
class Chain:
    """
    One chain, or C chains that step together: state and records then have a leading axis of length
    C.

    :param generators: source of the random numbers of every chain, None for torch's own.
    :param latents: the learned latents, None where nothing is learned.
    :param int warmup: draws of warm-up, which are not recorded.
    :param Buffers buffers: those of modules that the model changes.
    :param update: the part of a step that follows the likelihood's gradient.
    :param make_compiled: compiles what can be; a whole step is returned.
    :param int compile_from: the step after which steps are compiled, None to compile none.
    :param bool needs_target: whether the transition asks for Q at other positions.
    :param bool rejects: whether the transition rejects positions of density 0.
    :param FiniteCheck finite: detects a step whose numbers are not finite.
    :param Pruner pruner: sets weights to zero after every step, None for no pruning.
    :param Scan scan: draws latents after some of the steps, None where they are not drawn.
    :param Tuner tuner: chooses settings in warm-up, None where all are given.
    """

    structure: Structure
    posterior: Posterior
    data: StepData
    generators: tuple[torch.Generator | None, ...]
    state: Any
    latents: Latents | None
    warmup: int
    recording: Recording
    buffers: Buffers
    noise: Noise
    update: Callable[..., tuple[Any, Latents | None]]
    needs_target: bool
    finite: FiniteCheck
    make_compiled: Callable[[], CompiledStep | None]
    compile_from: int | None = None
    rejects: bool = False
    pruner: Pruner | None = None
    scan: Scan | None = None
    tuner: Tuner | None = None
    step: int = 0
    draws: int = 0

    def __post_init__(self) -> None:
        self.shape = self.state.position.shape[:-1]
        blocks = self.structure.blocks
        self._untransformed = {block.name for block in blocks if block.transform is None}
        self.compiled: CompiledStep | None = None
        self._potential = torch.full(self.shape, torch.nan)
        self._measured: dict[str, Tensor] = {}
        if self.pruner is not None:
            self.pruner.flips(self.state.position)  # counted from here on
        if self.scan is not None:
            self.scan.limit_steps(self)
        self.collapsed: set[str] = set()
        self._clock = (time.perf_counter(), self.step)
        self.finished = False
        self.torn = False  # whether a step has been cut short while it changed the state
        self.name = uuid.uuid4().hex  # by which a finished run knows the chain that it came from
        self._statistics: Mapping[str, Tensor | float | bool] = {}
        self.last_draw = self.draw()

    # -- during a step

    @property
    def warming_up(self) -> bool:
        """Whether the next draw is one of warm-up."""
        return self.draws < self.warmup

    @property
    def ssgl(self) -> AnyLatents | None:
        """The latents of spike-and-slab sites, None where none are learned."""
        return None if self.latents is None else self.latents.ssgl

    def target(self, batch: Batch) -> StepTarget:
        """Return Q at the current step, with its data."""
        return StepTarget(
            self.posterior,
            self.latents,
            batch,
            self.step + 1,
            self.data.cover,
            self.buffers,
            self.state.position if self.rejects else None,
        )

    def wide_probability(self) -> Tensor:
        """Return the probability of the wide component for every sparse weight, shape (..., P)."""
        rule = self.posterior.adaptation.spike_and_slab
        assert rule is not None and self.ssgl is not None
        return rule.wide_probability(self.ssgl)

    def first_non_finite(self, draw: Mapping[str, Tensor]) -> str | None:
        """Return the first site, or state of the transition, that is not finite with a draw."""
        numbers = [value for value in self.state if value.is_floating_point()]
        numbers += [value for name, value in draw.items() if name not in self._untransformed]
        if sum_is_finite(numbers):
            return None
        _, *others = self.state._asdict().items()
        kept = {name: value for name, value in others if value.is_floating_point()}
        return first_non_finite({**self.structure.unflatten(self.state.position), **kept, **draw})

    def restart_clock(self) -> None:
        """Restart the count of steps a second."""
        self._clock = (time.perf_counter(), self.step)

    def compile(self) -> None:
        """Compile the steps that follow."""
        self.compiled = self.make_compiled()
        if self.compiled is not None:
            self.noise = self.noise.with_bits()

    def move_to(self, params: Mapping[str, Tensor]) -> None:
        """Move the weights to other constrained values; learned latents and other sites stay."""
        values = {**self.values(), **params}
        self.state = self.state._replace(position=self.structure.flatten(values))

    def measure(
        self,
        transition: AnyTransition,
        stepped: Stepped,
        numbers: StepNumbers,
        omega: float,
        target: StepTarget | None,
    ) -> None:
        """Record the statistics of a step, before pruning."""
        state, latents = stepped.state, stepped.latents
        self._potential = self.posterior.potential(
            stepped.log_density, self.state.position, self.latents
        )
        both = self.state, state
        if self.posterior.adaptation.learns_width and not self.needs_target:
            unit = self.posterior.adaptation.step_unit(self.latents)
            both = in_units(self.state, unit), in_units(state, unit)
        self._measured = {**statistics_of(transition, *both, numbers, target)}
        if self.tuner is not None:
            tau = numbers.inverse_temperature
            heat = self.tuner.temperatures(
                self.state.position, state.momentum, tau, not self.warming_up
            )
            self._measured.update(heat)
        if self.latents is not None and latents is not None:
            figures = self.posterior.adaptation.statistics(self.latents, latents, omega)
            self._measured.update(figures)

    # -- at a draw

    def statistics(self) -> dict[str, Tensor | float | bool]:
        """Return the statistics of a draw, but for the numbers of the step."""
        stats: dict[str, Tensor | float | bool] = {"diverging": False, "potential": self._potential}
        stats |= {**self._measured, **self.posterior.adaptation.figures(self.latents)}
        if self.pruner is not None:
            stats["sparsity"] = self.pruner.zeros()
            stats["pruning_flips"] = self.pruner.flips(self.state.position)
        elif self.posterior.adaptation.spike_and_slab is not None and self.ssgl is not None:
            stats["sparsity"] = self.posterior.adaptation.spike_and_slab.sparsity(self.ssgl)
        return stats

    def given_step_size(self, step_size: float) -> float | None:
        """Return a step size that the user has given; None where it was tuned."""
        return step_size if self.tuner is None else None

    def fastest_site(self) -> tuple[str, float] | None:
        """Return the site of the largest mean square momentum, and that; None if not tuned."""
        if self.tuner is None:
            return None
        squares = {
            name: float(own.square().reshape(*self.shape, -1).mean(-1).nan_to_num(math.inf).max())
            for name, own in self.structure.unflatten(self.state.momentum).items()
        }
        name = max(squares, key=lambda site: squares[site])
        return name, squares[name]

    def tuned_steps(self) -> dict[str, Any]:
        """Return the steps of warm-up and of a draw, and its path, where they were tuned."""
        if self.tuner is None:
            return {}
        progress = self.tuner.progress
        messages = self.tuner.report().warnings() if progress.finished else []
        return {
            "warmup_steps": progress.warmup_end,
            "steps_per_draw": progress.steps_per_draw,
            "tuning": [*messages, *self.tuner.warnings_of_draws()],
            "tuning_path": self.tuner.path(),
        }

    def collapsed_now(self) -> list[str]:
        """Return the delta sites that are collapsed now."""
        return self.posterior.adaptation.collapsed(self.latents)

    def newly_collapsed(self) -> list[str]:
        """Return the delta sites that have collapsed since the last call."""
        new = set(self.collapsed_now()) - self.collapsed
        self.collapsed |= new
        return sorted(new)

    def draw(self) -> dict[str, Tensor]:
        """Return copies of the sites that a draw holds, in constrained space."""
        return self.recording.select(self.values())

    def record(
        self,
        draw: dict[str, Tensor],
        values: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor | float | bool],
    ) -> dict[str, Tensor]:
        """
        Count a draw, record it unless it is one of warm-up, and return it.

        :param values: :meth:`values` now.
        """
        self.last_draw = draw
        if not self.warming_up:
            everything = {**values, **self.summaries()}
            self.recording.add(self.draws - self.warmup, draw, everything, statistics)
        self._statistics = statistics
        self.draws += 1
        return draw

    def progress(self) -> OrderedDict[str, str]:
        """Return figures for a progress bar."""
        started, first_step = self._clock
        rate = (self.step - first_step) / (time.perf_counter() - started)
        return progress_figures(self._statistics, self.ssgl, rate)

    def values(self) -> dict[str, Tensor]:
        """Return the constrained values of all latent sites by name, as views where possible."""
        values = self.structure.constrain(self.structure.unflatten(self.state.position))
        return {**values, **self.posterior.adaptation.values(self.latents)}

    def values_by_chain(self) -> list[dict[str, Tensor]]:
        """Return :meth:`values` of every chain."""
        values = self.values()
        if not self.shape:
            return [values]
        return [{name: value[i] for name, value in values.items()} for i in range(*self.shape)]

    def summaries(self) -> dict[str, Tensor]:
        """
        Return views of the inclusion probabilities, by the names of :func:`rho_name`, and of
        gammas that are drawn, by those of :func:`gamma_name`.
        """
        if self.ssgl is None:
            return {}
        kinds = [(rho_name, self.ssgl.rho)]
        if self.posterior.adaptation.is_sampled:
            kinds.append((gamma_name, self.ssgl.slab))
        blocks = self.structure.sparse
        sizes = [block.size for block in blocks]
        return {
            name(block.name): part.reshape((*self.shape, *block.shape))
            for name, whole in kinds
            for block, part in zip(
                blocks, whole.split(sizes, dim=-1) if len(sizes) > 1 else (whole,), strict=True
            )
        }
