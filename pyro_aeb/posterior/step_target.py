# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Q at a step, for the transitions that evaluate it at positions of their choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Batch
from pyro_aeb.errors import ModelError, is_domain_error
from pyro_aeb.model.side_effects import Buffers
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.posterior.whole_data import mean_evaluation
from pyro_aeb.transitions import Evaluated


class StepTarget:
    """
    Q with the latents and the data of one step; see :class:`~pyro_aeb.transitions.base.Target`.

    Buffers that the model changes (averages of BatchNorm) are restored after each run of the model
    here, so that only the step's own gradient changes them.

    :param Latents latents: the current latents, None where there are none.
    :param int step: the number of the step, from 1.
    :param cover: batches of indices that hold all data; None where the data come from a loader.
    :param Tensor valid: a position where the model has a density, by which positions are told from
        it that have none: the density there is 0. None for a transition that cannot reject them.
    """

    def __init__(
        self,
        posterior: Posterior,
        latents: Latents | None,
        batch: Batch,
        step: int,
        cover: Callable[[], Iterator[Mapping[str, Tensor]]] | None,
        buffers: Buffers,
        valid: Tensor | None = None,
    ) -> None:
        self._valid = valid
        self.step = step
        self._posterior = posterior
        self._latents = latents
        self._batch = batch
        self._cover = cover
        self._buffers = buffers

    def evaluated(self, log_density: Tensor, gradient: Tensor, position: Tensor) -> Evaluated:
        """
        Return Q where the step's gradient was taken.

        :param Tensor position: shape (..., D).
        """
        return Evaluated(-self._posterior.potential(log_density, position, self._latents), gradient)

    def batch(self, position: Tensor, prior: bool = True) -> Evaluated:
        """See :meth:`~pyro_aeb.transitions.base.Target.batch`."""
        return self._mean(position, iter([self._batch.indices]), prior)

    def whole(self, position: Tensor, prior: bool = True) -> Evaluated:
        """See :meth:`~pyro_aeb.transitions.base.Target.whole`."""
        if self._cover is None:
            raise ModelError(
                "the transition asks for the whole data set, and the data come from a DataLoader, "
                "which gives batches only; pass the data as tensors, to a model that takes a part "
                "of them in pyro.plate(..., subsample_size=...)"
            )
        try:
            return self._mean(position, self._cover(), prior)
        except Exception as error:
            if self._valid is None or not is_domain_error(error):
                raise
            return self._whole_of_valid(self._valid, position, self._cover, prior)

    def _whole_of_valid(
        self,
        valid: Tensor,
        position: Tensor,
        cover: Callable[[], Iterator[Mapping[str, Tensor]]],
        prior: bool,
    ) -> Evaluated:
        """Return Q at the chains' positions, -inf with no gradient where it does not exist."""
        if position.dim() == 1:
            return Evaluated(position.new_tensor(-torch.inf), torch.zeros_like(position))
        exists = torch.ones_like(position[..., :1], dtype=torch.bool)
        for chain in range(len(position)):
            alone = valid.clone()
            alone[chain] = position[chain]
            try:
                self._mean(alone, cover(), prior)
            except Exception as error:
                if not is_domain_error(error):
                    raise
                exists[chain] = False
        log_density, gradient = self._mean(torch.where(exists, position, valid), cover(), prior)
        return Evaluated(
            log_density.masked_fill(~exists.squeeze(-1), -torch.inf),
            gradient.masked_fill(~exists, 0.0),
        )

    def _mean(
        self, position: Tensor, indices: Iterator[Mapping[str, Tensor]], prior: bool
    ) -> Evaluated:
        batches = (self._batch._replace(indices=own) for own in indices)
        evaluate = partial(self._posterior.evaluate_likelihood, position, self._latents)
        log_density, gradient, _ = mean_evaluation(map(evaluate, batches), self._buffers)
        if not prior:
            return Evaluated(log_density, gradient)
        with torch.no_grad():
            self._posterior.add_prior(gradient, position, self._latents)
            return self.evaluated(log_density, gradient, position)
