# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
``compile="update"``. The quick tests let torch trace the update, as always, and run what it traced
without generating code; the slow ones, marked so, compile it with a C++ compiler.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiler_runs import run_without_compiler
from models import dense_regression, linear_data, sparse_layers, sparse_regression
from refusals import raises_with
from runs import Stop, StopAt, assert_same_records, copy_records, make_mcmc, resume_mcmc
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import pyro_aeb as aeb
from pyro_aeb.errors import CompileWarning
from pyro_aeb.kernel import update
from pyro_aeb.kernel.noise import LARGE
from pyro_aeb.kernel.random_bits import convert_bits
from pyro_aeb.transitions import StepNumbers

STEPS = 20
X, Y = linear_data(dtype=torch.float64)
CHANGING = {
    "adaptation": aeb.StochasticApproximation(aeb.Polynomial(5.0, 20.0, 0.7)),
    "inverse_temperature": aeb.Geometric(1.0, 1.01),
}
STEP_SIZE = aeb.Polynomial(1e-3, 10.0, 0.5)


def to_single_precision(schedule):
    """As compiled code is given its numbers."""
    return lambda k: torch.tensor(schedule(k), dtype=torch.float32).item()


EXACT = to_single_precision(STEP_SIZE)
AS_COMPILED = {
    **CHANGING,
    "inverse_temperature": to_single_precision(CHANGING["inverse_temperature"]),
}
SMALL = aeb.SGLD(1e-6)


def fixed_sigma(X, y=None):
    """Delta is learned, sigma is a number."""
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=0.5))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ beta, 0.5), obs=y)


MODELS = {
    "one layer": (sparse_regression, AS_COMPILED),
    "two layers": (sparse_layers, AS_COMPILED),
    "six layers": (partial(sparse_layers, widths=(4, 3, 3, 3, 3, 1)), AS_COMPILED),
    "fixed sigma": (fixed_sigma, AS_COMPILED),
    "no latents": (dense_regression, {**AS_COMPILED, "adaptation": None}),
    "latents frozen": (
        sparse_layers,
        {**AS_COMPILED, "adaptation": aeb.StochasticApproximation(0.0)},
    ),
    "kappa given": (
        sparse_regression,
        {**AS_COMPILED, "adaptation": aeb.StochasticApproximation(0.3, initial_penalty=2.0)},
    ),
}


def make_kernel(model, transition, compile, **options):
    return aeb.AEBKernel(model, transition, seed=3, compile=compile, **options)


def record_steps(kernel, chains=0, data=(X, Y), number=STEPS) -> dict[str, torch.Tensor]:
    """All that a kernel moves, after every step."""
    kernel.start(0, chains, data, {})
    found = []
    for _ in range(number):
        kernel.advance(1)
        latents = kernel.latents._asdict() if kernel.latents else {}
        found.append({**kernel.chain.state._asdict(), **latents})
    return {name: torch.stack([torch.as_tensor(f[name]) for f in found]) for name in found[0]}


def assert_close(found, expected, **tolerances) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].to(value), value, msg=lambda m, n=name: f"{n}: {m}", **tolerances
        )


@pytest.fixture(autouse=True)
def double():
    """Rounding is then too small to grow into a difference within a few steps."""
    torch.set_default_dtype(torch.float64)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch):
    """Traces and runs without generating code; counts how often it was traced."""
    counter = CompileCounter()
    compile = partial(torch.compile, backend=counter)
    monkeypatch.setattr("pyro_aeb.kernel.update.torch.compile", compile)
    return counter


@pytest.mark.parametrize("chains", [0, range(3)])
@pytest.mark.parametrize("transition", [aeb.SGLD, aeb.SGHMC])
@pytest.mark.parametrize("name", MODELS)
def test_steps_are_those_of_the_update_as_it_is_written(traced, name, transition, chains):
    model, options = MODELS[name]
    expected = record_steps(make_kernel(model, transition(EXACT), None, **options), chains)
    assert traced.frame_count == 0
    found = record_steps(make_kernel(model, transition(EXACT), "update", **options), chains)
    assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert traced.frame_count >= 1


@pytest.mark.parametrize("transition", [aeb.transitions.BAOAB, aeb.transitions.SGNHT])
def test_so_are_those_of_other_transitions(traced, transition):
    model, options = MODELS["two layers"]
    expected, found = (
        record_steps(make_kernel(model, transition(EXACT), compile, **options), range(3))
        for compile in (None, "update")
    )
    assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert traced.frame_count >= 1


@pytest.mark.parametrize(
    ("compile", "transition", "dtype"),
    [
        ("update", aeb.SGLD, torch.float32),
        ("update", aeb.SGHMC, torch.float32),
        ("update", aeb.SGHMC, torch.float64),
        ("update", aeb.transitions.BAOAB, torch.float32),
        ("update", aeb.transitions.SGNHT, torch.float32),
        ("all", aeb.SGHMC, torch.float32),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_schedule_that_changes_at_every_step_is_compiled_once(
    monkeypatch, compile, transition, dtype
):
    """By all of the compiler but its code: passes on the way make constants of numbers, too."""
    warnings.simplefilter("error", CompileWarning)
    torch.set_default_dtype(dtype)
    through = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr("pyro_aeb.kernel.update.torch.compile", through)
    kernel = make_kernel(sparse_layers, transition(STEP_SIZE), compile, **CHANGING)
    kernel.start(0, 0, (X.to(dtype), Y.to(dtype)), {})
    counters.clear()
    kernel.advance(STEPS)
    assert counters["stats"]["unique_graphs"] == 1


def test_freezing_the_latents_traces_once_more_and_leaves_them(traced):
    kernel = make_kernel(
        sparse_layers, aeb.SGLD(STEP_SIZE), "update", **CHANGING, freeze_after_warmup=True
    )
    kernel.start(1, 0, (X, Y), {})
    draw = kernel.sample(kernel.initial_params)
    before, traces = kernel.latents, traced.frame_count
    for _ in range(5):
        draw = kernel.sample(draw)
    assert traced.frame_count == traces + 1
    for name, value in before._asdict().items():
        assert torch.equal(
            torch.as_tensor(getattr(kernel.latents, name)), torch.as_tensor(value)
        ), name


def test_the_compilers_settings_are_changed_only_to_compile(traced, monkeypatch):
    kernel = make_kernel(
        sparse_layers, aeb.SGLD(STEP_SIZE), "update", **CHANGING, freeze_after_warmup=True
    )
    kernel.start(2, 0, (X, Y), {})
    draw, changes, settings = kernel.sample(kernel.initial_params), [], update._settings
    monkeypatch.setattr(update, "_settings", lambda: changes.append(1) or settings())
    draw = kernel.sample(draw)
    assert not changes
    for _ in range(5):  # the first of these has something new to compile: latents are frozen
        draw = kernel.sample(draw)
    assert len(changes) <= 1  # none with versions of torch whose usual settings will do


# -- a large model's random numbers, which a compiled update makes of bits


@pytest.fixture
def many() -> tuple[torch.Tensor, torch.Tensor]:
    """So many columns that random numbers are made of bits."""
    torch.set_default_dtype(torch.float32)
    return torch.randn(4, LARGE), torch.randn(4)


@pytest.mark.parametrize("chains", [0, range(2)])
def test_bits_give_the_same_three_point_numbers(traced, many, chains):
    expected, found = (
        record_steps(
            make_kernel(sparse_regression, SMALL, way, noise="three-point"), chains, many, 3
        )
        for way in (None, "update")
    )
    assert_close(found, expected)
    moved = (expected["position"] - expected["position"][0]).abs().max()
    assert moved > 1000 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("compile", [None, "update"])
def test_a_step_with_bits_is_one_with_their_numbers(traced, many, compile):
    """Compiled or, where that failed, as it is written."""
    kernel = make_kernel(sparse_regression, SMALL, "update")
    kernel.start(0, 0, many, {})
    chain, batch = kernel.chain, kernel.chain.data.next()
    if compile is None:
        chain.update._compiled = None
    bits = chain.noise.draw()
    assert bits.dtype == torch.int32

    def step(noise):
        found = chain.posterior.evaluate_likelihood(chain.state.position, chain.latents, batch)
        numbers = StepNumbers(SMALL.step_size(1), 1.0)
        moved = (chain.state, chain.latents, found, noise, numbers, 0.5)
        return chain.update(*moved)[0].position

    torch.testing.assert_close(step(bits), step(convert_bits(bits)))
    assert not torch.equal(step(bits), step(torch.zeros(bits.shape)))


# -- what cannot be compiled


class Branching(aeb.SGLD):
    """Moves only if the gradient is no zero: a branch on a value, which cannot be traced."""

    def step(self, state, gradient, noise, numbers):
        if gradient.norm() > 0.0:
            return super().step(state, gradient, noise, numbers)
        return state


def test_a_transition_that_cannot_be_traced_runs_as_it_is_written():
    expected = record_steps(make_kernel(sparse_layers, Branching(STEP_SIZE), None, **CHANGING))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = record_steps(make_kernel(sparse_layers, Branching(STEP_SIZE), "update", **CHANGING))
    found_warnings = [w for w in caught if issubclass(w.category, CompileWarning)]
    assert len(found_warnings) == 1  # not at every step
    message = str(found_warnings[0].message)
    for part in ("cannot be compiled", "runs as it is written", "branch on values", "compile=None"):
        assert part in message
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


class Failing(aeb.SGLD):
    def step(self, state, gradient, noise, numbers):
        raise KeyError("of my own")


def test_an_error_of_the_transitions_own_stays_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError, match="of my own"):
            record_steps(make_kernel(sparse_layers, Failing(STEP_SIZE), "update", **CHANGING))


WITHOUT_A_COMPILER = """
import warnings
import torch
from test_update import CHANGING, STEP_SIZE, CompileWarning, aeb
from test_update import make_kernel, record_steps, sparse_layers

def run(compile):
    kernel = make_kernel(sparse_layers, aeb.SGHMC(STEP_SIZE), compile, **CHANGING)
    return record_steps(kernel, number=3)

torch.set_default_dtype(torch.float64)
expected = run(None)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = run("update")
for name, value in expected.items():
    torch.testing.assert_close(found[name].to(value), value, rtol=1e-10, atol=1e-12)
print(*(w.message for w in caught if issubclass(w.category, CompileWarning)), sep="\\n")
"""


@pytest.mark.slow
def test_without_a_compiler_it_says_so_and_runs(tmp_path):
    printed = run_without_compiler(WITHOUT_A_COMPILER, tmp_path)
    assert printed.count("cannot be compiled") == 1
    assert "needs a C++ compiler" in printed


def test_another_name_is_told_of():
    for name in ("everything", True, "eager"):
        with raises_with(f"compile is {name!r}", "None", "'update'", "'all'", error=ValueError):
            make_kernel(sparse_layers, aeb.SGLD(STEP_SIZE), name)
    for name in (None, "update", "all"):
        make_kernel(sparse_layers, aeb.SGLD(STEP_SIZE), name)


# -- pickling and resuming


def test_a_kernel_under_way_can_be_pickled(traced):
    kernel = make_kernel(sparse_regression, aeb.SGHMC(STEP_SIZE), "update", **CHANGING)
    expected = record_steps(kernel)
    again = pickle.loads(pickle.dumps(kernel))
    assert again.compile == "update"
    assert_same_records(record_steps(again), expected)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(traced, tmp_path, many, method, large):
    data, transition = (many, SMALL) if large else ((X, Y), aeb.SGHMC(STEP_SIZE))

    def run(**options):
        kernel = make_kernel(sparse_regression, transition, "update", **CHANGING)
        return make_mcmc(kernel, method=method, **options)

    torch.set_default_dtype(data[0].dtype)
    whole = run()
    whole.run(*data)
    path, stage = tmp_path / "run.ckpt", "Sample" if method == "vectorized" else "Sample [0]"
    with pytest.raises(Stop):
        run(checkpoint=path, every=1, hook_fn=StopAt(stage, 3)).run(*data)
    second = resume_mcmc(path, sparse_regression)
    assert second.kernel.compile == "update"
    second.run(*data)
    assert_same_records(copy_records(second), copy_records(whole))


# -- compiled to machine code


# Of all that is traced above, what a compiler's many seconds are well spent on.
COMPILED = [
    ("one layer", aeb.SGLD, 0),
    ("two layers", aeb.SGHMC, range(3)),
    ("fixed sigma", aeb.SGHMC, 0),
    ("latents frozen", aeb.SGLD, range(3)),
]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.parametrize("name, transition, chains", COMPILED)
def test_steps_in_machine_code(name, transition, chains):
    model, options = MODELS[name]
    options = {**options, "inverse_temperature": CHANGING["inverse_temperature"]}
    expected = record_steps(make_kernel(model, transition(STEP_SIZE), None, **options), chains)
    counters.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        found = record_steps(make_kernel(model, transition(STEP_SIZE), "update", **options), chains)
    assert counters["stats"]["unique_graphs"] == 1
    # Compiled code rounds step size and temperature to single precision, once a step.
    rounding = STEPS * torch.finfo(torch.float32).eps
    assert_close(found, expected, rtol=0.0, atol=rounding)
    moved = (expected["position"] - expected["position"][0]).abs().max()
    assert moved > 100 * rounding
