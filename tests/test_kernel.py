# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Algorithm 1 step by step against its equations, and the kernel's contract with Pyro's MCMC."""

from __future__ import annotations

import copy
import json
import math
import pickle
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import (
    DenseNetwork,
    P,
    dense_regression,
    linear_data,
    sparse_classification,
    sparse_layers,
    sparse_regression,
)
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_value

from pyro_aeb import (
    SGHMC,
    SGLD,
    SSGL,
    AEBKernel,
    CollapseWarning,
    NonFiniteError,
    Piecewise,
    Polynomial,
    StochasticApproximation,
)

X, Y = linear_data()
N = len(X)


def started(model=sparse_regression, *args, warmup=0, kwargs=None, transition=None, **options):
    """A kernel after its setup."""
    options = {"adaptation": StochasticApproximation(0.3), "seed": 5, **options}
    kernel = AEBKernel(model, transition or SGLD(1e-3), **options)
    kernel.setup(warmup, *(args or (X, Y)), **(kwargs or {}))
    return kernel


def draws(kernel, number: int) -> list[dict]:
    """So many draws, one after another as MCMC makes them."""
    params, found = kernel.initial_params, []
    for _ in range(number):
        params = kernel.sample(params)
        found.append(params)
    return found


def stacked(found: list[dict], name: str) -> torch.Tensor:
    return torch.stack([draw[name] for draw in found])


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
    kernel = started(
        model, x, y, transition=transition, adaptation=adaptation, inverse_temperature=4
    )
    start = kernel.initial_params
    generator = torch.Generator()
    generator.set_state(kernel.chain.generator.get_state())
    noises = [torch.empty(P).normal_(generator=generator) for _ in range(6)]
    expected = by_hand(start, noises, move, x, y, omega, model is sparse_regression)
    found = draws(kernel, 6)
    for name in ("beta", "sigma2", "delta"):
        torch.testing.assert_close(stacked(found, name), stacked(expected, name), msg=name)
    rho = kernel.diagnostics()["adaptation"]["beta_rho"]
    torch.testing.assert_close(rho, stacked(expected, "beta_rho"))


def test_a_draw_is_so_many_steps():
    one, three = (started(steps_per_draw=steps) for steps in (1, 3))
    assert torch.equal(stacked(draws(one, 12), "beta")[2::3], stacked(draws(three, 4), "beta"))
    assert one.chain.step == three.chain.step == 12


def test_a_step_runs_the_model_once():
    calls = []

    def counted(*args):
        calls.append(1)
        return sparse_regression(*args)

    kernel = started(counted, steps_per_draw=7)
    calls.clear()
    draws(kernel, 3)
    assert len(calls) == 21


def test_schedules_see_the_steps_from_1_warm_up_included():
    seen = []

    def schedule(k):
        seen.append(k)
        return 1e-3

    kernel = started(transition=SGLD(schedule), warmup=1, steps_per_draw=2)
    draws(kernel, 2)
    assert sorted(set(seen)) == [1, 2, 3, 4]


def test_every_step_has_its_own_batch():
    seen = []

    def model(X, Y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        with pyro.plate("data", N, subsample_size=4) as i:
            seen.append(i)
            pyro.sample("y", dist.Normal(X[i] @ w, 1.0), obs=Y[i])

    kernel = started(model, adaptation=None, steps_per_draw=N // 4)
    seen.clear()
    draws(kernel, 3)
    epochs = torch.stack(seen).reshape(3, N)
    assert torch.equal(epochs.sort(-1).values, torch.arange(N).expand(3, N))
    seen.clear()
    kernel = started(model, adaptation=None, minibatches="replacement", steps_per_draw=100)
    draws(kernel, 1)
    assert any(len(i.unique()) < 4 for i in seen)


def test_latents_freeze_after_warm_up_where_asked():
    for freeze in (False, True):
        kernel = started(freeze_after_warmup=freeze, warmup=3, steps_per_draw=2)
        found = draws(kernel, 6)
        for name in ("sigma2", "delta"):
            moved = stacked(found, name).diff() != 0.0
            assert moved.tolist() == [True, True, not freeze, not freeze, not freeze], name
        assert (stacked(found, "beta").diff(dim=0) != 0.0).all()
        weights = kernel.diagnostics()["sample_stats"]["sa_weight"]
        torch.testing.assert_close(weights, torch.full([3], 0.0 if freeze else 0.3))


def test_weight_zero_is_no_update_bit_by_bit():
    never, zero = (
        started(adaptation=StochasticApproximation(weight), freeze_after_warmup=frozen)
        for weight, frozen in ((0.7, True), (0.0, False))
    )
    first, second = draws(never, 5), draws(zero, 5)
    for name in first[0]:
        assert torch.equal(stacked(first, name), stacked(second, name))


# The contract with MCMC


def test_sites_of_a_draw_are_in_constrained_space_and_listed_sorted():
    kernel = started(sparse_layers, save=["w1", "sigma2", "delta0", "w0"])
    assert kernel.save_params == ["delta0", "sigma2", "w0", "w1"]
    assert kernel.transforms == {}
    (draw,) = draws(kernel, 1)
    assert draw.keys() == kernel.initial_params.keys() == set(kernel.save_params)
    assert draw["sigma2"] > 0 and 0 < draw["delta0"] < 1 and draw["w0"].shape == (P, 4)


def test_draws_are_copies():
    kernel = started()
    first = draws(kernel, 1)[0]
    before = {name: value.clone() for name, value in first.items()}
    second = kernel.sample(first)
    assert all(torch.equal(first[name], before[name]) for name in first)
    assert not torch.equal(second["beta"], first["beta"])


def test_what_a_hook_does_to_a_draw_does_not_move_the_chain():
    kernel, other = started(), started()
    draw, expected = kernel.sample(kernel.initial_params), other.sample(other.initial_params)
    draw["beta"].zero_()
    assert torch.equal(kernel.sample(draw)["beta"], other.sample(expected)["beta"])


def test_a_chain_goes_on_from_the_values_it_is_given():
    kernel = started(transition=SGLD(1e-12))
    beta = torch.tensor([5.0, -5.0, 1.0])
    found = kernel.sample({**kernel.initial_params, "beta": beta})
    # With such a step size a step moves by its noise, of standard deviation 1.4e-6.
    torch.testing.assert_close(found["beta"], beta, atol=1e-5, rtol=0.0)


def test_first_values_may_be_set_before_a_run():
    kernel = AEBKernel(sparse_regression, SGLD(1e-3), StochasticApproximation(0.1), seed=1)
    assert kernel.initial_params is None
    beta = torch.tensor([1.0, 2.0, 3.0])
    kernel.initial_params = {"beta": beta, "sigma2": torch.tensor(-1.0)}
    kernel.setup(0, X, Y)
    assert torch.equal(kernel.initial_params["beta"], beta)
    torch.testing.assert_close(kernel.initial_params["sigma2"], torch.tensor(-1.0).exp())
    kernel.setup(0, X, Y)  # the next chain has none
    assert not torch.equal(kernel.initial_params["beta"], beta)


def test_a_kernel_that_has_not_started_says_so():
    kernel = AEBKernel(sparse_regression, SGLD(1e-3))
    for use in (kernel.logging, kernel.diagnostics, lambda: kernel.save_params):
        with pytest.raises(RuntimeError, match=r"not started; pass it to MCMC.* and call run"):
            use()
    assert kernel.recover() == {}
    kernel.cleanup()


def test_setup_starts_afresh():
    kernel = started()
    draws(kernel, 3)
    kernel.setup(0, X, Y)
    assert kernel.chain.step == 0 and kernel.recover() == {}
    assert kernel.diagnostics()["sample_stats"] == {}


def test_setup_touches_neither_the_models_buffers_nor_torchs_random_numbers():
    network = DenseNetwork()
    network.norm(torch.randn(8, 4) + 3.0)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    state = torch.get_rng_state()
    started(network, adaptation=None)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert torch.equal(state, torch.get_rng_state())


def test_steps_of_a_kernel_with_a_seed_use_none_of_torchs_random_numbers():
    kernel = started(kwargs={"batch_size": 3})
    state = torch.get_rng_state()
    draws(kernel, 3)
    assert torch.equal(state, torch.get_rng_state())


def test_figures_for_the_progress_bar():
    kernel = started()
    draws(kernel, 2)
    figures = json.loads(json.dumps(kernel.logging()))
    assert figures.keys() == {"potential", "sparsity", "sigma", "steps/s"}
    assert float(figures["sigma"]) == pytest.approx(float(kernel.latents.sigma), rel=0.01)
    assert 0.0 <= float(figures["sparsity"]) <= 1.0 and float(figures["steps/s"]) > 0.0
    plain = started(adaptation=None)
    draws(plain, 1)
    assert json.loads(json.dumps(plain.logging())).keys() == {"potential", "steps/s"}


def test_diagnostics():
    kernel = started(transition=SGLD(Polynomial(1e-3, power=0.5)), warmup=2, steps_per_draw=3)
    draws(kernel, 6)
    found = kernel.diagnostics()
    stats = found["sample_stats"]
    assert stats.keys() == {
        "diverging",
        "potential",
        "sparsity",
        "step_size",
        "inverse_temperature",
        "sa_weight",
    }
    assert all(value.shape == (4,) for value in stats.values())
    assert stats["diverging"].dtype == torch.bool and not stats["diverging"].any()
    # 2 draws of warm-up, then the last step of every draw: 9, 12, 15, 18
    expected = 1e-3 / torch.tensor([9.0, 12.0, 15.0, 18.0]) ** 0.5
    torch.testing.assert_close(stats["step_size"], expected)
    torch.testing.assert_close(stats["inverse_temperature"], torch.ones(4))
    assert found["divergences"] == []
    assert found["adaptation"]["beta_rho"].shape == (4, P)
    assert found["roles"] == {
        "beta": "draw",
        "sigma2": "stochastic approximation",
        "delta": "stochastic approximation",
        "y": "observed",
    }
    assert found["dims"]["beta"] == ["features"] and found["dims"]["y"] == ["data"]
    assert torch.equal(found["observed_data"]["y"], Y)
    assert all(isinstance(value, str) for value in found["settings"].values())


def test_diagnostics_without_adaptation():
    kernel = started(adaptation=None)
    draws(kernel, 2)
    found = kernel.diagnostics()
    assert (found["sample_stats"]["sa_weight"] == 0.0).all()
    assert "sparsity" not in found["sample_stats"]
    assert found["adaptation"] == {}
    assert set(found["roles"].values()) == {"draw", "observed"}


def test_the_potential_is_that_of_the_weights():
    # With such a step size the weights of the draw are those of its last gradient.
    kernel = started(dense_regression, transition=SGLD(1e-14), adaptation=None)
    (draw,) = draws(kernel, 1)
    w = draw["w"]
    expected = ((Y - X @ w) ** 2).sum() / (2 * 0.25) + (w**2).sum() / (2 * 4.0)
    found = kernel.diagnostics()["sample_stats"]["potential"][0]
    # 20 terms -log N(y) and 3 terms -log N(w) have constants that may be left out.
    constants = N * math.log(0.5 * math.sqrt(2 * math.pi))
    assert float(found) in (
        pytest.approx(float(expected), rel=1e-4),
        pytest.approx(float(expected) + constants, rel=1e-4),
    )


def test_sparsity_is_the_fraction_of_weights_in_the_spike():
    def model():
        # Laplace scale 1/10 and Gaussian scale sqrt(10): far from 0 is Gaussian for sure.
        pyro.sample("beta", SSGL(0.1, 10.0, 0.5).expand([4]).to_event(1))

    start = init_to_value(values={"beta": torch.tensor([0.0, 0.01, 5.0, -0.01])})
    kernel = AEBKernel(model, SGLD(1e-12), StochasticApproximation(1.0), init_strategy=start)
    kernel.setup(0)
    draws(kernel, 1)
    assert kernel.diagnostics()["sample_stats"]["sparsity"].tolist() == [0.75]


def test_recover_hands_out_the_draws_until_the_end_of_a_run():
    kernel = started(warmup=2)
    found = draws(kernel, 5)
    recovered = kernel.recover()
    assert recovered.keys() == {"beta", "sigma2", "delta"}
    assert torch.equal(recovered["beta"], stacked(found, "beta")[2:])
    kernel.cleanup()
    kernel.cleanup()  # MCMC calls it twice
    assert kernel.recover() == {}
    assert kernel.diagnostics()["sample_stats"]["potential"].shape == (3,)


def test_a_kernel_pickles_before_during_and_after_a_run():
    kernel = AEBKernel(
        sparse_regression,
        SGHMC(Piecewise(1e-4, {10: 0.5}), friction=0.3),
        StochasticApproximation(Polynomial(1.0, 10.0, 0.7)),
        save=["beta"],
        seed=3,
    )
    fresh = pickle.loads(pickle.dumps(kernel))
    kernel.setup(0, X, Y)
    expected = stacked(draws(kernel, 3), "beta")
    fresh.setup(0, X, Y)
    assert torch.equal(stacked(draws(fresh, 3), "beta"), expected)
    again = pickle.loads(pickle.dumps(kernel))
    assert again.recover() == {} and repr(again) == repr(kernel)
    assert copy.deepcopy(kernel).seed == 3


def test_a_kernel_prints_as_its_options():
    kernel = AEBKernel(sparse_regression, SGLD(1e-3), StochasticApproximation(0.5), 2.0, 10)
    assert repr(kernel) == (
        "AEBKernel(sparse_regression, SGLD(step_size=Constant(value=0.001)), "
        "adaptation=StochasticApproximation(weight=Constant(value=0.5), initial_inclusion=0.5, "
        "initial_penalty=None), inverse_temperature=Constant(value=2.0), steps_per_draw=10)"
    )
    assert "AEBKernel(DenseNetwork, SGLD" in repr(AEBKernel(DenseNetwork(), SGLD(1e-3)))


def test_no_gradient_is_kept_from_step_to_step():
    def model():
        loc = pyro.param("loc", torch.zeros(P))
        w = pyro.sample("w", dist.Normal(loc, 1.0).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ w + pyro.param("b", torch.zeros(())), 1.0), obs=Y)

    kernel = AEBKernel(model, SGLD(1e-3), seed=0)
    kernel.setup(0)
    (draw,) = draws(kernel, 1)
    assert not kernel.chain.state.position.requires_grad and not draw["w"].requires_grad
    assert not kernel.diagnostics()["sample_stats"]["potential"].requires_grad
    assert all(p.grad is None for p in pyro.get_param_store().values())


# A chain that blows up


class Bomb:
    """A dense regression whose data turn infinite at a given run of the model."""

    def __init__(self, at: int) -> None:
        self.runs = -at

    def __call__(self, X, Y):
        self.runs += 1
        a = pyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        size = math.inf if self.runs > 0 else 1.0
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(a.sum() + size * b.sum(), 1.0), obs=Y)


def blown_up(step: int, warmup: int = 0) -> tuple[AEBKernel, NonFiniteError]:
    """A kernel whose gradient is first infinite at a given step, and its error."""
    model = Bomb(at=10**9)
    kernel = started(model, warmup=warmup, steps_per_draw=2, adaptation=None)
    model.runs = 1 - step
    with pytest.raises(NonFiniteError) as info, pyro.validation_enabled(False):
        draws(kernel, 100)
    return kernel, info.value


def test_a_run_stops_at_the_very_step():
    kernel, error = blown_up(step=8)
    assert error.step == 8
    assert kernel.chain.step == 7
    assert torch.isfinite(kernel.chain.state.position).all()


def test_the_error_names_the_first_site_and_suggests_a_step_size():
    _, error = blown_up(step=8)
    # log N(y; a + inf b, 1) = -inf or NaN for every y, and so is its derivative with respect to a.
    assert error.site == "a"
    message = str(error)
    assert "step 8: the gradient of site 'a' is not finite" in message
    assert "step size" in message and "0.001" in message and "try 0.0001" in message
    assert "kernel.recover()" in message


@pytest.mark.parametrize("warmup, expected", [(0, 3), (1, 2), (5, 0)])
def test_the_error_carries_the_draws_finished_before(warmup, expected):
    kernel, error = blown_up(step=8, warmup=warmup)  # in the fourth draw
    if expected:
        assert {name: draw.shape for name, draw in error.draws.items()} == {
            "a": (expected, 2),
            "b": (expected, 2),
        }
        recovered = kernel.recover()
        assert all(torch.equal(recovered[name], error.draws[name]) for name in "ab")
    else:
        assert error.draws == {}


def test_the_error_pickles():
    _, error = blown_up(step=8)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is NonFiniteError and str(again) == str(error)
    assert (again.step, again.site) == (8, "a")
    assert all(torch.equal(again.draws[name], error.draws[name]) for name in "ab")


@pytest.mark.parametrize("step_size", [1.0, 1e3, 1e10, 1e20, 1e38])
@pytest.mark.parametrize("adaptation", [None, StochasticApproximation(0.1)], ids=["plain", "SA"])
@pytest.mark.parametrize("transition", [SGLD, SGHMC])
def test_draws_are_finite_however_large_the_step_size(transition, adaptation, step_size):
    kernel = started(transition=transition(step_size), adaptation=adaptation)
    try:
        with pyro.validation_enabled(False):
            draws(kernel, 30)
    except NonFiniteError as error:
        assert error.site in (None, "beta", "sigma2", "delta")
    for name, draw in kernel.recover().items():
        assert torch.isfinite(draw).all(), name


def test_a_number_from_a_schedule_that_makes_no_sense_stops_the_run_there():
    def falling(k):
        return 1e-3 * (5 - k)

    for options, name in [
        ({"transition": SGLD(falling)}, "step_size"),
        ({"inverse_temperature": falling}, "inverse_temperature"),
    ]:
        kernel = started(**options)
        with pytest.raises(ValueError, match=f"{name} is 0.0 at step 5, expected a .*number > 0"):
            draws(kernel, 10)
        assert len(kernel.recover()["beta"]) == 4


def test_a_weight_from_a_schedule_that_makes_no_sense_stops_the_run_there():
    kernel = started(adaptation=StochasticApproximation(lambda k: 0.2 * k))
    with pytest.raises(ValueError, match=r"at step 6, expected a number in \[0, 1\]"):
        draws(kernel, 10)
    assert len(kernel.recover()["beta"]) == 5


# Collapse


def test_a_collapse_is_warned_of_once_by_site_and_step():
    def model():
        for layer, a in enumerate([1.0, 50.0]):  # the first may collapse, the second not
            delta = pyro.sample(f"delta{layer}", dist.Beta(a, 50.0))
            prior = SSGL(0.1, 10.0, delta)
            pyro.sample(f"w{layer}", prior.expand([4]).to_event(1))

    # Weights at 0 belong to the Laplace, so rho and with it delta of Beta(1, 50) go to 0.
    zeros = init_to_value(values={f"w{layer}": torch.zeros(4) for layer in range(2)})
    kernel = AEBKernel(model, SGLD(1e-12), StochasticApproximation(0.9), init_strategy=zeros)
    kernel.setup(0)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        draws(kernel, 20)
    messages = [str(w.message) for w in record if w.category is CollapseWarning]
    assert len(messages) == 1
    assert messages[0].startswith("step ") and "delta site 'delta0' has collapsed" in messages[0]
    for cure in ("Beta prior with a > 1", "smaller stochastic-approximation weight", "larger v0"):
        assert cure in messages[0]


# The hot path


def test_a_step_waits_for_no_number_and_builds_no_trace(monkeypatch):
    """``.item()`` makes an accelerator wait; a trace costs more than a small model."""
    kernel = started(kwargs={"batch_size": 3})
    draws(kernel, 1)

    def refuse(self, *args, **kwargs):
        raise AssertionError("a step built a trace")

    monkeypatch.setattr(poutine.Trace, "__init__", refuse)
    with pyro.validation_enabled(False), torch.profiler.profile() as profile:
        kernel._step(kernel.chain)
    operations = {event.key for event in profile.key_averages()}
    assert "aten::sigmoid" in operations  # the profiler has seen the step
    assert not operations & {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"}
