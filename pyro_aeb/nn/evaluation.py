# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Scores of the posterior average, beside those of its last draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyro_aeb.nn import scores
from pyro_aeb.nn.mixture import Mixture


@dataclass(frozen=True, repr=False)
class Evaluation:
    """
    Scores of predictions, each a mean over all data.

    For classes: ``accuracy``, ``nll``, ``brier``, ``ece``, ``entropy``, see
    :mod:`pyro_aeb.nn.scores`; a Bernoulli counts as two classes. For numbers: ``rmse`` and ``nll``.
    ``nll`` is the mean of -log density in nats over the elements of the likelihood's batch shape;
    the scale of plates does not enter. Data that the model masks count in no score.

    :param dict average: of the average over all draws of all chains: probabilities and means are
        averaged, and nll is that of the averaged density.
    :param dict last: of the last draw (of the last chain) alone.
    :param int draws: the number of draws in the average.
    """

    average: dict[str, float]
    last: dict[str, float]
    draws: int

    def __repr__(self) -> str:
        heads = (f"average of {self.draws}", "last draw")
        width = max(len(head) for head in heads)
        rows = [f"{'':9}  {heads[0]:>{width}}  {heads[1]:>{width}}"]
        for name, score in self.average.items():
            rows.append(f"{name:9}  {score:{width}.4f}  {self.last[name]:{width}.4f}")
        return "\n".join(rows)


def score(average: Mixture, last: Mixture) -> Evaluation:
    """
    Score predictions of observed data.

    :param Mixture average: of all draws.
    :param Mixture last: of the last draw alone, for the same data.
    :raises ValueError: if the model observed no data.
    """
    return Evaluation(_compute_scores(average), _compute_scores(last), average.draws)


def _compute_scores(mixture: Mixture) -> dict[str, float]:
    mean, target, log_density = mixture.select()
    if target is None or log_density is None:
        raise ValueError(
            "the model observed no data, expected its arguments to include them: evaluate(x, y), "
            "or a DataLoader whose batches are (x, y)"
        )
    nll = -log_density.mean()
    if mixture.kind == "number":
        values = {"rmse": scores.root_mean_square_error(mean, target), "nll": nll}
    else:
        probs = mean if mixture.kind == "classes" else torch.stack([1.0 - mean, mean], -1)
        values = {
            "accuracy": scores.accuracy(probs, target),
            "nll": nll,
            "brier": scores.brier(probs, target),
            "ece": scores.calibration_error(probs, target),
            "entropy": scores.entropy(probs),
        }
    return {name: float(score) for name, score in values.items()}
