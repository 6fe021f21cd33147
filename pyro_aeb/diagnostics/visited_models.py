# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The models that a run has visited: which weights were in together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_aeb.diagnostics.batch_means import error_of_mean
from pyro_aeb.diagnostics.gamma_draws import GammaDraws, read_gammas
from pyro_aeb.diagnostics.inclusion_probabilities import Inclusion
from pyro_aeb.nn.layers import table
from pyro_aeb.testing.linear import Array
from pyro_aeb.validation import count

SHOWN = 8
"""The most names of a model that are printed."""


@dataclass(frozen=True)
class VisitedModel:
    """
    A model, that is, the units that are in together.

    :param members: their names.
    :param gamma: site to bools of its shape.
    :param float probability: the share of the draws with this model.
    :param float error: Monte Carlo standard error of that, by batch means.
    :param int chains: the number of chains that visited it.
    """

    members: tuple[str, ...]
    gamma: dict[str, Array]
    probability: float
    error: float
    chains: int


@dataclass(frozen=True, repr=False)
class Models:
    """
    The models that a run has visited, printed as a table.

    :param models: the most frequent ones, in their order.
    :param int visited: the number of different models.
    :param sizes: probability of every number of units in a model, shape (largest size + 1,).
    :param float mean_size: mean number of units in a model.
    :param float size_error: Monte Carlo standard error of that.
    :param GammaDraws draws: what they were computed from.
    """

    models: tuple[VisitedModel, ...]
    visited: int
    sizes: Array
    mean_size: float
    size_error: float
    draws: GammaDraws

    def __repr__(self) -> str:
        rows = [
            (_join(model.members), f"{model.probability:.3f}", f"{model.error:.3f}",
             str(len(model.members)), f"{model.chains} of {self.draws.chains}")
            for model in self.models
        ]  # fmt: skip
        total = sum(model.probability for model in self.models)
        likely = [f"{size}: {share:.3f}" for size, share in enumerate(self.sizes) if share >= 0.01]
        return "\n".join([
            f"{self.visited} models visited, {self.draws}",
            table(("", "P", "error", "size", "chains"), rows),
            f"these have {total:.3f} of the draws",
            f"size {self.mean_size:.2f} +- {self.size_error:.2f}; P by size: {', '.join(likely)}",
        ])  # fmt: skip


def models(run: Any, most: int = 10) -> Models:
    """
    Return the models that a run has visited, the most frequent ones first, and the distribution of
    their size. A model is the set of weights whose gamma is 1; a group of weights with one gamma
    counts as one.

    The probability of a model is the share of the draws. Where there are many models, none of them
    is probable, and shares of a few draws say little: read :func:`~pyro_aeb.diagnostics.inclusion`
    and the sizes then.

    :param run: as of :func:`~pyro_aeb.diagnostics.inclusion`, or what that returned.
    :param int most: the number of models to return.
    :returns: the models.
    :raises TypeError: if ``run`` is no run of an AEBKernel or trace of one.
    :raises ValueError: if it has no draws of gamma.
    """
    count("most", most, "the models to return")
    draws = run.draws if isinstance(run, Inclusion) else read_gammas(run, "models()")
    gamma = draws.gamma("models()")
    packed = np.packbits(gamma.reshape(-1, gamma.shape[-1]), axis=1)
    _, first, which, times = np.unique(
        packed, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    which = which.reshape(gamma.shape[:2])
    flat, names = gamma.reshape(-1, gamma.shape[-1]), draws.names
    found = []
    for model in np.argsort(-times, kind="stable")[:most]:
        is_here, units = which == model, flat[first[model]]
        found.append(
            VisitedModel(
                tuple(names[unit] for unit in np.flatnonzero(units)),
                draws.by_site(units),
                float(is_here.mean()),
                float(error_of_mean(is_here)),
                int(is_here.any(1).sum()),
            )
        )
    sizes = gamma.sum(-1)
    return Models(
        tuple(found),
        len(times),
        np.bincount(sizes.ravel()) / sizes.size,
        float(sizes.mean()),
        float(error_of_mean(sizes)),
        draws,
    )


def _join(members: tuple[str, ...]) -> str:
    more = [f"and {len(members) - SHOWN} more"] if len(members) > SHOWN else []
    return ", ".join([*members[:SHOWN], *more]) or "none in"
