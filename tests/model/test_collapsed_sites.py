# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Sites whose distribution a handler has replaced: its batch shape lacks plates around the site."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.conjugate.infer import BetaBinomialPair, GammaPoissonPair, collapse_conjugate
from pyro.infer.mcmc.util import initialize_model

import pyro_aeb as aeb

COUNTS = torch.tensor([[3.0, 12.0], [1.0, 9.0], [4.0, 8.0]])
TRIALS = torch.tensor([[10.0, 6.0], [4.0, 8.0]])
SUCCESSES = torch.tensor([[[7.0, 2.0], [3.0, 4.0]], [[8.0, 3.0], [2.0, 1.0]]])


@collapse_conjugate
def gamma_poisson(data):
    with pyro.plate("components", 2):
        shape = pyro.sample("shape", dist.HalfCauchy(1.0))
        pair = GammaPoissonPair()
        rate = pyro.sample("rate", pair.latent(shape, 1.0 + shape))
        with pyro.plate("data", len(data)):
            pyro.sample("y", pair.conditional(rate), obs=data)


@collapse_conjugate
def beta_binomial(data):
    with pyro.plate("columns", 2):
        shape = pyro.sample("shape", dist.HalfCauchy(1.0))
        pair = BetaBinomialPair()
        with pyro.plate("rows", 2):
            probs = pyro.sample("probs", pair.latent(shape, 1.0 + shape))
            with pyro.plate("data", len(data)):
                conditional = pair.conditional(probs=probs, total_count=TRIALS)
                pyro.sample("y", conditional, obs=data)


@pytest.mark.parametrize("model, data", [(gamma_poisson, COUNTS), (beta_binomial, SUCCESSES)])
def test_the_density_is_pyros(model, data):
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-4), seed=0)
    kernel.setup(0, data)
    chain = kernel.chain
    _, potential, _, _ = initialize_model(model, (data,))
    batch, start = chain.data.next(), chain.state.position
    moved = start + torch.tensor([0.3, -0.2])

    def log_density(position):
        return chain.posterior.evaluate_likelihood(position, None, batch).log_density

    def pyros(position):
        return -potential(chain.structure.unflatten(position))

    found, expected = log_density(moved) - log_density(start), pyros(moved) - pyros(start)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.abs() > 0.01


def test_data_of_another_shape_are_still_refused():
    kernel = aeb.AEBKernel(gamma_poisson, aeb.SGLD(1e-4), seed=0)
    with pytest.raises(aeb.ModelError, match=r"shape \(3, 1\), expected \(3, 2\)"):
        kernel.setup(0, COUNTS[:, :1])
