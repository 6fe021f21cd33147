# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step does beside the likelihood's gradient: at most 70 operations of torch, whatever the
number of layers, and none of them waits for a value. Counted as the benchmarks do: what the program
calls, not what that calls in its turn.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

import pyro_aeb as aeb
from pyro_aeb.kernel import algorithm

MOST = 70
WIDTH = 20
GRADIENT = "the likelihood's gradient"
WAITS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"}


def deep_network(layers: int):
    """A network of layers with sparse weights, each with a delta of its own, and dense biases."""

    def model(x, y):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
        for i in range(layers):
            delta = pyro.sample(f"delta{i}", dist.Beta(2.0 + i, 3.0))
            prior = aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt())
            weight = pyro.sample(f"w{i}", prior.expand([WIDTH, WIDTH]).to_event(2))
            bias = pyro.sample(f"b{i}", dist.Normal(0.0, 1.0).expand([WIDTH]).to_event(1))
            x = torch.tanh(x @ weight + bias)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x.sum(-1), sigma2.sqrt()), obs=y)

    return model


def operations_after_gradient(layers: int, transition, chains=0, **options) -> list[str]:
    """The operations of one step that follow the likelihood's gradient."""
    kernel = aeb.AEBKernel(
        deep_network(layers),
        transition(1e-6),
        adaptation=aeb.StochasticApproximation(0.3),
        seed=1,
        **options,
    )
    kernel.start(0, chains, (torch.randn(8, WIDTH), torch.randn(8)), {})
    kernel.advance(2)
    posterior = kernel.chain.posterior
    own = posterior.evaluate_likelihood

    def marked(*args):
        with record_function(GRADIENT):
            return own(*args)

    posterior.evaluate_likelihood = marked
    with pyro.validation_enabled(False), profile(activities=[ProfilerActivity.CPU]) as profiler:
        algorithm.step(kernel, kernel.chain)
    events = profiler.events()
    (gradient,) = (event.time_range for event in events if event.name == GRADIENT)
    after = [event for event in events if event.time_range.start >= gradient.end]
    assert not WAITS & {event.name for event in after}  # at any depth
    assert not any(event.time_range.end <= gradient.start for event in events)  # nothing before
    return [event.name for event in after if _is_outermost(event)]


def _is_outermost(event) -> bool:
    return event.name.startswith("aten::") and not _is_within(event.cpu_parent)


def _is_within(event) -> bool:
    return event is not None and (event.name.startswith("aten::") or _is_within(event.cpu_parent))


@pytest.mark.parametrize("noise", ["normal", "three-point"])
@pytest.mark.parametrize("transition", [aeb.SGLD, aeb.SGHMC])
def test_the_number_of_layers_does_not_matter(transition, noise):
    twenty = operations_after_gradient(20, transition, noise=noise)
    assert {"aten::sigmoid_", "aten::lerp"} <= set(twenty)  # the latents' update has been seen
    assert len(twenty) <= MOST
    assert operations_after_gradient(40, transition, noise=noise) == twenty


@pytest.mark.parametrize("layers", range(1, 7))
def test_few_layers_take_no_more(layers):
    assert len(operations_after_gradient(layers, aeb.SGHMC)) <= MOST


def test_more_chains_that_step_together_take_no_more_but_for_their_noise():
    two, eight = (operations_after_gradient(20, aeb.SGHMC, chains=range(c)) for c in (2, 8))
    assert two.count("aten::normal_") == 2 and eight.count("aten::normal_") == 8
    assert [n for n in two if n != "aten::normal_"] == [n for n in eight if n != "aten::normal_"]
