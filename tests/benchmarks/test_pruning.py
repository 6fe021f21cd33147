# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What pruning costs, and what its less obvious lines save, on one thread.

    python -m pytest tests/benchmarks/test_pruning.py --benchmark-enable -s

Two ways to the same result are timed in turn, a few calls each, and the ratio is taken turn by
turn; its median and quartiles are printed. Where a line saves nothing its test fails. Values to
choose among are others in every call, or the processor would learn how comparisons come out. Time a
quiet machine.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from pruning_structures import RESNET20, RESNET20_DENSE, make_structure, refuse_probabilities

from pyro_aeb.pruning import MagnitudePruning, Pruner
from pyro_aeb.pruning.selection import _all_but_lowest_on_device, _kth_lowest, all_but_lowest
from pyro_aeb.transitions import SGLDState

TURNS, CALLS = 30, 5
OTHERS = 30
"""How many sets of values take turns."""
WEIGHTS = 267_264
"""Those of a ResNet20's sparse layers."""


def seconds(call: Callable[[], object], calls: int = CALLS) -> float:
    """Seconds a call, on average."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def times_as_long(benchmark, what: str, slow: Callable[[], object], fast: Callable[[], object]):
    """The median of slow / fast; skips the test where nothing is to be timed."""
    benchmark.pedantic(fast, rounds=3, warmup_rounds=1)
    if benchmark.disabled:
        pytest.skip("a ratio is measured only where benchmarks are, with --benchmark-enable")
    seconds(slow), seconds(fast)
    pairs = [(seconds(slow), seconds(fast)) for _ in range(TURNS)]
    low, median, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    benchmark.extra_info["ratio"] = round(median, 2)
    milliseconds = [1e3 * statistics.median(column) for column in zip(*pairs, strict=True)]
    print(
        f"\n{what}: {median:.2f} [{low:.2f}, {high:.2f}] times as long, "
        f"{milliseconds[0]:.3f} ms against {milliseconds[1]:.3f} ms"
    )
    return median


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("freeze", [False, True])
def test_a_call_takes_less_than_the_gradient_of_one_image(benchmark, scope, freeze):
    """Of a ResNet20, of whose weights 90 % go; an image of a batch of 128."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("the network is of a tutorial that needs torchvision")
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tutorials" / "reproduce"))
    network = importlib.import_module("vision.networks").resnet20()
    parameters = list(network.parameters())
    x, y = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))

    def gradient() -> object:
        loss = torch.nn.functional.cross_entropy(network(x), y, reduction="sum")
        return torch.autograd.grad(loss, parameters)

    layout = make_structure(RESNET20, RESNET20_DENSE)
    pruner = Pruner(MagnitudePruning(0.9, scope, freeze), layout)
    state, walk = SGLDState(torch.randn(layout.size)), 0.1 * torch.randn(layout.size)

    def call() -> object:
        state.position.add_(walk)  # as a step moves them, so that other weights go
        return pruner.prune(state, 1, refuse_probabilities)

    benchmark.pedantic(call, rounds=3, warmup_rounds=1)
    if benchmark.disabled:
        pytest.skip("a ratio is measured only where benchmarks are, with --benchmark-enable")
    seconds(gradient, 1)
    pairs = [(seconds(call), seconds(gradient, 1) / len(x)) for _ in range(10)]
    own, image = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"\n{scope}, freeze={freeze}: a call {own:.2f} ms, an image's gradient {image:.2f} ms")
    assert own < image


def test_a_mask_of_bytes_is_quicker_to_multiply_by(benchmark):
    weights, keep = torch.randn(WEIGHTS), torch.rand(WEIGHTS) > 0.9
    what = "multiplying by booleans, not by bytes"
    slow, fast = (lambda m=m: weights.mul_(m) for m in (keep, keep.view(torch.uint8)))
    assert times_as_long(benchmark, what, slow, fast) > 1


@pytest.mark.parametrize(("n", "bound"), [(2304, 0.5), (36_864, 1), (WEIGHTS, 1)])
def test_numpy_chooses_quicker_than_torch(benchmark, n, bound):
    """
    Among the weights of the smallest and of the largest sparse layer of a ResNet20, and among all.
    The smallest is where it does not pay: there it may not cost twice as much.
    """
    scores, count = cycle([torch.randn(n).abs() for _ in range(OTHERS)]), 9 * n // 10
    what = f"torch's choice among {n} weights, not numpy's"
    slow = lambda: _all_but_lowest_on_device([next(scores)], count)  # noqa: E731
    fast = lambda: all_but_lowest([next(scores)], count)  # noqa: E731
    assert times_as_long(benchmark, what, slow, fast) > bound


def test_a_sample_is_quicker_than_partitioning_all(benchmark):
    generator, count = np.random.default_rng(0), 180_000
    rows = np.abs(generator.standard_normal((OTHERS, 200_000), np.float32))
    values = cycle(rows)
    what = "partitioning 200,000 values, not those that a sample brackets"
    slow = lambda: np.partition(next(values), (count - 1, count))[count - 1]  # noqa: E731
    fast = lambda: _kth_lowest(next(values), count)  # noqa: E731
    assert [slow() for _ in rows] == [fast() for _ in rows]
    assert times_as_long(benchmark, what, slow, fast) > 1


@pytest.mark.parametrize("zeros", [0.5, 0.9])
def test_two_ranks_are_quicker_than_one_among_equal_values(benchmark, zeros):
    """Of a layer too small to sample, where a mask holds as many at zero as are to go."""
    generator = np.random.default_rng(0)
    rows = np.abs(generator.standard_normal((OTHERS, 9216), np.float32))
    count = int(zeros * rows.shape[1])
    rows[:, :count] = 0.0
    values = cycle(generator.permuted(rows, axis=1))
    what = f"one rank, not two, {100 * zeros:.0f} % zeros"
    slow = lambda: np.partition(next(values), count - 1)[count - 1]  # noqa: E731
    fast = lambda: np.partition(next(values), (count - 1, count))[count - 1]  # noqa: E731
    assert [slow() for _ in rows] == [fast() for _ in rows]
    assert times_as_long(benchmark, what, slow, fast) > 1
