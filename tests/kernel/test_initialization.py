# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""How a chain starts: its random numbers and its first values."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import N, P, linear_data, sparse_regression
from pyro.infer.autoguide.initialization import (
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)

from pyro_aeb import SSGL, ModelError, StochasticApproximation
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.kernel.initialization import draw_first_values, find_start
from pyro_aeb.kernel.seeds import chain_number, generator_of
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.posterior.posterior import Posterior

X, Y = linear_data()
ADAPTATION = StochasticApproximation(0.1, initial_inclusion=0.25)


def inspect(model=sparse_regression, adapt=True):
    return inspect_model(model, (X, Y), {}, adapt=adapt)


def draw(strategy=init_to_uniform, given=None, generator=None, model=sparse_regression):
    data = Arguments((X, Y), {})
    return draw_first_values(model, data, inspect(model), strategy, given or {}, generator)


# Random numbers


def test_chains_in_one_process_are_counted():
    assert [chain_number(started) for started in range(3)] == [0, 1, 2]


def test_a_generator_for_every_chain():
    cpu = torch.device("cpu")
    assert generator_of(None, 3, cpu) is None
    assert generator_of(7, 3, cpu).initial_seed() == 10
    assert generator_of(0, 0, cpu).initial_seed() == 0


def test_first_values_come_from_the_generator_where_there_is_one():
    state = torch.get_rng_state()
    drawn = [draw(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(drawn[0]["beta"], drawn[1]["beta"])
    assert not torch.equal(drawn[0]["beta"], drawn[2]["beta"])


def test_first_values_come_from_torchs_own_generator_where_there_is_none():
    drawn = []
    for _ in range(2):
        torch.manual_seed(4)
        drawn.append(draw()["beta"])
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], draw()["beta"])


def test_tries_of_one_generator_differ():
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(*(draw(generator=generator)["beta"] for _ in range(2)))


# Values that are given


def test_given_values_are_unconstrained_and_go_before_the_strategy():
    given = {
        "beta": torch.tensor([1.0, 2.0, 3.0]),
        "sigma2": torch.tensor(-1.0),
        "delta": torch.tensor(2.0),
    }
    found = draw(init_to_value(values={"beta": torch.zeros(P)}), given)
    assert torch.equal(found["beta"], given["beta"])
    torch.testing.assert_close(found["sigma2"], torch.tensor(-1.0).exp())
    torch.testing.assert_close(found["delta"], torch.tensor(2.0).sigmoid())


def test_values_not_given_come_from_the_strategy():
    strategy = init_to_value(values={"sigma2": torch.tensor(3.0)})
    found = draw(strategy, {"beta": torch.ones(P)})
    assert found["sigma2"] == 3.0 and (found["beta"] == 1.0).all()


def test_given_values_of_sites_in_constrained_spaces():
    def model(X, y):
        pyro.sample("interval", dist.Uniform(-1.0, 3.0))
        pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
        pyro.sample("positive", dist.HalfCauchy(1.0).expand([2]).to_event(1))

    given = {
        "interval": torch.tensor(0.0),
        "simplex": torch.zeros(2),
        "positive": torch.tensor([0.0, 1.0]),
    }
    found = draw(given=given, model=model)
    torch.testing.assert_close(found["interval"], torch.tensor(1.0))  # the middle
    torch.testing.assert_close(found["simplex"], torch.full([3], 1 / 3))
    torch.testing.assert_close(found["positive"], torch.tensor([1.0, math.e]))


@pytest.mark.parametrize(
    "given, parts",
    [
        ({"gamma": torch.zeros(3)}, ["'gamma'", "no latent site", "['beta', 'delta', 'sigma2']"]),
        ({"beta": torch.zeros(4)}, ["['beta']", "(4,)", "expected (3,)", "unconstrained space"]),
        ({"beta": torch.zeros(())}, ["['beta']", "()", "expected (3,)"]),
        ({"sigma2": torch.zeros(2)}, ["['sigma2']", "(2,)", "expected ()"]),
        ({"delta": torch.zeros(2)}, ["['delta']", "(2,)", "expected ()"]),
    ],
    ids=["name", "length", "scalar", "sigma2", "delta"],
)
def test_given_values_that_do_not_fit_are_errors(given, parts):
    with pytest.raises(ModelError) as info:
        draw(given=given)
    for part in ["initial_params", *parts]:
        assert part in str(info.value)


# The position


def test_the_position_of_constrained_values():
    def model(X, y):
        pyro.sample("scale", dist.HalfNormal(1.0))
        pyro.sample("dense", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("sparse", SSGL(0.1, 10.0, 0.5).expand([2]).to_event(1))

    found = inspect(model).flatten(
        {
            "scale": torch.tensor(math.e),
            "dense": torch.tensor([3.0, 4.0]),
            "sparse": torch.tensor([1.0, 2.0]),
        }
    )
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 3.0, 4.0, 1.0]))  # log(e) last


# A starting point


def start_from(draw, model=sparse_regression, adaptation=ADAPTATION):
    structure = inspect(model, adapt=adaptation is not None)
    posterior = Posterior(model, structure, adaptation=adaptation)
    batch = Batch(Arguments((X, Y), {}), {"features": torch.arange(P), "data": torch.arange(N)})
    with pyro.validation_enabled(False):  # as in MCMC
        return find_start(posterior, batch, draw)


def valid_draw():
    return {
        "beta": torch.tensor([1.0, 2.0, 3.0]),
        "sigma2": torch.tensor(4.0),
        "delta": torch.tensor(0.3),
    }


def test_a_start_with_learned_latents():
    position, latents = start_from(valid_draw)
    assert torch.equal(position, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(latents.ssgl.sigma, torch.tensor([2.0]))  # the square root of sigma2
    torch.testing.assert_close(latents.ssgl.delta, torch.tensor([0.3]))
    assert (latents.ssgl.rho == 0.25).all()


def test_a_start_without():
    position, latents = start_from(valid_draw, adaptation=None)
    assert latents is None
    # sigma2 and delta come first in the model: log(4) and logit(0.3)
    expected = torch.tensor([math.log(4.0), math.log(0.3 / 0.7), 1.0, 2.0, 3.0])
    torch.testing.assert_close(position, expected)


@pytest.mark.parametrize(
    "bad",
    [
        {"beta": torch.full([P], math.nan)},
        {"beta": torch.full([P], math.inf)},
        {"sigma2": torch.tensor(math.inf)},
        {"sigma2": torch.tensor(-1.0)},
        {"delta": torch.tensor(math.nan)},
    ],
    ids=["nan", "inf", "sigma2 inf", "sigma2 < 0", "delta nan"],
)
def test_a_start_is_drawn_again_until_it_is_finite(bad):
    draws = iter([{**valid_draw(), **bad}, {**valid_draw(), **bad}, valid_draw()])
    position, latents = start_from(lambda: next(draws))
    assert torch.equal(position, valid_draw()["beta"])
    assert torch.isfinite(latents.ssgl.sigma).all() and torch.isfinite(latents.ssgl.delta).all()


def test_no_finite_start_is_an_error_that_says_what_to_do():
    tries = []

    def bad():
        tries.append(1)
        return {**valid_draw(), "beta": torch.full([P], math.nan)}

    with pytest.raises(ModelError, match="finite potential in 100 tries.*init_to_value.*data"):
        start_from(bad)
    assert len(tries) == 100


@pytest.mark.parametrize(
    "strategy",
    [
        init_to_feasible,
        init_to_sample,
        init_to_median,
        init_to_mean,
        init_to_uniform,
        init_to_uniform(radius=0.1),
        init_to_value(values={"beta": torch.ones(P)}),
        init_to_generated(generate=partial(init_to_value, values={"beta": torch.ones(P)})),
    ],
    ids=[
        "feasible",
        "sample",
        "median",
        "mean",
        "uniform",
        "radius",
        "value",
        "generated",
    ],
)
def test_all_strategies_of_pyros(strategy):
    found = draw(strategy)
    assert found["beta"].shape == (P,) and found["sigma2"] > 0 and 0 < found["delta"] < 1
