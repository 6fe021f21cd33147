# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The options ``penalties`` and ``sigma_from`` of ``StochasticApproximation``: exact empirical Bayes,
and a sigma that neither temperature nor pruning changes.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from prior_families import FAMILIES
from scipy import optimize, special
from ssgl_references import prior_gradient

import pyro_aeb as aeb
from pyro_aeb import priors
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule
from pyro_aeb.mcmc.kernel_options import from_plain, to_plain
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.model.structure import Residuals

N, GROUPS, SIZE = 12, 3, 2
X, Y = torch.randn(N, GROUPS * SIZE).double(), torch.randn(N).double()
RESIDUALS = {"y": Residuals(torch.tensor(7.0).double(), float(N))}
NU, NU_LAMBDA = 3.0, 2.0  # sigma^2 ~ InverseGamma(3 / 2, 2 / 2)

SIGMA_PRIORS = {
    "InverseGamma": lambda: dist.InverseGamma(1.5, 1.0),
    "HalfCauchy": lambda: dist.HalfCauchy(0.8),
    "HalfNormal": lambda: dist.HalfNormal(0.8),
    "Exponential": lambda: dist.Exponential(1.3),
    "Gamma": lambda: dist.Gamma(2.5, 1.3),
}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def make_model(family, prior="InverseGamma", grouped=False):
    """Six weights, of their own or in groups of two, and a noise of the same sigma."""

    def model(x, y):
        sigma = pyro.sample("sigma", SIGMA_PRIORS[prior]())
        sigma = sigma.sqrt() if prior == "InverseGamma" else sigma
        delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        base = FAMILIES[family].prior(delta, sigma).expand([GROUPS, SIZE])
        fn = priors.Group(base).to_event(1) if grouped else base.to_event(2)
        beta = pyro.sample("beta", fn)
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(x @ beta.flatten(), sigma), obs=y)

    return model


def make_rule(family, prior="InverseGamma", grouped=False, **options):
    structure = inspect_model(make_model(family, prior, grouped), (X, Y), {}, adapt=True)
    return SpikeAndSlabRule(structure, **options)


def first_latents(rule, **options):
    first = {"sigma": torch.tensor(0.49), "delta": torch.tensor(0.3)}
    return rule.init(first, aeb.StochasticApproximation(0.5, initial_inclusion=0.4, **options))


def spike_and_slab(family, beta, sigma):
    """The log densities of both components, by Pyro."""
    own = FAMILIES[family]
    return own.spike(sigma).log_prob(beta), own.slab(sigma).log_prob(beta)


# penalties="current"


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_current_penalties_are_the_gradient_of_the_density_with_gamma_summed_out(family, grouped):
    rule = make_rule(family, grouped=grouped, marginal=True)
    latents = first_latents(rule)
    sigma, delta = latents.sigma[0], latents.delta[0]
    # of the spike, the slab, and in between
    beta = torch.tensor([0.01, -0.02, 0.3, -1e-3, 4.0, -2.0]).requires_grad_()
    terms = spike_and_slab(family, beta, sigma)
    if grouped:
        terms = [term.reshape(GROUPS, SIZE).sum(-1) for term in terms]
    log_density = torch.logaddexp((1 - delta).log() + terms[0], delta.log() + terms[1]).sum()
    (expected,) = torch.autograd.grad(log_density, beta)
    torch.testing.assert_close(prior_gradient(rule, latents, beta.detach()), expected)
    other = latents._replace(slab=torch.rand(6))  # what an average would be does not enter
    torch.testing.assert_close(prior_gradient(rule, other, beta.detach()), expected)
    potential = -log_density - 6 * math.log(sigma)
    torch.testing.assert_close(rule.potential(latents, beta.detach()), potential.detach())


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_sigma_takes_the_penalties_of_the_current_weights_and_delta_the_average(family, grouped):
    rule = make_rule(family, grouped=grouped, marginal=True)
    latents = first_latents(rule)
    sigma, delta, beta = latents.sigma[0], latents.delta[0], torch.randn(6)
    spike, slab = spike_and_slab(family, beta, sigma)
    odds = slab - spike
    if grouped:
        odds = odds.reshape(GROUPS, SIZE).sum(-1, keepdim=True).expand(GROUPS, SIZE).flatten()
    current = torch.sigmoid(torch.logit(delta) + odds)
    after = rule.update(latents, beta, RESIDUALS, 0.25)
    torch.testing.assert_close(after.slab, current)
    torch.testing.assert_close(after.rho, 0.75 * 0.4 + 0.25 * current)
    gammas = GROUPS if grouped else 6
    share = after.rho.sum() * gammas / 6
    mode = (share + 1.0) / (gammas + 3.0)
    torch.testing.assert_close(after.delta[0], 0.75 * delta + 0.25 * mode)

    def q(s):
        spike, slab = spike_and_slab(family, beta, s)
        prior = ((1 - current) * spike + current * slab).sum()
        return prior - N * s.log() - 3.5 / s**2 - (NU + 2) * s.log() - NU_LAMBDA / 2 / s**2

    if family in ("Student", "Cauchy"):  # one EM step each, whose fixed point is the maximum
        frozen = rule.update(latents, beta, RESIDUALS, 1.0)
        assert frozen.sigma[0] > 0
        return
    new = ((after.sigma[0] - 0.75 * sigma) / 0.25).requires_grad_()
    (slope,) = torch.autograd.grad(q(new), new)
    assert abs(float(slope)) < 1e-9 * N


def test_penalties_of_current_weights_have_no_first_values():
    with pytest.raises(ValueError, match="expected no initial_penalty.*init_strategy"):
        aeb.StochasticApproximation(0.5, initial_penalty=1.0, penalties="current")
    with pytest.raises(ValueError, match="penalties is 'now', expected 'averaged'.*or 'current'"):
        aeb.StochasticApproximation(0.5, penalties="now")
    with pytest.raises(ValueError, match="sigma_from is 'spike', expected 'all'.*or 'slab'"):
        aeb.StochasticApproximation(0.5, sigma_from="spike")


# sigma_from="slab"


def maximum_from_slab(family, prior, beta, rho, tau, residuals=RESIDUALS):
    """
    The maximum over sigma of the data's and the prior's log density and that of the slab, whose
    normalising constant to the power of tau is that to the power of 1 / tau.
    """
    square, count = float(residuals["y"].square), residuals["y"].data
    wide = np.asarray(rho)
    log_prior = SIGMA_PRIORS[prior]()

    def loss(log_sigma):
        s = torch.tensor(math.exp(log_sigma))
        slab = np.asarray(spike_and_slab(family, torch.as_tensor(beta), s)[1])
        slab = slab + math.log(s)  # without its normalising constant
        value = s.square() if prior == "InverseGamma" else s
        total = -count * math.log(s) - square / 2 / s**2 + log_prior.log_prob(value)
        return -float(total + (wide * (slab - math.log(s) / tau)).sum())

    found = optimize.minimize_scalar(loss, bracket=(-2.0, 1.0), tol=1e-12)
    return math.exp(found.x)


@pytest.mark.parametrize("tau", [1.0, 10.0])
@pytest.mark.parametrize("prior", SIGMA_PRIORS)
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "SSGL, Gaussian spike"])
def test_sigma_from_slab_is_the_maximum_without_spikes(family, prior, tau):
    """For heavy slabs it is one of several steps of EM, which ends there."""
    rule, beta = make_rule(family, prior, from_slab=True), torch.randn(6)
    latents = first_latents(rule)
    latents = latents._replace(rho=torch.rand(6), slab=torch.rand(6))
    after = latents
    for _ in range(200):  # rho and delta stay
        new = rule.update(after._replace(rho=latents.rho), beta, RESIDUALS, 1.0, tau)
        rho = new.rho
        after = latents._replace(sigma=new.sigma, rho=rho)
    expected = maximum_from_slab(family, prior, beta, rho, tau)
    assert float(after.sigma[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("marginal", [False, True])
def test_sigma_from_slab_in_closed_form(marginal):
    """The average of rho where penalties are averaged, the current one where they are current."""
    rule, beta, tau = make_rule("SSGL", marginal=marginal, from_slab=True), torch.randn(6), 3.0
    latents = first_latents(rule)
    after = rule.update(latents, beta, RESIDUALS, 0.25, tau)
    rho = after.slab if marginal else after.rho
    square = 7.0 + (rho * beta.square()).sum() / 10.0 + NU_LAMBDA
    expected = (square / (N + rho.sum() / tau + NU + 2.0)).sqrt()
    torch.testing.assert_close(after.sigma, 0.75 * latents.sigma + 0.25 * expected)


def test_where_the_gaussian_is_the_narrow_component_it_is_left_out():
    rule, beta = make_rule("SSGL, Gaussian spike", from_slab=True), torch.randn(6)
    after = rule.update(first_latents(rule), beta, RESIDUALS, 1.0)
    wide = 1.0 - after.rho  # of Laplace(0, sigma)
    a, b = N + wide.sum() + NU + 2.0, (wide * beta.abs()).sum()
    expected = (b + (b**2 + 4.0 * a * (7.0 + NU_LAMBDA)).sqrt()) / (2.0 * a)
    torch.testing.assert_close(after.sigma[0], expected)


def test_one_component_is_the_narrow_one_of_all_weights():
    def model():
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 1.0))
        v1 = torch.tensor([1.0, 1e-5])
        beta = pyro.sample("beta", aeb.SSGL(0.1, v1, 0.5, sigma2.sqrt()).to_event(1))
        pyro.sample("y", dist.Normal(beta.sum(), 1.0), obs=torch.tensor(1.0))

    structure = inspect_model(model, (), {}, adapt=True)
    SpikeAndSlabRule(structure)
    with pytest.raises(aeb.ModelError, match="narrower one for some weights.*sigma_from='all'"):
        SpikeAndSlabRule(structure, from_slab=True)


@pytest.mark.parametrize(("tau", "pruned"), [(1.0, 0.0), (3.0, 0.0), (10.0, 0.0), (1.0, 0.9)])
def test_neither_temperature_nor_pruning_nor_the_size_of_spikes_changes_it(tau, pruned):
    """
    One thousand spikes, drawn at tau in units of sigma, and 100 data of noise 2. As published, the
    sigma of cold spikes, or of pruned ones, falls to sqrt(I / (N + p (1 - 1 / tau))) and the like.
    """
    p, n, truth = 1000, 100, 2.0

    def model(x, y):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
        prior = aeb.SSGL(0.005, 1.0, 0.001, sigma2.sqrt())
        beta = pyro.sample("beta", prior.expand([p]).to_event(1))
        pyro.sample("y", dist.Normal(x @ beta, sigma2.sqrt()).to_event(1), obs=y)

    structure = inspect_model(model, (torch.randn(n, p), torch.randn(n)), {}, adapt=True)
    residuals = {"y": Residuals(torch.tensor(n * truth**2), float(n))}
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(p, generator=generator) - 0.5
    spikes = -uniform.sign() * (1 - 2 * uniform.abs()).log() * 0.005 / tau
    spikes[: int(pruned * p)] = 0.0
    found = {}
    for from_slab in (False, True):
        rule = SpikeAndSlabRule(structure, from_slab=from_slab)
        latents = rule.init({"sigma2": torch.tensor(1.0)}, aeb.StochasticApproximation(1.0))
        for _ in range(300):
            latents = rule.update(latents, latents.sigma * spikes, residuals, 1.0, tau)
        found[from_slab] = float(latents.sigma[0])
    assert found[True] == pytest.approx(truth, rel=0.03)
    if tau > 1.0 or pruned:
        left = pruned * p + (1.0 - pruned) * p * (1.0 - 1.0 / tau)
        wrong = math.sqrt(n * truth**2 / (n + left))
        assert found[False] == pytest.approx(wrong, rel=0.1) and found[False] < 0.5 * truth


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_leading_axis_of_chains_equals_separate_chains(family, grouped):
    rule = make_rule(family, grouped=grouped, marginal=True, from_slab=True)
    start, betas = first_latents(rule), torch.randn(3, 6)
    together = start._replace(
        **{n: getattr(start, n).expand(3, -1) for n in ("rho", "slab", "sigma", "delta")}
    )
    squares = torch.tensor([5.0, 6.0, 7.0])
    together = rule.update(together, betas, {"y": Residuals(squares, 12.0)}, 0.3, 2.0)
    for chain in range(3):
        residuals = {"y": Residuals(squares[chain], 12.0)}
        alone = rule.update(start, betas[chain], residuals, 0.3, 2.0)
        for name in ("rho", "slab", "sigma", "delta"):
            torch.testing.assert_close(getattr(together, name)[chain], getattr(alone, name))
        for function in (rule.potential, lambda *a: prior_gradient(rule, *a)):
            torch.testing.assert_close(
                function(together, betas)[chain], function(alone, betas[chain])
            )


# The whole run


def marginal_maximum(x, y, v0, v1):
    """
    The maximum over sigma and delta of the marginal posterior of an orthogonal design, in which the
    weights are integrated out in closed form, each on its own.
    """
    n, p = x.shape
    squares, cross = (x**2).sum(0), x.T @ y
    rest = float(y @ y - (cross**2 / squares).sum())

    def loss(parameters):
        s, d = math.exp(parameters[0]), special.expit(parameters[1])
        h, t = squares / s**2, cross / s**2
        wide = h + 1 / (s**2 * v1)
        terms = [np.log(d) - 0.5 * np.log(s**2 * v1 * wide) + t**2 / (2 * wide)]
        for sign in (1.0, -1.0):
            z = (sign * t - 1 / (s * v0)) / np.sqrt(h)
            mass = special.log_ndtr(z) + z**2 / 2 + 0.5 * np.log(2 * np.pi / h)
            terms.append(np.log1p(-d) - np.log(2 * s * v0) + mass)
        total = special.logsumexp(terms, axis=0).sum()
        total += -n * math.log(s) - (rest + (cross**2 / squares).sum()) / (2 * s**2)
        total += -(NU + 2) * math.log(s) - NU_LAMBDA / (2 * s**2)
        return -(total + np.log(d) + 3 * np.log1p(-d))

    found = optimize.minimize(loss, [0.0, -1.0], method="Nelder-Mead", options={"xatol": 1e-8})
    return math.exp(found.x[0]), float(special.expit(found.x[1]))


@pytest.mark.slow
def test_current_penalties_end_at_the_maximum_of_the_marginal_posterior():
    """Of a design with undecided weights, for which averaged penalties end elsewhere."""
    n, p = 40, 8
    rng = np.random.default_rng(1)
    x = np.linalg.qr(rng.standard_normal((n, p)))[0] * math.sqrt(n)
    beta = np.array([1.5, -0.7, 0.45, -0.4, 0.35, 0.0, 0.0, 0.0])
    y = x @ beta + rng.standard_normal(n)
    expected = marginal_maximum(x, y, 0.1, 1.0)

    def model(x, y):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(NU / 2, NU_LAMBDA / 2))
        delta = pyro.sample("delta", dist.Beta(2.0, 4.0))
        beta = pyro.sample("beta", aeb.SSGL(0.1, 1.0, delta, sigma2.sqrt()).expand([p]).to_event(1))
        pyro.sample("y", dist.Normal(x @ beta, sigma2.sqrt()).to_event(1), obs=y)

    adaptation = aeb.StochasticApproximation(aeb.Polynomial(1.0, 20.0, 0.7), penalties="current")
    kernel = aeb.AEBKernel(model, aeb.SGLD(5e-4), adaptation, steps_per_draw=10, seed=1)
    options = {"num_chains": 16, "chain_method": "vectorized", "disable_progbar": True}
    mcmc = aeb.MCMC(kernel, 800, 400, **options)
    mcmc.run(torch.as_tensor(x), torch.as_tensor(y))
    draws = mcmc.get_samples()
    found = float(draws["sigma2"].sqrt().mean()), float(draws["delta"].mean())
    assert found[0] == pytest.approx(expected[0], rel=0.02), (found, expected)
    assert found[1] == pytest.approx(expected[1], rel=0.04), (found, expected)


def test_options_come_back_from_a_checkpoint():
    options = aeb.StochasticApproximation(0.3, penalties="current", sigma_from="slab")
    assert from_plain("adaptation", to_plain(options)) == options
    assert eval(repr(options), vars(aeb)) == options
    stored = to_plain(options)
    for name in ("penalties", "sigma_from"):  # as version 0.1 has stored it
        del stored["fields"][name]
    assert from_plain("adaptation", stored) == aeb.StochasticApproximation(0.3)
