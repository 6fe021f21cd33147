# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The compression of a ResNet20: its schedules, its rows, and a run of it on made-up images."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tutorial_runs import read_rows, require_packages

import pyro_aeb as aeb
from pyro_aeb.transitions import StepNumbers

require_packages("matplotlib", "pandas", "torchmetrics", "torchvision", "tqdm")
dense = importlib.import_module("resnet_compression.dense")
methods = importlib.import_module("resnet_compression.methods")
protocol = importlib.import_module("resnet_compression.protocol")
report = importlib.import_module("resnet_compression.report")
sparse = importlib.import_module("resnet_compression.sparse")
data = importlib.import_module("vision.data")
networks = importlib.import_module("vision.networks")
resnet_cifar = importlib.import_module("resnet_cifar")


# -- the schedules


def test_at_the_papers_length_the_schedules_are_the_papers() -> None:
    clock = protocol.Clock(steps=50_000, data=50_000)
    size, tau = clock.step_size(1.0), clock.inverse_temperature(True)
    sparsity = clock.sparsity(0.9, 0.99)
    assert size(35_000) == pytest.approx(2e-9) and size(35_001) == pytest.approx(2e-10)
    assert size(45_000) == pytest.approx(2e-10) and size(45_001) == pytest.approx(2e-11)
    for k in (1, 50, 51, 30_000, 50_000):
        assert tau(k) == pytest.approx(1000.0 * 1.005 ** ((k - 1) // 50))
        assert protocol.weight()(k) == pytest.approx(0.02 * (1000 + k) ** -0.75)
        assert sparsity(k) == pytest.approx(0.9 * (1 - 0.99 ** (k / 50)))
    assert clock.inverse_temperature(False)(50_000) == 1000.0


@pytest.mark.parametrize("steps", [1050, 3500])
def test_a_shorter_run_moves_as_far_on_the_same_schedules(steps: int) -> None:
    paper, short = protocol.Clock(50_000, 50_000), protocol.Clock(steps, 50_000)

    def total(schedule: Any, length: int) -> float:
        return sum(schedule(k) for k in range(1, length + 1))

    longer, shorter = paper.step_size(1.0), short.step_size(1.0)
    # The moments of the factors 0.1 fall on whole steps, so the sums may differ by a step.
    assert abs(total(shorter, steps) - total(longer, 50_000)) <= shorter(1)
    # The last factor of the annealing holds for one paper epoch of the run.
    rise = short.inverse_temperature(True)(steps) / 1000.0
    assert 1.005**998 <= rise <= 1.005**1000
    assert short.sparsity(0.9, 0.99)(steps) == pytest.approx(paper.sparsity(0.9, 0.99)(50_000))


def test_fewer_images_take_larger_step_sizes() -> None:
    """The gradient is a sum over the images."""
    few, all_of_them = protocol.Clock(100, 45_000), protocol.Clock(100, 50_000)
    assert few.step_size(1.0)(1) * 45_000 == pytest.approx(all_of_them.step_size(1.0)(1) * 50_000)


def test_the_changes_of_a_trial_are_in_its_settings_and_its_model() -> None:
    usual = replace(protocol.LONG, changes=protocol.Changes())
    assert "changed" not in sparse.settings_of("a-sghmc-sa@90", usual, "test")
    changes = protocol.Changes(v0=3.0, v1=10.0, omega=50.0, penalties="current")
    changed = replace(usual, changes=changes)
    text = sparse.settings_of("a-sghmc-sa@90", changed, "test")
    assert text.endswith("changed: v0=3.0, v1=10.0, omega=50.0, penalties='current'")
    assert "changed" not in sparse.settings_of("gmp@90", changed, "test")
    module = networks.ResNet20(width=4, depth=1)
    clock = protocol.Clock(steps=100, data=1000)
    _, kernel = methods.build("a-sghmc-sa@90", module, changed, clock, 10, 0)
    assert "Polynomial(scale=1.0" in repr(kernel) and "penalties='current'" in repr(kernel)


def test_one_cycle_rises_and_falls() -> None:
    cycle = protocol.OneCycle(peak=2.0, steps=100)
    values = [cycle(k) for k in range(1, 101)]
    assert max(values) == cycle(20) == pytest.approx(2.0)
    assert cycle(10) == pytest.approx(1.0)
    assert all(value > 0.0 for value in values)
    assert values[:20] == sorted(values[:20]) and values[19:] == sorted(values[19:])[::-1]


def test_the_cpu_preset_reaches_its_target_to_the_last_weight() -> None:
    steps, weights = 700, 272_474
    schedule = protocol.Clock(steps, 45_000).sparsity(0.9, protocol.CPU.pruning_damping)
    reached = [k for k in range(1, steps + 1) if round(schedule(k) * weights) == 245_227]
    assert reached and reached == list(range(reached[0], steps + 1))
    assert reached[0] < 0.75 * steps


# -- the rows


def kernel_of(name: str) -> tuple[Any, aeb.AEBKernel]:
    module = networks.ResNet20(width=8, depth=1)
    clock = protocol.Clock(steps=100, data=150)
    net, kernel = methods.build(name, module, protocol.SMOKE, clock, 10, seed=0)
    return net, kernel


def test_rows_differ_in_prior_temperature_and_learning_alone() -> None:
    kernels = {key: kernel_of(f"{key}@90")[1] for key in methods.METHODS}
    nets = {key: kernel_of(f"{key}@90")[0] for key in methods.METHODS}
    assert {key for key, net in nets.items() if net.sparse_sites} == {
        "a-sghmc-em",
        "sghmc-sa",
        "a-sghmc-sa",
    }
    assert {key for key, k in kernels.items() if k.inverse_temperature(100) > 1000.0} == {
        "a-sghmc",
        "a-sghmc-em",
        "a-sghmc-sa",
    }
    assert kernels["a-sghmc-em"].adaptation.weight_at(1) == 1.0
    assert 0.0 < kernels["a-sghmc-sa"].adaptation.weight_at(1) < 1.0
    assert len({kernel.pruning for kernel in kernels.values()}) == 1
    assert len({kernel.transition.step_size for kernel in kernels.values()}) == 1


def test_magnitude_pruning_descends_without_noise() -> None:
    transition = kernel_of("gmp@90")[1].transition
    position, gradient = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    state = transition.init(position)
    momentum = torch.zeros(2)
    for _ in range(3):
        noise = torch.full((2,), 1e6)
        state = transition.step(state, gradient, noise, StepNumbers(0.01, 1000.0))
        momentum = 0.9 * momentum + 0.01 * gradient
        position = position + momentum
    assert torch.equal(state.position, position)


def test_sparse_layers_are_the_3x3_convolutions_of_the_blocks() -> None:
    module = networks.resnet20()
    sites = methods.sparse_sites(module)
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    assert len(sites) == 18 and sum(sizes[name] for name in sites) == 267_264
    assert sum(sizes.values()) == 272_474


def test_unknown_rows_are_no_rows() -> None:
    assert methods.parse_task("gmp@90") == ("gmp", 90)
    for name in ("gmp", "gmp@91", "sgd@90", "gmp@x"):
        with pytest.raises(KeyError):
            methods.parse_task(name)


# -- the tables


def test_differences_are_paired_by_seed_and_sparsity() -> None:
    given = {
        (0, "a-sghmc-sa@90"): 0.80,
        (1, "a-sghmc-sa@90"): 0.90,
        (0, "gmp@90"): 0.79,
        (1, "gmp@90"): 0.86,
        (2, "gmp@90"): 0.10,
        (0, "gmp@50"): 0.70,
    }
    rows = [
        {
            **dict.fromkeys(sparse.FIGURES, "nan"),
            "seed": str(seed),
            "method": name,
            "accuracy_last": str(accuracy),
        }
        for (seed, name), accuracy in given.items()
    ]
    summary = report.tabulate(rows)
    line = summary.loc[(90, "gmp")]
    assert line["replicates"] == 3
    # -1 and -4 points: mean -2.5, standard error 3 / sqrt(2) / sqrt(2)
    assert line["difference_last_mean"] == pytest.approx(-2.5)
    assert line["difference_last_se"] == pytest.approx(1.5)
    assert line["accuracy_last_mean"] == pytest.approx(100 * (0.79 + 0.86 + 0.10) / 3)
    assert math.isnan(summary.loc[(50, "gmp")]["difference_last_mean"])
    assert math.isnan(summary.loc[(90, "a-sghmc-sa")]["difference_last_mean"])
    assert report.paper_drop("a-sghmc-sa", 90) == pytest.approx(2.44)


# -- a run


def read_replicates(out: Path) -> list[dict[str, str]]:
    return read_rows(out / "replicates.csv")


def command_line(out: Path, *more: str) -> list[str]:
    return ["--smoke", "--out", str(out), "--methods", "a-sghmc-sa", "gmp", *more]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a smoke run that has ended."""
    out = tmp_path_factory.mktemp("resnet")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert resnet_cifar.main(command_line(out)) == 0
    torch.set_num_threads(threads)
    return out


def test_a_run_leaves_rows_tables_and_a_figure(finished_run: Path) -> None:
    assert [(row["seed"], row["method"]) for row in read_replicates(finished_run)] == [
        ("0", "a-sghmc-sa@90"),
        ("0", "gmp@90"),
    ]
    for name in ("dense.pt", "table.csv", "table.md", "drops.png", "curves.png"):
        assert (finished_run / name).stat().st_size > 0
    page = (finished_run / "table.md").read_text(encoding="utf-8")
    assert "A-SGHMC-SA" in page and "gradual magnitude pruning" in page


def test_pruning_ends_at_the_exact_sparsity(finished_run: Path) -> None:
    """Of the exported network, whatever the method."""
    network = networks.ResNet20(width=protocol.SMOKE.width, depth=protocol.SMOKE.depth)
    total = sum(parameter.numel() for parameter in network.parameters())
    for row in read_replicates(finished_run):
        # six digits are stored
        assert float(row["sparsity"]) == pytest.approx(round(0.9 * total) / total, abs=1e-6)


def test_finished_rows_are_not_made_again(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished_run / "replicates.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(resnet_cifar, "run_one", lambda *_, **__: pytest.fail("made again"))
        patch.setattr(
            dense, "_train", lambda *_: pytest.fail("the dense network was trained again")
        )
        assert resnet_cifar.main(command_line(finished_run)) == 0
    assert (finished_run / "replicates.csv").read_bytes() == before


def test_rows_and_networks_of_other_settings_are_refused(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished_run / "replicates.csv").read_bytes()
    assert resnet_cifar.main(command_line(finished_run, "--step-scale", "7")) == 2
    assert "Choose another --out" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="was made with"):
        resnet_cifar.main(command_line(finished_run, "--precision", "bf16"))
    assert (finished_run / "replicates.csv").read_bytes() == before


@pytest.mark.slow
@pytest.mark.tutorial
def test_a_run_on_packed_images_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an accelerator of ten minutes is for, at smoke size on this machine's processor."""
    made_up = data.load("cifar10", None)
    with monkeypatch.context() as patch:
        pack_cifar = importlib.import_module("pack_cifar")
        patch.setattr(pack_cifar, "load", lambda *_: made_up)
        assert pack_cifar.main(["--data-dir", "x", "--out", str(tmp_path)]) == 0
    words = ["--precision", "bf16", "--data-dir", str(tmp_path), "--methods", "a-sghmc-sa"]
    assert resnet_cifar.main(["--smoke", "--out", str(tmp_path / "out"), *words]) == 0
    (row,) = read_replicates(tmp_path / "out")
    assert 0.0 <= float(row["accuracy_corrupted_average"]) <= 1.0
    gpu = resnet_cifar.parse(["--data-dir", "x", "--preset", "gpu"]).protocol
    assert (gpu.sparse_batch, gpu.precision, gpu.validation) == (1000, "bf16", 5_000)


def test_sparse_stage_needs_a_dense_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resnet_cifar.main(command_line(tmp_path, "--stage", "sparse")) == 2
    assert "--stage dense first" in capsys.readouterr().err


def test_validation_needs_images_held_out() -> None:
    with pytest.raises(SystemExit):
        resnet_cifar.parse(["--data-dir", "x", "--score", "validation"])
    assert resnet_cifar.parse(["--data-dir", "x"]).protocol == protocol.FULL
