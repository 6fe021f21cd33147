# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Checkpoints that version 0.1 (commit ba0b3fb) has written are resumed to the end that 0.1 itself
resumed them to. ``tests/tools/make_old_checkpoints.py`` has made them.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import old_runs
import pyro
import pytest
import torch
from old_runs import OPTIONS, RUNS

import pyro_aeb as aeb

FOLDER = Path(__file__).parent / "checkpoints_of_0_1"
STORED = json.loads((FOLDER / "options.json").read_text())


def unpack(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Puts the checkpoint into a folder, and returns what 0.1 recorded."""
    with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.extractfile(member).read())
    return torch.load(folder / "records.pt")


def assert_same(value: torch.Tensor, expected: torch.Tensor, exact: bool, name: str) -> None:
    """
    Bit for bit where the machine computes as the one that made the records. Elsewhere a matrix
    product, a sum or an exponential may differ in the last bit (other vector widths, another
    library), and so does all that follows from it; but whatever is no floating-point number, and
    which numbers are zero, that is, pruned, is the same everywhere.
    """
    assert value.dtype == expected.dtype and value.shape == expected.shape, name
    if exact or not value.dtype.is_floating_point:
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True, msg=name)
    else:
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)
        assert torch.equal(value == 0.0, expected == 0.0), name


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_0_1_is_resumed_to_the_same_draws(name, tmp_path, monkeypatch):
    if name == "trace":
        pytest.importorskip("zarr")
    monkeypatch.chdir(tmp_path)  # where its trace is
    expected = unpack(name, tmp_path)
    exact = json.loads((tmp_path / "arithmetic.json").read_text()) == old_runs.arithmetic()
    pyro.set_rng_seed(99)
    mcmc, model = old_runs.resumed_run(name, "checkpoint")
    before = mcmc.get_samples(group_by_chain=True)
    old_runs.run(name, mcmc)
    found = old_runs.records(mcmc, model)
    for site, draws in before.items():  # those of the checkpoint itself
        chains, count = draws.shape[:2]
        whole = expected[f"posterior: {site}"]
        assert torch.equal(draws, whole[:chains, :count])
        assert 0 < chains * count < whole.shape[0] * whole.shape[1]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert_same(found[key], value, exact, key)


def test_options_of_0_1_are_restored(tmp_path):
    """The classes that 0.1 named by their modules are there, with the same fields."""
    unpack("sequential", tmp_path)
    path = tmp_path / "checkpoint" / "run.pt"
    run = torch.load(path)
    assert len(STORED) == len(OPTIONS)
    for (option, stored), (_, expected) in zip(STORED, OPTIONS, strict=True):
        torch.save({**run, "kernel": {**run["kernel"], option: stored}}, path)
        mcmc = aeb.MCMC.resume(path.parent, old_runs.regression)
        assert getattr(mcmc.kernel, option) == expected
