# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The likelihood of all data, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from pyro_aeb.adaptation.flips import Evaluated
from pyro_aeb.adaptation.sweep import Latents, SufficientStatistics
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.errors import ModelError, first_line
from pyro_aeb.model.side_effects import Buffers
from pyro_aeb.model.structure import Residuals
from pyro_aeb.posterior.likelihood import Evaluation
from pyro_aeb.posterior.posterior import Posterior


class WholeData:
    """
    The likelihood of all data, by N / n runs of the model if a plate takes n of N; see
    :class:`~pyro_aeb.adaptation.sweep.WholeData`.

    :param arguments: of the model.
    :param cover: batches of indices that hold all data equally often.
    :param Buffers buffers: those that the model changes; they stay as they are.
    """

    def __init__(
        self,
        posterior: Posterior,
        arguments: Arguments,
        cover: Callable[[], Iterator[Mapping[str, Tensor]]],
        buffers: Buffers,
    ) -> None:
        self._posterior = posterior
        self._arguments = arguments
        self._cover = cover
        self._buffers = buffers

    def evaluate(self, position: Tensor, latents: Latents) -> Evaluated:
        evaluate = self._posterior.evaluate_likelihood
        found = mean_evaluation(
            (evaluate(position, latents, batch) for batch in self._batches()), self._buffers
        )
        return Evaluated(found.log_density, found.gradient, found.statistics.residuals)

    def curvature(self, position: Tensor, latents: Latents, columns: Sequence[Tensor]) -> Tensor:
        values = self._posterior.adaptation.values(latents)
        likelihood, before = self._posterior.as_written, self._buffers.copies()
        try:
            parts = [
                likelihood.curvature(position, values, batch, columns) for batch in self._batches()
            ]
        except RuntimeError as error:
            raise ModelError(
                "flips take second derivatives of the likelihood, which the model does not have "
                f"({first_line(error)}); use Gibbs(flips=False)"
            ) from error
        finally:
            self._buffers.load(before)
        return sum(parts[1:], start=parts[0]) / len(parts)

    def _batches(self) -> Iterator[Batch]:
        return (Batch(self._arguments, indices) for indices in self._cover())


def mean_evaluation(evaluations: Iterable[Evaluation], buffers: Buffers) -> Evaluation:
    """
    Return the mean of evaluations on several batches, without those of updates of a user's own.

    :param evaluations: made one by one; their gradients may be changed.
    :param Buffers buffers: restored afterwards.
    """
    total, count, before = None, 0, buffers.copies()
    try:
        for evaluation in evaluations:
            total = evaluation if total is None else _add(total, evaluation)
            count += 1
    finally:
        buffers.load(before)
    assert total is not None
    residuals = {
        name: Residuals(own.square / count, own.data / count)
        for name, own in total.statistics.residuals.items()
    }
    statistics = SufficientStatistics(residuals, {})
    return Evaluation(total.log_density / count, total.gradient.div_(count), statistics)


def _add(total: Evaluation, one: Evaluation) -> Evaluation:
    """Return the sum of two evaluations, without those of updates of a user's own."""
    squares, others = total.statistics.residuals, one.statistics.residuals
    residuals = {
        name: Residuals(own.square + others[name].square, own.data + others[name].data)
        for name, own in squares.items()
    }
    return Evaluation(
        total.log_density + one.log_density,
        total.gradient.add_(one.gradient),
        SufficientStatistics(residuals, {}),
    )
