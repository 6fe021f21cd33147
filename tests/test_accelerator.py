# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Runs on a CUDA device, which these tests need: that they are those of the CPU, wait for nothing in a
step, and can be stopped, kept and taken up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import linear_data, sparse_regression
from runs import (
    Stop,
    StopAt,
    assert_same_records,
    copy_records,
    make_kernel,
    make_mcmc,
    resume_mcmc,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb import NonFiniteError
from pyro_aeb.kernel import algorithm
from pyro_aeb.kernel.noise import Noise
from pyro_aeb.kernel.random_bits import three_point_table
from pyro_aeb.testing.monte_carlo import assert_agrees
from pyro_aeb.testing.stationary import sghmc_covariance, sgld_variance

pytestmark = [
    pytest.mark.filterwarnings("error::pyro_aeb.errors.CompileWarning"),
    # torch's, of figures that it could compute faster in lower precision
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

STEP_SIZE = 2.0**-12
"""A number of single precision too: compiled updates round to it."""
TRANSITIONS = {"SGLD": aeb.SGLD, "SGHMC": aeb.SGHMC}
PRUNED = {"pruning": aeb.MagnitudePruning(aeb.PruningSchedule(0.5, 0.9, 5), freeze=True)}


@pytest.fixture(params=["cuda"])
def device(request) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return torch.device(request.param)


# Models whose latents are where their data are.


def regression(X, y=None, batch_size=None):
    """Sparse regression."""
    one = X.new_ones(())
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5 * one, 2.0 * one))
    delta = pyro.sample("delta", dist.Beta(2.0 * one, 3.0 * one))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt()))
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        return pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=y[i])


def network(X, y=None, batch_size=None):
    """Two sparse layers and a dense one."""
    one = X.new_ones(())
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5 * one, 2.0 * one))
    weights, widths = [], [(X.shape[1], 8), (8, 4)]
    for layer, shape in enumerate(widths):
        delta = pyro.sample(f"delta{layer}", dist.Beta((2.0 + layer) * one, 3.0 * one))
        prior = aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt())
        weights.append(pyro.sample(f"w{layer}", prior.expand(shape).to_event(2)))
    last = pyro.sample("last", dist.Normal(0.0 * one, one).expand([4]).to_event(1))
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        h = torch.tanh(torch.tanh(X[i] @ weights[0]) @ weights[1])
        return pyro.sample("y", dist.Normal(h @ last, sigma2.sqrt()), obs=y[i])


def of_batches(device, X, y):
    """Sparse regression on batches that a loader gives; the latents are on the device."""
    one = torch.ones((), dtype=X.dtype, device=device)
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5 * one, 2.0 * one))
    delta = pyro.sample("delta", dist.Beta(2.0 * one, 3.0 * one))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt()))
    with pyro.plate("data", 20, subsample=X):
        pyro.sample("y", dist.Normal(X @ beta, sigma2.sqrt()), obs=y)


def make_module(device):
    """A network of torch's with a batch norm and dropout, and the model of it."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)]
    net = aeb.nn.bayesianize(
        nn.Sequential(*layers).to(device),
        delta=dist.Beta(2.0, 2.0),
        sigma2=dist.InverseGamma(1.0, 1.0),
    )

    def model(X, y):
        logits = net(X)
        with pyro.plate("data", 20, subsample=X):
            pyro.sample("y", dist.Categorical(logits=logits), obs=(y > 0).long())

    return model


def make_data(device, dtype=torch.float32):
    return tuple(tensor.to(device) for tensor in linear_data(dtype=dtype))


def make_loader(device, **options) -> DataLoader:
    """Batches on the host, in pinned memory where there is a device that asks for it."""
    pinned = {"pin_memory": device.type == "cuda", **options}
    return DataLoader(TensorDataset(*linear_data()), 5, shuffle=True, **pinned)


def move_to_host(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in found.items()}


@contextmanager
def forbid_waiting(device) -> Iterator[None]:
    """Whatever makes the program wait for the device is an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Runs

WAYS = {
    "as it is": {},
    "pruned": PRUNED,
    "three-point": {"noise": "three-point"},
}


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("model", [regression, network])
def test_a_run_learns_its_latents(model, transition, way, method, device):
    kernel = make_kernel(model, TRANSITIONS[transition], STEP_SIZE, **WAYS[way])
    run = make_mcmc(kernel, draws=8, number=3, method=method)
    run.run(*make_data(device), batch_size=5)
    draws = run.get_samples(group_by_chain=True)
    for name, value in draws.items():
        assert value.device.type == device.type, name
        assert value.shape[:2] == (3, 8) and bool(torch.isfinite(value).all()), name
    for name in (name for name in draws if name == "sigma2" or name.startswith("delta")):
        assert bool((draws[name].diff(dim=1) != 0.0).all()), f"{name} is not learned"
    if way == "pruned":
        size = sum(block.size for block in kernel.chain.structure.blocks)
        weights = [value for name, value in draws.items() if name in ("beta", "w0", "w1")]
        zeros = sum((value == 0.0).flatten(2).sum(-1) for value in weights)
        k = 2 * (3 + 8)
        assert set(zeros[:, -1].tolist()) == {round(kernel.pruning.sparsity(k) * size)}


COMPILED = {
    "regression": (regression, "SGLD", {"compile": True}),
    "momentum": (regression, "SGHMC", {"compile": True}),
    "pruned": (network, "SGHMC", {"compile": True, **PRUNED}),
    "three-point": (network, "SGLD", {"compile": True, "noise": "three-point"}),
}


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
@pytest.mark.parametrize("case", COMPILED)
def test_compiled_steps_are_those_that_were_written(case, method, device):
    """In double precision, up to rounding."""
    model, transition, options = COMPILED[case]

    def draws(**options):
        kernel = make_kernel(model, TRANSITIONS[transition], STEP_SIZE, **options)
        run = make_mcmc(kernel, draws=4, number=2 if method == "vectorized" else 1, method=method)
        run.run(*make_data(device, torch.float64), batch_size=5)
        return run.get_samples()

    found, expected = draws(**options), draws(**{**options, "compile": None})
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_chains_together_are_those_one_after_the_other(transition, device):
    def draws(method):
        kernel = make_kernel(network, TRANSITIONS[transition], STEP_SIZE)
        run = make_mcmc(kernel, draws=4, number=3, method=method)
        run.run(*make_data(device, torch.float64), batch_size=5)
        return run.get_samples()

    expected = draws("sequential")
    for name, value in draws("vectorized").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, msg=name)


# The same as on the CPU


def record_steps(model, transition, device, **options):
    """Position and latents after 20 steps on all data, by the same numbers as noise everywhere."""
    kernel = make_kernel(model, TRANSITIONS[transition], STEP_SIZE, **options)
    X, y = make_data(device, torch.float64)
    numbers = torch.Generator().manual_seed(5)
    blocks = {"beta": (3,)} if model is regression else {"w0": (3, 8), "w1": (8, 4), "last": (4,)}
    kernel.initial_params = {
        name: torch.randn(shape, generator=numbers, dtype=X.dtype).to(device)
        for name, shape in blocks.items()
    }
    kernel.start(0, 0, (X, y), {})
    shape = kernel.chain.state.position.shape

    def draw():
        return torch.randn(shape, generator=numbers, dtype=X.dtype).to(device)

    with mock.patch.object(kernel.chain.noise, "draw", draw):
        kernel.advance(20)
    found = {**kernel.chain.state._asdict(), **kernel.latents._asdict()}
    return {name: torch.as_tensor(value) for name, value in found.items()}


@pytest.mark.parametrize("way", ["as it is", "pruned"])
@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("model", [regression, network])
def test_steps_are_those_of_the_cpu(model, transition, way, device):
    expected = record_steps(model, transition, torch.device("cpu"), **WAYS[way])
    found = move_to_host(record_steps(model, transition, device, **WAYS[way]))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)
    if way == "pruned":
        zero = expected["position"] == 0.0
        assert bool(zero.any()) and torch.equal(found["position"] == 0.0, zero)


def gaussian(y):
    """A Gaussian target of curvature 2 and mean 0 in every coordinate where y is 0."""
    zero, one = torch.zeros_like(y), torch.ones_like(y)
    w = pyro.sample("w", dist.Normal(zero, one).to_event(1))
    pyro.sample("y", dist.Normal(w, one).to_event(1), obs=y)


@pytest.mark.parametrize("noise", ["normal", "three-point"])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_the_stationary_law_is_that_of_the_scheme(transition, noise, device):
    """Of 40,000 coordinates that are independent, after 200 steps."""
    size, step, curvature = 40_000, 0.1, 2.0
    kernel = make_kernel(gaussian, TRANSITIONS[transition], step, adaptation=None, noise=noise)
    kernel.start(0, 0, (torch.zeros(size, device=device),), {})
    kernel.advance(200)
    w = kernel.chain.state.position.double().cpu().numpy()
    if transition == "SGLD":
        variance = sgld_variance(step, 1.0, curvature)
    else:
        variance = sghmc_covariance(step, 1.0, curvature, kernel.transition.friction)[1, 1]
    assert_agrees(w.mean(), 0.0, np.sqrt(variance / size))
    assert_agrees(np.square(w).mean(), variance, np.square(w).std() / np.sqrt(size))


def test_three_point_numbers_are_those_of_the_table(device):
    generator = torch.Generator(device=device).manual_seed(1)
    size = 1_000_003
    found = Noise("three-point", torch.empty(size, device=device), [generator]).draw()
    table = torch.tensor(three_point_table())
    values, expected = table.unique(return_counts=True)
    counts = torch.stack([(found.cpu() == value).sum() for value in values])
    assert int(counts.sum()) == size
    share = expected.numpy() / 256
    assert_agrees(counts.numpy() / size, share, np.sqrt(share * (1 - share) / size))


# No step waits

STEPS = {
    **WAYS,
    "compiled": {"compile": True},
}


@pytest.mark.parametrize("source", ["plate", "loader", "module"])
@pytest.mark.parametrize("way", STEPS)
def test_a_step_waits_for_nothing(way, source, device):
    model = {"plate": network, "loader": partial(of_batches, device), "module": make_module(device)}
    given = {
        "plate": (*make_data(device), 5),
        "loader": (make_loader(device),),
        "module": make_data(device),
    }
    kernel = make_kernel(model[source], aeb.SGHMC, STEP_SIZE, **STEPS[way])
    with pyro.validation_enabled(False):
        kernel.start(0, 0, given[source], {})
        kernel.advance(5)
        with forbid_waiting(device):
            for _ in range(9):  # over ends of epochs
                algorithm.step(kernel, kernel.chain)
    assert kernel.chain.step == 14
    assert bool(torch.isfinite(kernel.chain.state.position).all())


def test_chains_together_wait_for_nothing(device):
    kernel = make_kernel(network, aeb.SGHMC, STEP_SIZE)
    with pyro.validation_enabled(False):
        kernel.start(0, range(3), (*make_data(device), 5), {})
        kernel.advance(5)
        with forbid_waiting(device):
            for _ in range(9):
                algorithm.step(kernel, kernel.chain)
    assert kernel.chain.step == 14


def test_pinned_memory_changes_no_draw(device):
    def draws(**options):
        run = make_mcmc(make_kernel(partial(of_batches, device)), number=1)
        run.run(make_loader(device, **options))
        return copy_records(run)

    assert_same_records(draws(), draws(pin_memory=False))


# Runs that are cut short


def large_from(first: int):
    return lambda k: STEP_SIZE if k < first else 1e20


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_a_blow_up_keeps_the_draws_before_it(method, device):
    kernel = make_kernel(network, aeb.SGLD, large_from(40), steps_per_draw=5)
    run = make_mcmc(kernel, draws=50, warmup=2, method=method, number=2)
    with pytest.raises(NonFiniteError):
        run.run(*make_data(device))
    draws = run.get_samples(group_by_chain=True)
    for name, value in draws.items():
        # Steps 11 to 39 make draws 3 to 7, of which 2 are warm-up.
        assert value.shape[1] >= 5 and bool(torch.isfinite(value).all()), name


def test_a_blow_up_is_seen_without_a_draw(device):
    """It may be seen late, but long before a queue of steps has come to its end."""
    kernel = make_kernel(network, aeb.SGLD, large_from(10))
    with pyro.validation_enabled(False):
        kernel.start(0, 0, make_data(device), {})
        with pytest.raises(NonFiniteError):
            kernel.advance(20_000)
    assert kernel.chain.step < 10_000


CASES = {
    "plates": (lambda device: network, lambda device: (*make_data(device), 5), {}),
    "masks": (lambda device: network, make_data, PRUNED),
    "three-point": (lambda device: regression, make_data, {"noise": "three-point"}),
    "moments": (lambda device: network, make_data, {"save": ["sigma2"]}),
    "loader": (
        lambda device: partial(of_batches, device),
        lambda device: (make_loader(device),),
        {},
    ),
    "buffers and dropout": (make_module, make_data, {}),
}
KINDS = {
    "SGLD": {"transition": aeb.SGLD, "seed": None},
    "SGHMC": {"transition": aeb.SGHMC, "seed": 7},
}


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_bit_for_bit(name, kind, method, device, tmp_path):
    pytest.importorskip("zarr")
    model, args, options = CASES[name]

    def make(**more):
        kernel = make_kernel(model(device), step_size=STEP_SIZE, **KINDS[kind], **options)
        pyro.set_rng_seed(3)
        return make_mcmc(kernel, draws=6, method=method, **more)

    whole = make()
    whole.run(*args(device))
    stage = "Sample" if method == "vectorized" else "Sample [1]"
    cut = make(checkpoint=tmp_path / "run", every=4, hook_fn=StopAt(stage, 2))
    with pytest.raises(Stop):
        cut.run(*args(device))
    again = resume_mcmc(tmp_path / "run", model(device))
    pyro.set_rng_seed(99)
    again.run(*args(device))
    assert_same_records(move_to_host(copy_records(again)), move_to_host(copy_records(whole)))


def test_a_run_that_goes_on_keeps_its_draws_on_the_device(device, tmp_path):
    pytest.importorskip("zarr")
    places = {"checkpoint": tmp_path, "hook_fn": StopAt("Sample", 1)}
    run = make_mcmc(make_kernel(regression), draws=4, number=1, **places)
    with pytest.raises(Stop):
        run.run(*make_data(device))
    run = resume_mcmc(tmp_path, regression)
    run.run(*make_data(device))
    assert {value.device.type for value in run.get_samples().values()} == {device.type}


# What comes of a run


def test_a_run_becomes_a_netcdf_file(device, tmp_path):
    run = make_mcmc(make_kernel(network, **PRUNED))
    run.run(*make_data(device))
    path = str(tmp_path / "run.nc")
    aeb.to_arviz(run).to_netcdf(path)
    kept = az.from_netcdf(path)
    for name, value in run.get_samples(group_by_chain=True).items():
        np.testing.assert_array_equal(kept["posterior"][name].values, value.cpu().numpy())
    assert np.isfinite(kept["sample_stats"]["potential"].values).all()
    assert kept["adaptation"]["w0_rho"].shape == (2, 8, 3, 8)


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_a_run_writes_a_zarr_store(method, device, tmp_path):
    pytest.importorskip("zarr")
    expected = make_mcmc(make_kernel(network), method=method)
    expected.run(*make_data(device))
    run = make_mcmc(make_kernel(network), method=method, trace=tmp_path / "draws.zarr")
    run.run(*make_data(device))
    assert_same_records(move_to_host(copy_records(run)), move_to_host(copy_records(expected)))


def test_predictions_are_made_on_the_device(device):
    model = make_module(device)
    run = make_mcmc(make_kernel(model, step_size=STEP_SIZE), number=1)
    run.run(*make_data(device))
    predictive = pyro.infer.Predictive(model, run.get_samples())
    assert predictive(*make_data(device))["y"].device.type == device.type


def test_the_device_may_be_the_default_one(device):
    """As Pyro's users write it: the model names no device."""
    given = make_data(device)
    with torch.device(device):
        run = make_mcmc(make_kernel(sparse_regression))
        run.run(*given, batch_size=5)
    assert run.get_samples()["beta"].device.type == device.type
