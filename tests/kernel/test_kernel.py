# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The kernel's contract with Pyro's MCMC, and chains that go wrong."""

from __future__ import annotations

import copy
import json
import math
import pickle
import warnings
from xml.etree import ElementTree

import pyro
import pyro.distributions as dist
import pytest
import torch
from kernels import N, X, Y, set_up_kernel, stack_site, take_draws
from models import DenseNetwork, P, dense_regression, sparse_layers, sparse_regression
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

# The contract with MCMC


def test_sites_of_a_draw_are_in_constrained_space_and_listed_sorted():
    kernel = set_up_kernel(sparse_layers, save=["w1", "sigma2", "delta0", "w0"])
    assert kernel.save_params == ["delta0", "sigma2", "w0", "w1"]
    assert kernel.transforms == {}
    (draw,) = take_draws(kernel, 1)
    assert draw.keys() == kernel.initial_params.keys() == set(kernel.save_params)
    assert draw["sigma2"] > 0 and 0 < draw["delta0"] < 1 and draw["w0"].shape == (P, 4)


def test_draws_are_copies():
    kernel = set_up_kernel()
    first = take_draws(kernel, 1)[0]
    before = {name: value.clone() for name, value in first.items()}
    second = kernel.sample(first)
    assert all(torch.equal(first[name], before[name]) for name in first)
    assert not torch.equal(second["beta"], first["beta"])


def test_what_a_hook_does_to_a_draw_does_not_move_the_chain():
    kernel, other = set_up_kernel(), set_up_kernel()
    draw, expected = kernel.sample(kernel.initial_params), other.sample(other.initial_params)
    draw["beta"].zero_()
    assert torch.equal(kernel.sample(draw)["beta"], other.sample(expected)["beta"])


def test_a_chain_goes_on_from_the_values_it_is_given():
    kernel = set_up_kernel(transition=SGLD(1e-12))
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
    kernel = set_up_kernel()
    take_draws(kernel, 3)
    kernel.setup(0, X, Y)
    assert kernel.chain.step == 0 and kernel.recover() == {}
    assert kernel.diagnostics()["sample_stats"] == {}


def test_setup_touches_neither_the_models_buffers_nor_torchs_random_numbers():
    network = DenseNetwork()
    network.norm(torch.randn(8, 4) + 3.0)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    state = torch.get_rng_state()
    set_up_kernel(network, adaptation=None)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert torch.equal(state, torch.get_rng_state())


def test_steps_of_a_kernel_with_a_seed_use_none_of_torchs_random_numbers():
    kernel = set_up_kernel(kwargs={"batch_size": 3})
    state = torch.get_rng_state()
    take_draws(kernel, 3)
    assert torch.equal(state, torch.get_rng_state())


def test_figures_for_the_progress_bar():
    kernel = set_up_kernel()
    take_draws(kernel, 2)
    figures = json.loads(json.dumps(kernel.logging()))
    assert figures.keys() == {"potential", "sparsity", "sigma", "steps/s"}
    assert float(figures["sigma"]) == pytest.approx(float(kernel.latents.sigma), rel=0.01)
    assert 0.0 <= float(figures["sparsity"]) <= 1.0 and float(figures["steps/s"]) > 0.0
    plain = set_up_kernel(adaptation=None)
    take_draws(plain, 1)
    assert json.loads(json.dumps(plain.logging())).keys() == {"potential", "steps/s"}


def test_diagnostics():
    kernel = set_up_kernel(transition=SGLD(Polynomial(1e-3, power=0.5)), warmup=2, steps_per_draw=3)
    take_draws(kernel, 6)
    found = kernel.diagnostics()
    stats = found["sample_stats"]
    assert stats.keys() == {
        "diverging",
        "potential",
        "sparsity",
        "step_size",
        "inverse_temperature",
        "sa_weight",
        "kinetic_temperature",
        "sa_residual_rho",
        "sa_residual_sigma",
        "sa_residual_delta",
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
    kernel = set_up_kernel(adaptation=None)
    take_draws(kernel, 2)
    found = kernel.diagnostics()
    assert (found["sample_stats"]["sa_weight"] == 0.0).all()
    assert "sparsity" not in found["sample_stats"]
    assert found["adaptation"] == {}
    assert set(found["roles"].values()) == {"draw", "observed"}


def test_the_potential_is_that_of_the_weights():
    # With such a step size the weights of the draw are those of its last gradient.
    kernel = set_up_kernel(dense_regression, transition=SGLD(1e-14), adaptation=None)
    (draw,) = take_draws(kernel, 1)
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
    take_draws(kernel, 1)
    assert kernel.diagnostics()["sample_stats"]["sparsity"].tolist() == [0.75]


def test_recover_hands_out_the_draws_until_the_end_of_a_run():
    kernel = set_up_kernel(warmup=2)
    found = take_draws(kernel, 5)
    recovered = kernel.recover()
    assert recovered.keys() == {"beta", "sigma2", "delta"}
    assert torch.equal(recovered["beta"], stack_site(found, "beta")[2:])
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
    expected = stack_site(take_draws(kernel, 3), "beta")
    fresh.setup(0, X, Y)
    assert torch.equal(stack_site(take_draws(fresh, 3), "beta"), expected)
    again = pickle.loads(pickle.dumps(kernel))
    assert again.recover() == {} and repr(again) == repr(kernel)
    assert copy.deepcopy(kernel).seed == 3


def test_a_kernel_prints_as_its_options():
    kernel = AEBKernel(sparse_regression, SGLD(1e-3), StochasticApproximation(0.5), 2.0, 10)
    assert repr(kernel) == (
        "AEBKernel(sparse_regression, SGLD(step_size=Constant(value=0.001)), "
        "adaptation=StochasticApproximation(weight=Constant(value=0.5), initial_inclusion=0.5, "
        "initial_penalty=None), inverse_temperature=Constant(value=2.0), pruning=None, "
        "steps_per_draw=10)"
    )
    assert "AEBKernel(DenseNetwork, SGLD" in repr(AEBKernel(DenseNetwork(), SGLD(1e-3)))


def test_a_kernel_is_a_table_of_its_options_in_a_notebook():
    start = init_to_value(values={"beta": torch.zeros(P)})
    kernel = AEBKernel(DenseNetwork(), SGLD(1e-3), seed=3, init_strategy=start)
    root = ElementTree.fromstring(kernel._repr_html_())
    assert root.find("caption").text == "AEBKernel"
    assert [[cell.text for cell in row] for row in root.findall("tr")] == [
        ["model", "DenseNetwork"],
        ["transition", "SGLD(step_size=Constant(value=0.001))"],
        ["adaptation", "None"],
        ["inverse_temperature", "Constant(value=1.0)"],
        ["steps_per_draw", "1"],
        ["pruning", "None"],
        ["init_strategy", "init_to_value"],
        ["seed", "3"],
    ]
    assert ">sparse_regression</td>" in AEBKernel(sparse_regression)._repr_html_()


def test_no_gradient_is_kept_from_step_to_step():
    def model():
        loc = pyro.param("loc", torch.zeros(P))
        w = pyro.sample("w", dist.Normal(loc, 1.0).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ w + pyro.param("b", torch.zeros(())), 1.0), obs=Y)

    kernel = AEBKernel(model, SGLD(1e-3), seed=0)
    kernel.setup(0)
    (draw,) = take_draws(kernel, 1)
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


def test_a_draw_is_searched_for_numbers_that_are_not_finite():
    chain = set_up_kernel(sparse_layers).chain
    position, draw = chain.state.position, chain.draw()
    assert chain.first_non_finite(draw) is None
    enormous = torch.full_like(position, 3e38)  # finite, with an infinite sum
    chain.state = chain.state._replace(position=enormous)
    assert chain.first_non_finite(draw) is None
    assert chain.first_non_finite({**draw, "sigma2": torch.tensor(math.nan)}) == "sigma2"
    chain.state = chain.state._replace(position=position)
    for bad in (math.inf, -math.inf, math.nan):
        assert chain.first_non_finite({**draw, "delta0": torch.tensor(bad)}) == "delta0"
        weights = position.clone()
        weights[-1], weights[0] = bad, -bad  # of two infinite numbers the sum is NaN
        chain.state = chain.state._replace(position=weights)
        assert chain.first_non_finite(chain.draw()) == chain.structure.blocks[0].name
        chain.state = chain.state._replace(position=position)


def diverged_kernel(step: int, warmup: int = 0) -> tuple[AEBKernel, NonFiniteError]:
    """A kernel whose gradient is first infinite at a given step, and its error."""
    model = Bomb(at=10**9)
    kernel = set_up_kernel(model, warmup=warmup, steps_per_draw=2, adaptation=None)
    model.runs = 1 - step
    with pytest.raises(NonFiniteError) as info, pyro.validation_enabled(False):
        take_draws(kernel, 100)
    return kernel, info.value


def test_a_run_stops_at_the_very_step():
    kernel, error = diverged_kernel(step=8)
    assert error.step == 8
    assert kernel.chain.step == 7
    assert torch.isfinite(kernel.chain.state.position).all()


def test_the_error_names_the_first_site_and_suggests_a_step_size():
    _, error = diverged_kernel(step=8)
    # log N(y; a + inf b, 1) = -inf or NaN for every y, and so is its derivative with respect to a.
    assert error.site == "a"
    message = str(error)
    assert "step 8: the gradient of site 'a' is not finite" in message
    assert "step size" in message and "0.001" in message and "try 0.0001" in message
    assert "kernel.recover()" in message


@pytest.mark.parametrize("warmup, expected", [(0, 3), (1, 2), (5, 0)])
def test_the_error_carries_the_draws_finished_before(warmup, expected):
    kernel, error = diverged_kernel(step=8, warmup=warmup)  # in the fourth draw
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
    _, error = diverged_kernel(step=8)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is NonFiniteError and str(again) == str(error)
    assert (again.step, again.site) == (8, "a")
    assert all(torch.equal(again.draws[name], error.draws[name]) for name in "ab")


@pytest.mark.parametrize("step_size", [1.0, 1e3, 1e10, 1e20, 1e38])
@pytest.mark.parametrize("adaptation", [None, StochasticApproximation(0.1)], ids=["plain", "SA"])
@pytest.mark.parametrize("transition", [SGLD, SGHMC])
def test_draws_are_finite_however_large_the_step_size(transition, adaptation, step_size):
    kernel = set_up_kernel(transition=transition(step_size), adaptation=adaptation)
    try:
        with pyro.validation_enabled(False):
            take_draws(kernel, 30)
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
        kernel = set_up_kernel(**options)
        with pytest.raises(ValueError, match=f"{name} is 0.0 at step 5, expected a .*number > 0"):
            take_draws(kernel, 10)
        assert len(kernel.recover()["beta"]) == 4


def test_a_weight_from_a_schedule_that_makes_no_sense_stops_the_run_there():
    kernel = set_up_kernel(adaptation=StochasticApproximation(lambda k: 0.2 * k))
    with pytest.raises(ValueError, match=r"at step 6, expected a number in \[0, 1\]"):
        take_draws(kernel, 10)
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
        take_draws(kernel, 20)
    messages = [str(w.message) for w in record if w.category is CollapseWarning]
    assert len(messages) == 1
    assert messages[0].startswith("step ") and "delta site 'delta0' has collapsed" in messages[0]
    for cure in ("Beta prior with a > 1", "smaller stochastic-approximation weight", "larger v0"):
        assert cure in messages[0]
