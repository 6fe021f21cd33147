# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step of several chains together costs, as a multiple of one chain's step.

    python -m pytest tests/benchmarks/test_chains.py --benchmark-enable -s

The two are timed in turn, a few steps each, and the ratio is taken turn by turn; its median and
quartiles are printed. Divided by the number of chains it is what vectorising saves. Time a quiet
machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_aeb as aeb
from pyro_aeb.kernel import algorithm

from .timing import seconds
from .workloads import kernel_of, linear_model, mlp, mlp_model

pytestmark = pytest.mark.usefixtures("as_in_mcmc")

TURNS = 30
LAYERS = [(100, 80), (80, 20), (20, 10)]
"""Of a network of 9,800 weights."""


def small_network(x: Tensor, y: Tensor) -> None:
    """A sparse classifier of 9,800 weights on 1000 data, in batches of 100."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(500.0, 500.0))
    weights, biases = [], []
    for layer, (inputs, outputs) in enumerate(LAYERS):
        delta = pyro.sample(f"delta{layer}", dist.Beta(100.0, 100.0))
        prior = aeb.SSGL(0.1, 1e-3, delta=delta, sigma=sigma2.sqrt())
        weights.append(pyro.sample(f"w{layer}", prior.expand([outputs, inputs]).to_event(2)))
        bias = dist.Normal(0.0, 0.2).expand([outputs]).to_event(1)
        biases.append(pyro.sample(f"b{layer}", bias))
    with pyro.plate("data", len(x), subsample_size=100) as i:
        logits = mlp(x[i], weights, biases)
        pyro.sample("y", dist.Categorical(logits=logits), obs=y[i])


def linear_data() -> tuple[object, ...]:
    X = torch.randn(100, 1000)
    return X, 3.0 * X[:, 0] + torch.randn(100), None


def small_data() -> tuple[object, ...]:
    return torch.randn(1000, 100), torch.randint(10, (1000,))


def mlp_data() -> tuple[object, ...]:
    return torch.randn(10_000, 784), torch.randint(10, (10_000,)), 100


# Model, its data, step size, steps a turn; the most that 16 chains may cost, in steps of one.
CASES = {
    "linear p=1000 n=100": (linear_model, linear_data, 1e-6, 20, 5.0),
    "network 9.8k batch 100": (small_network, small_data, 1e-7, 10, 8.0),
    "mlp 478k batch 100": (mlp_model, mlp_data, 1e-9, 1, None),
}
CHAINS = (4, 16, 64)


def step_of(case: str, chains: int | range) -> Callable[[], object]:
    """One step a call, of one chain or of several together."""
    model, data, size, _, _ = CASES[case]
    kernel = kernel_of(model, aeb.SGHMC(size))
    kernel.seed = 0
    torch.manual_seed(0)
    kernel.start(0, chains if isinstance(chains, int) else tuple(chains), data(), {})
    return lambda: algorithm.step(kernel, kernel.chain)


@pytest.mark.parametrize("chains", CHAINS)
@pytest.mark.parametrize("case", CASES)
def test_chains_together_cost_less_than_one_after_the_other(case, chains, benchmark):
    *_, repeats, bound = CASES[case]
    if benchmark.disabled:
        chains = 2
    together = step_of(case, range(chains))
    benchmark.pedantic(together, rounds=3, warmup_rounds=1)
    if benchmark.disabled:
        pytest.skip("a ratio is measured only where benchmarks are, with --benchmark-enable")
    if case.startswith("mlp") and chains == 64:
        pytest.skip("64 chains of 478k weights take a second a step and tell nothing new")
    alone = step_of(case, 0)
    seconds(alone, repeats), seconds(together, 1)
    ratios = [seconds(together, repeats) / seconds(alone, repeats) for _ in range(TURNS)]
    low, median, high = statistics.quantiles(ratios, n=4)
    benchmark.extra_info["ratio"] = round(median, 2)
    print(
        f"\n{case}: {chains} chains together / one chain = {median:.2f} [{low:.2f}, {high:.2f}], "
        f"{median / chains:.2f} a chain"
    )
    if chains == 16 and bound is not None:
        assert median <= bound
