# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Ctrl-C, pressed in real processes."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
import time

import pytest
import torch
from loader_data import shuffling_loader
from models import loader_regression, sparse_regression
from pyro.infer import MCMC
from runs import (
    DATA,
    METHODS,
    CtrlCAt,
    X,
    Y,
    assert_same_records,
    copy_records,
    make_kernel,
    make_mcmc,
    resume_mcmc,
)

from pyro_aeb import SGLD, AEBKernel
from pyro_aeb.kernel.algorithm import Update
from pyro_aeb.mcmc.interrupts import between_steps

WAIT = 60.0


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


# -- the note


def test_the_first_ctrl_c_is_noted_and_raised_between_steps():
    reached = []
    with pytest.raises(KeyboardInterrupt), between_steps() as between:
        between()
        press_ctrl_c()
        reached.append("the rest of the step")
        between()
        reached.append("the next step")
    assert reached == ["the rest of the step"]


def test_one_in_the_last_step_is_raised_at_the_end():
    with pytest.raises(KeyboardInterrupt), between_steps():
        press_ctrl_c()


def test_the_second_one_is_not_waited_for():
    reached = []
    with pytest.raises(KeyboardInterrupt), between_steps():
        press_ctrl_c()
        reached.append("first")
        press_ctrl_c()
        reached.append("second")
    assert reached == ["first"]


def test_the_usual_handler_is_restored():
    usual = signal.getsignal(signal.SIGINT)
    with between_steps():
        assert signal.getsignal(signal.SIGINT) is not usual
    assert signal.getsignal(signal.SIGINT) is usual
    with pytest.raises(ValueError), between_steps():
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is usual


def test_where_ctrl_c_is_ignored_it_stays_so():
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with between_steps() as between:
            press_ctrl_c()
            between()
    finally:
        signal.signal(signal.SIGINT, usual)


def test_other_threads_are_as_they_were():
    usual, found = signal.getsignal(signal.SIGINT), []

    def elsewhere() -> None:
        with between_steps() as between:
            between()
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [usual]


# -- what is said


def test_a_line_says_what_is_kept_and_how_to_go_on(capsys, tmp_path):
    path = tmp_path / "run.ckpt"
    run = make_mcmc(method="sequential", hook_fn=CtrlCAt("Sample [1]", 3), checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        run.run(X, Y, **DATA)
    said = capsys.readouterr().err
    assert "Interrupted: 8 and 4 of 8 draws in each of 2 chains are kept" in said
    assert "run() with the same data goes on from here" in said
    assert f"MCMC.resume({str(path)!r}, model) in another process" in said


def test_nothing_is_kept_in_warm_up(capsys):
    run = make_mcmc(method="vectorized", hook_fn=CtrlCAt("Warmup", 0))
    with pytest.raises(KeyboardInterrupt):
        run.run(X, Y, **DATA)
    said = capsys.readouterr().err
    assert "Interrupted: in warm-up, no draw is kept yet. run() with the same data" in said
    assert "resume" not in said


def test_a_run_by_pyros_mcmc_says_where_its_draws_are(capsys):
    def interrupt(k):
        if k == 5:
            raise KeyboardInterrupt
        return 1e-5

    kernel = AEBKernel(sparse_regression, SGLD(interrupt), seed=0)
    with pytest.raises(KeyboardInterrupt):
        MCMC(kernel, 10, 0, disable_progbar=True).run(X, Y)
    assert "the draws so far are in mcmc.kernel.recover()" in capsys.readouterr().err
    assert kernel.recover()["beta"].shape[0] == 4


# -- runs in this process


@pytest.mark.parametrize("method, kept", [("sequential", [8, 4]), ("vectorized", [4, 4])])
def test_a_run_that_was_stopped_continues_to_the_same_draws(method, kept):
    whole = make_mcmc(method=method)
    whole.run(X, Y, **DATA)
    stage = "Sample" if method == "vectorized" else "Sample [1]"
    run = make_mcmc(method=method, hook_fn=CtrlCAt(stage, 3))
    with pytest.raises(KeyboardInterrupt):
        run.run(X, Y, **DATA)
    assert run._counts() == kept
    for name, draws in whole.get_samples(group_by_chain=True).items():
        there = torch.cat([draws[chain, :count] for chain, count in enumerate(kept)])
        assert torch.equal(run.get_samples()[name], there)
    run.run(X, Y, **DATA)
    assert_same_records(copy_records(run), copy_records(whole))


def test_warm_up_may_be_stopped_and_continues():
    whole = make_mcmc()
    whole.run(X, Y, **DATA)
    run = make_mcmc(hook_fn=CtrlCAt("Warmup [0]", 1))
    with pytest.raises(KeyboardInterrupt):
        run.run(X, Y, **DATA)
    with pytest.raises(RuntimeError, match="no draw is kept yet"):
        run.get_samples()
    run.run(X, Y, **DATA)
    assert_same_records(copy_records(run), copy_records(whole))


# -- Ctrl-C from outside, as a terminal sends it to all processes of a group


class Slow:
    """A slow hook that signals its first call."""

    def __init__(self, started=None, seconds: float = 0.05) -> None:
        self.started, self.seconds = started, seconds

    def __call__(self, kernel, draw, stage, number) -> None:
        if self.started is not None and stage.startswith("Sample"):
            self.started.set()
        time.sleep(self.seconds)


def make_run(kind: str, **options):
    if kind == "loader":
        return (
            make_mcmc(make_kernel(loader_regression), draws=12, number=1, **options),
            (shuffling_loader(num_workers=2),),
            {},
        )
    return make_mcmc(draws=40, method=kind, **options), (X, Y), DATA


def stopped_run(kind: str, started, results, folder: str) -> None:
    """Run in a process group of its own until Ctrl-C, report the draws, and continue."""
    os.setpgrp()
    mp.set_start_method("fork", force=True)  # of a loader's workers: spawned ones take seconds
    torch.set_num_threads(1)
    run, args, kwargs = make_run(kind, hook_fn=Slow(started), checkpoint=folder, every=1000)
    try:
        run.run(*args, **kwargs)
        results.put("not stopped")
    except KeyboardInterrupt:
        results.put(run._counts())
        run._hook = None
        run.run(*args, **kwargs)
        results.put({name: value.numpy() for name, value in copy_records(run).items()})


@pytest.mark.parametrize("kind", [*METHODS, "loader"])
def test_ctrl_c_at_a_terminal(kind, tmp_path):
    context = mp.get_context("forkserver")
    started, results = context.Event(), context.Queue()
    process = context.Process(
        target=stopped_run, args=(kind, started, results, str(tmp_path / "run"))
    )
    process.start()
    try:
        assert started.wait(WAIT)
        os.killpg(process.pid, signal.SIGINT)
        counts = results.get(timeout=WAIT)
        assert counts != "not stopped" and 0 < sum(counts) < 80
        found = {name: torch.from_numpy(value) for name, value in results.get(timeout=WAIT).items()}
        process.join(WAIT)
        assert process.exitcode == 0
    finally:
        process.kill()
    whole, args, kwargs = make_run(kind)
    whole.run(*args, **kwargs)
    assert_same_records(found, copy_records(whole))
    model = loader_regression if kind == "loader" else None
    again = resume_mcmc(tmp_path / "run", **({"model": model} if model else {}))
    assert_same_records(copy_records(again), copy_records(whole))


class TwiceInAStep:
    """A model that presses Ctrl-C twice in one step."""

    def __init__(self, step: int) -> None:
        self.calls, self.step, self.after = 0, step, False

    def __call__(self, x, y=None):
        self.calls += 1
        if self.calls == self.step:
            press_ctrl_c()
            press_ctrl_c()
            self.after = True
        return loader_regression(x, y)


def test_a_second_ctrl_c_ends_the_step_and_the_draws_are_there(tmp_path):
    model = TwiceInAStep(20)
    run = make_mcmc(make_kernel(model), number=1, checkpoint=tmp_path, every=2)
    with pytest.raises(KeyboardInterrupt):
        run.run(X, Y)
    assert not model.after
    kept = run.get_samples()["beta"]
    assert 0 < len(kept) < 8
    whole = make_mcmc(make_kernel(loader_regression), number=1)
    whole.run(X, Y)
    assert torch.equal(kept, whole.get_samples()["beta"][: len(kept)])
    again = resume_mcmc(tmp_path, loader_regression)
    assert torch.equal(again.get_samples()["beta"], kept)
    again.run(X, Y)
    assert_same_records(copy_records(again), copy_records(whole))


def test_a_step_that_was_cut_while_it_changed_the_state_is_not_saved(tmp_path):
    """The checkpoint before it is."""
    run = make_mcmc(make_kernel(loader_regression), number=1, checkpoint=tmp_path, every=4)
    seen = []

    def twice(*args):
        seen.append(args)
        if len(seen) == 15:
            press_ctrl_c()
            press_ctrl_c()
        return update(*args)

    update = Update.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Update, "__call__", twice)
        with pytest.raises(KeyboardInterrupt):
            run.run(X, Y)
    assert run._counts() == [4]  # 14 steps are 7 draws, of which 3 were of warm-up
    again = resume_mcmc(tmp_path, loader_regression)
    assert again._counts() == [1]  # of the checkpoint after 4 draws
    again.run(X, Y)
    whole = make_mcmc(make_kernel(loader_regression), number=1)
    whole.run(X, Y)
    assert_same_records(copy_records(again), copy_records(whole))
