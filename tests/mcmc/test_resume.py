# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A run resumed from a checkpoint is the run without interruption, bit for bit."""

from __future__ import annotations

import functools
import itertools
import multiprocessing as mp
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from loader_data import shuffling_loader
from models import (
    dense_regression,
    linear_data,
    loader_regression,
    outputs_regression,
    sparse_layers,
    sparse_regression,
)
from refusals import raises_with
from runs import (
    DATA,
    METHODS,
    Network,
    Stop,
    StopAt,
    X,
    Y,
    assert_same_records,
    copy_buffers,
    copy_records,
    make_kernel,
    make_mcmc,
    resume_mcmc,
)
from torch.distributions.transforms import AffineTransform
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb import ModelError

pytest.importorskip("zarr")

TENSORS: Callable[[], Any] = lambda: (X, Y)  # noqa: E731


class Case(NamedTuple):
    """A model, its data, made anew for every run, and options of the kernel."""

    model: Callable[[], Any] = lambda: sparse_regression
    args: Callable[[], tuple] = TENSORS
    kwargs: dict = {}
    options: dict = {}


CASES = {
    "plates": Case(kwargs=DATA),
    "outputs": Case(lambda: outputs_regression, kwargs=DATA),
    "with replacement": Case(kwargs=DATA, options={"minibatches": "replacement"}),
    "masks": Case(
        lambda: sparse_layers,
        options={"pruning": aeb.MagnitudePruning(aeb.PruningSchedule(0.5, 0.9, 5), freeze=True)},
    ),
    "pruned by probability": Case(options={"pruning": aeb.ProbabilityPruning(0.4, every=3)}),
    "frozen latents": Case(options={"freeze_after_warmup": True}),
    "moments": Case(options={"save": ["sigma2"]}),
    "loader": Case(lambda: loader_regression, lambda: (shuffling_loader(),)),
    # Batches so small that epochs, each of which starts workers, are three; the second is cut.
    "loader with workers": Case(
        lambda: loader_regression, lambda: (shuffling_loader(batch_size=3, num_workers=2),)
    ),
    "buffers and dropout": Case(Network, options={"adaptation": None}),
}
KINDS = {
    "SGLD": {"transition": aeb.SGLD, "seed": None},
    "SGHMC": {"transition": aeb.SGHMC, "seed": 7},
}


def make_run(case: Case, kind: str, method: str, model: Any, **options) -> aeb.MCMC:
    if case is CASES["loader"]:
        options = {"thinning": 2, **options}  # over ends of epochs
    return make_mcmc(
        make_kernel(model, **KINDS[kind], **case.options), draws=6, method=method, **options
    )


@functools.cache  # for the tests that cut the same run at many places
def run_whole(case: str, kind: str, method: str) -> tuple[dict, dict]:
    """Return the records of a run without interruption, and the buffers that it leaves."""
    case = CASES[case]
    model = case.model()
    run = make_run(case, kind, method, model)
    pyro.set_rng_seed(3)
    run.run(*case.args(), **case.kwargs)
    return copy_records(run), copy_buffers(model) if isinstance(model, Network) else {}


def stop_run(case: Case, kind: str, method: str, at: tuple[str, int], **options) -> None:
    run = make_run(case, kind, method, case.model(), hook_fn=StopAt(*at), **options)
    pyro.set_rng_seed(3)
    with pytest.raises(Stop):
        run.run(*case.args(), **case.kwargs)


def resume_run(case: Case, folder) -> tuple[dict, dict]:
    pyro.set_rng_seed(99)
    model = case.model()
    run = resume_mcmc(folder, model)
    run.run(*case.args(), **case.kwargs)
    return copy_records(run), copy_buffers(model) if isinstance(model, Network) else {}


def label(stage: str, chain: int, method: str) -> str:
    return stage if method == "vectorized" else f"{stage} [{chain}]"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name, kind", [*itertools.product(CASES, KINDS)])
def test_a_run_continues_bit_for_bit(name, kind, method, tmp_path):
    case = CASES[name]
    places = {"checkpoint": tmp_path / "run", "every": 4}
    if kind == "SGHMC":
        places["trace"] = tmp_path / "draws.zarr"
    expected, buffers = run_whole(name, kind, method)
    stop_run(case, kind, method, (label("Sample", 1, method), 2), **places)
    found, left = resume_run(case, tmp_path / "run")
    assert_same_records(found, expected)
    if method != "parallel":  # whose workers have buffers of their own
        assert_same_records(left, buffers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "stage, chain, number",
    [("Warmup", 0, 1), ("Sample", 0, 0), ("Sample", 0, 5), ("Warmup", 1, 0), ("Sample", 1, 4)],
)
def test_wherever_it_stopped(stage, chain, number, kind, tmp_path):
    case = CASES["plates"]
    expected, _ = run_whole("plates", kind, "sequential")
    at = (label(stage, chain, "sequential"), number)
    stop_run(case, kind, "sequential", at, checkpoint=tmp_path, every=100)
    assert_same_records(resume_run(case, tmp_path)[0], expected)


def test_again_and_again(tmp_path):
    """Two draws at a time, each time from the file."""
    case = CASES["loader"]
    expected, _ = run_whole("loader", "SGLD", "sequential")
    stop_run(case, "SGLD", "sequential", ("Warmup [0]", 1), checkpoint=tmp_path, every=100)
    places = [("Sample [0]", n) for n in (0, 2, 4)] + [("Warmup [1]", 2), ("Sample [1]", 3)]
    for place in places:
        pyro.set_rng_seed(99)
        run = resume_mcmc(tmp_path, loader_regression, hook_fn=StopAt(*place))
        with pytest.raises(Stop):
            run.run(*case.args())
    assert_same_records(resume_run(case, tmp_path)[0], expected)


def resume_in_new_process(cases: list[tuple[str, str]], results) -> None:
    mp.set_start_method("fork", force=True)  # of a loader's workers: spawned ones take seconds
    torch.set_num_threads(1)
    for name, folder in cases:
        found, _ = resume_run(CASES[name], folder)
        results.put({key: value.numpy() for key, value in found.items()})


def test_another_process_continues(tmp_path):
    names = ["masks", "loader with workers", "buffers and dropout"]
    work, expected = [], []
    for name, method in itertools.product(names, ("sequential", "vectorized")):
        folder = tmp_path / f"{name} {method}"
        expected.append(run_whole(name, "SGLD", method)[0])
        stop_run(CASES[name], "SGLD", method, (label("Sample", 1, method), 2), checkpoint=folder)
        work.append((name, str(folder)))
    context = mp.get_context("forkserver")
    results = context.Queue()
    process = context.Process(target=resume_in_new_process, args=(work, results))
    process.start()
    try:
        for own in expected:
            found = results.get(timeout=120)
            assert_same_records({n: torch.as_tensor(v) for n, v in found.items()}, own)
    finally:
        process.kill()


# -- what a resumed run is


def test_the_draws_are_there_before_it_continues(tmp_path):
    stop_run(CASES["plates"], "SGHMC", "sequential", ("Sample [1]", 2), checkpoint=tmp_path)
    run = resume_mcmc(tmp_path)
    assert run._counts() == [6, 3]
    assert run.get_samples()["beta"].shape == (9, 3)
    assert aeb.to_arviz(run).posterior["beta"].shape == (1, 6, 3)
    run.summary()
    assert "0 of 6 draws" not in repr(run) and "3 of 6 draws" in repr(run)


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_run_is_extended(method, tmp_path):
    """The longer run is that of one process, where random numbers are the chains' own."""
    run = make_mcmc(method=method, checkpoint=tmp_path)
    run.run(X, Y, **DATA)
    first = copy_records(run)
    again = resume_mcmc(tmp_path)
    assert_same_records(copy_records(again), first)
    again.run(X, Y, **DATA)
    longer = make_mcmc(method=method, draws=16)
    longer.run(X, Y, **DATA)
    assert_same_records(copy_records(again), copy_records(longer))
    assert_same_records(copy_records(resume_mcmc(tmp_path)), copy_records(longer))
    run.run(X, Y, **DATA)
    assert_same_records(copy_records(run), copy_records(longer))


def test_chains_that_alternate_do_not_repeat_each_others_random_numbers(tmp_path):
    """Without a seed, chain 0 continues after the last number of chain 1, not after its own."""
    pyro.set_rng_seed(5)
    run = make_mcmc(make_kernel(seed=None), checkpoint=tmp_path)
    run.run(X, Y, **DATA)
    after = torch.get_rng_state()
    pyro.set_rng_seed(5)  # as a script does that is started again
    again = resume_mcmc(tmp_path)
    again.run(X, Y, **DATA)
    torch.set_rng_state(after)
    run.run(X, Y, **DATA)
    assert_same_records(copy_records(again), copy_records(run))


def test_chains_that_alternate_have_buffers_of_their_own():
    """Another chain has changed those in the modules in between."""
    networks = [Network(), Network()]
    for network, number in zip(networks, (1, 2), strict=True):
        network.drop.p = 0.0
        run = make_mcmc(make_kernel(network, adaptation=None), number=number)
        run.run(X, Y)
        if number == 2:
            run.chain_method, run._groups = "sequential", run._groups[:1]
            run.num_chains = 1
        run.run(X, Y)
    assert_same_records(*(copy_buffers(network) for network in networks))


def test_options_may_change_after_a_divergence(tmp_path):
    run = make_mcmc(
        make_kernel(dense_regression, aeb.SGLD, aeb.Piecewise(1e-3, {10: 1e6}), adaptation=None),
        draws=60,
        checkpoint=tmp_path,
        every=2,
    )
    with pytest.raises(aeb.NonFiniteError):
        run.run(X, Y)
    kept = run.get_samples()["w"]
    again = resume_mcmc(tmp_path, dense_regression, transition=aeb.SGLD(1e-3))
    there = again._counts()[0]
    assert 0 < there <= len(kept)
    assert torch.equal(again.get_samples()["w"], kept[:there])


def test_transforms_are_given_again(tmp_path):
    """Draws are kept as they are in the chain, and returned through the transforms."""
    transforms = {"beta": AffineTransform(1.0, 2.0)}
    run = make_mcmc(checkpoint=tmp_path, transforms=transforms)
    run.run(X, Y, **DATA)
    again = resume_mcmc(tmp_path, transforms=transforms)
    assert_same_records(copy_records(again), copy_records(run))
    for given in (None, {"sigma2": AffineTransform(0.0, 2.0)}):
        with raises_with("the saved run has those of ['beta']", "give the same", error=ValueError):
            resume_mcmc(tmp_path, transforms=given)


# -- what is not the same run


def test_what_is_given_wrong_is_not_blamed_on_the_checkpoint(tmp_path):
    make_mcmc(checkpoint=tmp_path).run(X, Y, **DATA)
    said = "mp_context is 'threads', expected None, 'fork', 'spawn' or 'forkserver'"
    with raises_with(said, error=ValueError):
        resume_mcmc(tmp_path, mp_context="threads")
    with raises_with("hook_fn is 3, expected a function", error=TypeError):
        resume_mcmc(tmp_path, hook_fn=3)


def test_a_loader_that_fails_where_it_is_read_again_is_not_blamed_on_the_checkpoint(tmp_path):
    class Failing(TensorDataset):
        """Fails after ``left`` more data."""

        left = 10**6

        def __getitem__(self, index):
            self.left -= 1
            if self.left < 0:
                raise ValueError("the disk is gone")
            return super().__getitem__(index)

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample=x):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    data = Failing(torch.randn(20))
    loader = DataLoader(data, batch_size=2)
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-3), seed=1)
    whole = aeb.MCMC(kernel, 6, warmup_steps=0, checkpoint=tmp_path, disable_progbar=True)
    whole.run(loader)
    again = resume_mcmc(tmp_path, model)
    data.left = 7  # enough to inspect the model
    with raises_with(
        "failed at batch 3", "ValueError: the disk is gone", "run again", error=ModelError
    ):
        again.run(loader)
    data.left = 10**6
    again.run(loader)
    whole.run(loader)
    assert len(again.get_samples()["w"]) == 12
    assert_same_records(copy_records(again), copy_records(whole))


def test_other_data_are_an_error(tmp_path):
    stop_run(CASES["plates"], "SGHMC", "sequential", ("Sample [1]", 2), checkpoint=tmp_path)
    for args, kwargs, named in (
        ((X + 1, Y), DATA, "argument 0"),
        ((X.flip(0), Y.flip(0)), DATA, "argument 0"),
        ((X, Y), {"batch_size": 4}, "argument 'batch_size' is 4, but the run began with 5"),
        ((X,), DATA, "argument 1 is missing"),
    ):
        with raises_with(named, "another MCMC object", error=ValueError):
            resume_mcmc(tmp_path).run(*args, **kwargs)
    again = resume_mcmc(tmp_path)
    with pytest.raises(ValueError):
        again.run(X + 1, Y, **DATA)
    again.run(X, Y, **DATA)  # the right ones do
    assert again._counts() == [6, 6]


def two_sites(X, y=None, batch_size=None):
    sparse_regression(X, y, batch_size)
    pyro.sample("more", pyro.distributions.Normal(0.0, 1.0))


def test_another_model_is_an_error(tmp_path):
    stop_run(CASES["plates"], "SGHMC", "sequential", ("Sample [1]", 2), checkpoint=tmp_path)
    shapes = ("sites of shapes {'beta': [3]}", "this run has sites of shapes {'w': [3]}")
    with raises_with(*shapes, "resume with the model of the saved run", error=ModelError):
        resume_mcmc(tmp_path, dense_regression, adaptation=None).run(X, Y, **DATA)
    with raises_with("sites of shapes", "resume with the model", error=ModelError):
        resume_mcmc(tmp_path, two_sites).run(X, Y, **DATA)


def test_another_transition_or_pruning_is_an_error(tmp_path):
    stop_run(CASES["plates"], "SGHMC", "sequential", ("Sample [1]", 2), checkpoint=tmp_path)
    with raises_with("momentum", "transition of the saved run", error=ModelError):
        resume_mcmc(tmp_path, transition=aeb.SGLD(1e-3)).run(X, Y, **DATA)
    with raises_with("no state of the pruner", "options of the saved run", error=ModelError):
        resume_mcmc(tmp_path, pruning=aeb.MagnitudePruning(0.3)).run(X, Y, **DATA)


def test_a_module_in_another_mode_is_an_error(tmp_path):
    case = CASES["buffers and dropout"]
    stop_run(case, "SGHMC", "sequential", ("Sample [1]", 2), checkpoint=tmp_path)
    with raises_with("buffers", "train or eval", error=ModelError):
        resume_mcmc(tmp_path, Network().eval()).run(X, Y)


def test_a_loader_that_has_become_shorter_is_an_error(tmp_path):
    case = CASES["loader"]
    stop_run(case, "SGHMC", "sequential", ("Sample [1]", 2), checkpoint=tmp_path)
    x, y = linear_data(13)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 6, shuffle=True)
    with raises_with("13 data", "20 data", error=ValueError):
        resume_mcmc(tmp_path, loader_regression).run(loader)
