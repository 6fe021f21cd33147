# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The quickstart's program runs as it is written, and its links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import io
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from notebook_runs import outputs, run_notebook

import pyro_aeb as aeb

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


def code_blocks(marker: str) -> list[str]:
    """The fenced blocks that follow ``<!-- marker -->``."""
    pattern = rf"^<!-- {re.escape(marker)} -->\n```\w+\n(.*?)^```$"
    return re.findall(pattern, README + QUICKSTART, re.M | re.S)


MAX_PROGRAM = 20
"""Lines of a program that are not empty."""


def run_program(program: str) -> dict[str, Any]:
    # As a module of its own: what it defines is at the top level, as in a user's file.
    names: dict[str, Any] = {"__name__": "first_program"}
    exec(compile(program, "page", "exec"), names)
    return names


def with_smaller_numbers(program: str, sizes: dict[str, tuple[int, int]]) -> str:
    """The program with other numbers for some of its arguments."""
    for name, (written, used) in sizes.items():
        program, count = re.subn(rf"\b{name}={written}\b", f"{name}={used}", program)
        assert count == 1, f"the first program has {count} arguments {name}={written}, expected one"
    return program


def test_the_readme_fits_three_screens() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("marker", ["first-answer", "network-program"])
def test_programs_are_short(marker: str) -> None:
    (program,) = code_blocks(marker)
    assert len([line for line in program.splitlines() if line]) <= MAX_PROGRAM


def test_first_answer_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """At a tenth of its size: the features, the predictions and the verdict, in that form."""
    (program,), (output,) = code_blocks("first-answer"), code_blocks("first-answer-output")
    sizes = {"num_samples": (500, 50), "warmup_steps": (100, 20)}
    names = run_program(with_smaller_numbers(program, sizes))
    printed = capsys.readouterr().out
    shown = output.splitlines()
    assert printed.splitlines()[:5] == [shown[0].replace("500", "50"), *shown[1:5]]
    assert "4 chains of 50 draws, 10 step(s) apart" in printed
    found = names["predicted"].median(0).values
    expected = torch.tensor([[float(x) for x in re.findall(r"-?\d\.\d+", r)] for r in shown[5:8]])
    # 200 draws of standard deviation 1: 4 errors of a median, 1.25 / sqrt(200) each.
    assert (found - expected[:, 1]).abs().max() < 4 * 1.25 / math.sqrt(200)
    truth = names["X_new"][:, :3] @ torch.tensor([3.0, 2.0, 1.0])
    assert ((expected[:, 0] < truth) & (truth < expected[:, 2])).all()


def test_first_program_at_reduced_size() -> None:
    data, analysis = code_blocks("first-program")
    sizes = {"num_samples": (1000, 20), "warmup_steps": (200, 5), "steps_per_draw": (100, 10)}
    names = run_program(data + with_smaller_numbers(analysis, sizes))

    p = names["X"].shape[1]
    draws = names["mcmc"].get_samples()
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "beta": (20, p),
        "delta": (20,),
        "sigma2": (20,),
    }
    idata = names["idata"]
    assert idata.posterior["beta"].dims == ("chain", "draw", "features")
    assert idata.adaptation["beta_rho"].dims == ("chain", "draw", "features")
    expected = {
        "diverging",
        "potential",
        "step_size",
        "inverse_temperature",
        "sa_weight",
        "sparsity",
    }
    assert expected <= set(idata.sample_stats.data_vars)
    for statistic in expected:
        assert idata.sample_stats[statistic].shape == (1, 20)


@pytest.mark.slow
def test_first_program_finds_its_three_effects() -> None:
    data, analysis = code_blocks("first-program")
    # A shorter run; all settings that bear on what it converges to are the page's.
    sizes = {"num_samples": (1000, 100), "warmup_steps": (200, 50), "steps_per_draw": (100, 50)}
    names = run_program(data + with_smaller_numbers(analysis, sizes))

    X, y, draws = names["X"], names["y"], names["mcmc"].get_samples()
    truth = torch.zeros(X.shape[1])
    truth[:3] = torch.tensor([3.0, 2.0, 1.0])
    rho = torch.as_tensor(names["idata"].adaptation["beta_rho"].values)[0, -1]
    assert torch.equal(rho > 0.5, truth > 0)

    # The noise variance is 1: least squares is off by 1 / sqrt(n) = 0.1 a weight; 4 of these.
    error = draws["beta"].mean(0) - truth
    assert error.abs().max() < 4 / math.sqrt(len(y))
    # The variance of n normal numbers of variance 1 is off by sqrt(2 / n) = 0.14; 4 of these.
    assert abs(draws["sigma2"][-1].item() - 1) < 4 * math.sqrt(2 / len(y))


def test_prediction_follows_the_page() -> None:
    data, analysis = code_blocks("first-program")
    last = ast.unparse(ast.parse(analysis).body[-1])
    assert last == "Predictive(model, mcmc.get_samples())(X_test)['y']"
    sizes = {"num_samples": (1000, 5), "warmup_steps": (200, 1), "steps_per_draw": (100, 2)}
    names = run_program(data + with_smaller_numbers(analysis, sizes))
    pyro.set_rng_seed(1)
    assert eval(last, names).shape == (5, len(names["X_test"]))


def test_network_program_at_reduced_size(capsys: pytest.CaptureFixture[str]) -> None:
    (program,), (output,) = code_blocks("network-program"), code_blocks("network-program-output")
    sizes = {"num_samples": (100, 5), "warmup_steps": (100, 2), "steps_per_draw": (50, 3)}
    names = run_program(with_smaller_numbers(program, sizes))
    assert names["mcmc"].get_samples()["0.weight"].shape == (5, 50, 20)
    # The paper's schedule: 0.8 (1 - 0.99^(k / 10)) of all 1152 weights at step 21.
    zeros = round(0.8 * (1 - 0.99**2.1) * 1152)
    sparse = aeb.nn.sparse_module(names["net"], names["mcmc"], draw=-1)
    assert sum(int((value == 0).sum()) for value in sparse.state_dict().values()) == zeros

    printed, shown = (
        re.sub(r"-?\d+\.\d+\b", "#", re.sub(r" +", " ", text))
        for text in (capsys.readouterr().out, output)
    )
    scores = shown.split("tensor")[0].replace("of 100", "of 5")
    assert printed.startswith(scores + "tensor([")
    assert re.search(r"^1 chain of 5 draws, 3 step\(s\) apart: \d warnings?$", printed, re.M)


@pytest.mark.slow
def test_network_program_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Two inputs that matter, an average that errs less than the last draw, and a verdict."""
    (program,), (output,) = code_blocks("network-program"), code_blocks("network-program-output")
    names = run_program(program)
    printed = capsys.readouterr().out
    for text in (printed, output):
        average, last = map(float, re.findall(r"^nll +(\S+) +(\S+)$", text, re.M)[0])
        assert average < last
        (accuracy,) = re.findall(r"^accuracy +(\S+)", text, re.M)
        assert float(accuracy) > 0.9  # guessing is right in half of the 1000 cases
        (numbers,) = re.findall(r"^tensor\(\[(.*?)\]\)$", text, re.M | re.S)
        mass = [float(x) for x in numbers.split(",")]
        assert min(mass[:2]) > 3 * max(mass[2:])
        assert "1 chain of 100 draws, 50 step(s) apart: 3 warnings" in text
    sparse = aeb.nn.sparse_module(names["net"], names["mcmc"], draw=-1)
    assert aeb.nn.parameter_counts(sparse).nonzero == 1152 - round(0.8 * 1152)


def pasted_in_a_session(programs: list[str], folder: Path) -> str:
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for program in programs:
            exec(compile(program, "prompt", "exec"), names)
    return printed.getvalue()


def pasted_into_a_script(programs: list[str], folder: Path) -> str:
    script = folder / "programs.py"
    script.write_text("\n".join(programs), encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def pasted_into_a_notebook(programs: list[str], folder: Path) -> str:
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package)
    from nbformat import v4

    cells = [v4.new_code_cell(program) for program in programs]
    return "".join(
        data["text/plain"] for data in outputs(run_notebook(v4.new_notebook(cells=cells), folder))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "paste", [pasted_in_a_session, pasted_into_a_script, pasted_into_a_notebook]
)
def test_programs_pasted_in_order(paste: Callable[..., str], tmp_path: Path) -> None:
    """They print their answers and one verdict each."""
    (first,), (network,) = code_blocks("first-answer"), code_blocks("network-program")
    sizes = {"num_samples": (500, 30), "warmup_steps": (100, 10)}
    few = {"num_samples": (100, 5), "warmup_steps": (100, 2), "steps_per_draw": (50, 3)}
    programs = [with_smaller_numbers(first, sizes), with_smaller_numbers(network, few)]
    printed = paste(programs, tmp_path)
    for line in (
        "inclusion probabilities, 4 chains of 30 draws",
        "4 chains of 30 draws, 10 step(s) apart: ",
        "average of 5",
        "1 chain of 5 draws, 3 step(s) apart: ",
    ):
        assert printed.count(line) == 1, line


@pytest.mark.parametrize("marker", ["tutorial-command", "test-command"])
def test_commands_are_one_line_each(marker: str) -> None:
    (command,) = code_blocks(marker)
    assert len(command.splitlines()) == 1
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -e '.[")


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
