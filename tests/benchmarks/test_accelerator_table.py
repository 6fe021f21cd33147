# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The table of an accelerator: that the command runs, on the CPU, and that its models are right."""

from __future__ import annotations

import csv

import pytest
import torch

from . import accelerator
from .device_workloads import MODELS

CPU = torch.device("cpu")


def test_a_little_of_everything_runs_and_is_written(tmp_path):
    rows = ["alone", "ours", "ours-three-point", "sgd", "authors"]
    arguments = ["--smoke", "--device", "cpu", "--out", str(tmp_path), "--rows", *rows]
    text = accelerator.main(arguments)
    assert (tmp_path / "accelerator.md").read_text(encoding="utf-8") == text
    with (tmp_path / "accelerator.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == [*rows * 4, "chains"]
    assert {(line["turns"], line["note"]) for line in lines} == {("2", "")}
    assert text.count("| torch.optim.SGD |") == 4


def test_a_run_goes_on_where_an_earlier_one_was_cut_short(tmp_path, monkeypatch, capsys):
    cases = accelerator.smoke_cases()[:3]
    monkeypatch.setattr(accelerator, "smoke_cases", lambda: cases)
    earlier, later = tmp_path / "earlier", tmp_path / "later"
    arguments = ["--smoke", "--device", "cpu", "--rows", "alone", "sgd", "--out"]
    accelerator.main([*arguments, str(earlier)])
    lines = accelerator.read(earlier)
    accelerator.write(earlier, lines[:4], "")  # F and L
    capsys.readouterr()
    accelerator.main([*arguments, str(later), "--continue", str(earlier)])
    assert capsys.readouterr().out.count(": Case(") == 1
    again = accelerator.read(later)
    assert again[:4] == lines[:4]
    assert [(x.model, x.batch, x.row) for x in again] == [(x.model, x.batch, x.row) for x in lines]


def test_every_model_has_its_batches():
    """Those of a CPU's table and 1 to 1024; compiled rows in each case."""
    found = {(case.model, case.batch) for case in accelerator.cases() if case.chains is None}
    assert found >= {(m, n) for m in "MCR" for n in (1, 8, 64, 256, 1024)}
    assert found >= {("F", 50), ("L", None)}
    assert all(case.compiled or case.chains for case in accelerator.cases())


def test_a_row_that_fails_leaves_a_note(monkeypatch, tmp_path, capsys):
    def fail(workload):
        raise RuntimeError("no such luck")

    monkeypatch.setitem(accelerator.ROWS, "sgd", accelerator.Row("a row", fail))
    text = accelerator.main(["--smoke", "--device", "cpu", "--rows", "sgd", "ours"])
    assert "| a row | failed (RuntimeError: no such luck) |" in text
    assert "no such luck" in capsys.readouterr().err


def test_no_case_is_begun_after_its_time(capsys):
    assert accelerator.main(["--smoke", "--device", "cpu", "--seconds", "-1"]) == ""
    assert capsys.readouterr().out.count("left out") == len(accelerator.smoke_cases())


@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_and_what_is_alone_have_the_same_gradient(name):
    """Both are forward and backward of one network on one batch."""
    workload = MODELS[name](4, CPU)
    kernel = workload.kernel(seed=0)
    chain = kernel.chain
    parameters = dict(workload.network.named_parameters())
    alone = dict(zip(parameters, workload.alone()(), strict=True))
    sites = chain.structure.unflatten(chain.state.position)
    pairs = list(zip(_by_shape(sites), _by_shape(parameters), strict=True))
    with torch.no_grad():
        for site, parameter in pairs:
            sites[site].copy_(parameters[parameter])
    rows = torch.arange(len(workload.y)) if workload.rows is None else workload.rows
    indices = {**chain.data.minibatches.first(), "data": rows}
    batch = chain.data.next()._replace(indices=indices)
    found = chain.posterior.evaluate_likelihood(chain.state.position, chain.latents, batch)
    gradient = chain.structure.unflatten(found.gradient)
    for site, parameter in pairs:
        torch.testing.assert_close(gradient[site], alone[parameter], rtol=1e-3, atol=1e-3)


def _by_shape(tensors) -> list[str]:
    """Names by size; of equal sizes in the order in which they come."""
    return sorted(tensors, key=lambda name: tuple(tensors[name].shape))
