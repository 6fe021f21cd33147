# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Blocks of compiled steps, which run one after the other without the Python between two steps. All
numbers are those of single steps, bit for bit, wherever a block begins and ends.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import linear_data, sparse_layers, sparse_regression
from runs import Network, copy_buffers

import pyro_aeb as aeb
from pyro_aeb.errors import NonFiniteError
from pyro_aeb.kernel import algorithm
from pyro_aeb.posterior import compiled_code

X, Y = linear_data()
COMPILE, MAKE_LOOP = compiled_code.compile_graph, compiled_code.make_loop
STEPS = 40
"""Steps of a draw: two that are recorded, a block of 29, one that is recorded, and a block."""


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """Runs what is recorded without a compiler; the numbers of steps in the blocks."""
    monkeypatch.setattr(compiled_code, "compile_graph", lambda graph, inputs: graph)
    made, steps = [], algorithm.steps

    def count(*args):
        made.append(steps(*args))
        return made[-1]

    monkeypatch.setattr(algorithm, "steps", count)
    return made


def plates(X, y=None, batch_size=4):
    """Minibatches, and random numbers of the model's own."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
    delta = pyro.sample("delta", dist.Beta(1.0, 5.0))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt()))
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        mean = torch.dropout(X[i], 0.3, True) @ beta
        pyro.sample("y", dist.Normal(mean, sigma2.sqrt()), obs=y[i])


def minibatches(X, y=None):
    """Minibatches, and no random numbers."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=0.3, sigma=sigma2.sqrt()))
    with pyro.plate("data", len(X), subsample_size=4) as i:
        mean = (X[i] * beta.unsqueeze(-2)).sum(-1)
        pyro.sample("y", dist.Normal(mean, sigma2.sqrt()), obs=y[i])


def network():
    return Network(X.shape[1])


OPTIONS = {
    "adaptation": aeb.StochasticApproximation(aeb.Polynomial(5.0, 20.0, 0.7)),
    "inverse_temperature": aeb.Geometric(1.0, 1.01),
}
MODELS = {
    "all rows": (lambda: sparse_regression, OPTIONS),
    "two layers": (lambda: sparse_layers, OPTIONS),
    "minibatches and dropout": (lambda: plates, OPTIONS),
    "with replacement": (lambda: plates, {**OPTIONS, "minibatches": "replacement"}),
    "three-point noise": (lambda: sparse_regression, {**OPTIONS, "noise": "three-point"}),
    "buffers": (network, {}),
}


def run(model, chains=0, single=False, transition=aeb.SGHMC, seed=3, **options):
    """Everything that moves in a chain, after a draw."""
    pyro.set_rng_seed(11)
    transition = transition(aeb.Polynomial(1e-3, 10.0, 0.5))
    kernel = aeb.AEBKernel(model, transition, seed=seed, compile=True, **options)
    kernel.start(1, chains, (X, Y), {})
    for _ in range(STEPS - 1 if single else 0):
        algorithm.step(kernel, kernel.chain)
    kernel.advance(1 if single else STEPS)
    chain = kernel.chain
    moved = {**chain.state._asdict(), **(kernel.latents._asdict() if kernel.latents else {})}
    buffers = copy_buffers(model) if isinstance(model, torch.nn.Module) else {}
    statistics = {n: chain._measured[n] for n in chain._measured}
    return {**moved, **buffers, **statistics, "random": torch.get_rng_state()}


CASES = [(name, chains, 3) for name in MODELS for chains in (0, range(3))]


@pytest.mark.parametrize("name, chains, seed", [*CASES, ("minibatches and dropout", 0, None)])
def test_blocks_are_single_steps_bit_for_bit(blocks, name, chains, seed):
    make, options = MODELS[name]
    found = run(make(), chains, seed=seed, **options)
    assert sum(blocks) == STEPS - 1
    assert max(blocks) >= 29
    expected = run(make(), chains, single=True, seed=seed, **options)
    for key, value in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(found[key]), torch.as_tensor(value), rtol=0, atol=0, msg=key
        )


@pytest.mark.slow
@pytest.mark.parametrize("order", ["permutation", "replacement"])
@pytest.mark.parametrize("chains, seed", [(0, 3), (0, None), (range(3), 3)])
def test_blocks_in_one_call_of_machine_code(blocks, monkeypatch, order, chains, seed):
    loops = []

    def make_loop(*args):
        loops.append(MAKE_LOOP(*args))
        return loops[-1]

    monkeypatch.setattr(compiled_code, "compile_graph", COMPILE)
    monkeypatch.setattr(compiled_code, "make_loop", make_loop)
    options = {"seed": seed, "minibatches": order, **OPTIONS}
    found, expected = (run(minibatches, chains, single, **options) for single in (False, True))
    assert len(loops) == 1 and loops[0] is not None
    for key, value in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(found[key]), torch.as_tensor(value), rtol=0, atol=0, msg=key
        )


def test_learning_ends_between_two_blocks(blocks):
    weights = aeb.StochasticApproximation(lambda k: 0.1 if k <= 20 else 0.0)
    options = {"adaptation": weights}
    found, expected = (run(sparse_layers, single=single, **options) for single in (False, True))
    for key in ("position", "rho", "sigma", "delta"):
        assert torch.equal(found[key], expected[key]), key


@pytest.mark.parametrize("pruning", [None, aeb.MagnitudePruning(0.5)])
def test_pruned_chains_make_single_steps(blocks, pruning):
    run(sparse_layers, pruning=pruning, **OPTIONS)
    assert (max(blocks) == 1) == (pruning is not None)


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("chains", [0, range(2)])
def test_blocks_end_where_latents_are_drawn(blocks, chains, flips):
    options = {"adaptation": aeb.Gibbs(every=7, flips=flips)}
    found, expected = (run(sparse_layers, chains, single, **options) for single in (False, True))
    assert blocks[:6] == [1, 1, 5, 7, 7, 7]  # and the step that is recorded again
    for key, value in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(found[key]), torch.as_tensor(value), rtol=0, atol=0, msg=key
        )


def test_a_loader_gives_single_steps(blocks):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=len(X))
    kernel = aeb.AEBKernel(sparse_regression, aeb.SGLD(1e-4), compile=True, **OPTIONS)
    kernel.start(0, 0, (loader,), {})
    kernel.advance(STEPS)
    kernel.cleanup()
    assert max(blocks) == 1


# -- errors, Ctrl-C, and what has been made before them


def step_size(k):
    return 1e-3 if k < 45 else -1.0


def large_step_size(k):
    return 1e-3 if k < 45 else 1e30


def stopped(schedule, single):
    kernel = aeb.AEBKernel(sparse_regression, aeb.SGLD(schedule), seed=3, compile=True, **OPTIONS)
    kernel.start(0, 0, (X, Y), {})
    with pytest.raises((ValueError, NonFiniteError)) as caught:
        while kernel.chain.step < 100:
            if single:
                algorithm.step(kernel, kernel.chain)
            else:
                algorithm.steps(kernel, kernel.chain, 100 - kernel.chain.step)
    return kernel, str(caught.value)


@pytest.mark.parametrize("schedule", [step_size, large_step_size])
def test_an_error_comes_at_its_step(blocks, schedule):
    """After the steps before it, with the message of a single step."""
    kernel, message = stopped(schedule, single=False)
    expected, expected_message = stopped(schedule, single=True)
    assert max(blocks) > 1
    assert message == expected_message
    assert kernel.chain.step == expected.chain.step >= 44
    assert torch.equal(kernel.chain.state.position, expected.chain.state.position)


def test_ctrl_c_stops_between_two_blocks(blocks):
    calls = []

    def between():
        calls.append(len(blocks))
        if len(calls) == 5:
            raise KeyboardInterrupt

    kernel = aeb.AEBKernel(sparse_regression, aeb.SGLD(1e-4), seed=3, compile=True, **OPTIONS)
    kernel.start(0, 0, (X, Y), {})
    with pytest.raises(KeyboardInterrupt):
        kernel.advance(1000, between)
    assert kernel.chain.step == sum(blocks) == 2 + 29 + 1  # recorded at 1, 2 and 32
    assert max(blocks) <= algorithm.BLOCK
    assert not kernel.chain.torn
