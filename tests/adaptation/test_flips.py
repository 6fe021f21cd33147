# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Collapsed flips and the move of sigma, against laws by enumeration of all models and quadrature. A
scan alone cannot reach its law, so steps of the weights given gamma go between.
"""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

import pyro_aeb as aeb
from pyro_aeb.adaptation import flips
from pyro_aeb.adaptation.conditionals import GaussianConditional, LaplaceConditional
from pyro_aeb.adaptation.draws import Random
from pyro_aeb.adaptation.flips import Evaluated, UnitLaws, flip
from pyro_aeb.adaptation.sigma_draw import WideWeights, move_sigma
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule
from pyro_aeb.adaptation.units import Units
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.model.structure import Residuals
from pyro_aeb.priors.components import penalties
from pyro_aeb.testing import check_law, sequential_test


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def make_random(rng, chains):
    seeds = rng.integers(2**31, size=chains)
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return Random(generators, torch.Size([chains]), torch.device("cpu"))


class OneStream(Random):
    """Random numbers of all chains from one generator: the law is the same, and it is faster."""

    def __init__(self, rng, chains):
        super().__init__([None], torch.Size([chains]), torch.device("cpu"))
        self._generator = torch.Generator().manual_seed(int(rng.integers(2**31)))

    def uniform(self, size, active=None):
        shape = (*self._shape, size)
        return torch.empty(shape).uniform_(generator=self._generator).clamp_(min=1e-300)

    def gamma(self, concentration, active=None):
        return torch._standard_gamma(concentration, generator=self._generator)


def frequencies(codes, probabilities):
    """The p-value of a chi-square test of drawn models."""
    counts = np.bincount(codes, minlength=len(probabilities))
    rare = len(codes) * probabilities < 5.0
    if rare.any():  # into one class
        counts = np.append(counts[~rare], counts[rare].sum())
        probabilities = np.append(probabilities[~rare], probabilities[rare].sum())
    if probabilities[-1] * len(codes) < 1e-3:
        assert counts[-1] <= 1
        counts, probabilities = counts[:-1], probabilities[:-1] / probabilities[:-1].sum()
    expected = probabilities * counts.sum()
    return stats.chisquare(counts, expected).pvalue


def encode(gamma):
    """The number of each model, from gammas of shape (chains, units)."""
    return (gamma.numpy().astype(int) @ (2 ** np.arange(gamma.shape[-1]))).astype(int)


def assert_law(draw, probabilities, size=3000):
    result = sequential_test(lambda n, rng: frequencies(draw(n, rng), probabilities), size)
    assert result.passed, result


# A Normal likelihood, with Normal components: all in closed form

N, P = 15, 5
ROOT = np.random.default_rng(5)
X = ROOT.standard_normal((N, P)) + 0.8 * ROOT.standard_normal((N, 1))
Y = X @ np.array([0.6, -0.5, 0.0, 0.3, 0.0]) + 0.8 * ROOT.standard_normal(N)
S, DELTA, V0, V1 = 0.8, 0.3, 0.02, 1.0
XT, YT = torch.from_numpy(X), torch.from_numpy(Y)


def linear(beta):
    residual = YT - beta @ XT.T
    return Evaluated(-residual.square().sum(-1) / (2 * S**2), residual @ XT / S**2, {})


def precision_and_linear(gamma):
    prior = np.where(gamma, V1, V0) * S**2
    return X.T @ X / S**2 + np.diag(1 / prior), X.T @ Y / S**2, prior


def models(groups):
    """All models, with their probabilities."""
    choices = np.array(list(itertools.product([0, 1], repeat=len(groups))))[:, ::-1]
    log_mass = []
    for choice in choices:
        precision, tilt, prior = precision_and_linear(np.repeat(choice, groups))
        log_det = np.linalg.slogdet(precision)[1] + np.log(prior).sum()
        log_odds = choice.sum() * math.log(DELTA / (1 - DELTA))
        log_mass.append(0.5 * tilt @ np.linalg.solve(precision, tilt) - 0.5 * log_det + log_odds)
    mass = np.exp(np.array(log_mass) - max(log_mass))
    return choices, mass / mass.sum()


def draw_weights(gamma, groups, rng):
    """The weights of every chain from their Normal law given gamma."""
    beta = np.empty((len(gamma), P))
    for choice in np.unique(gamma, axis=0):
        own = (gamma == choice).all(1)
        precision, tilt, _ = precision_and_linear(np.repeat(choice, groups))
        root = np.linalg.cholesky(np.linalg.inv(precision))
        noise = rng.standard_normal((own.sum(), P)) @ root.T
        beta[own] = np.linalg.solve(precision, tilt) + noise
    return torch.from_numpy(beta)


def normal_laws(units, chains, stretch=1.0):
    gram = XT.T @ XT / S**2 * stretch
    blocks = units.blocks(torch.cat([gram[i, c] for i, c in enumerate(_columns(units))]))
    blocks = [block.expand(chains, *block.shape) for block in blocks]
    parts = [
        GaussianConditional(units, blocks, torch.full((chains, P), v * S**2)) for v in (V0, V1)
    ]
    return UnitLaws(units, blocks, *parts, torch.full((chains, units.count), DELTA))


def _columns(units):
    return [row for part in units.columns() for row in part]


CASES = {"single": [1] * P, "groups": [1, 2, 2]}


def units_of(groups):
    return Units([(group, group) for group in groups])


@pytest.mark.parametrize("stretch", [1.0, 1.7, 0.6])
@pytest.mark.parametrize("name", CASES)
def test_flips_reach_the_posterior_of_all_models(name, stretch):
    """With any curvature; with the likelihood's own, every flip is accepted."""
    groups = CASES[name]
    units, (_, probabilities) = units_of(groups), models(groups)

    def draw(n, rng):
        random, laws = OneStream(rng, n), normal_laws(units, n, stretch)
        gamma = torch.zeros(n, units.count)
        for _ in range(25):
            beta = draw_weights(gamma.numpy().astype(int), groups, rng)
            found = flip(beta, gamma, laws, linear, random)
            gamma = found.gamma
            if stretch == 1.0:
                assert torch.equal(found.accepted, found.proposed)
        return encode(gamma)

    assert_law(draw, probabilities)


@pytest.mark.parametrize("name", CASES)
def test_a_scan_keeps_the_law_of_weights_and_gammas(name):
    """From a draw of the posterior; weights of models are compared by their joint density."""
    groups = CASES[name]
    units, (choices, probabilities) = units_of(groups), models(groups)

    def start(n, rng):
        gamma = choices[rng.choice(len(choices), n, p=probabilities)]
        return gamma, draw_weights(gamma, groups, rng)

    def p_value(n, rng):
        gamma, beta = start(n, rng)
        found = flip(
            beta, torch.from_numpy(gamma).double(), normal_laws(units, n), linear, OneStream(rng, n)
        )
        other_gamma, other_beta = start(n, rng)
        p_values = [frequencies(encode(found.gamma), probabilities)]
        other_gamma = torch.from_numpy(other_gamma).double()
        for j in range(P):
            pair = found.beta[:, j].numpy(), other_beta[:, j].numpy()
            p_values.append(stats.ks_2samp(*pair).pvalue)
        pair = [
            linear(b).value.numpy() + g.sum(-1).numpy()
            for b, g in ((found.beta, found.gamma), (other_beta, other_gamma))
        ]
        p_values.append(stats.ks_2samp(*pair).pvalue)
        return min(1.0, len(p_values) * min(p_values))

    result = sequential_test(p_value, 2000)
    assert result.passed, result


def test_the_mean_probability_of_scans_is_the_inclusion_probability():
    groups = CASES["single"]
    units, (choices, probabilities) = units_of(groups), models(groups)
    rng, n = np.random.default_rng(0), 20_000
    gamma = choices[rng.choice(len(choices), n, p=probabilities)]
    beta = draw_weights(gamma, groups, rng)
    found = flip(
        beta, torch.from_numpy(gamma).double(), normal_laws(units, n), linear, OneStream(rng, n)
    )
    expected = probabilities @ choices
    error = found.probability.numpy().std(0) / math.sqrt(n)
    plain = found.gamma.numpy().std(0) / math.sqrt(n)
    assert (abs(found.probability.numpy().mean(0) - expected) < 4 * error).all()
    assert (error < plain).all()


@pytest.mark.parametrize("stretch", [1.0, 1.7])
@pytest.mark.parametrize("name", CASES)
def test_scans_alone_draw_the_weights_in_the_slab(name, stretch):
    """
    With all units held in the slab, without a step in between: from far away with the likelihood's
    curvature, and with another the law stays.
    """
    groups = CASES[name]
    units = units_of(groups)
    expected, tilt, _ = precision_and_linear(np.ones(P, int))
    mean, root = np.linalg.solve(expected, tilt), np.linalg.cholesky(expected)

    def p_value(n, rng):
        laws = normal_laws(units, n, stretch)._replace(delta=torch.ones(n, units.count) - 1e-15)
        beta, random = torch.full((n, P), 2.0), OneStream(rng, n)
        if stretch != 1.0:
            beta = draw_weights(np.ones((n, units.count), int), groups, rng)
        start = beta
        for _ in range(60 if stretch == 1.0 else 10):
            found = flip(beta, torch.ones(n, units.count), laws, linear, random)
            beta = found.beta
        assert not found.proposed.any() and (beta != start).double().mean() > 0.9
        whitened = (beta.numpy() - mean) @ root
        p_values = [stats.kstest(column, "norm").pvalue for column in whitened.T]
        return min(1.0, P * min(p_values))

    result = sequential_test(p_value, 1500)
    assert result.passed, result


def test_more_weights_in_the_slab_than_are_drawn_anew(monkeypatch):
    """The second chain has one too many, and keeps its weights."""
    monkeypatch.setattr(flips, "MOST_REDRAWN", 2)
    units, gamma = units_of(CASES["single"]), torch.tensor([[1.0, 0, 1, 0, 0], [1, 0, 1, 1, 0]])
    laws = normal_laws(units, 2)
    held = torch.where(gamma > 0.5, 1.0 - 1e-15, 1e-300)
    laws, beta = laws._replace(delta=held), 0.01 * torch.ones(2, P)
    found = flip(beta, gamma, laws, linear, make_random(np.random.default_rng(4), 2))
    assert torch.equal(found.gamma, gamma) and torch.equal(found.beta[1], beta[1])
    assert torch.equal(found.beta[0] != beta[0], gamma[0] > 0.5)
    torch.testing.assert_close(found.log_likelihood, linear(found.beta).value)


def test_chains_flip_as_each_alone():
    """With generators of their own, though the chains take different numbers of flips."""
    groups, n = CASES["groups"], 4
    units = units_of(groups)
    beta, gamma = torch.randn(n, P), torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0.0]])
    random = make_random(np.random.default_rng(2), n)
    together = [flip(beta, gamma, normal_laws(units, n), linear, random) for _ in range(3)]
    assert len({float(count) for count in together[0].proposed}) > 1
    seeds = np.random.default_rng(2).integers(2**31, size=n)
    for chain, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(int(seed))
        random = Random([generator], torch.Size([]), torch.device("cpu"))
        one = normal_laws(units, 1)
        blocks = [block[0] for block in one.curvature]
        parts = [GaussianConditional(units, blocks, torch.full((P,), v * S**2)) for v in (V0, V1)]
        laws = UnitLaws(units, blocks, *parts, one.delta[0])
        for found in together:
            alone = flip(beta[chain], gamma[chain], laws, linear, random)
            for value, expected in zip(alone, found, strict=True):
                torch.testing.assert_close(value, expected[chain])


# Likelihoods and components without closed forms: weights move by random walks given gamma


def walk_weights(beta, gamma_of_weights, log_joint, random, steps=25, scale=0.35):
    now = log_joint(beta, gamma_of_weights)
    for _ in range(steps):
        sizes = scale * torch.where(random.uniform(1) < 0.5, 1.0, 0.25)
        proposal = beta + sizes * torch.special.ndtri(random.uniform(beta.shape[-1]))
        new = log_joint(proposal, gamma_of_weights)
        accepted = random.uniform(1)[..., 0].log() < new - now
        beta = torch.where(accepted.unsqueeze(-1), proposal, beta)
        now = torch.where(accepted, new, now)
    return beta


LABELS = torch.tensor([1.0, 1, 0, 1, 0, 1, 1, 0, 1, 1])
FEATURES = torch.from_numpy(np.random.default_rng(3).standard_normal((10, 3)))


def logistic(beta):
    logits = beta @ FEATURES.T
    value = (LABELS * logits - torch.nn.functional.softplus(logits)).sum(-1)
    return Evaluated(value, (LABELS - logits.sigmoid()) @ FEATURES, {})


def student_like(beta):
    """A Normal likelihood of 3 correlated features."""
    x, y = FEATURES + 0.7 * FEATURES[:, :1], 2.0 * LABELS - 1.0
    residual = y - beta @ x.T
    return Evaluated(-2.0 * residual.square().sum(-1), 4.0 * residual @ x, {})


LAPLACE, SLAB = 0.25, 1.0


def log_components(beta):
    """The log densities of the spike, a Laplace, and of the slab, for every weight."""
    spike = -beta.abs() / LAPLACE - math.log(2 * LAPLACE)
    slab = -beta.square() / (2 * SLAB) - 0.5 * math.log(2 * math.pi * SLAB)
    return spike, slab


def masses_by_quadrature(likelihood, groups):
    """The probabilities of all models of three weights."""
    axis = torch.linspace(-4.0, 4.0, 161)
    total = []
    spike, slab = (part.exp() for part in log_components(axis))
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    density = torch.cat([likelihood(part).value for part in grid.reshape(-1, 3).split(100_000)])
    density = (density - density.max()).exp().reshape(161, 161, 161)
    for choice in itertools.product([0, 1], repeat=len(groups)):
        choice = choice[::-1]
        parts = [slab if c else spike for c in np.repeat(choice, groups)]
        mass = torch.einsum("abc,a,b,c->", density, *parts)
        total.append(float(mass) * (DELTA / (1 - DELTA)) ** sum(choice))
    return np.array(total) / sum(total)


def mixed_laws(units, hessian, chains):
    blocks = units.blocks(torch.cat([hessian[i, c] for i, c in enumerate(_columns(units))]))
    blocks = [block.expand(chains, *block.shape) for block in blocks]
    spike = LaplaceConditional(units, blocks, torch.full((chains, 3), LAPLACE))
    slab = GaussianConditional(units, blocks, torch.full((chains, 3), SLAB))
    return UnitLaws(units, blocks, spike, slab, torch.full((chains, units.count), DELTA))


@pytest.mark.parametrize("groups", [[1, 1, 1], [1, 2]], ids=["single", "groups"])
@pytest.mark.parametrize("likelihood", [logistic, student_like])
def test_flips_under_other_likelihoods_and_a_laplace_spike(likelihood, groups):
    units = units_of(groups)
    expected = masses_by_quadrature(likelihood, groups)
    zero = torch.zeros(3)
    hessian = -torch.func.jacrev(lambda b: likelihood(b).gradient)(zero)
    accepted = []

    def log_joint(beta, gamma):
        spike, slab = log_components(beta)
        return likelihood(beta).value + torch.where(gamma > 0.5, slab, spike).sum(-1)

    def draw(n, rng):
        random, laws = OneStream(rng, n), mixed_laws(units, hessian, n)
        gamma, beta = torch.zeros(n, units.count), torch.zeros(n, 3)
        for _ in range(30):
            beta = walk_weights(beta, units.spread(gamma), log_joint, random)
            found = flip(beta, gamma, laws, likelihood, random)
            beta, gamma = found.beta, found.gamma
            accepted.append(float(found.accepted.sum() / found.proposed.sum()))
        return encode(gamma)

    assert_law(draw, expected)
    rate = np.mean(accepted)
    # A group's spikes, here wide ones, are proposed as if its features were orthogonal.
    assert rate == 1.0 if likelihood is student_like and len(groups) == 3 else rate > 0.5, rate


# Settling scans


@pytest.mark.parametrize("name", CASES)
def test_a_settling_scan_accepts_all_where_the_likelihood_is_quadratic(name):
    """At the first try: one evaluation of the start, one of every flip."""
    groups, evaluations = CASES[name], []
    units, rng = units_of(groups), np.random.default_rng(8)
    laws = normal_laws(units, 1)
    flips = 0.0
    for _ in range(50):
        gamma = torch.from_numpy(rng.integers(2, size=(1, units.count))).double()
        beta = draw_weights(gamma.numpy().astype(int), groups, rng)
        evaluations.clear()

        def evaluate(beta):
            evaluations.append(beta)
            return linear(beta)

        found = flip(beta, gamma, laws, evaluate, OneStream(rng, 1), settling=True)
        assert torch.equal(found.accepted, found.proposed)
        drawn_anew = float((found.gamma > 0.5).sum())
        assert len(evaluations) == 1 + float(found.proposed) + drawn_anew
        flips += float(found.proposed)
    assert flips > 50


RATES = torch.from_numpy(np.random.default_rng(6).standard_normal((60, 2)))
STRENGTH = {"logistic": (5.0, 0.0), "poisson": (1.5, 0.0)}


def generalized(kind, targets):
    """A logistic or Poisson likelihood, by its log partition function."""

    def evaluate(beta):
        mean = beta @ RATES.T
        part, slope = {
            "logistic": (torch.nn.functional.softplus(mean), mean.sigmoid()),
            "poisson": (mean.exp(), mean.exp()),
        }[kind]
        return Evaluated((targets * mean - part).sum(-1), (targets - slope) @ RATES, {})

    return evaluate


@pytest.mark.parametrize("kind", STRENGTH)
def test_a_settling_scan_lets_a_strong_effect_in_and_no_other(kind):
    """With the curvature at zero, which has nearly all flips of it rejected elsewhere."""
    units, n, mean = units_of([1, 1]), 40, RATES @ torch.tensor(STRENGTH[kind])
    torch.manual_seed(3)
    targets = torch.poisson(mean.exp()) if kind == "poisson" else torch.bernoulli(mean.sigmoid())
    evaluate = generalized(kind, targets)
    hessian = -torch.func.jacrev(lambda b: evaluate(b).gradient)(torch.zeros(2))
    blocks = units.blocks(hessian.diagonal())
    blocks = [block.expand(n, *block.shape) for block in blocks]
    parts = [GaussianConditional(units, blocks, torch.full((n, 2), v)) for v in (1e-6, 9.0)]
    laws = UnitLaws(units, blocks, *parts, torch.full((n, 2), 0.02))
    start, random = torch.zeros(n, 2), OneStream(np.random.default_rng(1), n)
    kept = flip(start, torch.zeros(n, 2), laws, evaluate, random)
    assert kept.proposed.sum() >= n and kept.gamma[:, 0].mean() < 0.1
    settled = flip(start, torch.zeros(n, 2), laws, evaluate, random, settling=True)
    assert (settled.gamma[:, 0] == 1.0).all() and settled.gamma[:, 1].mean() < 0.2
    # Near the mode along that weight; its draw by the last move may leave it by some deviations.
    axis = torch.stack([torch.linspace(0.0, 12.0, 1201), torch.zeros(1201)], -1)
    best = (evaluate(axis).value - axis[:, 0].square() / 18.0).max()
    reached = evaluate(settled.beta).value - settled.beta[:, 0].square() / 18.0
    assert (best - reached < 5.0).all() and (best - reached).mean() < 1.5


# Sigma


NU, NU_LAMBDA = 3.0, 2.0


def sigma_model(prior, likelihood):
    def model(x, y):
        sigma = pyro.sample("sigma", prior)
        sigma = sigma.sqrt() if isinstance(prior, dist.InverseGamma) else sigma
        beta = pyro.sample("beta", aeb.SSGL(0.1, 2.0, 0.5, sigma).expand([P]).to_event(1))
        if likelihood == "normal":
            pyro.sample("y", dist.Normal(x @ beta, 2.0 * sigma).to_event(1), obs=y)
        else:
            pyro.sample("y", dist.Normal((x @ beta).tanh(), 0.7).to_event(1), obs=y)

    return model


def log_prior_of_sigma(name, s):
    if name == "InverseGamma":  # of its square, hence twice sigma
        return stats.invgamma(NU / 2, scale=NU_LAMBDA / 2).logpdf(s**2) + np.log(s)
    return stats.halfcauchy(scale=0.5).logpdf(s)


GAMMA = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize("name", ["InverseGamma", "HalfCauchy"])
@pytest.mark.parametrize("likelihood", ["normal", "other"])
def test_sigma_has_its_law_with_spikes_in_its_units(likelihood, name):
    """
    Where sigma is the scale of a linear Normal likelihood every move is accepted; elsewhere, where
    the likelihood changes by the spikes, a Metropolis ratio decides.
    """
    prior = dist.InverseGamma(NU / 2, NU_LAMBDA / 2) if name == "InverseGamma" else None
    prior = dist.HalfCauchy(0.5) if prior is None else prior
    structure = inspect_model(sigma_model(prior, likelihood), (XT, YT), {}, adapt=True)
    rule = SpikeAndSlabRule(structure)
    slabs = torch.tensor([0.6, 0.0, 0.0, 0.4, 0.0])
    spikes = torch.tensor([0.0, 0.5, -0.3, 0.0, 0.2])  # in units of sigma, far from narrow

    def predict(beta):
        mean = beta @ XT.T
        return mean if likelihood == "normal" else mean.tanh()

    def evaluate(beta, sigma):
        beta = beta.detach().requires_grad_()
        with torch.enable_grad():
            residual = YT - predict(beta)
            if likelihood == "normal":
                square = (residual / 2.0).square().sum(-1)
                value = -square / (2 * sigma[..., 0] ** 2)
                residuals = {"y": Residuals(square.detach(), float(N))}
            else:
                value, residuals = -residual.square().sum(-1) / (2 * 0.49), {}
        (gradient,) = torch.autograd.grad(value.sum(), beta)
        return Evaluated(value.detach(), gradient, residuals)

    def log_density(s):
        sigma = torch.as_tensor(s).unsqueeze(-1)
        beta = slabs + sigma * spikes
        value = evaluate(beta, sigma).value.numpy()
        count = (N if likelihood == "normal" else 0) + 2
        slab = -float(slabs.square().sum()) / (2 * 2.0 * s**2)
        return value - count * np.log(s) + slab + log_prior_of_sigma(name, s)

    rates = []

    def draw(n, rng):
        random, sigma = OneStream(rng, n), torch.full((n, 1), 0.6)
        gamma = GAMMA.expand(n, P)
        wide = WideWeights(gamma > 0.5, *penalties(gamma, 0.0, rule.spike, rule.slab))
        for _ in range(1 if (likelihood, name) == ("normal", "InverseGamma") else 12):
            beta = slabs + sigma * spikes
            value = evaluate(beta, sigma).value
            moved = move_sigma(rule, beta, sigma, wide, value, evaluate, random)
            torch.testing.assert_close(moved.beta, slabs + moved.sigma * spikes)
            sigma = moved.sigma
            rates.append(float(moved.accepted.double().mean()))
        return sigma[:, 0].log().numpy()

    cdf = cdf_of(lambda x: log_density(np.exp(x)) + x, -5.0, 6.0)
    check_law(draw, cdf)
    assert min(rates) == 1.0 if likelihood == "normal" else np.mean(rates) > 0.4, np.mean(rates)


def cdf_of(log_density, low, high, nodes=20_001):
    x = np.linspace(low, high, nodes)
    log_values = log_density(x)
    values = np.exp(log_values - log_values.max())
    total = integrate.cumulative_trapezoid(values, x, initial=0.0)
    return lambda t: np.interp(t, x, total / total[-1])
