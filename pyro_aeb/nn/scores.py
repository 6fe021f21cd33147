# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Scores of predicted probabilities or means, given the targets.

``probs`` has shape (..., C), its last axis the classes; ``targets`` has shape (...) and counts
classes from 0. All leading axes are data, and every score is a mean over them, a tensor of shape
(). Accuracy, calibration error and mean squared error are those of torchmetrics.
"""

from __future__ import annotations

import torch
from torch import Tensor

CALIBRATION_BINS = 15
"""Bins of equal width on [0, 1], as most papers use."""


def accuracy(probs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of data whose most probable class is the target."""
    # Imported on use, here and below: torchmetrics takes seconds, and spawned chains need none.
    from torchmetrics.functional.classification import multiclass_accuracy

    probs, targets = _flat(probs, targets)
    return multiclass_accuracy(probs, targets, probs.shape[-1], average="micro")


def negative_log_likelihood(probs: Tensor, targets: Tensor) -> Tensor:
    """
    Return the mean of -log p(target), in nats. A probability of 0 counts as the dtype's smallest
    normal number, so that the score is finite.
    """
    probs, targets = _flat(probs, targets)
    return -_log(probs.gather(-1, targets.unsqueeze(-1))).mean()


def brier(probs: Tensor, targets: Tensor) -> Tensor:
    r"""
    Return the mean over data of :math:`\sum_c (p_c - 1[c = \mathrm{target}])^2`, in [0, 2]. For two
    classes it is twice the squared error of one probability.
    """
    probs, targets = _flat(probs, targets)
    truth = torch.nn.functional.one_hot(targets, probs.shape[-1])
    return (probs - truth).square().sum(-1).mean()


def calibration_error(probs: Tensor, targets: Tensor, bins: int = CALIBRATION_BINS) -> Tensor:
    """
    Return the expected calibration error (ECE) of the most probable class: data are binned by that
    class's probability; the score is the mean over data of the distance between their bin's mean
    probability and its accuracy.

    :param int bins: the number of bins, of equal width.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    probs, targets = _flat(probs, targets)
    # torchmetrics takes probabilities that rounding put beyond 1 for logits.
    probs = probs.clamp(0.0, 1.0)
    return multiclass_calibration_error(probs, targets, probs.shape[-1], n_bins=bins, norm="l1")


def entropy(probs: Tensor) -> Tensor:
    """Return the mean entropy of the predicted distribution, in nats: in [0, log C]."""
    return -(probs * _log(probs)).sum(-1).mean()


def root_mean_square_error(means: Tensor, targets: Tensor) -> Tensor:
    """Return the root of the mean of (target - mean)^2, in the targets' units; of equal shapes."""
    from torchmetrics.functional import mean_squared_error

    return mean_squared_error(means.reshape(-1), targets.reshape(-1), squared=False)


def _log(probs: Tensor) -> Tensor:
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _flat(probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """
    Flatten the axes of data.

    :raises ValueError: if the shapes do not fit.
    """
    if probs.dim() < 1 or targets.shape != probs.shape[:-1]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)} and probs {tuple(probs.shape)}, expected "
            f"targets of shape {tuple(probs.shape[:-1])}: one number of a class for every datum"
        )
    return probs.reshape(-1, probs.shape[-1]), targets.reshape(-1).long()
