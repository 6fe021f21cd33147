# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Algorithm 1 step by step against its equations."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from kernels import N, X, Y, set_up_kernel, stack_site, take_draws
from models import P, sparse_classification, sparse_regression
from pyro import poutine

from pyro_aeb import SGHMC, SGLD, StochasticApproximation
from pyro_aeb.kernel import algorithm

# Algorithm 1


def sgld(beta, v, gradient, noise, step_size, tau):
    """Equation (3a)."""
    return beta + step_size * gradient + math.sqrt(2 * step_size / tau) * noise, v


def sghmc(beta, v, gradient, noise, step_size, tau, friction, gradient_noise):
    """Equation (3b)."""
    variance = 2 * step_size * (friction - gradient_noise) / tau
    v = (1 - friction) * v + step_size * gradient + math.sqrt(variance) * noise
    return beta + v, v


def by_hand(start, noises, move, X, Y, omega, regression):
    """
    Algorithm 1 for the models below, written out from the equations, for nu = 3, lambda = 4 / 3,
    a = 2, b = 3, v0 = 1/10, v1 = 10; the first rho is 1/2.
    """
    beta, sigma, delta = start["beta"], start["sigma2"].sqrt(), start["delta"]
    v, rho = torch.zeros(P), torch.full([P], 0.5)
    kappa0, kappa1 = (1 - rho) / 0.1, rho / 10.0  # (5)
    labels = (Y > 0).to(X)
    steps = []
    for noise in noises:
        error = Y - X @ beta
        likelihood = error / sigma**2 if regression else labels - torch.sigmoid(X @ beta)
        prior = -kappa0 * beta.sign() / sigma - kappa1 * beta / sigma**2
        beta, v = move(beta, v, X.T @ likelihood + prior, noise)  # (2), (3)
        gaussian = dist.Normal(0.0, sigma * math.sqrt(10.0)).log_prob(beta)
        laplace = dist.Laplace(0.0, sigma * 0.1).log_prob(beta)
        new = torch.sigmoid(torch.logit(delta) + gaussian - laplace)  # (4)
        rho = (1 - omega) * rho + omega * new  # (8), as for all that follow
        kappa0 = (1 - omega) * kappa0 + omega * (1 - rho) / 0.1
        kappa1 = (1 - omega) * kappa1 + omega * rho / 10.0
        a, c = P + 3.0 + 2.0, (kappa1 * beta**2).sum() + 4.0
        if regression:
            a, c = a + N, c + (error**2).sum()
        b = (kappa0 * beta.abs()).sum()
        sigma = (1 - omega) * sigma + omega * (b + (b**2 + 4 * a * c).sqrt()) / (2 * a)  # (6)
        new = (rho.sum() + 2.0 - 1.0) / (2.0 + 3.0 + P - 2.0)  # (7)
        delta = (1 - omega) * delta + omega * new
        steps.append({"beta": beta, "sigma2": sigma**2, "delta": delta, "beta_rho": rho})
    return steps


@pytest.mark.parametrize("omega", [1.0, 0.3, 0.0], ids=["EM", "SA", "frozen"])
@pytest.mark.parametrize("model", [sparse_regression, sparse_classification])
@pytest.mark.parametrize(
    "transition, move",
    [
        (SGLD(0.01), partial(sgld, step_size=0.01, tau=4.0)),
        (
            SGHMC(0.01, friction=0.2, gradient_noise=0.05),
            partial(sghmc, step_size=0.01, tau=4.0, friction=0.2, gradient_noise=0.05),
        ),
    ],
    ids=["SGLD", "SGHMC"],
)
def test_a_draw_is_algorithm_1(transition, move, model, omega):
    torch.set_default_dtype(torch.float64)
    x, y = X.double(), Y.double()
    adaptation = StochasticApproximation(omega)
    kernel = set_up_kernel(
        model, x, y, transition=transition, adaptation=adaptation, inverse_temperature=4
    )
    start = kernel.initial_params
    generator = torch.Generator()
    generator.set_state(kernel.chain.generators[0].get_state())
    noises = [torch.empty(P).normal_(generator=generator) for _ in range(6)]
    expected = by_hand(start, noises, move, x, y, omega, model is sparse_regression)
    found = take_draws(kernel, 6)
    for name in ("beta", "sigma2", "delta"):
        torch.testing.assert_close(stack_site(found, name), stack_site(expected, name), msg=name)
    rho = kernel.diagnostics()["adaptation"]["beta_rho"]
    torch.testing.assert_close(rho, stack_site(expected, "beta_rho"))


def test_a_draw_is_so_many_steps():
    one, three = (set_up_kernel(steps_per_draw=steps) for steps in (1, 3))
    assert torch.equal(
        stack_site(take_draws(one, 12), "beta")[2::3], stack_site(take_draws(three, 4), "beta")
    )
    assert one.chain.step == three.chain.step == 12


def test_a_step_runs_the_model_once():
    calls = []

    def counted(*args):
        calls.append(1)
        return sparse_regression(*args)

    kernel = set_up_kernel(counted, steps_per_draw=7)
    calls.clear()
    take_draws(kernel, 3)
    assert len(calls) == 21


def test_schedules_see_the_steps_from_1_warm_up_included():
    seen = []

    def schedule(k):
        seen.append(k)
        return 1e-3

    kernel = set_up_kernel(transition=SGLD(schedule), warmup=1, steps_per_draw=2)
    take_draws(kernel, 2)
    assert sorted(set(seen)) == [1, 2, 3, 4]


def test_every_step_has_its_own_batch():
    seen = []

    def model(X, Y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        with pyro.plate("data", N, subsample_size=4) as i:
            seen.append(i)
            pyro.sample("y", dist.Normal(X[i] @ w, 1.0), obs=Y[i])

    kernel = set_up_kernel(model, adaptation=None, steps_per_draw=N // 4)
    seen.clear()
    take_draws(kernel, 3)
    epochs = torch.stack(seen).reshape(3, N)
    assert torch.equal(epochs.sort(-1).values, torch.arange(N).expand(3, N))
    seen.clear()
    kernel = set_up_kernel(model, adaptation=None, minibatches="replacement", steps_per_draw=100)
    take_draws(kernel, 1)
    assert any(len(i.unique()) < 4 for i in seen)


def test_latents_freeze_after_warm_up_where_asked():
    for freeze in (False, True):
        kernel = set_up_kernel(freeze_after_warmup=freeze, warmup=3, steps_per_draw=2)
        found = take_draws(kernel, 6)
        for name in ("sigma2", "delta"):
            moved = stack_site(found, name).diff() != 0.0
            assert moved.tolist() == [True, True, not freeze, not freeze, not freeze], name
        assert (stack_site(found, "beta").diff(dim=0) != 0.0).all()
        weights = kernel.diagnostics()["sample_stats"]["sa_weight"]
        torch.testing.assert_close(weights, torch.full([3], 0.0 if freeze else 0.3))


def test_weight_zero_is_no_update_bit_by_bit():
    never, zero = (
        set_up_kernel(adaptation=StochasticApproximation(weight), freeze_after_warmup=frozen)
        for weight, frozen in ((0.7, True), (0.0, False))
    )
    first, second = take_draws(never, 5), take_draws(zero, 5)
    for name in first[0]:
        assert torch.equal(stack_site(first, name), stack_site(second, name))


# The hot path


def test_a_step_waits_for_no_number_and_builds_no_trace(monkeypatch):
    """``.item()`` makes an accelerator wait; a trace costs more than a small model."""
    kernel = set_up_kernel(kwargs={"batch_size": 3})
    take_draws(kernel, 1)

    def refuse(self, *args, **kwargs):
        raise AssertionError("a step built a trace")

    monkeypatch.setattr(poutine.Trace, "__init__", refuse)
    with pyro.validation_enabled(False), torch.profiler.profile() as profile:
        algorithm.step(kernel, kernel.chain)
    operations = {event.key for event in profile.key_averages()}
    assert operations & {"aten::sigmoid", "aten::sigmoid_"}  # the profiler has seen the step
    assert not operations & {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"}
