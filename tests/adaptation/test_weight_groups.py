# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Sums over groups of consecutive weights, and the way back."""

import pytest
import torch

from pyro_aeb.adaptation.segments import WeightGroups

PARTS = [(6, 3), (4, 1), (4, 2), (4, 4), (8, 4)]
MEMBERS = [0] * 3 + [1] * 3 + [2, 3, 4, 5] + [6] * 2 + [7] * 2 + [8] * 4 + [9] * 4 + [10] * 4


@pytest.mark.parametrize("chains", [(), (5,), (2, 3)])
def test_every_weight_gets_the_sum_of_its_group(chains):
    values = torch.randn(*chains, 26, dtype=torch.float64)
    index = torch.tensor(MEMBERS)
    sums = torch.zeros(*chains, 11, dtype=torch.float64).index_add(-1, index, values)
    torch.testing.assert_close(WeightGroups(PARTS).total(values), sums[..., index])


def test_there_are_none_where_all_weights_are_on_their_own():
    assert WeightGroups.of([(4, 1), (2, 1)]) is None
    assert WeightGroups.of(PARTS) is not None
