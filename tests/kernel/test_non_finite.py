# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The advice in errors of a chain that has diverged, for a given and for a tuned step size."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from refusals import raises_with

import pyro_aeb as aeb
from pyro_aeb.kernel.non_finite import divergence_error, missing_density_error


def test_a_given_step_size_is_to_be_smaller():
    assert "it is 0.02, try 0.002" in str(divergence_error(7, "w", "the gradient", (), 0.02, {}))
    error = missing_density_error(7, "w", ValueError("no"), 0.02, {})
    assert "Try a step size of 0.002 instead of 0.02, a prior" in str(error)


@pytest.mark.parametrize("chains", [(), (1, 3)])
def test_a_tuned_step_size_is_not_the_users_to_change(chains):
    error = divergence_error(7, "w", "the gradient", chains, None, {})
    assert "warm-up chooses it" in str(error) and "LocScaleReparam" in str(error)
    assert ("of chain 1, 3" in str(error)) == bool(chains)
    lost = str(missing_density_error(7, "w", ValueError("no"), None, {}))
    assert "Try a prior that keeps away" in lost and "step size" not in lost


@pytest.mark.parametrize("chains", [0, range(2)])
def test_the_error_of_a_tuned_run_names_the_site_that_moves_fastest(chains):
    def model():
        pyro.sample("calm", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("wild", dist.Normal(0.0, 1.0))

    kernel = aeb.AEBKernel(model, seed=1)
    kernel.start(10, chains, (), {})
    state = kernel.chain.state
    momentum = state.momentum.clone()
    momentum[..., -1] = 1e30
    kernel.chain.state = state._replace(momentum=momentum)
    with raises_with("not finite", "'wild' moves fastest", error=aeb.NonFiniteError):
        kernel.advance(50)
