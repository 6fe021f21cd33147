# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Proof 1. All minibatches are enumerated: over all of them, equally likely, the mean of the
stochastic gradient is the gradient of Q on all data, and the mean of the residual statistic I of
equation (6) is that of all data. There is no Monte Carlo error: the only tolerance is rounding in
float64.

Q is written out below for each model from the equations alone and differentiated by autograd.
"""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import chi2
from torch.nn.functional import logsigmoid

from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.data.minibatches import Minibatches
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.priors import SSGL

N, P, CLASSES = 6, 3, 4
V0, V1, RHO, SIGMA2 = 0.2, 5.0, 0.3, 0.7
KAPPA0, KAPPA1 = (1 - RHO) / V0, RHO / V1  # equation (5)


def prior(beta):
    """Return the part of Q of an SSGL site, equation (2)."""
    sigma = math.sqrt(SIGMA2)
    return -KAPPA0 * beta.abs().sum() / sigma - KAPPA1 * beta.square().sum() / (2 * SIGMA2)


class NormalRegression:
    """Regression with noise of scale 1.5 times a learned sigma, a dense intercept and a mask."""

    def data(self):
        return torch.randn(N, P), torch.randn(N), torch.tensor([1, 1, 0, 1, 1, 1]).bool()

    def model(self, x, y, keep, batch=None):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 0.7))
        delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        with pyro.plate("features", P):
            beta = pyro.sample("beta", SSGL(V0, V1, delta, sigma2.sqrt()))
        intercept = pyro.sample("intercept", dist.Normal(0.3, 2.0))
        with pyro.plate("data", N, subsample_size=batch) as i:
            loc = intercept + x[i] @ beta
            with pyro.poutine.mask(mask=keep[i]):
                pyro.sample("y", dist.Normal(loc, 1.5 * sigma2.sqrt()), obs=y[i])

    def residuals(self, position, x, y, keep):
        error = (y - position[P] - x @ position[:P]) / 1.5
        return error[keep].square().sum()

    def q(self, position, x, y, keep):
        dense = -(position[P] - 0.3).square() / (2 * 2.0**2)
        fit = -self.residuals(position, x, y, keep) / (2 * SIGMA2)
        return fit + prior(position[:P]) + dense


class BernoulliClassification:
    """Classification with a positive latent, whose prior enters Q once, not N/n times."""

    def data(self):
        return torch.randn(N, P), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])

    def model(self, x, y, batch=None):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 0.7))
        rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        beta = pyro.sample("beta", SSGL(V0, V1, 0.4, sigma2.sqrt()).expand([P]).to_event(1))
        with pyro.plate("data", N, subsample_size=batch) as i:
            pyro.sample("y", dist.Bernoulli(logits=rate * (x[i] @ beta)), obs=y[i])

    def q(self, position, x, y):
        beta, log_rate = position[:P], position[P]
        logits = log_rate.exp() * (x @ beta)
        fit = (y * logsigmoid(logits) + (1 - y) * logsigmoid(-logits)).sum()
        # Gamma(3, 2) has log density 2 log r - 2 r; in u = log r the Jacobian adds u.
        return fit + prior(beta) + 2 * log_rate - 2 * log_rate.exp() + log_rate


class CategoricalClassification:
    """Classification with a matrix of sparse weights."""

    def data(self):
        return torch.randn(N, P), torch.tensor([0, 3, 1, 1, 2, 0])

    def model(self, x, y, batch=None):
        delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        prior = SSGL(V0, V1, delta, math.sqrt(SIGMA2)).expand([P, CLASSES]).to_event(2)
        weights = pyro.sample("weights", prior)
        with pyro.plate("data", N, subsample_size=batch) as i:
            pyro.sample("y", dist.Categorical(logits=x[i] @ weights), obs=y[i])

    def q(self, position, x, y):
        logits = x @ position.reshape(P, CLASSES)
        chosen = logits[torch.arange(N), y] - logits.logsumexp(-1)
        return chosen.sum() + prior(position)


MODELS = [NormalRegression(), BernoulliClassification(), CategoricalClassification()]
BATCHES = {
    "all subsets of 2": list(itertools.combinations(range(N), 2)),
    "all subsets of 4": list(itertools.combinations(range(N), 4)),
    "all draws of 2 with replacement": list(itertools.product(range(N), repeat=2)),
    "the whole data set": [range(N)],
}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


def evaluate(case, batches):
    """Return the position, the data, and the evaluation on every batch."""
    data = case.data()
    size = len(batches[0]) if len(batches) > 1 else None
    structure = inspect_model(case.model, (*data, size), {}, adapt=True)
    posterior = Posterior(case.model, structure)
    values = {"sigma2": torch.tensor(SIGMA2), "delta": torch.tensor(0.4)}
    latents = posterior.adaptation.spike_and_slab.init(
        values, StochasticApproximation(0.5, initial_inclusion=RHO)
    )
    position = torch.randn(structure.size)
    whole = {name: torch.arange(n) for name, (n, _) in structure.plates.items()}
    seen = [
        posterior.evaluate(
            position,
            Latents(latents, {}),
            Batch(Arguments((*data, size), {}), {**whole, "data": torch.tensor(batch)}),
        )
        for batch in batches
    ]
    return position, data, seen


@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("case", MODELS, ids=lambda case: type(case).__name__)
def test_mean_stochastic_gradient_is_the_gradient_of_q(case, batches):
    position, data, seen = evaluate(case, batches)
    mean = torch.stack([one.gradient for one in seen]).mean(0)
    position.requires_grad_()
    (expected,) = torch.autograd.grad(case.q(position, *data), position)
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)
    if len(batches) > 1:  # only the mean agrees: the gradients of batches scatter
        assert all((one.gradient - expected).abs().max() > 1e-3 for one in seen)


@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
def test_mean_residual_statistic_is_that_of_the_whole_data_set(batches):
    case = NormalRegression()
    position, (x, y, keep), seen = evaluate(case, batches)
    # I = (N/n) sum ((y - loc) / c)^2 with c = 1.5, over the data that are not masked.
    expected = case.residuals(position, x, y, keep)
    mean = torch.stack([one.statistics.residuals["y"].square for one in seen]).mean()
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=0.0)
    # So is the number of data, which enters A in (6): 5 of the 6 are kept.
    data = torch.tensor([float(one.statistics.residuals["y"].data) for one in seen]).mean()
    torch.testing.assert_close(data, torch.tensor(5.0), rtol=1e-12, atol=0.0)


def test_two_data_sets_have_each_its_own_scale():
    # 6 data in batches of 2 and 4 in batches of 3: factors 3 and 4/3, all 15 * 4 pairs of batches.
    y, z = torch.randn(6), torch.randn(4)

    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("first", 6, subsample_size=2) as i:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[i])
        with pyro.plate("second", 4, subsample_size=3) as i:
            pyro.sample("z", dist.Normal(mean, 0.5), obs=z[i])

    posterior = Posterior(model, inspect_model(model, (), {}, adapt=False))
    at = torch.tensor([0.8])
    pairs = itertools.product(
        itertools.combinations(range(6), 2), itertools.combinations(range(4), 3)
    )
    indices = [{"first": torch.tensor(a), "second": torch.tensor(b)} for a, b in pairs]
    assert len(indices) == 60
    gradients = [
        posterior.evaluate(at, None, Batch(Arguments((), {}), here)).gradient for here in indices
    ]
    expected = (y - at).sum() + (z - at).sum() / 0.5**2 - at / 3.0**2
    torch.testing.assert_close(torch.stack(gradients).mean(0), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ["permutation", "replacement"])
def test_the_kernel_draws_all_these_batches_equally_often(order):
    # 5 data in batches of 2: a permutation leaves one over, which must not matter. Batches as sets:
    # 10 without replacement, each of probability 1/10; with it, those at 2/25 and 5 pairs of twins
    # at 1/25. Batches of one epoch are dependent (they do not overlap), so every second is counted.
    draws, size = 10_000, 5
    generator = torch.Generator().manual_seed(0)
    batches = Minibatches({"data": (size, 2)}, order, torch.device("cpu"), generator)
    for offset in (0, 1):  # the first batch of an epoch, and the second
        counts = {pair: 0 for pair in itertools.combinations_with_replacement(range(size), 2)}
        for number in range(2 * draws):
            batch = tuple(sorted(batches.next()["data"].tolist()))
            counts[batch] += number % 2 == offset
        twins = {pair for pair in counts if pair[0] == pair[1]}
        if order == "permutation":
            assert not any(counts[pair] for pair in twins)
            expected = {pair: draws / 10 for pair in counts.keys() - twins}
        else:
            expected = {pair: draws / 25 * (1 if pair in twins else 2) for pair in counts}
        statistic = sum((counts[pair] - e) ** 2 / e for pair, e in expected.items())
        # Pearson's statistic exceeds this with probability 1e-6.
        assert statistic < chi2.isf(1e-6, len(expected) - 1)
