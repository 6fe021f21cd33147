# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
For every prior, alone and by group, the closed forms against autograd of Q in float64, as
``tests/proofs/test_m_steps.py`` does for SSGL in many models. Q is written below by Pyro's
densities:

    Q = sum over weights of (1 - rho) log spike(beta) + rho log slab(beta)
        + sum over gammas of (1 - rho) log(1 - delta) + rho log delta
        + log InverseGamma(sigma^2) + log Beta(delta) + sum of log N(y; x beta, sigma^2)

A Student slab's penalty depends on sigma, so one update of sigma is an EM step: it goes up Q, and
where it stands still the gradient of Q is zero.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from prior_families import FAMILIES, Family, laplace, student
from ssgl_references import prior_gradient

from pyro_aeb import StochasticApproximation, priors
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.errors import ModelError
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.priors.components import Laplace, Student

N, GROUPS, SIZE = 20, 4, 3


class Case:
    """A regression whose weights have a prior of a family, each or in groups of three."""

    def __init__(self, family, grouped, dtype=torch.float64):
        torch.set_default_dtype(dtype)
        self.family, self.grouped = family, grouped
        self.x, self.y = torch.randn(N, GROUPS * SIZE), torch.randn(N)
        structure = inspect_model(self.model, (), {}, adapt=True)
        self.posterior = Posterior(self.model, structure)
        self.rule = self.posterior.adaptation.spike_and_slab
        self.old = {"sigma": torch.tensor(0.8), "delta": torch.tensor(0.4)}
        first = {"sigma2": self.old["sigma"] ** 2, "delta": self.old["delta"]}
        request = StochasticApproximation(1.0, initial_penalty=0.7)
        self.before = self.rule.init(first, request)
        self.beta = torch.randn(GROUPS * SIZE)
        self.residuals = self.gradient(self.before, self.beta).statistics.residuals
        self.after = self.update(self.before)
        self.new = {"sigma": self.after.sigma[0], "delta": self.after.delta[0]}

    def model(self):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 0.4))
        delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        prior = self.family.prior(delta, sigma2.sqrt()).expand([GROUPS, SIZE])
        prior = priors.Group(prior).to_event(1) if self.grouped else prior.to_event(2)
        beta = pyro.sample("beta", prior)
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(self.x @ beta.flatten(), sigma2.sqrt()), obs=self.y)

    def gradient(self, latents, beta):
        return self.posterior.evaluate(
            beta, Latents(latents, {}), Batch(Arguments((), {}), {"data": torch.arange(N)})
        )

    def update(self, latents):
        return self.rule.update(latents, self.beta, self.residuals, 1.0)

    def q(self, beta, rho, sigma, delta):
        """``rho`` is that of every gamma."""
        family, each = self.family, rho.repeat_interleave(SIZE if self.grouped else 1)
        total = ((1 - each) * family.spike(sigma).log_prob(beta)).sum()
        total = total + (each * family.slab(sigma).log_prob(beta)).sum()
        total = total + ((1 - rho) * (1 - delta).log() + rho * delta.log()).sum()
        total = total + dist.InverseGamma(1.5, 0.4).log_prob(sigma**2)
        total = total + dist.Beta(2.0, 3.0).log_prob(delta)
        return total + dist.Normal(self.x @ beta, sigma).log_prob(self.y).sum()

    def derivatives(self, beta, rho, sigma, delta):
        leaves = [v.detach().clone().requires_grad_() for v in (beta, rho, sigma, delta)]
        return torch.autograd.grad(self.q(*leaves), leaves)

    def gammas(self, rho):
        """One rho a gamma."""
        return rho[:: SIZE if self.grouped else 1]


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["each", "groups"])
def case(family, request):
    return Case(family, request.param)


def has_bends(case):
    return case.rule.slab.bends


def test_rho_is_bayes_rule(case):
    # d(Q + H)/d rho = 0 where dQ/d rho = logit(rho), H the entropy of gamma.
    rho = case.gammas(case.after.rho)
    if case.grouped:
        expected = rho.repeat_interleave(SIZE)
        assert torch.equal(case.after.rho, expected) and len(rho) == GROUPS
    _, by_rho, _, _ = case.derivatives(case.beta, rho, **case.old)
    torch.testing.assert_close(rho, torch.sigmoid(by_rho), rtol=1e-11, atol=1e-300)


def test_delta_zeroes_the_gradient_of_q(case):
    rho = case.gammas(case.after.rho)
    *_, by_delta = case.derivatives(case.beta, rho, **case.new)
    *_, before = case.derivatives(case.beta, rho, **case.old)
    assert abs(by_delta) < 1e-10 and abs(before) > 1e-3


def test_sigma_zeroes_the_gradient_of_q(case):
    after = case.after
    rho = case.gammas(after.rho)
    if has_bends(case):
        for _ in range(200):  # M-steps of sigma with all else as it is
            u = case.beta.abs() / after.sigma
            sums = case.rule._sums(case.beta.abs(), u, case.after.slab, 0.0)
            sigma = case.rule._scale(*sums, after.sigma, case.residuals)
            tops = [case.q(case.beta, rho, s[0], case.new["delta"]) for s in (after.sigma, sigma)]
            assert tops[1] >= tops[0] - 1e-12
            after = after._replace(sigma=sigma)
    _, _, by_sigma, _ = case.derivatives(case.beta, rho, after.sigma[0], case.new["delta"])
    _, _, before, _ = case.derivatives(case.beta, rho, **case.old)
    assert abs(by_sigma) < 1e-9 and abs(before) > 1e-3


def test_the_penalties_give_the_gradient_of_q(case):
    rho = case.gammas(case.after.rho)
    by_beta, *_ = case.derivatives(case.beta, rho, **case.new)
    found = case.gradient(case.after, case.beta).gradient
    torch.testing.assert_close(found, by_beta, rtol=1e-10, atol=1e-10)


def test_the_potential_has_that_gradient(case):
    beta = case.beta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(case.rule.potential(case.before, beta), beta)
    torch.testing.assert_close(prior_gradient(case.rule, case.before, case.beta), -slope)


def test_the_first_penalties_are_those_asked_for(case):
    # initial_penalty is kappa0 and kappa1 at a weight of 0, both 0.7 here.
    tiny = torch.full_like(case.beta, 1e-6)
    by_beta = prior_gradient(case.rule, case.before, tiny)
    linear = sum("Laplace" in type(p).__name__ for p in (case.rule.spike, case.rule.slab))
    sigma = case.old["sigma"]
    expected = -0.7 * linear / sigma - 0.7 * (2 - linear) * tiny / sigma**2
    torch.testing.assert_close(by_beta, expected, rtol=1e-8, atol=1e-14)


def test_chains_together_equal_chains_alone(case):
    betas = torch.randn(3, len(case.beta))
    together = case.before._replace(
        **{n: getattr(case.before, n).expand(3, -1) for n in ("rho", "slab", "sigma", "delta")}
    )
    residuals = {"y": case.residuals["y"]._replace(square=case.residuals["y"].square.expand(3))}
    found = case.rule.update(together, betas, residuals, 0.3)
    for c, beta in enumerate(betas):
        alone = case.rule.update(case.before, beta, case.residuals, 0.3)
        for name in ("rho", "slab", "sigma", "delta"):
            torch.testing.assert_close(getattr(found, name)[c], getattr(alone, name))
        both = prior_gradient(case.rule, found, betas)[c], prior_gradient(case.rule, alone, beta)
        torch.testing.assert_close(*both)


def test_far_weights_in_single_precision(family):
    case = Case(family, False, dtype=torch.float32)
    latents, beta = case.before, torch.tensor([0.0, 1e-30, 1e6, -1e6] * 3)
    for _ in range(3):
        latents = case.rule.update(latents, beta, case.residuals, 0.5)
        assert all(torch.as_tensor(value).isfinite().all() for value in latents)
        assert latents.rho.dtype == torch.float32
        assert prior_gradient(case.rule, latents, beta).isfinite().all()


# The checks above see a mistake


class Mistaken(Student):
    def quadratic(self, u=None):
        return 1.0 / self.v


class MistakenPrior(priors.SpikeAndSlabStudent):
    """A Student slab with the penalty of a Gaussian."""

    @staticmethod
    def components(v0, v1, df):
        return Laplace(v0), Mistaken(v1, df)


def test_a_mistaken_prior_is_seen():
    case = Case(Family(MistakenPrior, (0.1, 2.0, 5.0), laplace(0.1), student(2.0, 5.0)), False)
    test_rho_is_bayes_rule(case)  # (4) is right
    for check in (test_the_penalties_give_the_gradient_of_q, test_the_potential_has_that_gradient):
        with pytest.raises(AssertionError):
            check(case)


# Several sites


def inspect_mixed(first, second):
    def model():
        pyro.sample("a", first.expand([3]).to_event(1))
        pyro.sample("b", second.expand([2]).to_event(1))

    return inspect_model(model, (), {}, adapt=True)


def test_priors_of_several_kinds_in_a_model_are_refused():
    structure = inspect_mixed(priors.SSGL(0.1, 10.0, 0.5), priors.SpikeAndSlabLasso(0.1, 3.0, 0.5))
    with pytest.raises(ModelError, match=r"of several kinds .*'a' ~ SSGL, 'b' ~ SpikeAndSlabLasso"):
        Posterior(lambda: None, structure)


def test_sites_may_differ_in_their_parameters():
    structure = inspect_mixed(
        priors.SpikeAndSlabStudent(0.1, 1.0, 3.0, 0.5),
        priors.SpikeAndSlabStudent(0.2, 1.0, torch.tensor([4.0, 5.0]), 0.5),
    )
    rule = Posterior(lambda: None, structure).adaptation.spike_and_slab
    torch.testing.assert_close(rule.spike.v, torch.tensor([0.1, 0.1, 0.1, 0.2, 0.2]))
    assert rule.slab.v == 1.0 and rule.slab.df.tolist() == [3.0, 3.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("parameter", ["v0", "v1", "df"])
def test_parameters_of_components_are_not_learned(parameter):
    def model():
        found = pyro.sample("found", dist.Gamma(2.0, 1.0))
        given = {"v0": 0.1, "v1": 1.0, "df": 3.0, parameter: found}
        prior = priors.SpikeAndSlabStudent(**given, delta=0.5)
        pyro.sample("beta", prior.expand([3]).to_event(1))

    message = rf"SpikeAndSlabStudent site 'beta': {parameter} depends on the latent site\(s\)"
    with pytest.raises(ModelError, match=message):
        inspect_model(model, (), {}, adapt=True)
