# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What predictions are worth: the scores of the posterior average beside those of its last draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyro_aeb.nn import scores
from pyro_aeb.nn.mixture import Mixture


@dataclass(frozen=True, repr=False)
class Evaluation:
    """
    Scores of predictions, each a mean over all data.

    For classes: ``accuracy``, ``nll``, ``brier``, ``ece``, ``entropy``, as
    :mod:`pyro_aeb.nn.scores` says; a Bernoulli counts as two classes. For numbers: ``rmse`` and
    ``nll``. ``nll`` is the mean of -log density in nats, of one datum (one element of the
    likelihood's batch shape); the likelihood's scale in a plate does not enter.

    :param dict average: of the average over all draws of all chains: probabilities and means are
        averaged, and nll is that of the averaged density.
    :param dict last: of the last draw (of the last chain) alone.
    :param int draws: how many were averaged.
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


def evaluated(average: Mixture, last: Mixture) -> Evaluation:
    """
    :param Mixture average: of all draws.
    :param Mixture last: the last draw alone, for the same data.
    :raises ValueError: if they are not of observed data.
    """
    return Evaluation(_scores(average), _scores(last), average.draws)


def _scores(mixture: Mixture) -> dict[str, float]:
    mean, target, log_density = mixture.mean, mixture.target, mixture.log_density
    if target is None or log_density is None:
        raise ValueError(
            "the model observed no data, expected its arguments to include them: evaluate(x, y), "
            "or a DataLoader whose batches are (x, y)"
        )
    nll = -log_density.mean()
    if mixture.kind == "number":
        found = {"rmse": scores.root_mean_square_error(mean, target), "nll": nll}
    else:
        probs = mean if mixture.kind == "classes" else torch.stack([1.0 - mean, mean], -1)
        found = {
            "accuracy": scores.accuracy(probs, target),
            "nll": nll,
            "brier": scores.brier(probs, target),
            "ece": scores.calibration_error(probs, target),
            "entropy": scores.entropy(probs),
        }
    return {name: float(score) for name, score in found.items()}
