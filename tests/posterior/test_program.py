# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Models in a compiled step. Most tests have torch record the operations of a step, as always, and run
what it recorded without generating code; those of machine code, at the end, compile it with a C++
compiler.
"""

from __future__ import annotations

import linecache
import os
import pickle
import random
import shutil
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed
from compiler_runs import run_without_compiler
from models import (
    SCHOOLS_SIGMA,
    SCHOOLS_Y,
    N,
    P,
    dense_regression,
    eight_schools,
    linear_data,
    loader_regression,
    sparse_layers,
    sparse_prior,
    sparse_regression,
)
from rank_runs import run_on_ranks
from runs import Network, Stop, StopAt, assert_same_records, copy_records, make_mcmc, resume_mcmc
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb.errors import CompileWarning, ModelError
from pyro_aeb.posterior import compiled_code, program

STEPS = 8
STEP_SIZE = 1e-4
X, Y = linear_data(dtype=torch.float64)
ADAPTATION = aeb.StochasticApproximation(0.25)
TOGETHER = range(3)


def make_network_model(frozen: bool = False):
    """A bayesianized network with a batch norm and dropout; its first layer may be fixed."""
    layers = [nn.Linear(P, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)]
    layers[0].requires_grad_(not frozen)
    net = aeb.nn.bayesianize(
        nn.Sequential(*layers), delta=dist.Beta(2.0, 2.0), sigma2=dist.InverseGamma(1.0, 1.0)
    )

    def model(x, y):
        logits = net(x)
        with pyro.plate("data", N, subsample=x):
            pyro.sample("y", dist.Categorical(logits=logits), obs=(y > 0).long())

    model.net = net
    return model


def masked_and_scaled(X, y, batch_size):
    """A learned sigma whose residuals are masked, and stand for those of all data."""
    sigma2, _, beta = sparse_prior(X.shape[1])
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        mean, y, high = X[i] @ beta, y[i], X[i, 0] > 0.0
        with pyro.poutine.mask(mask=y > -1.0):
            pyro.sample("y", dist.Normal(mean, sigma2.sqrt()), obs=y)
        with pyro.poutine.mask(mask=high):
            pyro.sample("sign", dist.Bernoulli(logits=mean), obs=(y > 0).to(X.dtype))


MODELS = {
    "a plate that subsamples": (lambda: sparse_regression, (X, Y, 5), ADAPTATION),
    "two layers": (lambda: sparse_layers, (X, Y), ADAPTATION),
    "masks and scales": (lambda: masked_and_scaled, (X, Y, 10), ADAPTATION),
    "priors by autograd": (
        lambda: eight_schools,
        (SCHOOLS_SIGMA.double(), SCHOOLS_Y.double()),
        None,
    ),
    "batch norm and dropout": (make_network_model, (X, Y), ADAPTATION),
    "a network whose latents are sampled": (make_network_model, (X, Y), None),
    "a PyroModule": (Network, (X, Y), None),
}


def make_kernel(model, compile, transition=aeb.SGHMC, **options):
    options = {"adaptation": ADAPTATION, "seed": 3, **options}
    return aeb.AEBKernel(model, transition(STEP_SIZE), compile=compile, **options)


def record_steps(kernel, data=(X, Y), together=0, number=STEPS) -> dict[str, torch.Tensor]:
    """All that a kernel moves, after every step; what it leaves of buffers and random numbers."""
    pyro.set_rng_seed(1)
    kernel.start(0, together, data, {})
    moved = []
    for _ in range(number):
        kernel.advance(1)
        latents = kernel.latents._asdict() if kernel.latents else {}
        moved.append({**kernel.chain.state._asdict(), **latents})
    found = {name: torch.stack([torch.as_tensor(m[name]) for m in moved]) for name in moved[0]}
    found |= {f"buffer {i}": b.clone() for i, b in enumerate(kernel.chain.buffers.values())}
    return {**found, "the next random number": torch.rand(())}


def build_and_run(build, compile, data=(X, Y), together=0, **options) -> dict[str, torch.Tensor]:
    """Record the steps of a model that is made anew."""
    pyro.set_rng_seed(0)
    return record_steps(make_kernel(build(), compile, **options), data, together)


def assert_close(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].to(value), value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )


def run_and_catch_warning(run, says="runs as it is written") -> tuple[dict[str, torch.Tensor], str]:
    """What a run found, and the one warning that something is not compiled."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run()
    messages = [str(w.message) for w in caught if issubclass(w.category, CompileWarning)]
    assert len(messages) == 1, messages  # not at every step
    assert says in messages[0]
    return found, messages[0]


@pytest.fixture(autouse=True)
def double():
    """Rounding is then too small to grow into a difference within a few steps."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def programs(monkeypatch):
    """Runs without generating code; the programs that were made."""
    made = []

    def keep(graph, inputs):
        made.append(graph)
        return graph

    monkeypatch.setattr(compiled_code, "compile_graph", keep)
    return made


@pytest.fixture
def all_compiled(programs):
    """Nothing may run as it is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        yield programs


# -- the same steps


@pytest.mark.parametrize("together", [0, TOGETHER], ids=["one chain", "chains together"])
@pytest.mark.parametrize("name", MODELS)
def test_steps_are_those_of_the_model_as_it_is_written(all_compiled, name, together):
    build, data, adaptation = MODELS[name]
    expected = build_and_run(build, False, data, together, adaptation=adaptation)
    assert len(all_compiled) == 0
    found = build_and_run(build, True, data, together, adaptation=adaptation)
    assert len(all_compiled) == 1
    assert_close(found, expected)


@pytest.mark.parametrize(
    "options", [{"noise": "three-point"}, {"pruning": aeb.MagnitudePruning(0.5)}], ids=str
)
def test_other_options_go_with_it(all_compiled, options):
    expected = build_and_run(make_network_model, False, **options)
    assert_close(build_and_run(make_network_model, True, **options), expected)


def test_python_runs_at_the_first_two_steps_only(all_compiled):
    runs = []

    def model(X, y):
        runs.append(len(runs))
        sparse_regression(X, y)

    kernel = make_kernel(model, True)
    kernel.start(0, 0, (X, Y), {})
    assert len(all_compiled) == 0  # looks at a model, and its start, are not worth compiling
    looks = len(runs)
    kernel.advance(STEPS)
    assert len(runs) == looks + 2


def test_a_loader_whose_last_batch_is_short(all_compiled):
    def run(compile):
        loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)  # of 20 data
        return record_steps(make_kernel(loader_regression, compile), (loader,))

    assert_close(run(True), run(False))
    assert len(all_compiled) == 2


def test_weights_that_are_not_sampled_are_read_at_every_step(all_compiled):
    def run(compile):
        pyro.set_rng_seed(0)
        model = make_network_model(frozen=True)
        kernel = make_kernel(model, compile)
        kernel.start(0, 0, (X, Y), {})
        kernel.advance(3)
        with torch.no_grad():
            model.net.module[0].weight.mul_(2.0)
        kernel.advance(3)
        return kernel.chain.state._asdict()

    assert_close(run(True), run(False))
    assert len(all_compiled) == 1


# -- what cannot be traced


def with_item(X, y):
    sigma2, _, beta = sparse_prior(X.shape[1])
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ beta * X.abs().max().item(), sigma2.sqrt()), obs=y)


def with_a_branch(X, y):
    sigma2, _, beta = sparse_prior(X.shape[1])
    mean = X @ beta
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(mean if mean.sum() > 0 else -mean, sigma2.sqrt()), obs=y)


@pytest.mark.parametrize("model", [with_item, with_a_branch])
def test_a_model_that_cannot_be_traced_runs_as_it_is_written(programs, model):
    expected = record_steps(make_kernel(model, False))
    found, message = run_and_catch_warning(lambda: record_steps(make_kernel(model, True)))
    assert "cannot be traced" in message and ".item()" in message
    assert_close(found, expected)
    assert programs == []


def test_an_error_of_the_models_own_stays_its_own(all_compiled):
    kernel = make_kernel(sparse_regression, True)
    kernel.start(0, 0, (X, Y), {})

    def fails(*_):
        raise KeyError("of my own")

    kernel.chain.posterior.likelihood._model = fails
    with pytest.raises(KeyError, match="of my own"):
        kernel.advance(1)


def test_a_model_that_several_chains_cannot_run_is_told_of_as_ever(all_compiled):
    kernel = make_kernel(with_a_branch, True)
    kernel.start(0, TOGETHER, (X, Y), {})
    with pytest.raises(ModelError, match='Use chain_method="sequential"'):
        kernel.advance(1)


def raise_in(file, monkeypatch):
    """Return an error that code in a file has raised."""
    line = "raise ValueError('of a value')"
    monkeypatch.setitem(linecache.cache, file, (len(line), None, [line + "\n"], file))
    try:
        exec(compile(line, file, "exec"), {})
    except ValueError as error:
        return error


@pytest.mark.parametrize("package", [pyro, torch, aeb], ids=lambda package: package.__name__)
def test_the_line_of_an_error_is_in_no_library(package, monkeypatch):
    """A package of the user's may have a name that begins with a library's."""
    folder = os.path.dirname(package.__file__)
    place = program._find_place(raise_in(f"{folder}_models/own.py", monkeypatch))
    assert place == "; own.py, line 1: raise ValueError('of a value')"
    error = raise_in(f"{folder}/inner.py", monkeypatch).with_traceback(None)
    assert program._find_place(error) == ""
    error = raise_in(f"{folder}/inner.py", monkeypatch)
    assert "inner.py" not in program._find_place(error)


def test_the_line_of_an_error_is_that_of_its_cause(monkeypatch):
    error = ModelError("of this package")
    error.__cause__ = raise_in("own.py", monkeypatch)
    assert program._find_place(error).startswith("; own.py, line 1")


def test_batches_of_many_sizes_are_not_all_compiled(programs):
    def run(compile):
        sizes = iter(range(5, 5 + 2 * program.KINDS))
        batches = [(X[:n], Y[:n]) for n in sizes]
        loader = DataLoader(batches, batch_size=None)
        return record_steps(
            make_kernel(loader_regression, compile), (loader,), number=2 * program.KINDS
        )

    expected = run(False)
    found, message = run_and_catch_warning(lambda: run(True))
    assert f"more than {program.KINDS} kinds" in message and "drop_last=True" in message
    assert_close(found, expected)
    assert len(programs) == program.KINDS


# -- what changes from step to step


class Counting(nn.Module):
    """Once it counts, a model that is another one in every step, by what it holds of ``kind``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.counts = False
        self.calls = 0
        self.in_place = torch.zeros(())

    def count(self):
        if not self.counts:
            return 1.0
        if self.kind == "a counter":
            self.calls += 1
            return self.calls
        if self.kind == "a tensor set anew":
            self.in_place = self.in_place + 1.0
            return self.in_place
        if self.kind == "a tensor changed in place":
            return self.in_place.add_(1.0)
        if self.kind == "a view changed in place":
            self.in_place.view(1)[0:1].add_(1.0)
            return self.in_place
        if self.kind == "Python's random numbers":
            return random.random()
        raise ValueError(self.kind)

    def forward(self, X, y):
        dense_regression(X * self.count(), y)


@pytest.mark.parametrize(
    "kind, says",
    [
        ("a counter", "not run the same operations"),
        ("a tensor set anew", "not run the same operations"),
        ("Python's random numbers", "not run the same operations"),
        ("a tensor changed in place", "changes a tensor in place"),
        ("a view changed in place", "changes a tensor in place"),
    ],
)
def test_a_model_that_changes_in_python_runs_as_it_is_written(programs, kind, says):
    def run(compile):
        random.seed(0)
        model = Counting(kind)
        kernel = make_kernel(model, compile, adaptation=None)
        kernel.start(0, 0, (X, Y), {})
        model.counts = True  # earlier, looks at the model would find it out
        return {i: kernel.advance(1)["w"] for i in range(STEPS)}

    expected = run(False)
    found, message = run_and_catch_warning(lambda: run(True))
    assert says in message and "buffer" in message
    assert_close(found, expected)


def test_a_change_of_the_model_is_noticed_later_on(programs):
    """At batch 32; the message says which steps may have been others."""
    scale = [1.0]

    def model(X, y):
        dense_regression(X * scale[0], y)

    kernel = make_kernel(model, True, adaptation=None)
    kernel.start(0, 0, (X, Y), {})
    kernel.advance(20)
    scale[0] = 2.0
    kernel.advance(11)
    _, message = run_and_catch_warning(lambda: kernel.advance(2))
    assert "not run the same operations" in message
    assert "The 31 steps before may be those of the model at first." in message


def test_a_model_that_changes_its_batch_runs_as_it_is_written(programs):
    def model(x, y):
        loader_regression(x.clamp_(-1.0, 1.0), y)

    def run(compile):
        loader = DataLoader(TensorDataset(X, Y), batch_size=5)
        return record_steps(make_kernel(model, compile), (loader,))

    expected = run(False)
    found, message = run_and_catch_warning(lambda: run(True))
    assert "changes a tensor in place" in message and "a copy of data" in message
    assert_close(found, expected)


class Averaging(nn.Module):
    """Its data are moved by a running average, a buffer that is set anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(P))

    def forward(self, X, y, batch_size):
        w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([P]).to_event(1))
        with pyro.plate("data", len(X), subsample_size=batch_size) as i:
            x = X[i]
            self.mean = 0.5 * (self.mean + x.mean(0))
            pyro.sample("y", dist.Normal((x - self.mean) @ w, 0.5), obs=y[i])


@pytest.mark.parametrize("together", [0, TOGETHER], ids=["one chain", "chains together"])
def test_what_changes_in_a_buffer_is_compiled(all_compiled, together):
    def run(compile):
        return build_and_run(Averaging, compile, (X, Y, 5), together, adaptation=None)

    expected = run(False)
    assert expected["buffer 0"].abs().max() > 0.0
    assert_close(run(True), expected)


# -- where there is no compiler


def failing_compiler(graph, inputs):
    torch.rand(3)  # a compiler tries things out
    raise RuntimeError("no working compiler was found\nnor anything else")


@pytest.mark.parametrize("together", [0, TOGETHER], ids=["one chain", "chains together"])
def test_where_the_compiler_fails_a_step_runs_its_operations(programs, monkeypatch, together):
    expected = build_and_run(make_network_model, False, together=together)
    monkeypatch.setattr(compiled_code, "compile_graph", failing_compiler)
    found, message = run_and_catch_warning(
        lambda: build_and_run(make_network_model, True, together=together), "one by one"
    )
    assert "RuntimeError: no working compiler was found)" in message
    assert "needs a C++ compiler" in message
    assert_close(found, expected)


WITHOUT_A_COMPILER = """
import warnings
import torch
from test_program import CompileWarning, assert_close, build_and_run, make_network_model

torch.set_default_dtype(torch.float64)
expected = build_and_run(make_network_model, False)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = build_and_run(make_network_model, True)
assert_close(found, expected)
print(*(w.message for w in caught if issubclass(w.category, CompileWarning)), sep="\\n")
"""


@pytest.mark.slow
def test_without_a_compiler_it_says_so_and_runs(tmp_path):
    printed = run_without_compiler(WITHOUT_A_COMPILER, tmp_path)
    assert printed.count("needs a C++ compiler") == 1
    assert printed.count("one by one") == 1


# -- processes, and runs that go on


def test_a_kernel_under_way_can_be_pickled(all_compiled):
    kernel = make_kernel(sparse_regression, True)
    expected = record_steps(kernel)
    again = pickle.loads(pickle.dumps(kernel))
    assert again.compile is True
    assert_same_records(record_steps(again), expected)


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(all_compiled, tmp_path, method):
    def run(**options):
        kernel = make_kernel(Network(), True, adaptation=None, steps_per_draw=2)
        return make_mcmc(kernel, method=method, **options)

    torch.manual_seed(4)  # of dropout
    whole = run()
    whole.run(X, Y)
    path, stage = tmp_path / "run.ckpt", "Sample" if method == "vectorized" else "Sample [0]"
    torch.manual_seed(4)
    with pytest.raises(Stop):
        run(checkpoint=path, every=1, hook_fn=StopAt(stage, 3)).run(X, Y)
    torch.manual_seed(5)
    second = resume_mcmc(path, Network())
    assert second.kernel.compile is True
    second.run(X, Y)
    assert_same_records(copy_records(second), copy_records(whole))


def test_chains_in_processes_are_those_one_after_the_other(all_compiled):
    def run(method):
        own = make_mcmc(make_kernel(sparse_regression, True), method=method)
        own.run(X, Y)
        return own.get_samples(group_by_chain=True)

    assert_same_records(run("parallel"), run("sequential"))


def together_on_ranks(rank: int) -> dict[str, torch.Tensor]:
    torch.set_default_dtype(torch.float64)
    compiled_code.compile_graph = lambda graph, inputs: graph
    found = {}
    for compile in (False, True):
        pyro.set_rng_seed(0)
        kernel = make_kernel(make_network_model(), compile, data_parallel=True)
        data = slice(rank * N // 2, (rank + 1) * N // 2)
        loader = DataLoader([(X[data], Y[data])], batch_size=None)
        found[compile] = record_steps(kernel, (loader,))
    assert_close(found[True], found[False])
    return found[True]


@pytest.mark.slow
def test_a_chain_on_two_ranks(tmp_path):
    first, second = run_on_ranks(together_on_ranks, tmp_path / "ranks")
    assert isinstance(first, dict) and isinstance(second, dict), (first, second)
    assert torch.equal(first["position"], second["position"])


# -- compiled to machine code

compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)


@compiler
@pytest.mark.parametrize("together", [0, TOGETHER], ids=["one chain", "chains together"])
@pytest.mark.parametrize("name", ["a plate that subsamples", "batch norm and dropout"])
def test_steps_in_machine_code(name, together):
    build, data, adaptation = MODELS[name]
    expected = build_and_run(build, False, data, together, adaptation=adaptation)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        found = build_and_run(build, True, data, together, adaptation=adaptation)
    assert_close(found, expected)


def with_a_size_of_the_data(X, y):
    sigma2, _, beta = sparse_prior(X.shape[1])
    high = y > 0.0
    with pyro.plate("high", len(y[high])):
        pyro.sample("y", dist.Normal(X[high] @ beta, sigma2.sqrt()), obs=y[high])


@compiler
def test_shapes_that_depend_on_values_are_not_compiled():
    expected = record_steps(make_kernel(with_a_size_of_the_data, False))
    found, message = run_and_catch_warning(
        lambda: record_steps(make_kernel(with_a_size_of_the_data, True))
    )
    assert "the shape of a tensor depends on the values" in message
    assert_close(found, expected)
