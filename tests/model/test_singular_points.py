# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Models that fail at some values: at zero, where they are inspected first, or during a run, where
HMC rejects such values and other samplers stop with an error that keeps the draws.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from many_chains import run_together
from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import init_to_feasible, init_to_sample, init_to_value
from refusals import raises_with
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb import SGLD, AEBKernel, ModelError, NonFiniteError
from pyro_aeb.transitions import HMC, SVRG

N = 30
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, 2, generator=generator)
Y = X[:, 0] + 0.3 * torch.randn(N, generator=generator)


def normal(name, *shape):
    return pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))


def observe(fn, value=Y):
    pyro.sample("y", fn, obs=value)


def run(model, transition, draws=5, warmup=0, **options):
    options = {"seed": 0, **options}
    mcmc = MCMC(AEBKernel(model, transition, **options), draws, warmup, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()


# At zero only


def a_scale_by_abs():
    observe(dist.Normal(0.0, normal("w").abs()).expand([N]).to_event(1))


def a_unit_vector():
    w = normal("w", 2)
    observe(dist.Normal(X @ (w / w.norm()), 0.3).to_event(1))


def a_covariance():
    w = normal("w", 2, 2)
    observe(dist.MultivariateNormal(torch.zeros(2), w @ w.T).expand([N]).to_event(1), X)


def a_concentration():
    observe(dist.Gamma(normal("w").square(), 1.0).expand([N]).to_event(1), Y.abs())


def an_inverse():
    w = normal("w", 2, 2)
    observe(dist.Normal(X @ torch.linalg.inv(w)[0], 0.3).to_event(1))


def beside_a_sparse_prior():
    w = normal("w")
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, delta).expand([2]).to_event(1))
    observe(dist.Normal(X @ beta, w.abs()).to_event(1))


SINGULAR = [
    a_scale_by_abs,
    a_unit_vector,
    a_covariance,
    a_concentration,
    an_inverse,
    beside_a_sparse_prior,
]


@pytest.mark.parametrize("model", SINGULAR)
@pytest.mark.parametrize("strategy", [{}, {"init_strategy": init_to_sample}], ids=["", "sample"])
def test_a_model_that_fails_at_zero_only_is_sampled(model, strategy):
    draws = run(model, SGLD(1e-5), **strategy)["w"]
    assert torch.isfinite(draws).all() and (draws != 0.0).all()


def test_links_are_found_away_from_zero():
    adaptation = aeb.StochasticApproximation(0.3)
    draws = run(beside_a_sparse_prior, SGLD(1e-5), adaptation=adaptation)
    assert len(draws["delta"].unique()) > 1


def test_a_model_that_fails_everywhere_says_what_to_do():
    with raises_with("fails at zero", "10 first values of init_strategy", "init_to_value"):
        run(a_scale_by_abs, SGLD(1e-5), init_strategy=init_to_feasible)


def test_the_scale_of_a_half_normal_has_its_posterior():
    start = {"init_strategy": init_to_value(values={"w": torch.tensor(1.0)})}
    draws = run_together(a_scale_by_abs, HMC(5e-4, 8), 400, 20, **start)["w"].abs()
    w = torch.linspace(0.01, 4.0, 4000)
    log_density = dist.Normal(0.0, w[:, None]).log_prob(Y).sum(-1) - 0.5 * w.square()
    mean, sd = moments(w, log_density)
    assert abs(draws.mean() - mean) < 0.3 * sd and 0.8 < draws.std() / sd < 1.25


def moments(grid, log_density):
    """Return the mean and standard deviation of a density on a grid."""
    weights = log_density.softmax(0)
    mean = (weights * grid).sum()
    return mean, (weights * (grid - mean).square()).sum().sqrt()


# During a run


PAIRS = torch.randn(12, 2, generator=generator) @ torch.tensor([[1.0, 0.7], [0.0, 0.7]])


def correlation():
    """A covariance that exists for -1 < w < 1 only."""
    w = normal("w")
    off = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    observe(
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + w * off).expand([12]).to_event(1),
        PAIRS,
    )


def exact_correlation():
    """Return the mean, the standard deviation and the probability of more than the mean."""
    w = torch.linspace(-0.9995, 0.9995, 4000)
    square, product = PAIRS.square().sum(), PAIRS.prod(-1).sum()
    rest = 1.0 - w.square()
    log_density = -6.0 * rest.log() - (0.5 * square - w * product) / rest - 0.5 * w.square()
    mean, sd = moments(w, log_density)
    return mean, sd, log_density.softmax(0)[w > mean].sum()


def negative_scale():
    w = normal("w")
    observe(dist.Normal(0.0, 0.3 + w).expand([N]).to_event(1))


@pytest.mark.parametrize("chains", [1, 3])
def test_hmc_rejects_values_where_the_model_fails(chains):
    start = init_to_value(values={"w": torch.tensor(0.7)})
    kernel = AEBKernel(correlation, HMC(2e-3, 5), seed=0, init_strategy=start)
    options = {"num_chains": chains, "chain_method": "vectorized"} if chains > 1 else {}
    mcmc = aeb.MCMC(kernel, 600 // chains, 20, disable_progbar=True, **options)
    mcmc.run()
    draws = mcmc.get_samples()["w"]
    mean, sd, above = exact_correlation()
    assert draws.abs().max() < 1.0
    assert abs(draws.mean() - mean) < 0.25 * sd
    assert abs((draws > mean).double().mean() - above) < 0.1


def test_one_chain_that_fails_holds_no_other_back():
    """A trajectory of chains that step together is the one that each makes alone."""
    alone = []
    for chain in range(3):
        kernel = AEBKernel(correlation, HMC(0.09, 6), seed=chain)
        mcmc = aeb.MCMC(kernel, 15, 0, disable_progbar=True)
        mcmc.run()
        alone.append(mcmc.get_samples()["w"])
    kernel = AEBKernel(correlation, HMC(0.09, 6), seed=0)
    mcmc = aeb.MCMC(kernel, 15, 0, num_chains=3, chain_method="vectorized", disable_progbar=True)
    mcmc.run()
    together = mcmc.get_samples(group_by_chain=True)["w"]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("transition", [SGLD(0.3), SVRG(SGLD(0.3), 5)], ids=["SGLD", "SVRG"])
def test_others_stop_with_the_step_the_site_and_the_draws(transition):
    strategy = init_to_value(values={"w": torch.tensor(0.1)})
    kernel = AEBKernel(correlation, transition, seed=0, init_strategy=strategy)
    with pytest.raises(NonFiniteError) as info:
        MCMC(kernel, 300, 0, disable_progbar=True).run()
    error = info.value
    parts = (
        *(f"step {error.step}: the model has no density", "at or after site 'w'", "cholesky"),
        *("step size of 0.03 instead of 0.3", "diagonal", "HMC rejects", "kernel.recover()"),
    )
    assert all(part in str(error) for part in parts), str(error)
    assert error.site == "w" and len(error.draws["w"]) == error.step - 1 > 0
    assert torch.equal(error.draws["w"], kernel.recover()["w"])


ODD = 17
COVARIANCES = torch.eye(2).repeat(N, 1, 1)
COVARIANCES[ODD] = torch.tensor([[1.0, 2.0], [2.0, 1.0]])  # of no distribution


class FactorsInItsDensity(dist.Normal):
    """A density that factors a matrix of every datum."""

    def log_prob(self, value):
        torch.linalg.cholesky((2.0 - self.scale)[..., None, None])
        return super().log_prob(value)


def an_odd_covariance(x, y, batch):
    """The model fails as it makes the distribution of the third site."""
    w = normal("w")
    pyro.sample("all", dist.Normal(w, 1.0), obs=torch.tensor(0.1))
    with pyro.plate("data", N, subsample_size=batch) as i:
        pyro.sample("first", dist.Normal(w, 1.0), obs=y[i])
        pyro.sample("second", dist.MultivariateNormal(torch.zeros(2), COVARIANCES[i]), obs=x[i])


def an_odd_density(x, y, batch):
    """The density of the first of two sites of data fails."""
    w = normal("w")
    with pyro.plate("data", N, subsample_size=batch) as i:
        scale = torch.where(i == ODD, 3.0, 1.0)
        pyro.sample("first", FactorsInItsDensity(w, scale), obs=y[i])
        pyro.sample("second", dist.Normal(w, torch.ones(2)).to_event(1), obs=x[i])


def an_odd_datum(x, y, i):
    """The data are a loader's."""
    w = normal("w")
    with pyro.plate("data", N, subsample=i):
        pyro.sample("first", dist.Normal(w, 1.0), obs=y)
        pyro.sample("second", dist.MultivariateNormal(torch.zeros(2), COVARIANCES[i]), obs=x)


LOADER = DataLoader(TensorDataset(X, Y, torch.arange(N)), 2, shuffle=True)


@pytest.mark.parametrize(
    "model, data",
    [(an_odd_covariance, (X, Y, 2)), (an_odd_density, (X, Y, 2)), (an_odd_datum, (LOADER,))],
)
@pytest.mark.parametrize("order", ["permutation", "replacement"])
def test_a_datum_at_which_the_model_fails_is_looked_for_in_its_batch(model, data, order):
    """Without it, the model does not fail, and no site is named."""
    kernel = AEBKernel(model, SGLD(1e-3), seed=3, minibatches=order)
    with pytest.raises(NonFiniteError, match="at or after site 'first': .*cholesky") as info:
        MCMC(kernel, 300, 0, disable_progbar=True).run(*data)
    assert info.value.site == "first"


def test_a_parameter_outside_its_domain_is_one_of_them():
    strategy = init_to_value(values={"w": torch.tensor(0.1)})
    kernel = AEBKernel(negative_scale, SGLD(0.3), seed=0, init_strategy=strategy)
    mcmc = MCMC(kernel, 300, 0, disable_progbar=True, disable_validation=False)
    with raises_with("the model has no density", "site", "scale", error=NonFiniteError):
        mcmc.run()


def test_first_values_are_drawn_again_where_the_model_fails():
    tries = []

    def strategy(site):
        tries.append(1)
        return torch.tensor(2.0 if len(tries) < 4 else 0.5)

    kernel = AEBKernel(correlation, SGLD(1e-4), seed=0, init_strategy=strategy)
    kernel.setup(0)
    assert float(kernel.initial_params["w"]) == 0.5 and len(tries) == 4


def test_first_values_that_all_fail_are_an_error_that_says_why():
    strategy = init_to_value(values={"w": torch.tensor(2.0)})
    with raises_with("no starting point", "init_to_value", "cholesky"):
        run(correlation, SGLD(1e-4), init_strategy=strategy)


def test_an_error_of_another_kind_is_the_models_own():
    def model():
        w = normal("w")
        if w > 0.2:
            raise RuntimeError("disk full")
        observe(dist.Normal(w, 1.0).expand([N]).to_event(1))

    with pytest.raises(RuntimeError, match="disk full"):
        run(model, HMC(0.01, 8), 50)


# Priors without a density of their own


@pytest.mark.parametrize("strategy", [{}, {"init_strategy": init_to_sample}], ids=["", "sample"])
def test_an_improper_uniform_site_has_the_posterior_of_its_likelihood(strategy):
    """The posterior of x under a flat prior is Normal(2, 1), and that of s has the mean 3 / 2."""

    def model():
        x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
        observe(dist.Normal(x, 1.0), torch.tensor(2.0))
        s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), (2,)))
        pyro.factor("gamma", 2.0 * s.log().sum() - 2.0 * s.sum())

    draws = run_together(model, HMC(0.3, 5), 800, 20, **strategy)
    assert abs(draws["x"].mean() - 2.0) < 0.2 and abs(draws["x"].std() - 1.0) < 0.15
    assert draws["s"].shape == (800, 2) and (draws["s"] > 0.0).all()
    assert ((draws["s"].mean(0) - 1.5).abs() < 0.2).all()


def test_an_improper_uniform_site_starts_at_the_strategys_value():
    def model():
        x = pyro.sample("x", dist.ImproperUniform(constraints.interval(1.0, 3.0), (), ()))
        observe(dist.Normal(x, 1.0), torch.tensor(2.0))

    strategy = init_to_value(values={"x": torch.tensor(1.25)})
    kernel = AEBKernel(model, SGLD(1e-4), seed=0, init_strategy=strategy)
    kernel.setup(0)
    torch.testing.assert_close(kernel.initial_params["x"], torch.tensor(1.25))


def test_an_improper_uniform_of_a_matrix_is_refused_for_its_support():
    def model():
        pyro.sample("x", dist.ImproperUniform(constraints.positive_integer, (), ()))

    with pytest.raises(ModelError, match="site 'x' ~ ImproperUniform is a discrete latent"):
        run(model, SGLD(1e-4))
