# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The checkpoint folder of a run: files, and errors of damaged ones."""

from __future__ import annotations

import os
import pickle
import shutil

import pytest
import torch
from refusals import raises_with
from runs import DATA, X, Y, assert_same_records, copy_records, make_mcmc, resume_mcmc

from pyro_aeb import CheckpointError
from pyro_aeb.storage import checkpoint
from pyro_aeb.storage.checkpoint import Checkpoint, from_bytes, to_bytes


def make_records(first: int, count: int, chains: int = 1) -> dict:
    numbers = torch.arange(float(first), first + count).expand(chains, count)
    return {"posterior": {"w": numbers[..., None]}, "sample_stats": {"potential": -numbers}}


@pytest.fixture
def run(tmp_path):
    """A run of two chains with several files of draws, finished."""
    mcmc = make_mcmc(checkpoint=tmp_path / "run", every=3)
    mcmc.run(X, Y, **DATA)
    return mcmc


# -- files


def test_what_was_saved_is_read(tmp_path):
    folder = Checkpoint(tmp_path / "new" / "run")
    assert not folder.exists()
    folder.describe({"draws": 7, "names": ["a", "b"], "tensor": torch.arange(3)})
    folder.save(2, b"first", None, 0)
    folder.save(2, b"second", make_records(0, 4), 0)
    folder.save(2, b"third", make_records(4, 3), 4)
    assert folder.exists() and folder.state(2) == b"third" and folder.state(0) is None
    run = folder.read_description()
    assert run["draws"] == 7 and run["names"] == ["a", "b"]
    assert torch.equal(run["tensor"], torch.arange(3))
    pieces = list(folder.draws(2, 7))
    assert torch.equal(
        torch.cat([p["posterior"]["w"] for p in pieces], 1), make_records(0, 7)["posterior"]["w"]
    )


def test_draws_that_a_state_does_not_count_are_written_anew(tmp_path):
    """A process was killed between its draws and its state, and resumes from the state before."""
    folder = Checkpoint(tmp_path)
    folder.describe({})
    folder.save(0, b"", make_records(0, 2), 0)
    folder.save(0, b"", make_records(20, 6), 2)  # as if its state had not been written
    folder.save(0, b"", make_records(2, 3), 2)
    folder.save(0, b"", make_records(5, 1), 5)
    found = torch.cat([piece["posterior"]["w"] for piece in folder.draws(0, 6)], 1)
    assert found.flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_many_draws_are_written_in_files_of_bounded_size(tmp_path, monkeypatch):
    one = 8  # bytes a draw
    monkeypatch.setattr(checkpoint, "SEGMENT_BYTES", 10 * one)
    folder = Checkpoint(tmp_path)
    folder.describe({})
    folder.save(0, b"", make_records(0, 25), 0)
    lengths = [piece["posterior"]["w"].shape[1] for piece in folder.draws(0, 25)]
    assert lengths == [10, 10, 5]


def test_views_are_written_without_what_they_are_views_of(tmp_path):
    folder = Checkpoint(tmp_path)
    folder.describe({})
    large = torch.zeros(1, 1000, 1000)
    folder.save(
        0, b"", {"posterior": {"w": large[:, 5:7]}, "sample_stats": {"p": large[:, 5:7, 0]}}, 0
    )
    (segment,) = tmp_path.glob("*draws*")
    assert segment.stat().st_size < 20_000


def test_a_file_that_was_being_written_is_not_read(run, tmp_path):
    before = copy_records(run)
    for name in ("run.pt.part", "run.pt.host-1.part", "chain-0.pt.part"):
        (tmp_path / "run" / name).write_bytes(b"half")
    assert_same_records(copy_records(resume_mcmc(tmp_path / "run")), before)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    folder = Checkpoint(tmp_path)
    folder.describe({})
    folder.save(0, b"old", None, 0)

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        folder.save(0, b"new", None, 0)
    assert folder.state(0) == b"old"


# -- folders that are not as they were


def test_a_folder_without_a_run(tmp_path):
    with raises_with(
        str(tmp_path), "holds no run", "MCMC(..., checkpoint=path)", error=CheckpointError
    ):
        resume_mcmc(tmp_path)
    with raises_with("holds no run", error=CheckpointError):
        resume_mcmc(tmp_path / "missing")


def damage(path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_bytes(b"not a checkpoint at all")
    elif how == "a tensor":
        torch.save(torch.ones(3), path)
    elif how == "another dictionary":
        torch.save({"weights": torch.ones(3)}, path)
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes(255 - byte for byte in data[middle:]))


DAMAGES = ["truncated", "empty", "text", "a tensor", "another dictionary", "changed"]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["run.pt", "chain-1.pt", "chain-0-draws-000000000.pt"])
def test_a_damaged_file_is_named(run, tmp_path, name, how):
    path = tmp_path / "run" / name
    assert path.exists()
    damage(path, how)
    with raises_with(str(path), "cannot be read", "Use an intact copy", error=CheckpointError):
        resume_mcmc(tmp_path / "run")


def test_a_missing_file_of_draws_is_named(run, tmp_path):
    first, *_, last = sorted((tmp_path / "run").glob("chain-1-draws-*"))
    last.unlink()
    with raises_with(
        str(last), "is missing", "of the 8 draws", "as a whole folder", error=CheckpointError
    ):
        resume_mcmc(tmp_path / "run")


def test_another_format_is_named(run, tmp_path):
    path = tmp_path / "run" / "run.pt"
    torch.save({**torch.load(path), "format": 99}, path)
    with raises_with("format 99, expected 1", "another version", error=CheckpointError):
        resume_mcmc(tmp_path / "run")


class Malicious:
    """Writes a file where it is unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda v, p: p.write_bytes(pickle.dumps(v, 2))])
@pytest.mark.parametrize("name", ["run.pt", "chain-0.pt", "chain-0-draws-000000000.pt"])
def test_code_in_a_file_is_not_run(run, tmp_path, name, write):
    path = tmp_path / "run" / name
    write({"format": 1, "chain": Malicious(tmp_path / "proof")}, path)
    with raises_with(str(path), "cannot be read", error=CheckpointError):
        resume_mcmc(tmp_path / "run")
    assert not (tmp_path / "proof").exists()


def test_the_code_would_have_run(tmp_path):
    """The test above can fail."""
    torch.save(Malicious(tmp_path / "proof"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "proof").exists()


def test_bytes_of_anything_are_an_error_and_no_other():
    good = to_bytes({"chain": torch.arange(30.0), "facts": [1, "two"]})
    generator = torch.Generator().manual_seed(0)

    def below(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    refused = 0
    for _ in range(300):
        bad = bytearray(good[: below(len(good)) + 1])
        for _ in range(3):
            bad[below(len(bad))] = below(256)
        try:
            from_bytes(bytes(bad), "it", "chain")
        except CheckpointError:
            refused += 1
    assert refused > 250


# -- paths


def test_a_run_is_not_written_over(run, tmp_path):
    with pytest.raises(
        FileExistsError, match="exists already; resume the run .*resume.*or give another path"
    ):
        make_mcmc(checkpoint=tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    for option in ("checkpoint", "trace"):
        with pytest.raises(FileExistsError, match="file exists already"):
            make_mcmc(**{option: tmp_path / "file"})


def test_a_folder_in_which_a_process_died_before_its_first_file_is_free(tmp_path):
    (tmp_path / "run.pt.host-1.part").write_bytes(b"half")
    mcmc = make_mcmc(checkpoint=tmp_path)
    mcmc.run(X, Y, **DATA)
    assert_same_records(copy_records(resume_mcmc(tmp_path)), copy_records(mcmc))


def test_a_checkpoint_may_be_moved(run, tmp_path):
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert_same_records(copy_records(resume_mcmc(tmp_path / "elsewhere")), copy_records(run))


def test_a_trace_that_is_gone_is_named(tmp_path):
    pytest.importorskip("zarr")
    make_mcmc(checkpoint=tmp_path / "run", trace=tmp_path / "draws.zarr").run(X, Y, **DATA)
    shutil.rmtree(tmp_path / "draws.zarr")
    with raises_with("draws.zarr", "is missing", "move it back there", error=CheckpointError):
        resume_mcmc(tmp_path / "run")
