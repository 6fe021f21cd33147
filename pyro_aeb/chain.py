# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""One chain under way: where it stands, what it draws on, and what it has recorded."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.arguments import Batch, Source
from pyro_aeb.health import Health
from pyro_aeb.history import History
from pyro_aeb.minibatches import Minibatches
from pyro_aeb.posterior import Posterior
from pyro_aeb.pruning import Pruner
from pyro_aeb.ssgl_rule import SSGLLatents
from pyro_aeb.start import flatten
from pyro_aeb.storage import Moments
from pyro_aeb.structure import Residuals, Structure, norm_name, rho_name


@dataclass
class Chain:
    """
    One chain.

    :param Structure structure: of the model.
    :param Posterior posterior: Q.
    :param Source source: what the model is called with.
    :param Minibatches minibatches: which data of a plate the next step sees.
    :param generator: source of the noise, None for torch's own.
    :param state: the transition's state.
    :param latents: the learned latents, None where nothing is learned.
    :param int warmup: draws of warm-up, which are not recorded.
    :param saved: names of the sites and summaries that a draw holds; of all others it holds norms,
        and the chain running moments.
    :param Pruner pruner: sets weights to zero after every step, None for no pruning.
    """

    structure: Structure
    posterior: Posterior
    source: Source
    minibatches: Minibatches
    generator: torch.Generator | None
    state: Any
    latents: SSGLLatents | None
    warmup: int
    saved: tuple[str, ...]
    pruner: Pruner | None = None
    step: int = 0
    draws: int = 0
    history: History = field(default_factory=History)
    moments: Moments = field(default_factory=Moments)

    def __post_init__(self) -> None:
        structure = self.structure
        self.health = Health(structure.device, structure.dtype)
        self._potential = torch.full((), torch.nan)
        self._noise = torch.empty_like(self.state.position)
        self._collapsed: set[str] = set()
        self._started = time.perf_counter()
        self.finished = False
        self.name = uuid.uuid4().hex  # by which a finished run knows the chain that it came from
        self._stats: Mapping[str, Any] = {}
        self.saved_sites = tuple(name for name in self.values() if name in self.saved)
        self.last_draw = self.draw()

    # -- during a step

    @property
    def warming_up(self) -> bool:
        """Whether the next draw is one of warm-up."""
        return self.draws < self.warmup

    def next_batch(self) -> Batch:
        """The data of the next step."""
        args, kwargs = self.source.next()
        return Batch(args, kwargs, self.minibatches.next())

    def noise(self) -> Tensor:
        """Standard normal numbers of the position's shape, in a buffer that every step reuses."""
        return self._noise.normal_(generator=self.generator)

    def update_latents(self, residuals: Mapping[str, Residuals], weight: float) -> None:
        """Equations (4)-(8) at the weights as they stand."""
        assert self.posterior.rule is not None and self.latents is not None
        beta = self.posterior.sparse(self.state.position)
        self.latents = self.posterior.rule.update(self.latents, beta, residuals, weight)

    def prune(self, k: int) -> None:
        """Sets to zero the weights that are pruned at step k."""
        if self.pruner is not None:
            self.state = self.pruner.prune(self.state, k, self._wide_probability)

    def _wide_probability(self) -> Tensor:
        assert self.posterior.rule is not None and self.latents is not None
        return self.posterior.rule.wide_probability(self.latents)

    @staticmethod
    def first_non_finite(values: Mapping[str, Tensor]) -> str | None:
        """The first site whose values are not all finite; waits for them once if there is none."""
        finite = {name: torch.isfinite(value).all() for name, value in values.items()}
        if not finite or bool(torch.stack(list(finite.values())).all()):
            return None
        return next(name for name, good in finite.items() if not bool(good))

    def move_to(self, params: Mapping[str, Tensor]) -> None:
        """Moves the weights to other constrained values; learned latents and other sites stay."""
        values = {**self.values(), **params}
        self.state = self.state._replace(position=flatten(self.structure, values))

    def measure_potential(self, log_density: Tensor) -> None:
        """Takes down -Q before the step under way, from its batch's log density."""
        self._potential = self.posterior.potential(log_density, self.state.position, self.latents)

    # -- at a draw

    def statistics(self) -> dict[str, Tensor | float | bool]:
        """The statistics of a draw that the chain itself knows."""
        stats: dict[str, Tensor | float | bool] = {
            "diverging": False,
            "potential": self._potential,
        }
        if self.pruner is not None:
            stats["sparsity"] = self.pruner.zeros()
        elif self.posterior.rule is not None and self.latents is not None:
            stats["sparsity"] = self.posterior.rule.sparsity(self.latents)
        return stats

    def newly_collapsed(self) -> list[str]:
        """Delta sites that have collapsed since the last call."""
        if self.posterior.rule is None or self.latents is None:
            return []
        found = set(self.posterior.rule.collapsed(self.latents)) - self._collapsed
        self._collapsed |= found
        return sorted(found)

    def draw(self) -> dict[str, Tensor]:
        """The saved sites as they stand, in constrained space."""
        values = self.values()
        return {name: values[name].clone() for name in self.saved_sites}

    def record(
        self, draw: dict[str, Tensor], stats: Mapping[str, Tensor | float | bool]
    ) -> dict[str, Tensor]:
        """Counts a draw, takes it down unless warming up, and returns it."""
        self.last_draw = draw
        if not self.warming_up:
            rho = self.rho()
            left_out = {n: v for n, v in {**self.values(), **rho}.items() if n not in self.saved}
            weights = [b.name for b in self.structure.blocks if b.name in left_out]
            norms = {norm_name(name): left_out[name].norm() for name in weights}
            kept = {name: value.clone() for name, value in rho.items() if name in self.saved}
            self.history.add(self.last_draw, {**stats, **norms}, kept)
            self.moments.add(left_out)
        self._stats = stats
        self.draws += 1
        return self.last_draw

    def dims(self) -> dict[str, tuple[str | None, ...]]:
        """The plate of every axis of every site and summary."""
        dims = dict(self.structure.dims)
        return {**dims, **{rho_name(b.name): dims[b.name] for b in self.structure.sparse}}

    def progress(self) -> OrderedDict[str, str]:
        """Figures for a progress bar."""
        figures = OrderedDict[str, str]()
        if "potential" in self._stats:
            figures["potential"] = f"{float(self._stats['potential']):.3g}"
        if "sparsity" in self._stats:
            figures["sparsity"] = f"{float(self._stats['sparsity']):.3f}"
        if self.latents is not None and self.latents.sigma.numel() == 1:
            figures["sigma"] = f"{float(self.latents.sigma):.3g}"
        elapsed = time.perf_counter() - self._started
        figures["steps/s"] = f"{self.step / elapsed:.0f}"
        return figures

    def values(self) -> dict[str, Tensor]:
        """All latent sites' constrained values as they stand, by name: views where they can be."""
        sites = self.structure.unflatten(self.state.position)
        values = self.posterior.likelihood.constrain(sites)
        return {**values, **self.posterior.site_values(self.latents)}

    def rho(self) -> dict[str, Tensor]:
        """The inclusion probabilities as they stand: views, by the names of :func:`rho_name`."""
        if self.latents is None:
            return {}
        parts = self.latents.rho.split([block.size for block in self.structure.sparse], dim=-1)
        return {
            rho_name(block.name): part.reshape(block.shape)
            for block, part in zip(self.structure.sparse, parts, strict=True)
        }
