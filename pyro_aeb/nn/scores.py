# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
How good predictions are: functions of probabilities or means, and targets.

``probs`` has shape (..., C), its last axis the classes; ``targets`` has shape (...) and counts
classes from 0. All leading axes are data, and every score is a mean over them, a tensor of shape
(). torchmetrics computes what it knows: accuracy, calibration error, mean squared error.
"""

from __future__ import annotations

import torch
from torch import Tensor

CALIBRATION_BINS = 15
"""Bins of equal width on [0, 1], as most papers use."""


def accuracy(probs: Tensor, targets: Tensor) -> Tensor:
    """The share of data whose most probable class is theirs."""
    # Imported on use, here and below: torchmetrics takes seconds, and spawned chains need none.
    from torchmetrics.functional.classification import multiclass_accuracy

    probs, targets = _flat(probs, targets)
    return multiclass_accuracy(probs, targets, probs.shape[-1], average="micro")


def negative_log_likelihood(probs: Tensor, targets: Tensor) -> Tensor:
    """
    The mean of -log p(target), in nats. A probability of 0 counts as the dtype's smallest normal
    number, so that the score stays finite.
    """
    probs, targets = _flat(probs, targets)
    return -_log(probs.gather(-1, targets.unsqueeze(-1))).mean()


def brier(probs: Tensor, targets: Tensor) -> Tensor:
    r"""
    The mean over data of :math:`\sum_c (p_c - 1[c = \mathrm{target}])^2`: between 0 and 2, summed
    over *all* classes. For two classes that is twice the square of one probability's error.
    """
    probs, targets = _flat(probs, targets)
    truth = torch.nn.functional.one_hot(targets, probs.shape[-1])
    return (probs - truth).square().sum(-1).mean()


def calibration_error(probs: Tensor, targets: Tensor, bins: int = CALIBRATION_BINS) -> Tensor:
    """
    The expected calibration error (ECE) of the most probable class: data are put in bins of equal
    width by that class's probability; the score is the mean over data of the distance between
    their bin's mean probability and its accuracy.

    :param int bins: how many.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    probs, targets = _flat(probs, targets)
    # torchmetrics takes probabilities that rounding put beyond 1 for logits
    probs = probs.clamp(0.0, 1.0)
    return multiclass_calibration_error(probs, targets, probs.shape[-1], n_bins=bins, norm="l1")


def entropy(probs: Tensor) -> Tensor:
    """The mean entropy of the predicted distribution, in nats: between 0 and log C."""
    return -(probs * _log(probs)).sum(-1).mean()


def root_mean_square_error(means: Tensor, targets: Tensor) -> Tensor:
    """The root of the mean square of target - mean; both of one shape, in the targets' units."""
    from torchmetrics.functional import mean_squared_error

    return mean_squared_error(means.reshape(-1), targets.reshape(-1), squared=False)


def _log(probs: Tensor) -> Tensor:
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _flat(probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """
    :raises ValueError: if the shapes do not fit.
    """
    if probs.dim() < 1 or targets.shape != probs.shape[:-1]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)} and probs {tuple(probs.shape)}, expected "
            f"targets of shape {tuple(probs.shape[:-1])}: one number of a class for every datum"
        )
    return probs.reshape(-1, probs.shape[-1]), targets.reshape(-1).long()
