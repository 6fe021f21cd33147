# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Proof 5. The gradient of Q is zero at every closed form (4)-(7). Q is written out below from the
model's densities alone and differentiated by autograd in float64.

With rho = P(gamma = 1) the expectation over gamma of the log joint density is

    Q = sum over layers and weights of (1 - rho) (log(1 - delta) + log Laplace(beta; 0, sigma v0))
                                           + rho (log delta + log N(beta; 0, sigma^2 v1))
        + log InverseGamma(sigma^2; nu/2, nu lambda/2) + log Beta(delta; a, b)
        + (N/n) sum over the batch of log N(y; loc, (c sigma)^2)    or, in classification,
        + (N/n) sum over the batch of log Bernoulli(y; logits)

(6) and (7) are its maxima over sigma and delta; (4) is that of Q + H(rho) over rho, where H is the
entropy of gamma, whose derivative is -logit(rho).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_aeb import SSGL, StochasticApproximation
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.posterior.posterior import Posterior

N, BATCH = 11, 4


@dataclass(frozen=True)
class Layer:
    """An SSGL site. A string names a latent site, a number is a fixed value."""

    size: int
    v0: float
    v1: float
    sigma: str | float
    delta: str | float


@dataclass(frozen=True)
class Case:
    """
    :param dict sigmas: InverseGamma sites of sigma^2, name to (nu, lambda).
    :param dict deltas: Beta sites, name to (a, b).
    :param tuple noise: observed Normal sites, each as the name of its sigma and its factor c. None
        at all is classification: no sigma enters the likelihood.
    """

    layers: tuple[Layer, ...]
    sigmas: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    deltas: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    noise: tuple[tuple[str, float], ...] = ()

    def data(self):
        x = [torch.randn(N, layer.size) for layer in self.layers]
        return x, torch.randn(N), torch.randint(2, (N,)).double()

    def model(self, x, y, labels):
        values = {n: pyro.sample(n, sigma2_prior(*v)).sqrt() for n, v in self.sigmas.items()}
        values |= {n: pyro.sample(n, dist.Beta(*v)) for n, v in self.deltas.items()}
        betas = []
        for number, layer in enumerate(self.layers):
            sigma, delta = (values.get(v, v) for v in (layer.sigma, layer.delta))
            prior = SSGL(layer.v0, layer.v1, delta, sigma).expand([layer.size]).to_event(1)
            betas.append(pyro.sample(f"beta{number}", prior))
        with pyro.plate("data", N, subsample_size=BATCH) as i:
            for name, fn, value in self.likelihoods(x, y, labels, betas, values, i):
                pyro.sample(name, fn, obs=value)

    def likelihoods(self, x, y, labels, betas, values, i):
        mean = sum(x_l[i] @ beta for x_l, beta in zip(x, betas, strict=True))
        if not self.noise:
            return [("labels", dist.Bernoulli(logits=mean), labels[i])]
        fns = [dist.Normal(mean, c * values[sigma]) for sigma, c in self.noise]
        return [(f"y{number}", fn, y[i]) for number, fn in enumerate(fns)]

    def q(self, data, i, betas, rhos, values):
        """Return Q of the module's docstring; ``values`` are sigma and delta by name."""
        total = 0.0
        for layer, beta, rho in zip(self.layers, betas, rhos, strict=True):
            sigma, delta = (torch.as_tensor(values.get(v, v)) for v in (layer.sigma, layer.delta))
            laplace = dist.Laplace(0.0, sigma * layer.v0).log_prob(beta)
            gaussian = dist.Normal(0.0, sigma * layer.v1**0.5).log_prob(beta)
            total = total + ((1 - rho) * ((1 - delta).log() + laplace)).sum()
            total = total + (rho * (delta.log() + gaussian)).sum()
        for name, prior in self.sigmas.items():
            total = total + sigma2_prior(*prior).log_prob(values[name] ** 2)
        for name, (a, b) in self.deltas.items():
            total = total + dist.Beta(a, b).log_prob(values[name])
        for _, fn, value in self.likelihoods(*data, betas, values, i):
            total = total + N / BATCH * fn.log_prob(value).sum()
        return total


def sigma2_prior(nu, lambda_):
    return dist.InverseGamma(nu / 2, nu * lambda_ / 2)


CASES = {
    "regression": Case(
        (Layer(5, 0.1, 10.0, "s", "d"),), {"s": (1.0, 1.0)}, {"d": (1.0, 5.0)}, (("s", 1.0),)
    ),
    "regression with noise 3 sigma": Case(
        (Layer(5, 0.1, 10.0, "s", "d"),), {"s": (4.0, 0.3)}, {"d": (2.0, 3.0)}, (("s", 3.0),)
    ),
    "two likelihoods of one sigma": Case(
        (Layer(5, 0.1, 10.0, "s", "d"),),
        {"s": (4.0, 0.3)},
        {"d": (2.0, 3.0)},
        (("s", 0.5), ("s", 2.0)),
    ),
    "classification": Case((Layer(5, 0.1, 10.0, "s", "d"),), {"s": (1.0, 1.0)}, {"d": (1.5, 1.0)}),
    "layers with a delta each and one sigma": Case(
        (
            Layer(4, 0.1, 10.0, "s", "d0"),
            Layer(3, 0.5, 0.01, "s", "d1"),
            Layer(1, 1.0, 1.0, "s", "d2"),
        ),
        {"s": (2.0, 0.5)},
        {"d0": (1.0, 4.0), "d1": (3.0, 1.0), "d2": (2.0, 2.0)},
    ),
    "layers that share across others": Case(
        (
            Layer(4, 0.1, 10.0, "s0", "d0"),
            Layer(3, 0.2, 5.0, "s1", "d1"),
            Layer(2, 0.3, 2.0, "s0", "d1"),
            Layer(3, 0.4, 3.0, "s1", "d0"),
        ),
        {"s0": (2.0, 0.5), "s1": (5.0, 2.0)},
        {"d0": (1.0, 4.0), "d1": (3.0, 1.0)},
        (("s1", 1.0),),
    ),
    "a sigma and a likelihood each": Case(
        (Layer(4, 0.1, 10.0, "s0", "d"), Layer(3, 0.2, 5.0, "s1", "d")),
        {"s0": (2.0, 0.5), "s1": (5.0, 2.0)},
        {"d": (2.0, 4.0)},
        (("s0", 1.0), ("s1", 2.0)),
    ),
    "fixed sigma": Case((Layer(5, 0.1, 10.0, 0.8, "d"),), deltas={"d": (2.0, 3.0)}),
    "fixed delta": Case((Layer(5, 0.1, 10.0, "s", 0.3),), {"s": (2.0, 0.5)}, noise=(("s", 1.0),)),
    "both fixed": Case((Layer(5, 0.1, 10.0, 0.8, 0.3),)),
    "fixed beside learned": Case(
        (
            Layer(4, 0.1, 10.0, 0.7, "d0"),
            Layer(3, 0.2, 5.0, "s", 0.4),
            Layer(2, 0.3, 2.0, "s", "d0"),
        ),
        {"s": (2.0, 0.5)},
        {"d0": (2.0, 3.0)},
        (("s", 1.0),),
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def sweep(request):
    """One sweep with weight 1 at random weights and latents, and its inputs."""
    torch.set_default_dtype(torch.float64)
    case = request.param
    data = case.data()
    structure = inspect_model(case.model, data, {}, adapt=True)
    posterior = Posterior(case.model, structure)
    old = {name: 0.3 + torch.rand(()) for name in case.sigmas}
    old |= {name: 0.2 + 0.6 * torch.rand(()) for name in case.deltas}
    first = {n: v**2 if n in case.sigmas else v for n, v in old.items()}
    latents = posterior.adaptation.spike_and_slab.init(
        first, StochasticApproximation(1.0, initial_penalty=0.7)
    )
    position = torch.randn(structure.size)
    batch = torch.randperm(N)[:BATCH]
    seen = posterior.evaluate(
        position, Latents(latents, {}), Batch(Arguments(data, {}), {"data": batch})
    )
    after = posterior.adaptation.spike_and_slab.update(
        latents, position, seen.statistics.residuals, 1.0
    )
    sizes = [layer.size for layer in case.layers]
    values = posterior.adaptation.spike_and_slab.site_values(after)
    new = {n: values[n].sqrt() if n in case.sigmas else values[n] for n in old}
    q = [case, data, batch, position.split(sizes)]
    return q, after.rho.split(sizes), old, new, after, latents


def gradient_of_q(q, rhos, values):
    """Return the derivatives of Q in rho (a list, by layer) and in the latents by name."""
    case, *where = q
    rhos = [rho.clone().requires_grad_() for rho in rhos]
    values = {name: value.clone().requires_grad_() for name, value in values.items()}
    case.q(*where, rhos, values).backward()
    return [rho.grad for rho in rhos], {name: value.grad for name, value in values.items()}


def test_rho_is_bayes_rule(sweep):
    # d(Q + H)/d rho = 0 if dQ/d rho = logit(rho), at the sigma and delta before the sweep.
    q, rhos, old, *_ = sweep
    by_rho, _ = gradient_of_q(q, rhos, old)
    for rho, derivative in zip(rhos, by_rho, strict=True):
        torch.testing.assert_close(rho, torch.sigmoid(derivative), rtol=1e-12, atol=1e-300)


def test_sigma_and_delta_zero_the_gradient_of_q(sweep):
    q, rhos, old, new, *_ = sweep
    _, by_value = gradient_of_q(q, rhos, new)
    _, before = gradient_of_q(q, rhos, old)
    assert by_value.keys() == q[0].sigmas.keys() | q[0].deltas.keys()
    for name, derivative in by_value.items():
        # Derivatives in log sigma and log delta, sums of terms of order one to a hundred.
        assert abs(derivative * new[name]) < 1e-11
        assert abs(before[name] * old[name]) > 1e-3


def test_sigma_and_delta_are_maxima_of_q(sweep):
    (case, *where), rhos, _, new, *_ = sweep
    top = case.q(*where, rhos, new)
    for name, value in new.items():
        for factor in (0.9, 0.99, 1.01, 1.1):
            if name in case.sigmas or factor * value < 1.0:
                assert case.q(*where, rhos, {**new, name: factor * value}) < top


def test_fixed_latents_stay(sweep):
    (case, *_), _, _, _, after, before = sweep
    for number, layer in enumerate(dict.fromkeys(layer.sigma for layer in case.layers)):
        assert (after.sigma[number] == before.sigma[number]) == isinstance(layer, float)
    for number, layer in enumerate(dict.fromkeys(layer.delta for layer in case.layers)):
        assert (after.delta[number] == before.delta[number]) == isinstance(layer, float)


def test_the_penalties_give_the_gradient_of_q(sweep):
    # Equations (2) and (5): with kappa from rho, the prior's part of dQ/d beta.
    (case, data, batch, betas), rhos, old, new, after, _ = sweep
    structure = inspect_model(case.model, data, {}, adapt=True)
    posterior = Posterior(case.model, structure)
    betas = [beta.clone().requires_grad_() for beta in betas]
    case.q(data, batch, betas, rhos, new).backward()
    expected = torch.cat([beta.grad for beta in betas])
    position = torch.cat([beta.detach() for beta in betas])
    found = posterior.evaluate(
        position, Latents(after, {}), Batch(Arguments(data, {}), {"data": batch})
    ).gradient
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
