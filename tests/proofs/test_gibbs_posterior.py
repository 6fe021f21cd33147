# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Proof 7. With ``Gibbs`` a chain has the law of the joint posterior of weights, gammas, sigma and
delta. Under Normal spikes and slabs that is a sum over all 2^p models, with every one in closed
form.
"""

import itertools
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

import pyro_aeb as aeb
from pyro_aeb import priors, transitions
from pyro_aeb.testing import check_mean
from pyro_aeb.tuning import tuner

N, P = 24, 5
V0, V1, A, B, NU, NU_LAMBDA = 0.02, 1.0, 2.0, 4.0, 3.0, 2.0
RNG = np.random.default_rng(7)
X = RNG.standard_normal((N, P)) + 0.7 * RNG.standard_normal((N, 1))
Y = X @ np.array([0.8, -0.5, 0.25, 0.0, 0.0]) + 0.9 * RNG.standard_normal(N)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def regression(x, y, groups=None, batch_size=None):
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(NU / 2, NU_LAMBDA / 2))
    delta = pyro.sample("delta", dist.Beta(A, B))
    prior = priors.SpikeAndSlabNormal(V0, V1, delta, sigma2.sqrt())
    if groups is None:
        beta = pyro.sample("beta", prior.expand([P]).to_event(1))
    else:
        first = pyro.sample("first", prior.expand([1]).to_event(1))
        pairs = pyro.sample("pairs", priors.Group(prior.expand([2, 2])).to_event(1))
        beta = torch.cat([first, pairs.flatten()])
    with pyro.plate("data", N, subsample_size=batch_size) as i:
        pyro.sample("y", dist.Normal(x[i] @ beta, sigma2.sqrt()), obs=y[i])


class Exact:
    """
    The posterior: of all models, and of sigma, delta and the weights by model.

    :param groups: the sizes of the units.
    """

    def __init__(self, groups):
        self.models = np.array(list(itertools.product([0, 1], repeat=len(groups))))
        logs, squares, means = [], [], []
        for model in self.models:
            variances = np.where(np.repeat(model, groups), V1, V0)
            covariance = np.eye(N) + (X * variances) @ X.T
            solved = np.linalg.solve(covariance, Y)
            squares.append(Y @ solved + NU_LAMBDA)
            means.append(variances * (X.T @ solved))
            size = model.sum()
            logs.append(
                -0.5 * np.linalg.slogdet(covariance)[1]
                - 0.5 * (N + NU) * math.log(squares[-1])
                + special.betaln(A + size, B + len(groups) - size)
            )
        weights = np.exp(np.array(logs) - max(logs))
        weights /= weights.sum()
        sizes, squares = self.models.sum(1), np.array(squares)
        self.inclusion = weights @ self.models
        self.pairs = np.einsum("m,mi,mj->ij", weights, self.models, self.models)
        self.beta = weights @ np.array(means)
        self.delta = weights @ ((A + sizes) / (A + B + len(groups)))
        # E[log sigma^2] under InverseGamma(shape, rate) is log(rate) - digamma(shape).
        self.log_sigma2 = weights @ np.log(squares / 2) - special.digamma((N + NU) / 2)
        second = weights @ (
            (np.log(squares / 2) - special.digamma((N + NU) / 2)) ** 2
            + special.polygamma(1, (N + NU) / 2)
        )
        self.square_of_log_sigma2 = second

    def expected(self):
        upper = np.triu_indices(len(self.inclusion), 1)
        scalars = [self.delta, self.log_sigma2, self.square_of_log_sigma2]
        return np.concatenate([self.inclusion, self.pairs[upper], self.beta, scalars])


def chain_means(mcmc, units):
    """The means over the draws of each chain, of what :meth:`Exact.expected` lists."""
    draws = mcmc.get_samples(group_by_chain=True)
    report = mcmc.diagnostics()["adaptation"]
    sites = ("beta",) if units == P else ("first", "pairs")
    gamma = torch.stack([
        torch.cat([
            chain[f"{site}_gamma"].flatten(1)[:, :: 2 if site == "pairs" else 1] for site in sites
        ], -1)
        for chain in report.values()
    ])  # fmt: skip
    beta = torch.cat([draws[site].flatten(2) for site in sites], -1)
    i, j = torch.triu_indices(units, units, 1)
    log_sigma2 = draws["sigma2"].log()
    parts = [gamma, gamma[..., i] * gamma[..., j], beta, draws["delta"].unsqueeze(-1)]
    parts += [log_sigma2.unsqueeze(-1), log_sigma2.square().unsqueeze(-1)]
    return torch.cat(parts, -1).mean(1).numpy()


def run(transition, gibbs, rng, chains, draws, warmup, **options):
    """Run chains with a draw after every scan."""
    seed = int(rng.integers(2**31))
    kernel = aeb.AEBKernel(regression, transition, gibbs, seed=seed, steps_per_draw=gibbs.every)
    mcmc = aeb.MCMC(
        kernel, draws, warmup, num_chains=chains, chain_method="vectorized", disable_progbar=True
    )
    mcmc.run(torch.from_numpy(X), torch.from_numpy(Y), **options)
    return mcmc


HMC = transitions.HMC(8e-3, leapfrogs=5)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("flips", "groups"),
    [
        (True, None),
        pytest.param(True, [1, 2, 2], marks=slow),
        pytest.param(False, None, marks=slow),
        pytest.param(False, [1, 2, 2], marks=slow),
    ],
)
def test_a_run_has_the_posterior_of_all_models(flips, groups):
    """HMC leaves no error of the step, so that means must agree within their Monte Carlo error."""
    exact = Exact([1] * P if groups is None else groups)

    def draw(size, rng):
        own = {} if groups is None else {"groups": groups}
        mcmc = run(HMC, aeb.Gibbs(every=2, flips=flips), rng, size, 60, 30, **own)
        return chain_means(mcmc, P if groups is None else len(groups))

    print(check_mean(draw, exact.expected(), size=100))


@slow
def test_minibatches_between_scans():
    """SGLD on half of the data a step; scans see all of them."""
    exact = Exact([1] * P)

    def draw(size, rng):
        gibbs = aeb.Gibbs(every=5)
        mcmc = run(aeb.SGLD(3e-4), gibbs, rng, size, 150, 60, batch_size=12)
        return chain_means(mcmc, P)

    check_mean(draw, exact.expected(), tolerance=0.03, size=64)


@pytest.fixture
def quick(monkeypatch):
    """Tune in fewer steps: a hundred chains tune together."""
    monkeypatch.setattr(tuner, "ADAPTATION", 600)
    monkeypatch.setattr(tuner, "PILOT", 200)


@slow
@pytest.mark.parametrize("flips", [True, False])
def test_a_kernel_that_tunes_itself(quick, flips):
    """Nothing is set; what is left is the error of the step that tuning chooses."""
    exact = Exact([1] * P)

    def draw(size, rng):
        gibbs, seed = aeb.Gibbs(every=5, flips=flips), int(rng.integers(2**31))
        mcmc = aeb.MCMC(
            aeb.AEBKernel(regression, adaptation=gibbs, seed=seed),
            60 if flips else 240,
            30,
            num_chains=size,
            chain_method="vectorized",
            disable_progbar=True,
        )
        mcmc.run(torch.from_numpy(X), torch.from_numpy(Y))
        assert mcmc.kernel.tuning.steps_per_draw % 5 == 0
        return chain_means(mcmc, P)

    print(check_mean(draw, exact.expected(), tolerance=0.02, size=64))


# A Laplace spike, by quadrature


@pytest.mark.parametrize(
    ("likelihood", "transition"),
    [
        ("normal", HMC),
        pytest.param("logistic", HMC, marks=slow),
        pytest.param("normal", "auto", marks=slow),
    ],
)
def test_two_correlated_weights_under_ssgl(quick, likelihood, transition):
    x, delta, v0, v1 = X[:, :2], 0.4, 0.2, 1.0
    y = Y if likelihood == "normal" else (Y > 0).astype(float)

    def model(x, y):
        if likelihood == "normal":
            sigma = pyro.sample("sigma2", dist.InverseGamma(NU / 2, NU_LAMBDA / 2)).sqrt()
        else:
            sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        prior = aeb.SSGL(v0, v1, delta, sigma).expand([2]).to_event(1)
        mean = x @ pyro.sample("beta", prior)
        with pyro.plate("data", N):
            fn = dist.Normal(mean, sigma) if likelihood == "normal" else dist.Bernoulli(logits=mean)
            pyro.sample("y", fn, obs=y)

    expected = quadrature(likelihood, x, y, delta, v0, v1)

    def draw(size, rng):
        kernel = aeb.AEBKernel(
            model, transition, aeb.Gibbs(every=2), seed=int(rng.integers(2**31)), steps_per_draw=2
        )
        mcmc = aeb.MCMC(
            kernel, 60, 40, num_chains=size, chain_method="vectorized", disable_progbar=True
        )
        mcmc.run(torch.from_numpy(x), torch.from_numpy(y))
        draws = mcmc.get_samples(group_by_chain=True)
        report = mcmc.diagnostics()["adaptation"]
        gamma = torch.stack([chain["beta_gamma"] for chain in report.values()])
        both = gamma.prod(-1, keepdim=True)
        log_sigma = draws["sigma2"].log() / 2 if likelihood == "normal" else draws["sigma"].log()
        parts = [gamma, both, draws["beta"], log_sigma.unsqueeze(-1)]
        return torch.cat(parts, -1).mean(1).numpy()

    print(check_mean(draw, expected, tolerance=0.02 if transition == "auto" else 1e-3, size=100))


def quadrature(likelihood, x, y, delta, v0, v1, nodes=150):
    """P(gamma_1), P(gamma_2), of both, E[beta] and E[log sigma]."""
    shares = (np.arange(nodes) + 0.5) / nodes  # equal shares of the prior of a weight
    quantiles = v0 * stats.laplace.ppf(shares), math.sqrt(v1) * stats.norm.ppf(shares)
    logs, values = [], []
    for log_sigma in np.linspace(-5.0, 2.0, 71):
        s = math.exp(log_sigma)
        for model in itertools.product([0, 1], repeat=2):
            beta = np.stack(np.meshgrid(*(s * quantiles[g] for g in model), indexing="ij"), -1)
            mean = beta @ x.T
            if likelihood == "normal":
                log = -N * log_sigma - ((y - mean) ** 2).sum(-1) / (2 * s**2)
                prior = stats.invgamma(NU / 2, scale=NU_LAMBDA / 2).logpdf(s**2) + 2 * log_sigma
            else:
                log = (y * mean - np.logaddexp(0.0, mean)).sum(-1)
                prior = stats.halfnorm.logpdf(s) + log_sigma
            log = log + prior + sum(math.log(delta if g else 1 - delta) for g in model)
            top = log.max()
            mass = np.exp(log - top)
            means = (mass[..., None] * beta).sum((0, 1)) / mass.sum()
            logs.append(top + math.log(mass.sum()))
            values.append([*model, model[0] * model[1], *means, log_sigma])
    weights = np.exp(np.array(logs) - max(logs))
    return weights @ np.array(values) / weights.sum()


# Effects so strong that the curvature at the start is not that where they end


def strong_effects(likelihood):
    """One strong effect and one that is undecided."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((100, 2))
    if likelihood == "logistic":
        return x, (rng.uniform(size=100) < special.expit(x @ [4.0, 1.5])).astype(float)
    return x, rng.poisson(np.exp(x @ [1.3, 0.18])).astype(float)


STRONG = {"logistic": (0.02, 2e-4), "poisson": (0.002, 2e-5)}
"""The spike's width, too narrow for the likelihood to pull the effect out of it, and a step."""


ENDS = {"logistic": ((-1.0, 11.0), (-1.0, 4.0)), "poisson": ((-0.5, 2.0), (-0.2, 0.6))}
"""Of both weights, beyond which there is no mass."""


def strong_posterior(likelihood, x, y, delta, v0, v1, nodes=400):
    """P(gamma_1), P(gamma_2), of both and E[beta], by quadrature of every model."""
    edges = [np.linspace(*ends, nodes + 1) for ends in ENDS[likelihood]]
    axes = [(own[1:] + own[:-1]) / 2 for own in edges]
    log_partition = partial(np.logaddexp, 0.0) if likelihood == "logistic" else np.exp
    log = np.zeros((nodes, nodes))
    for row, target in zip(x, y, strict=True):
        mean = row[0] * axes[0][:, None] + row[1] * axes[1]
        log += target * mean - log_partition(mean)
    density, values, weights = np.exp(log - log.max()), [], []
    for model in itertools.product([0, 1], repeat=2):
        laws = [stats.norm(scale=math.sqrt(v1)) if g else stats.laplace(scale=v0) for g in model]
        cells = [np.diff(law.cdf(own)) for law, own in zip(laws, edges, strict=True)]
        mass = density * cells[0][:, None] * cells[1]
        means = [(mass.sum(1 - i) * axes[i]).sum() / mass.sum() for i in (0, 1)]
        weights.append(mass.sum() * math.prod(delta if g else 1 - delta for g in model))
        values.append([*model, model[0] * model[1], *means])
    return np.array(weights) @ np.array(values) / sum(weights)


@pytest.mark.parametrize("likelihood", STRONG)
def test_a_strong_effect_comes_in(likelihood):
    """
    From a start in the spikes, whose curvature is many times too large for the strong effect of
    the logistic model and too small for that of the Poisson one.
    """
    x, y = strong_effects(likelihood)
    (v0, step), v1, delta = STRONG[likelihood], 4.0, 0.5

    def model(x, y):
        mean = x @ pyro.sample("beta", aeb.SSGL(v0, v1, delta, 1.0).expand([2]).to_event(1))
        logistic = likelihood == "logistic"
        with pyro.plate("data", len(x)):
            law = dist.Bernoulli(logits=mean) if logistic else dist.Poisson(mean.exp())
            pyro.sample("y", law, obs=y)

    def draw(size, rng):
        kernel = aeb.AEBKernel(
            model,
            transitions.HMC(step, leapfrogs=3, jitter=0.5),
            aeb.Gibbs(every=2),
            seed=int(rng.integers(2**31)),
            steps_per_draw=2,
        )
        mcmc = aeb.MCMC(
            kernel, 50, 33, num_chains=size, chain_method="vectorized", disable_progbar=True
        )
        mcmc.run(torch.from_numpy(x), torch.from_numpy(y))
        beta = mcmc.get_samples(group_by_chain=True)["beta"]
        report = mcmc.diagnostics()["adaptation"]
        gamma = torch.stack([chain["beta_gamma"] for chain in report.values()])
        parts = [gamma, gamma.prod(-1, keepdim=True), beta]
        return torch.cat(parts, -1).mean(1).numpy()

    print(check_mean(draw, strong_posterior(likelihood, x, y, delta, v0, v1), 1e-3, size=100))


# A width of the spikes that is drawn


class ExactWidth:
    """
    The posterior with an orthogonal design, in which weights are independent given sigma and v0, by
    quadrature over the two; delta is a number.
    """

    def __init__(self, x, y, delta, v1, c, d):
        square, cross = (x**2).sum(0)[0], x.T @ y
        log_sigma, log_v0 = np.meshgrid(
            np.linspace(-1.2, 1.0, 221), np.linspace(-7.0, math.log(0.5 * math.sqrt(v1)), 601)
        )
        s, v0 = np.exp(log_sigma)[..., None], np.exp(log_v0)[..., None]
        h, t = square / s**2, cross / s**2
        precision = h + 1 / (s**2 * v1)
        slab = t**2 / (2 * precision) - 0.5 * np.log(s**2 * v1 * precision)
        halves = [(sign * t - 1 / (s * v0)) / np.sqrt(h) for sign in (1, -1)]
        both = np.logaddexp(*(z**2 / 2 + special.log_ndtr(z) for z in halves))
        spike = both + 0.5 * np.log(2 * np.pi / h) - np.log(2 * s * v0)
        slab, spike = math.log(delta) + slab, math.log(1 - delta) + spike
        log = np.logaddexp(slab, spike).sum(-1) - N * log_sigma - y @ y / (2 * s[..., 0] ** 2)
        log += stats.invgamma(NU / 2, scale=NU_LAMBDA / 2).logpdf(s[..., 0] ** 2) + 2 * log_sigma
        log += -c * log_v0 - d / v0[..., 0]
        weights = np.exp(log - log.max())
        weights /= weights.sum()
        inclusion = (weights[..., None] * special.expit(slab - spike)).sum((0, 1))
        scalars = [log_sigma, log_v0, log_v0**2, log_sigma * log_v0]
        self.expected = np.concatenate([inclusion, [(weights * v).sum() for v in scalars]])


@pytest.mark.parametrize("flips", [True, pytest.param(False, marks=slow)])
def test_a_width_is_drawn_from_its_posterior(flips):
    """With sigma and gamma; spikes of small effects, so that the data tell of their width."""
    x = np.linalg.qr(X)[0] * math.sqrt(N)
    y = x @ np.array([0.9, 0.3, -0.2, 0.15, 0.1]) + 0.9 * np.random.default_rng(2).standard_normal(
        N
    )
    delta, v1, c, d = 0.3, 1.0, 2.0, 0.2
    exact = ExactWidth(x, y, delta, v1, c, d)

    def model(x, y):
        sigma = pyro.sample("sigma2", dist.InverseGamma(NU / 2, NU_LAMBDA / 2)).sqrt()
        site = {"init_value": torch.tensor(0.1)}
        v0 = pyro.sample("v0", dist.InverseGamma(c, d), infer=site)
        beta = pyro.sample("beta", aeb.SSGL(v0, v1, delta, sigma).expand([P]).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    def draw(size, rng):
        transition = transitions.HMC(0.02, leapfrogs=5, jitter=0.5)
        gibbs = aeb.Gibbs(every=2, flips=flips)
        kernel = aeb.AEBKernel(
            model, transition, gibbs, seed=int(rng.integers(2**31)), steps_per_draw=2
        )
        mcmc = aeb.MCMC(
            kernel, 60, 60, num_chains=size, chain_method="vectorized", disable_progbar=True
        )
        mcmc.run(torch.from_numpy(x), torch.from_numpy(y))
        draws = mcmc.get_samples(group_by_chain=True)
        report = mcmc.diagnostics()["adaptation"]
        gamma = torch.stack([chain["beta_gamma"] for chain in report.values()])
        log_sigma, log_v0 = draws["sigma2"].log() / 2, draws["v0"].log()
        scalars = [log_sigma, log_v0, log_v0.square(), log_sigma * log_v0]
        return torch.cat([gamma, torch.stack(scalars, -1)], -1).mean(1).numpy()

    print(check_mean(draw, exact.expected, tolerance=2e-3, size=100))
