# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Files from elsewhere: no code is run from them, and a damaged one is an error that names it, never
other numbers. (Checkpoints and traces in use have tests of their own.)
"""

from __future__ import annotations

import ast
import copy
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import count_refusal, raises_with
from runs import DATA, X, Y, assert_same_records, copy_records, make_mcmc, resume_mcmc

import pyro_aeb
from pyro_aeb import CheckpointError, ModelError
from pyro_aeb.storage.checkpoint import from_bytes, to_bytes
from pyro_aeb.storage.zarr_trace import TraceFile, open_trace

CONTENT = {"numbers": torch.linspace(-1.0, 1.0, 50), "names": ["a", "b"], "step": 7}


class Code:
    """Makes a folder where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self):
        return os.mkdir, (self.proof,)


def test_no_file_is_unpickled():
    """All calls of the package to pickle, torch.load and NumPy's loader."""
    found = {}
    for file in Path(pyro_aeb.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                call = ast.unparse(node.func)
                if call.endswith((".load", ".loads", ".open_dataset")):
                    found.setdefault(file.name, set()).add(call)
    reading = {
        name: {c for c in calls if c.split(".")[0] in ("pickle", "torch", "np", "joblib", "zarr")}
        for name, calls in found.items()
    }
    assert {name: calls for name, calls in reading.items() if calls} == {
        "checkpoint.py": {"torch.load"},  # weights_only, tested below
        "contract.py": {"pickle.loads"},  # of what it has pickled itself, and so is the next
        "parallel.py": {"pickle.loads"},
    }


# -- a file of a checkpoint


def legacy_tar_bytes(proof: Path) -> bytes:
    """A file of torch 0.1, which some versions of torch unpickle whatever they are told."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(data := pickle.dumps(Code(proof), 2))
            tar.addfile(member, io.BytesIO(data))
    return whole.getvalue()


def script_bytes(proof: Path) -> bytes:
    """A program of TorchScript, which older versions of torch load as such."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(lambda x: x + 1, torch.ones(1)), buffer)
    return buffer.getvalue()


def saved_bytes(proof: Path, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save({"chain": Code(proof)}, buffer, **options)
    return buffer.getvalue()


KINDS = {
    "a pickle": lambda proof: pickle.dumps({"chain": Code(proof)}),
    "torch.save": saved_bytes,
    "torch.save, old": lambda proof: saved_bytes(proof, _use_new_zipfile_serialization=False),
    "torch.save behind a tar": lambda proof: legacy_tar_bytes(proof) + saved_bytes(proof),
    "a tar": legacy_tar_bytes,
    "TorchScript": script_bytes,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript
@pytest.mark.parametrize("kind", KINDS)
def test_code_is_refused_and_not_run(tmp_path, kind):
    data = KINDS[kind](tmp_path / "proof")
    with raises_with("it.pt cannot be read", "Use an intact copy", error=CheckpointError):
        from_bytes(data, "it.pt", "chain")
    assert not (tmp_path / "proof").exists()


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, chain=np.ones(3))
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"{}", b"\x89HDF\r\n", npz_bytes()], ids=len)
def test_files_of_another_kind(data):
    with raises_with("it.pt cannot be read", "no file of a checkpoint", error=CheckpointError):
        from_bytes(data, "it.pt", "chain")


def test_a_file_that_ends_anywhere():
    whole = to_bytes(CONTENT)
    for length in range(len(whole)):
        with raises_with("it.pt cannot be read", error=CheckpointError):
            from_bytes(whole[:length], "it.pt", "numbers")


def test_a_bit_that_is_flipped_in_any_byte():
    """It is an error, or does not matter, as in the padding between the parts of the file."""
    whole = to_bytes(CONTENT)
    numbers = CONTENT["numbers"].numpy().tobytes()
    start = whole.index(numbers)
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(8, (len(whole),), generator=generator).tolist()
    refused = []
    for place, bit in enumerate(bits):
        data = bytearray(whole)
        data[place] ^= 1 << bit
        try:
            found = from_bytes(bytes(data), "it.pt", "numbers")
        except CheckpointError as error:
            count_refusal(error)
            refused.append(place)
            continue
        assert torch.equal(found["numbers"], CONTENT["numbers"])
        assert {**found, "numbers": 0} == {**CONTENT, "numbers": 0}
    assert {*range(start, start + len(numbers))} <= {*refused}


@pytest.mark.skipif(
    not hasattr(torch.serialization, "set_crc32_options"), reason="torch always writes checksums"
)
def test_checksums_are_written_whatever_torch_is_set_to():
    torch.serialization.set_crc32_options(False)
    try:
        assert from_bytes(to_bytes(CONTENT), "it.pt", "step")["step"] == 7
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)


# -- a folder of a checkpoint


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A checkpoint of two chains, and what is in it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    run = make_mcmc(draws=4, warmup=1, checkpoint=path, every=2)
    run.run(X, Y, **DATA)
    return path, copy_records(run)


FILES = ["run.pt", "chain-1.pt", "chain-0-draws-000000000.pt"]


@pytest.fixture
def folder(finished_run, tmp_path):
    shutil.copytree(finished_run[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", FILES)
def test_a_folder_where_a_file_should_be(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with raises_with(
        str(folder / name), "cannot be read", "expected a file", error=CheckpointError
    ):
        resume_mcmc(folder)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_may_not_be_read(folder, name):
    (folder / name).chmod(0)
    with raises_with(str(folder / name), "Permission denied", error=CheckpointError):
        resume_mcmc(folder)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "run").write_bytes(to_bytes(CONTENT))
    with raises_with(
        str(tmp_path / "run"), "holds no run", "expected a folder", error=CheckpointError
    ):
        resume_mcmc(tmp_path / "run")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_run_that_ends_anywhere(folder, name):
    whole = (folder / name).read_bytes()
    for length in (1, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        (folder / name).write_bytes(whole[:length])
        with raises_with(str(folder / name), "cannot be read", error=CheckpointError):
            resume_mcmc(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_byte_of_a_run_that_has_changed(folder, finished_run, name):
    whole = (folder / name).read_bytes()
    generator = torch.Generator().manual_seed(1)
    refused = 0
    for place in torch.randint(len(whole), (25,), generator=generator).tolist():
        data = bytearray(whole)
        data[place] ^= 255
        (folder / name).write_bytes(data)
        try:
            assert_same_records(copy_records(resume_mcmc(folder)), finished_run[1])
        except CheckpointError as error:
            assert str(folder / name) in str(error)
            count_refusal(error)
            refused += 1
    assert refused


def test_files_of_another_chain(folder):
    """Draws that belong to no one's state are not taken for those of a chain."""
    shutil.copy(folder / "run.pt", folder / "chain-0-draws-000000000.pt")
    with raises_with("chain-0-draws-000000000.pt cannot be read", error=CheckpointError):
        resume_mcmc(folder)


JUNK = (None, "junk", -1, [1, "two"], {"a": 1}, torch.zeros(3))


def value_paths(value, path=()):
    """The paths of all values inside dictionaries and lists, two deep."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if len(path) < 2 and isinstance(inner, (dict, list)) and len(inner) < 30:
            yield from value_paths(inner, (*path, key))


def replace_value(value, path, junk):
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if junk is KeyError and isinstance(inner, dict):
        del inner[path[-1]]
    else:
        inner[path[-1]] = None if junk is KeyError else junk
    return value


@pytest.mark.parametrize("name", FILES)
def test_values_of_another_kind_are_an_error_or_harmless(folder, name):
    """Files with the right checksum, made by someone else: anything but an error from within."""
    content = torch.load(folder / name, weights_only=True)
    refused = 0
    for i, place in enumerate(value_paths(content)):
        junk = (KeyError, *JUNK)[i % (1 + len(JUNK))]
        torch.save(replace_value(content, place, junk), folder / name)
        try:
            run = resume_mcmc(folder)
            run.run(X, Y, **DATA)
        except (CheckpointError, ModelError, ValueError) as error:
            count_refusal(error)
            refused += 1
    assert refused > 5


# -- a trace

SHAPES = {"weight": (2, 3)}


def make_draw(chain: int, number: int) -> dict:
    value = torch.arange(6.0).reshape(2, 3) + 10 * number + 100 * chain
    return {
        "posterior": {"weight": value},
        "sample_stats": {"step": torch.tensor(number), "diverging": torch.tensor(number == 1)},
    }


@pytest.fixture(scope="module")
def written_trace(tmp_path_factory):
    pytest.importorskip("zarr")
    path = tmp_path_factory.mktemp("written") / "run.zarr"
    trace = TraceFile(path, 2, 3)
    for chain in range(2):
        for number in range(3):
            trace.write(chain, number, make_draw(chain, number))
    trace.close()
    return path, trace.read()


@pytest.fixture
def trace(written_trace, tmp_path):
    shutil.copytree(written_trace[0], tmp_path / "run.zarr")
    return tmp_path / "run.zarr"


def read_resumed_trace(path) -> dict:
    return TraceFile(path, 2, 3, resume=True).read()


def read_opened_trace(path) -> dict:
    data = open_trace(path)
    return {
        group: {name: torch.from_numpy(data[group][name].values) for name in ("weight",)}
        for group in ("posterior",)
    } | {
        "sample_stats": {
            name: torch.from_numpy(data["sample_stats"][name].values)
            for name in ("step", "diverging")
        }
    }


READERS = [read_resumed_trace, read_opened_trace]


def is_same(found: dict, expected: dict) -> bool:
    return all(
        torch.equal(found[group][name], value)
        for group, values in expected.items()
        for name, value in values.items()
    )


def is_refused(reader, trace: Path, file: Path, expected: dict) -> bool:
    """Whether a trace whose file has changed is an error. If not, its numbers are as before."""
    try:
        assert is_same(reader(trace), expected), f"{file}: other numbers"
    except ValueError as error:
        assert str(trace) in str(error)
        count_refusal(error)
        return True
    except RuntimeError as error:  # Zarr's own, where values are read as they are used
        assert reader is read_opened_trace
        count_refusal(error)
        return True
    return False


def list_files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def change_metadata(path: Path, key: str, change) -> None:
    """Changes the metadata of an array in both places, with the right checksum."""
    from pyro_aeb.storage.zarr_metadata import consolidate

    nodes = json.loads((path / ".zmetadata").read_text())["metadata"]
    change(nodes[key])
    (path / key).write_text(json.dumps(nodes[key]))
    (path / ".zmetadata").write_text(consolidate(nodes))


PICKLE = {"id": "pickle", "protocol": 2}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "changes",
    [
        {"filters": [PICKLE], "compressor": None, "dtype": "|O", "fill_value": None},
        {"filters": [PICKLE], "compressor": None},
        {"compressor": PICKLE},
        {"filters": [{"id": "crc32"}, PICKLE], "dtype": "|O", "fill_value": None},
        {"dtype": "|O"},
        {"dtype": [["a", "<f4"]]},
    ],
    ids=str,
)
def test_a_codec_that_runs_code_is_refused(trace, tmp_path, changes, reader):
    change_metadata(trace, "posterior/weight/.zarray", lambda node: node.update(changes))
    for chunk in (trace / "posterior" / "weight").glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Code(tmp_path / "proof")))
    with raises_with(str(trace), "is damaged", "posterior/weight/.zarray", error=ValueError):
        reader(trace)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("reader", READERS)
def test_metadata_of_another_format_beside_those_that_are_read(trace, reader):
    for place in (".", "posterior", "posterior/weight"):
        other = trace / place / "zarr.json"
        other.write_text('{"zarr_format": 3, "node_type": "array", "codecs": [{"name": "pickle"}]}')
        with raises_with(str(trace), "is damaged", "zarr.json", error=ValueError):
            reader(trace)
        other.unlink()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("key", ["../other/.zarray", "/etc/.zarray", "posterior/x", "zarr.json"])
def test_names_that_lead_out_of_the_trace(trace, key, reader):
    text = json.loads((trace / ".zmetadata").read_text())
    text["metadata"][key] = text["metadata"]["posterior/weight/.zarray"]
    del text["checksum"]
    (trace / ".zmetadata").write_text(json.dumps(text))
    with raises_with(str(trace), "is damaged", repr(key), error=ValueError):
        reader(trace)


@pytest.mark.parametrize("reader", READERS)
def test_a_trace_without_a_checksum_of_its_metadata_is_read(trace, written_trace, reader):
    """As the first versions wrote them."""
    text = json.loads((trace / ".zmetadata").read_text())
    del text["checksum"]
    (trace / ".zmetadata").write_text(json.dumps(text))
    assert is_same(reader(trace), written_trace[1])


@pytest.mark.parametrize("reader", READERS)
def test_a_byte_of_a_trace_that_has_changed(trace, written_trace, reader):
    generator = torch.Generator().manual_seed(2)
    refused = 0
    for file in list_files(trace):
        whole = file.read_bytes()
        for place in torch.randint(max(len(whole), 1), (4,), generator=generator).tolist():
            data = bytearray(whole)
            data[place] ^= 1 << (place % 8)
            file.write_bytes(data)
            refused += is_refused(reader, trace, file, written_trace[1])
        file.write_bytes(whole)
    assert refused


@pytest.mark.parametrize("reader", READERS)
def test_a_file_of_a_trace_that_ends_early_or_is_missing(trace, written_trace, reader):
    refused = 0
    for file in list_files(trace):
        whole = file.read_bytes()
        for end in (None, 0, 1, len(whole) // 2, len(whole) - 1):
            if end is None:
                file.unlink()
            else:
                file.write_bytes(whole[:end])
            refused += is_refused(reader, trace, file, written_trace[1])
            file.write_bytes(whole)
    assert refused


@pytest.mark.parametrize("reader", READERS)
def test_numbers_that_have_changed_are_named(trace, reader):
    chunk = next((trace / "posterior" / "weight").glob("[0-9]*"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises((ValueError, RuntimeError), match="checksum|damaged|corruption"):
        reader(trace)


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_and_a_file_in_the_place_of_one_another(trace, tmp_path, reader):
    chunk = next((trace / "posterior" / "weight").glob("[0-9]*"))
    chunk.unlink()
    chunk.mkdir()
    with raises_with(str(trace), "lacks the files", "posterior/weight", error=ValueError):
        reader(trace)
    (tmp_path / "file.zarr").write_bytes(b"")
    with raises_with("file.zarr", "is no trace", "expected a folder", error=ValueError):
        reader(tmp_path / "file.zarr")
