# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``aeb.MCMC``: Pyro's MCMC, with more."""

from __future__ import annotations

import inspect
import multiprocessing as mp
import os
import signal
import threading
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from loader_data import shuffling_loader
from models import dense_regression, loader_regression, sparse_regression
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS, Predictive
from pyro_runs import make_sequential_mcmc as pyros_sequential
from refusals import raises_with
from runs import (
    DATA,
    METHODS,
    Stop,
    StopAt,
    X,
    Y,
    assert_same_records,
    copy_records,
    make_kernel,
    make_mcmc,
)

import pyro_aeb as aeb
from pyro_aeb import NonFiniteError
from pyro_aeb.mcmc.parallel import Receiver


@pytest.fixture(scope="module", params=METHODS)
def run(request):
    mcmc = make_mcmc(draws=10, method=request.param)
    mcmc.run(X, Y, **DATA)
    return mcmc


# -- as Pyro's


def test_arguments_are_pyros_and_more():
    ours = inspect.signature(aeb.MCMC).parameters
    theirs = inspect.signature(PyroMCMC).parameters
    assert [*ours][: len(theirs)] == [*theirs]
    for name, parameter in theirs.items():
        if name != "num_samples":  # without it and without ess there is an error, as with Pyro
            assert ours[name].default == parameter.default, name
        assert ours[name].kind == parameter.kind, name
    for name in [*ours][len(theirs) :]:
        assert ours[name].kind == inspect.Parameter.KEYWORD_ONLY, name


@pytest.mark.parametrize(
    "model, args, kwargs",
    [
        (sparse_regression, lambda: (X, Y), DATA),
        (loader_regression, lambda: (shuffling_loader(),), {}),
        (dense_regression, lambda: (X, Y), DATA),
    ],
)
@pytest.mark.parametrize("seed", [7, None])
def test_draws_are_those_of_pyros(model, args, kwargs, seed):
    found = []
    for kind in (PyroMCMC, aeb.MCMC):
        pyro.set_rng_seed(3)
        mcmc = kind(make_kernel(model, seed=seed), 6, 3, disable_progbar=True)
        mcmc.run(*args(), **kwargs)
        found.append(copy_records(mcmc))
    assert_same_records(*found)


def test_chains_one_after_the_other_are_those_of_pyros():
    hooks = {}

    def hook_of(key):
        return lambda kernel, draw, stage, i: hooks.setdefault(key, []).append((stage, i))

    theirs = pyros_sequential(make_kernel(), draws=4, warmup=2, hook_fn=hook_of("theirs"))
    theirs.run(X, Y, **DATA)
    ours = make_mcmc(draws=4, warmup=2, hook_fn=hook_of("ours"))
    ours.run(X, Y, **DATA)
    assert_same_records(copy_records(ours), copy_records(theirs))
    assert hooks["ours"] == hooks["theirs"]


def test_initial_params_and_save_params_are_pyros():
    given = {"beta": torch.tensor([1.0, 2.0, 3.0])}
    found = []
    for kind in (PyroMCMC, aeb.MCMC):
        mcmc = kind(
            make_kernel(), 3, 0, initial_params=given, save_params=["beta"], disable_progbar=True
        )
        mcmc.run(X, Y, **DATA)
        found.append(mcmc.get_samples())
    assert found[0].keys() == {"beta"}
    assert_same_records(found[1], found[0])


def test_a_start_that_the_kernel_was_given_is_used():
    given = {"beta": torch.full([3], 5.0)}
    kernel = make_kernel(step_size=1e-12)
    kernel.initial_params = given
    mcmc = make_mcmc(kernel, number=1, warmup=0)
    mcmc.run(X, Y, **DATA)
    torch.testing.assert_close(mcmc.get_samples()["beta"][0], given["beta"], rtol=1e-4, atol=1e-4)


def test_transforms_are_those_of_pyros():
    transforms = {"beta": dist.transforms.AffineTransform(1.0, 2.0)}
    found = []
    for kind in (PyroMCMC, aeb.MCMC):
        mcmc = kind(make_kernel(), 4, 0, transforms=transforms, disable_progbar=True)
        mcmc.run(X, Y, **DATA)
        found.append(mcmc.get_samples())
    assert_same_records(found[1], found[0])


def test_resampled_draws_are_draws(run):
    some = run.get_samples(num_samples=50)["beta"]
    all_of_them = {tuple(draw) for draw in run.get_samples()["beta"].tolist()}
    assert some.shape == (50, 3) and {tuple(draw) for draw in some.tolist()} <= all_of_them


# -- thinning, and going on


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("thinning", [2, 3])
def test_thinned_draws_are_every_nth(method, thinning):
    every = make_mcmc(draws=6 * thinning, method=method)
    every.run(X, Y, **DATA)
    thinned = make_mcmc(draws=6, method=method, thinning=thinning)
    thinned.run(X, Y, **DATA)
    for name, draws in every.get_samples(group_by_chain=True).items():
        kept = thinned.get_samples(group_by_chain=True)[name]
        assert torch.equal(kept, draws[:, thinning - 1 :: thinning])


@pytest.mark.parametrize("method", METHODS)
def test_run_again_continues(method):
    longer, again = make_mcmc(draws=16, method=method), make_mcmc(draws=8, method=method)
    longer.run(X, Y, **DATA)
    again.run(X, Y, **DATA)
    first = again.get_samples(group_by_chain=True)["beta"].clone()
    again.run(X, Y, **DATA)
    assert_same_records(copy_records(again), copy_records(longer))
    assert torch.equal(again.get_samples(group_by_chain=True)["beta"][:, :8], first)


def test_run_again_with_other_data_is_an_error(run):
    with raises_with(
        "argument 1", "but the run began with", "another MCMC object", error=ValueError
    ):
        run.run(X, Y + 1, **DATA)


# -- what works on a result


def test_what_pyro_and_arviz_read(run, capsys):
    run.summary()
    printed = capsys.readouterr().out
    assert "sigma2" in printed and "Number of divergences: 0" in printed
    found = run.diagnostics()
    assert set(found["beta"]) == {"n_eff", "r_hat"}
    assert found["settings"]["chain 1"]["seed"] == "7"
    idata = aeb.to_arviz(run)
    assert idata.posterior["beta"].shape == (2, 10, 3)
    grouped = run.get_samples(group_by_chain=True)["beta"]
    assert torch.equal(torch.as_tensor(idata.posterior["beta"].values), grouped)
    assert idata.sample_stats["potential"].shape == (2, 10)


def test_predictions_from_a_result(run):
    predicted = Predictive(sparse_regression, run.get_samples())(X)["y"]
    assert predicted.shape == (20, len(X))


def make_network():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    return aeb.nn.bayesianize(module, delta=0.5, sigma2=1.0)


def network_model(net):
    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    return model


@pytest.mark.parametrize("save", [None, ["0.bias"]])
@pytest.mark.parametrize("method", METHODS)
def test_networks(method, save):
    """Predictions along with a run and after it, and a plain module of the last draw."""
    net = make_network()
    model = network_model(net)
    predict = aeb.nn.PosteriorPredictive(model, data=(X, Y))
    if method == "parallel":
        with pytest.raises(RuntimeError, match="whose averages would be lost"):
            make_mcmc(make_kernel(model, adaptation=None), method=method, hook_fn=predict.hook).run(
                X, Y
            )
    hook = None if method == "parallel" else predict.hook
    mcmc = make_mcmc(make_kernel(model, adaptation=None, save=save), method=method, hook_fn=hook)
    mcmc.run(X, Y)
    if save is not None and method == "parallel":
        with raises_with("do not hold", "worker processes leave none behind"):
            aeb.nn.sparse_module(net, mcmc)
        return
    assert aeb.nn.sparse_module(net, mcmc)(X).shape == (len(X), 1)
    if save is None:
        after = aeb.nn.PosteriorPredictive(model, mcmc)(X)
        assert after.mean.shape == (len(X),)
    if hook is not None:
        assert predict().mean.shape == (len(X),)
    if hook is not None and save is None:
        for along, value in zip(predict(), after, strict=True):
            torch.testing.assert_close(along, value)


# -- runs that are cut short


@pytest.mark.parametrize(
    "at, counts, table",
    [
        (("Sample [0]", 2), [3, 0], (1, 3)),
        (("Sample [1]", 1), [8, 2], (1, 8)),
        (("Sample [1]", 6), [8, 7], (2, 7)),
    ],
)
def test_a_run_that_was_cut_short_is_usable(at, counts, table):
    mcmc = make_mcmc(hook_fn=StopAt(*at))
    with pytest.raises(Stop):
        mcmc.run(X, Y, **DATA)
    assert mcmc._counts() == counts
    assert mcmc.get_samples()["beta"].shape == (sum(counts), 3)
    assert mcmc.get_samples(group_by_chain=True)["beta"].shape == (*table, 3)
    if table[1] > 3:  # Pyro's figures need four draws
        mcmc.summary()
        mcmc.diagnostics()
    assert aeb.to_arviz(mcmc).posterior["beta"].shape == (*table, 3)


def test_the_table_leaves_out_the_chains_that_have_least():
    mcmc = make_mcmc(number=3)
    mcmc.run(X, Y, **DATA)
    every = mcmc.get_samples(group_by_chain=True)["beta"].clone()
    mcmc._groups[0].draws = 3 + 1  # as of a process that ended early
    kept = mcmc.get_samples(group_by_chain=True)["beta"]
    assert torch.equal(kept, every[1:])
    assert torch.equal(mcmc.get_samples()["beta"], torch.cat([every[0, :1], *every[1:]]))
    mcmc._groups[0].draws, mcmc._groups[1].draws = 3 + 8, 3
    assert torch.equal(mcmc.get_samples(group_by_chain=True)["beta"], every[[0, 2]])
    assert mcmc.diagnostics()["settings"].keys() == {"chain 0", "chain 2"}


@pytest.mark.parametrize("method", METHODS)
def test_a_chain_can_be_inspected_between_two_runs(method):
    mcmc, undisturbed = make_mcmc(method=method), make_mcmc(method=method)
    with pytest.raises(RuntimeError, match="chain 0 has not started.*call run"), mcmc.chain(0):
        pass
    mcmc.run(X, Y, **DATA)
    last = mcmc.get_samples(group_by_chain=True)["beta"][1, -1]
    with mcmc.chain(1) as (chain, place):
        assert mcmc.kernel.chain is chain and place == (1 if method == "vectorized" else None)
        assert torch.equal(chain.values_by_chain()[place or 0]["beta"], last)
        torch.rand(3)
    mcmc.run(X, Y, **DATA)
    undisturbed.run(X, Y, **DATA)
    undisturbed.run(X, Y, **DATA)
    assert_same_records(copy_records(mcmc), copy_records(undisturbed))
    with pytest.raises(RuntimeError, match="expected one of the 2 chains"), mcmc.chain(2):
        pass


def test_a_run_without_draws_is_an_error():
    with pytest.raises(RuntimeError, match="no draw is kept yet, expected at least one: call run"):
        make_mcmc().get_samples()
    with pytest.raises(RuntimeError, match="no draw is kept yet"):
        make_mcmc().summary()


@pytest.mark.parametrize("method", METHODS)
def test_a_divergence_keeps_the_draws_before(method):
    schedule = aeb.Piecewise(1e-3, {16: 1e25})
    mcmc = make_mcmc(
        make_kernel(dense_regression, aeb.SGLD, schedule, adaptation=None), method=method
    )
    with pytest.raises(NonFiniteError) as info:
        mcmc.run(X, Y, **DATA)
    kept = mcmc.get_samples()["w"]
    assert len(kept) > 0 and torch.isfinite(kept).all()
    assert info.value.draws["w"].shape[-2] > 0


def test_a_divergence_before_the_first_draw_is_a_divergence():
    kernel = make_kernel(dense_regression, aeb.SGLD, 1e30, adaptation=None, steps_per_draw=10)
    mcmc = make_mcmc(kernel, method="parallel")
    with pytest.raises(NonFiniteError) as info:
        mcmc.run(X, Y, **DATA)
    assert info.value.draws == {}


class TwoArguments(Exception):
    """An error that cannot be unpickled."""

    def __init__(self, one, other):
        super().__init__("odd")


def odd_hook(kernel, draw, stage, i):
    raise TwoArguments(1, 2)


def test_errors_of_processes_are_raised_with_their_place():
    with pytest.raises(Stop) as info:
        make_mcmc(method="parallel", hook_fn=StopAt("Sample [1]", 1)).run(X, Y, **DATA)
    assert "in the process of chain 1" in str(info.value.__cause__)
    assert "runs.py" in str(info.value.__cause__)
    with pytest.raises(RuntimeError, match="in the process of chain(.|\n)*TwoArguments: odd"):
        make_mcmc(method="parallel", hook_fn=odd_hook).run(X, Y, **DATA)


def dying_hook(kernel, draw, stage, i):
    if (stage, i) == ("Sample [1]", 2):
        time.sleep(1.0)  # until what was sent has arrived
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_reported_and_the_run_continues():
    mcmc = make_mcmc(method="parallel", hook_fn=dying_hook)
    with pytest.raises(RuntimeError, match="process of chain 1 ended with exit code -9"):
        mcmc.run(X, Y, **DATA)
    assert mcmc._counts()[1] == 3
    mcmc._hook = None
    mcmc.run(X, Y, **DATA)
    whole = make_mcmc(method="parallel")
    whole.run(X, Y, **DATA)
    assert_same_records(copy_records(mcmc), copy_records(whole))


def main_process(pids) -> None:
    class Telling:
        def __call__(self, kernel, draw, stage, i):
            if i == 0:
                pids.put(os.getpid())
            time.sleep(0.1)

    make_mcmc(draws=10_000, method="parallel", hook_fn=Telling()).run(X, Y, **DATA)


def sleep_once(patch: pytest.MonkeyPatch, seconds: float, when) -> None:
    """Let the main process sleep before it receives a draw, the first for which when(chain)."""
    receive, due = Receiver.receive, [True]

    def slow(self, kind, content):
        if kind == "draw" and due and when(self.group.first):
            due.clear()
            time.sleep(seconds)
        receive(self, kind, content)

    patch.setattr(Receiver, "receive", slow)


def busy_main_process(pids) -> None:
    """Its workers wait for it, half-way through a draw that no pipe has room for."""
    pids_of = lambda *_: pids.put(os.getpid())  # noqa: E731
    run = make_mcmc(
        make_kernel(wide_model, adaptation=None), 10_000, 0, method="parallel", hook_fn=pids_of
    )
    sleep_once(pytest.MonkeyPatch(), 1000.0, lambda _: all(group.draws for group in run._groups))
    run.run()


WIDTH = 100_000


def wide_model():
    """Draws of 400 kB."""
    pyro.sample("w", dist.Normal(0.0, 1.0).expand([WIDTH]).to_event(1))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(()))


def test_draws_that_the_main_process_has_not_taken_do_not_pile_up(monkeypatch):
    made = mp.get_context("fork").RawArray("i", 2)

    def count(kernel, draw, stage, i):
        made[int(stage == "Sample [1]")] += 1

    receive, ahead = Receiver.receive, []

    def count_ahead(self, kind, content):
        if kind == "draw":
            ahead.append(made[self.group.first] + 1 - self.group.draws)
        receive(self, kind, content)

    monkeypatch.setattr(Receiver, "receive", count_ahead)
    sleep_once(monkeypatch, 1.0, lambda chain: chain == 1)
    run = make_mcmc(
        make_kernel(wide_model, adaptation=None), 100, 0, method="parallel", hook_fn=count
    )
    run.run()
    assert run._counts() == [100, 100]
    # One that is on its way, and one that has just been made.
    assert max(ahead) <= 2


def test_a_process_that_dies_in_the_middle_of_a_draw_is_reported(monkeypatch):
    def die_while_sending(kernel, draw, stage, i):
        if (stage, i) == ("Sample [1]", 0):
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

    sleep_once(monkeypatch, 1.5, lambda chain: chain == 1)
    wide_kernel = make_kernel(wide_model, adaptation=None)
    run = make_mcmc(wide_kernel, 10, 0, method="parallel", hook_fn=die_while_sending)
    with pytest.raises(RuntimeError, match="process of chain 1 ended with exit code -9"):
        run.run()
    assert run._counts()[1] < 10
    run._hook = None
    run.run()
    assert run._counts() == [10, 10]


@pytest.mark.parametrize("program", [main_process, busy_main_process])
def test_processes_end_with_the_main_one(program):
    context = mp.get_context("fork")
    pids = context.Queue()
    main = context.Process(target=program, args=(pids,))
    main.start()
    workers = {pids.get(timeout=30) for _ in range(2)}
    os.kill(main.pid, signal.SIGKILL)
    main.join()
    end = time.monotonic() + 30
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < end, "workers run on without a main process"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_loaders_with_workers_serve_chains_in_processes():
    found = []
    for workers in (0, 1):
        mcmc = make_mcmc(make_kernel(loader_regression), draws=2, warmup=0, method="parallel")
        mcmc.run(shuffling_loader(num_workers=workers))
        found.append(copy_records(mcmc))
    assert_same_records(*found)


# -- options


@pytest.mark.parametrize(
    "options, said",
    [
        ({"num_chains": 0}, "num_chains is 0, expected an integer of at least 1"),
        ({"thinning": 0}, "thinning is 0, expected"),
        ({"thinning": 1.5}, "thinning is 1.5, expected"),
        ({"every": -1}, "every is -1, expected"),
        ({"warmup_steps": -1}, "warmup_steps is -1, expected an integer of at least 0"),
        ({"num_samples": 0}, "num_samples is 0, expected"),
        (
            {"chain_method": "together"},
            "chain_method is 'together', expected None, 'sequential', 'vectorized', "
            "'parallel' or 'distributed'",
        ),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(ValueError) as info:
        aeb.MCMC(make_kernel(), **{"num_samples": 3, **options})
    assert said in str(info.value)


def test_another_kernel_is_an_error():
    with pytest.raises(TypeError, match="kernel is a NUTS, expected an AEBKernel; use pyro.infer"):
        aeb.MCMC(NUTS(dense_regression), 3)


def test_the_default_chain_method_is_pyros(monkeypatch):
    for processors, method in ((8, "parallel"), (2, "sequential")):
        monkeypatch.setattr("torch.multiprocessing.cpu_count", lambda n=processors: n)
        assert aeb.MCMC(make_kernel(), 3, num_chains=2).chain_method == method
        assert aeb.MCMC(make_kernel(), 3).chain_method == "sequential"
