# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Many runs of compiled code in one call: the numbers of single runs, bit for bit, and no loop where
the code is of another kind than is known.
"""

from __future__ import annotations

import ctypes
import shutil

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_aeb.data.minibatches import Minibatches
from pyro_aeb.posterior import loop as loops
from pyro_aeb.posterior.compiled_code import compile_graph
from pyro_aeb.posterior.graphs import copy_passed_outputs
from pyro_aeb.posterior.loop import MOST, make_loop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler"),
]

N, P = 12, 5
DATA = torch.arange(N * P, dtype=torch.float32).reshape(N, P).sin()


def step(x, total, noise, rows, data):
    """x and total move; noise and rows are new in every run; two more outputs are kept."""
    batch = data[rows]
    residual = (batch * x).sum(-1) - batch[:, 0]
    moved = x - 0.1 * (batch * residual[:, None]).mean(0) + 0.3 * noise
    return moved, total + residual.square().mean(), moved.max(), (moved > 0).sum()


MOVES, GIVEN = {0: 0, 1: 1}, [2, 3]


def compiled(function, inputs):
    graph = make_fx(function)(*inputs)
    copy_passed_outputs(graph)
    return compile_graph(graph, [*inputs])


def inputs_of(count):
    noise = torch.randn(count, P)
    rows = [torch.randperm(N)[:4] for _ in range(count)]
    return [torch.ones(P), torch.zeros(()), noise[0], rows[0], DATA], noise, rows


@pytest.fixture(scope="module")
def code():
    return compiled(step, inputs_of(1)[0])


def runs(code, inputs, noise, rows):
    """The outputs of runs one by one, each on a list of its own."""
    x, total, *_, data = inputs
    for own_noise, own_rows in zip(noise, rows, strict=True):
        outputs = code(x, total, own_noise, own_rows, data)
        x, total = outputs[:2]
        yield outputs


def assert_loop_is_right(loop, code, inputs, noise, rows):
    expected = [*runs(code, inputs, noise, rows)]
    last, others = loop(inputs, [noise, rows])
    for value, of_last in zip(last, expected[-1], strict=True):
        assert torch.equal(value, of_last)
    for stacked, of_runs in zip(others, [*zip(*expected, strict=True)][2:], strict=True):
        assert torch.equal(stacked, torch.stack(of_runs))
    return last


def test_runs_are_those_of_single_calls_bit_for_bit(code):
    inputs, noise, rows = inputs_of(MOST)
    loop = make_loop(code, inputs, MOVES, GIVEN)
    for count in (1, 2, 3, MOST):
        assert_loop_is_right(loop, code, inputs, noise[:count], rows[:count])


def test_a_loop_goes_on_from_its_outputs_and_keeps_what_it_returned(code):
    inputs, noise, rows = inputs_of(7)
    loop = make_loop(code, inputs, MOVES, GIVEN)
    first = assert_loop_is_right(loop, code, inputs, noise[:4], rows[:4])
    copies = [value.clone() for value in first]
    inputs[:2] = first[:2]
    assert_loop_is_right(loop, code, inputs, noise[4:], rows[4:])
    assert all(map(torch.equal, first, copies))


def test_fixed_inputs_may_move_in_memory(code):
    inputs, noise, rows = inputs_of(3)
    loop = make_loop(code, inputs, MOVES, GIVEN)
    assert_loop_is_right(loop, code, inputs, noise, rows)
    inputs[4] = DATA.cos()
    assert_loop_is_right(loop, code, inputs, noise, rows)


def test_making_a_loop_changes_no_input_and_no_random_state(code):
    inputs, *_ = inputs_of(1)
    copies, state = [value.clone() for value in inputs], torch.get_rng_state()
    assert make_loop(code, inputs, MOVES, GIVEN) is not None
    assert all(map(torch.equal, inputs, copies))
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_of_a_permutation_are_known_by_their_places(code):
    inputs, noise, _ = inputs_of(11)
    loop = make_loop(code, inputs, MOVES, GIVEN)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    ahead, single = (
        Minibatches({"data": (N, 4)}, "permutation", torch.device("cpu"), g) for g in generators
    )
    rows, draw = ahead.ahead()
    for _ in range(11):
        next(draw)
    expected = [single.next()["data"].clone() for _ in range(11)]
    assert all(map(torch.equal, rows["data"], expected))
    assert_loop_is_right(loop, code, inputs, noise, rows["data"])
    assert ahead.state()["starts"] == single.state()["starts"]


def test_an_output_that_is_an_input_is_copied():
    def hold(x, noise):
        return x, x + noise, x

    inputs = [torch.ones(P), torch.zeros(P)]
    loop = make_loop(compiled(hold, inputs), inputs, {0: 0}, [1])
    noise = torch.randn(3, P)
    (first, _, again), (sums, held) = loop(inputs, [noise])
    assert torch.equal(first, inputs[0]) and torch.equal(again, inputs[0])
    assert torch.equal(sums, 1.0 + noise) and torch.equal(held, torch.ones(3, P))


OTHER_CODE = {
    "a product of matrices": lambda x, noise: (x + noise, x @ x.T),
    "random numbers": lambda x, noise: (torch.dropout(x, 0.5, True) + noise, x.sum()),
    "a decomposition": lambda x, noise: (x + noise, torch.linalg.cholesky(x @ x.T)),
}


@pytest.mark.parametrize("function", OTHER_CODE.values(), ids=OTHER_CODE)
def test_code_that_calls_torch_is_not_repeated(function):
    inputs = [torch.eye(64) + 0.1, torch.zeros(64, 64)]
    assert make_loop(compiled(function, inputs), inputs, {0: 0}, [1]) is None


def test_python_code_is_not_repeated():
    assert make_loop(lambda x, noise: (x + noise, x), inputs_of(1)[0][:2], {0: 0}, [1]) is None


def test_a_loop_with_other_numbers_is_not_used(code, monkeypatch):
    inputs, *_ = inputs_of(1)
    assert make_loop(code, inputs, MOVES, GIVEN) is not None
    right = loops._addresses
    monkeypatch.setattr(loops, "_addresses", lambda tensors: right(tensors[::-1]))
    assert make_loop(code, inputs, MOVES, GIVEN) is not None  # the same tensors in each run
    monkeypatch.setattr(loops, "_addresses", lambda tensors: 0 * right(tensors) + DATA.data_ptr())
    assert make_loop(code, inputs, MOVES, GIVEN) is None


def test_an_error_of_the_code_is_no_crash(code):
    """A function with more arguments than are known stands for one that raises an error."""
    inputs, noise, rows = inputs_of(3)
    loop = make_loop(code, inputs, MOVES, GIVEN)
    loop._counts = np.array([loops.ARGUMENTS + 1], np.int64)
    with pytest.raises(RuntimeError, match="run 1 of 3 has failed"):
        loop(inputs, [noise, rows])


def test_the_loop_is_compiled_once_a_process():
    assert loops._repeat() is loops._repeat()
    assert loops._repeat().restype is ctypes.c_int64


def test_code_is_found_again_in_the_compilers_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    inputs, outputs = inputs_of(1)[0], []
    for outcome in ("fxgraph_cache_miss", "fxgraph_cache_hit"):
        before = counters["inductor"][outcome]
        outputs.append(compiled(step, inputs)(*inputs))
        assert counters["inductor"][outcome] == before + 1
        torch._dynamo.reset()
    assert all(map(torch.equal, *outputs))
    assert make_loop(compiled(step, inputs), inputs, MOVES, GIVEN) is not None
