# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Scores against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_aeb.nn import scores

PROBS = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0], [0.1, 0.8, 0.1]])
TARGETS = torch.tensor([0, 1, 0, 1])


def test_accuracy_is_the_share_of_right_classes():
    assert float(scores.accuracy(PROBS, TARGETS)) == 0.75


def test_negative_log_likelihood_is_in_nats_and_a_mean_over_data():
    expected = -(math.log(0.5) + math.log(0.2) + math.log(1.0) + math.log(0.8)) / 4
    assert float(scores.negative_log_likelihood(PROBS, TARGETS)) == pytest.approx(expected)


def test_brier_sums_over_classes_and_averages_over_data():
    first = 0.5**2 + 0.25**2 + 0.25**2
    second = 0.2**2 + 0.8**2 + 0.6**2
    third = 0.0
    fourth = 0.1**2 + 0.2**2 + 0.1**2
    expected = (first + second + third + fourth) / 4
    assert float(scores.brier(PROBS, TARGETS)) == pytest.approx(expected)


def test_brier_of_certainty_in_the_wrong_class_is_2():
    assert float(scores.brier(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))) == 2.0


def test_calibration_error_compares_confidence_and_accuracy_bin_by_bin():
    """Two data of confidence .55, one right; two of .95, both right; bins of width 1/2 and 1/15."""
    right, wrong = [0.55, 0.45], [0.45, 0.55]
    probs = torch.tensor([right, wrong, [0.95, 0.05], [0.95, 0.05]])
    targets = torch.zeros(4, dtype=torch.int64)
    per_bin = (abs(0.55 - 0.5) * 2 + abs(0.95 - 1.0) * 2) / 4
    assert float(scores.calibration_error(probs, targets)) == pytest.approx(per_bin, abs=1e-6)
    together = abs((0.55 * 2 + 0.95 * 2) / 4 - 3 / 4)
    found = scores.calibration_error(probs, targets, bins=2)
    assert float(found) == pytest.approx(together, abs=1e-6)


def test_probabilities_that_rounding_put_beyond_1_stay_probabilities():
    """torchmetrics would take them for logits; the calibration error of certainty is 0."""
    probs = torch.tensor([[1.0 + 1e-6, 0.0], [0.0, 1.0]])
    assert float(scores.calibration_error(probs, torch.tensor([0, 1]))) == 0.0


def test_entropy_is_between_0_and_log_of_the_number_of_classes():
    assert float(scores.entropy(torch.tensor([[0.0, 1.0, 0.0]]))) == 0.0
    assert float(scores.entropy(torch.full((2, 4), 0.25))) == pytest.approx(math.log(4))
    half = scores.entropy(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]))
    assert float(half) == pytest.approx(math.log(2) / 2)


def test_a_probability_of_0_gives_a_large_and_finite_score():
    score = scores.negative_log_likelihood(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert float(score) == pytest.approx(-math.log(torch.finfo(torch.float32).tiny))


def test_root_mean_square_error_is_in_the_units_of_the_targets():
    means, targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert float(scores.root_mean_square_error(means, targets)) == pytest.approx(2.5)


def test_all_leading_axes_are_data():
    for score in (scores.accuracy, scores.negative_log_likelihood, scores.brier):
        flat = score(PROBS, TARGETS)
        assert torch.equal(score(PROBS.reshape(2, 2, 3), TARGETS.reshape(2, 2)), flat)


def test_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"targets have shape \(4, 1\).*expected.*\(4,\)"):
        scores.brier(PROBS, TARGETS.unsqueeze(-1))
