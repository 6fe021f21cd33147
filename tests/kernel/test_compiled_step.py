# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Transitions, latents and random numbers in a compiled step. The quick tests let torch record the
operations of a step, as always, and run what it recorded without generating code; the slow ones,
marked so, compile it with a C++ compiler.
"""

from __future__ import annotations

import math
import pickle
import shutil
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import dense_regression, linear_data, sparse_layers, sparse_regression
from refusals import raises_with
from runs import Stop, StopAt, assert_same_records, copy_records, make_mcmc, resume_mcmc

import pyro_aeb as aeb
from pyro_aeb import transitions
from pyro_aeb.errors import CompileWarning
from pyro_aeb.kernel import compiled_step
from pyro_aeb.kernel.noise import LARGE
from pyro_aeb.kernel.random_bits import convert_bits
from pyro_aeb.posterior import compiled_code

STEPS = 20
X, Y = linear_data(dtype=torch.float64)
CHANGING = {
    "adaptation": aeb.StochasticApproximation(aeb.Polynomial(5.0, 20.0, 0.7)),
    "inverse_temperature": aeb.Geometric(1.0, 1.01),
}
STEP_SIZE = aeb.Polynomial(1e-3, 10.0, 0.5)


SMALL = aeb.SGLD(1e-6)


def fixed_sigma(X, y=None):
    """Delta is learned, sigma is a number."""
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=0.5))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ beta, 0.5), obs=y)


MODELS = {
    "one layer": (sparse_regression, CHANGING),
    "two layers": (sparse_layers, CHANGING),
    "six layers": (partial(sparse_layers, widths=(4, 3, 3, 3, 3, 1)), CHANGING),
    "fixed sigma": (fixed_sigma, CHANGING),
    "no latents": (dense_regression, {**CHANGING, "adaptation": None}),
    "latents frozen": (
        sparse_layers,
        {**CHANGING, "adaptation": aeb.StochasticApproximation(0.0)},
    ),
    "kappa given": (
        sparse_regression,
        {**CHANGING, "adaptation": aeb.StochasticApproximation(0.3, initial_penalty=2.0)},
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


@pytest.fixture
def traced(monkeypatch):
    """Runs what is traced without generating code, and nothing as it is written; the graphs."""
    made = []

    def keep(graph, inputs):
        made.append(graph)
        return graph

    monkeypatch.setattr(compiled_code, "compile_graph", keep)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        yield made


@pytest.mark.parametrize("chains", [0, range(3)])
@pytest.mark.parametrize("transition", [aeb.SGLD, aeb.SGHMC])
@pytest.mark.parametrize("name", MODELS)
def test_steps_are_those_of_a_step_as_it_is_written(traced, name, transition, chains):
    model, options = MODELS[name]
    expected = record_steps(make_kernel(model, transition(STEP_SIZE), False, **options), chains)
    assert not traced
    found = record_steps(make_kernel(model, transition(STEP_SIZE), True, **options), chains)
    assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert len(traced) == 1  # though step size, temperature and omega change at every step


CYCLES = aeb.Cyclical(1e-3, period=6)
OTHERS = [
    transitions.BAOAB(STEP_SIZE),
    transitions.SGNHT(STEP_SIZE),
    transitions.CyclicalSGMCMC(aeb.SGHMC(CYCLES), exploration=0.5),
    transitions.PSGLD(1e-4, correction=True),
    transitions.SVRG(aeb.SGLD(1e-4), every=7),
    transitions.ReplicaExchange(aeb.SGLD(1e-4), swap_every=3),
    transitions.ContourSGLD(1e-4, energies=(0.0, 100.0)),
    transitions.HMC(1e-3, leapfrogs=3),
]


@pytest.mark.parametrize("chains", [0, range(3)])
@pytest.mark.parametrize("transition", OTHERS, ids=lambda t: type(t).__name__)
def test_so_are_those_of_other_transitions(traced, transition, chains):
    model, options = MODELS["two layers"]
    options = {**options, "inverse_temperature": 1.0}
    expected, found = (
        record_steps(make_kernel(model, transition, compile, **options), chains)
        for compile in (False, True)
    )
    assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert len(traced) == 1


def test_freezing_the_latents_compiles_once_more_and_leaves_them(traced):
    kernel = make_kernel(
        sparse_layers, aeb.SGLD(STEP_SIZE), True, **CHANGING, freeze_after_warmup=True
    )
    kernel.start(1, 0, (X, Y), {})
    draw = kernel.sample(kernel.initial_params)
    before = kernel.latents
    assert len(traced) == 1
    for _ in range(5):
        draw = kernel.sample(draw)
    assert len(traced) == 2
    for name, value in before._asdict().items():
        assert torch.equal(
            torch.as_tensor(getattr(kernel.latents, name)), torch.as_tensor(value)
        ), name


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
        for way in (False, True)
    )
    assert_close(found, expected)
    moved = (expected["position"] - expected["position"][0]).abs().max()
    assert moved > 1000 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("compile", [False, True])
def test_a_step_with_bits_is_one_with_their_numbers(traced, many, compile):
    """Compiled or, where that failed, as it is written."""

    def step(replace):
        kernel = make_kernel(sparse_regression, SMALL, True)
        kernel.start(0, 0, many, {})
        chain = kernel.chain
        chain.compile()
        chain.compile_from = None
        if not compile:
            chain.compiled = None
        bits = chain.noise.draw().clone()
        assert bits.dtype == torch.int32
        chain.noise.draw = lambda: replace(bits)
        kernel.advance(1)
        return chain.state.position

    replacements = {
        "bits": lambda bits: bits,
        "numbers": convert_bits,
        "none": lambda bits: torch.zeros(bits.shape),
    }
    moved = {name: step(replace) for name, replace in replacements.items()}
    torch.testing.assert_close(moved["bits"], moved["numbers"])
    assert not torch.equal(moved["bits"], moved["none"])


# -- what cannot be compiled


class Branching(aeb.SGLD):
    """Moves only if the gradient is no zero: a branch on a value, which cannot be traced."""

    def step(self, state, gradient, noise, numbers):
        if gradient.norm() > 0.0:
            return super().step(state, gradient, noise, numbers)
        return state


class OwnRoot(aeb.SGLD):
    """A step of before there were compiled ones: the root of a number."""

    def step(self, state, gradient, noise, numbers):
        epsilon, tau = numbers
        spread = math.sqrt(2.0 * epsilon / tau)
        return type(state)(state.position + epsilon * gradient + spread * noise)


@pytest.mark.parametrize("transition", [Branching, OwnRoot])
def test_a_transition_that_cannot_be_traced_runs_as_it_is_written(transition):
    expected = record_steps(make_kernel(sparse_layers, transition(STEP_SIZE), False, **CHANGING))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = record_steps(make_kernel(sparse_layers, transition(STEP_SIZE), True, **CHANGING))
    messages = [str(w.message) for w in caught if issubclass(w.category, CompileWarning)]
    assert len(messages) == 1  # not at every step
    for part in ("cannot be traced", "runs as it is written", "x ** 0.5", "compile=False"):
        assert part in messages[0]
    assert "test_compiled_step.py, line" in messages[0]
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


class Failing(aeb.SGLD):
    def step(self, state, gradient, noise, numbers):
        raise KeyError("of my own")


def test_an_error_of_the_transitions_own_stays_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError, match="of my own"):
            record_steps(make_kernel(sparse_layers, Failing(STEP_SIZE), True, **CHANGING))


def test_what_a_kernel_may_compile():
    for value in ("everything", 1, 0.0):
        with raises_with(f"compile is {value!r}", "True, False or 'auto'", error=TypeError):
            make_kernel(sparse_layers, aeb.SGLD(STEP_SIZE), value)
    for value in (True, False, "auto"):
        assert make_kernel(sparse_layers, aeb.SGLD(STEP_SIZE), value).compile is value


@pytest.mark.parametrize("value", [None, "update", "all"])
def test_values_of_version_0_1(value):
    new = value is not None
    with pytest.warns(DeprecationWarning, match=f"compile={value!r}.*compile={new}"):
        kernel = make_kernel(sparse_layers, aeb.SGLD(STEP_SIZE), value)
    assert kernel.compile is new


# -- compile="auto"


@pytest.fixture
def short(monkeypatch):
    """Runs of 6 steps count as long."""
    monkeypatch.setattr(compiled_step, "AUTO_STEPS", 6)


@pytest.mark.parametrize("many_warmup", [False, True])
@pytest.mark.parametrize("kind", ["normal", "three-point"])
def test_a_long_run_is_compiled(traced, short, capsys, kind, many_warmup):
    """At the start where warm-up alone is long, else after 6 steps; the numbers are the same."""

    def start(compile):
        kernel = make_kernel(sparse_layers, aeb.SGHMC(STEP_SIZE), compile, noise=kind, **CHANGING)
        kernel.start(6 if many_warmup else 5, 0, (X, Y), {})
        return kernel

    expected, found = start(False), start("auto")
    for k in range(1, STEPS):
        assert_close(found.advance(1), expected.advance(1), rtol=1e-10, atol=1e-12)
        assert len(traced) == int(k > 6 or many_warmup)
    message = capsys.readouterr().err
    assert message.count("compiled now") == 1 and "compile=False" in message


@pytest.mark.parametrize("kind", ["normal", "three-point"])
def test_a_large_model_changes_to_bits_with_new_numbers(traced, short, many, kind):
    kernel = make_kernel(sparse_regression, SMALL, "auto", noise=kind, **CHANGING)
    torch.set_default_dtype(many[0].dtype)
    kernel.start(0, 0, many, {})
    noise = []
    for _ in range(9):
        kernel.advance(1)
        noise.append(convert_bits(kernel.chain.noise._buffer).clone())
    assert len(traced) == 1
    assert len({tuple(numbers[:50].tolist()) for numbers in noise}) == 9


@pytest.mark.parametrize("stop", [1, 5])
@pytest.mark.parametrize("kind", ["normal", "three-point"])
def test_it_goes_on_bit_for_bit_before_and_after_it_compiles(
    traced, short, tmp_path, many, kind, stop
):
    torch.set_default_dtype(many[0].dtype)

    def run(**options):
        kernel = make_kernel(sparse_regression, SMALL, "auto", noise=kind, **CHANGING)
        return make_mcmc(kernel, draws=7, warmup=2, number=1, **options)

    whole = run()
    whole.run(*many)
    assert len(traced) == 1
    with pytest.raises(Stop):
        run(checkpoint=tmp_path, every=1, hook_fn=StopAt("Sample", stop)).run(*many)
    second = resume_mcmc(tmp_path, sparse_regression)
    second.run(*many)
    assert_same_records(copy_records(second), copy_records(whole))


def test_what_it_cannot_compile_it_says_without_a_warning(short, capsys):
    """Nobody asked for compiling."""
    kernel = make_kernel(sparse_layers, Branching(STEP_SIZE), "auto", **CHANGING)
    kernel.start(0, 0, (X, Y), {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel.advance(9)
    assert capsys.readouterr().err.count("cannot be traced") == 1


def test_a_short_run_is_not_compiled(traced, capsys):
    kernel = make_kernel(sparse_layers, aeb.SGLD(STEP_SIZE), "auto", **CHANGING)
    kernel.start(4, 0, (X, Y), {})
    kernel.advance(STEPS)
    assert not traced and "compil" not in capsys.readouterr().err


# -- pickling and resuming


def test_a_kernel_under_way_can_be_pickled(traced):
    kernel = make_kernel(sparse_regression, aeb.SGHMC(STEP_SIZE), True, **CHANGING)
    expected = record_steps(kernel)
    again = pickle.loads(pickle.dumps(kernel))
    assert again.compile is True
    assert_same_records(record_steps(again), expected)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(traced, tmp_path, many, method, large):
    data, transition = (many, SMALL) if large else ((X, Y), aeb.SGHMC(STEP_SIZE))

    def run(**options):
        kernel = make_kernel(sparse_regression, transition, True, **CHANGING)
        return make_mcmc(kernel, method=method, **options)

    torch.set_default_dtype(data[0].dtype)
    whole = run()
    whole.run(*data)
    path, stage = tmp_path / "run.ckpt", "Sample" if method == "vectorized" else "Sample [0]"
    with pytest.raises(Stop):
        run(checkpoint=path, every=1, hook_fn=StopAt(stage, 3)).run(*data)
    second = resume_mcmc(path, sparse_regression)
    assert second.kernel.compile is True
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
    expected = record_steps(make_kernel(model, transition(STEP_SIZE), False, **options), chains)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        found = record_steps(make_kernel(model, transition(STEP_SIZE), True, **options), chains)
    assert_close(found, expected, rtol=1e-9, atol=1e-11)
