# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The checkpoint folder of a run::

    run.pt                     description of the run: kernel options, number of draws, data
    chain-0.pt                 state of chain 0, or of all chains where they are vectorized
    chain-0-draws-000000000.pt its draws from number 0 up to the next such file

Every file is written under another name and renamed when it is complete, and a file of draws is not
written again once a state counts its draws: whenever the process dies, the folder holds the last
complete checkpoint. Files hold tensors and plain values, are read without running code from them
(``weights_only``), and have checksums that are compared when they are read.
"""

from __future__ import annotations

import io
import os
import socket
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyro_aeb.errors import CheckpointError, ModelError
from pyro_aeb.storage.recorder import StoredDraws, map_draws

FORMAT = 1
"""Incremented whenever older files can no longer be read."""

SEGMENT_BYTES = 2**20
"""Approximate size of a file of draws; while it is written, its draws are in memory twice."""


class Checkpoint:
    """
    A folder with a run.

    :param path: of the folder, which is made if it is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def exists(self) -> bool:
        """Return whether there is a run in the folder."""
        return (self.path / "run.pt").exists()

    def describe(self, run: Mapping[str, Any]) -> None:
        """Write the description of the run: plain values and tensors."""
        self.path.mkdir(parents=True, exist_ok=True)
        owner = f"{socket.gethostname()}-{os.getpid()}."  # several ranks may write it at a time
        _write(self.path / "run.pt", partial(_save, {"format": FORMAT, **run}), owner)

    def read_description(self, *keys: str) -> dict[str, Any]:
        """
        Return the description of the run.

        :raises CheckpointError: if there is none, or it cannot be read.
        """
        if not self.exists():
            raise CheckpointError(
                f"{self.path} holds no run, expected a folder that MCMC(..., checkpoint=path) has "
                "written"
            )
        run: dict[str, Any] = _read(self.path / "run.pt", "format")
        if not isinstance(run["format"], int) or run["format"] != FORMAT:
            raise CheckpointError(
                f"{self.path} is of format {run['format']!r}, expected {FORMAT}; it was "
                "written by another version of pyro_aeb, which can read it"
            )
        if missing := sorted({*keys} - run.keys()):
            raise CheckpointError(
                f"{self.path / 'run.pt'} lacks {missing}, expected what MCMC(..., checkpoint=path) "
                "writes there. Use an intact copy"
            )
        return run

    def save(self, chain: int, state: bytes, draws: StoredDraws | None, first: int) -> None:
        """
        Save the state of a chain, after its new draws.

        :param int chain: its number, that of the first where chains are vectorized.
        :param bytes state: from :func:`to_bytes`.
        :param draws: those from number ``first`` on; None if there are none, or a trace has them.
        :param int first: number of draws that the last state counts.
        """
        if draws is not None:
            count, size = _length(draws), sum(x.nbytes for g in draws.values() for x in g.values())
            length = max(SEGMENT_BYTES * count // max(size, 1), 1)
            for start in range(0, count, length):
                segment = _copy(draws, slice(start, start + length))
                _write(self._segment(chain, first + start), partial(_save, segment))
        _write(self.path / f"chain-{chain}.pt", lambda part: Path(part).write_bytes(state))

    def state(self, chain: int) -> bytes | None:
        """Return the saved state of a chain, None if there is none."""
        path = self.path / f"chain-{chain}.pt"
        return _read_bytes(path) if path.exists() else None

    def draws(self, chain: int, count: int) -> Iterator[StoredDraws]:
        """
        Yield the draws of a chain, file by file.

        :param int count: number of draws that its state counts.
        :raises CheckpointError: if some are missing.
        """
        read = 0
        while read < count:
            path = self._segment(chain, read)
            if not path.exists():
                raise CheckpointError(
                    f"{path} is missing: the folder holds {read} of the {count} draws that chain "
                    f"{chain} had made. Copy a checkpoint as a whole folder"
                )
            segment: StoredDraws = _read(path, "posterior", "sample_stats")
            with check_contents(str(path)):
                length = _length(segment)
                if not length:
                    raise ValueError("no draws")
            read += length
            yield segment

    def _segment(self, chain: int, first: int) -> Path:
        return self.path / f"chain-{chain}-draws-{first:09d}.pt"


def to_bytes(value: Any) -> bytes:
    """Return tensors and plain values as the bytes of a file."""
    buffer = io.BytesIO()
    _save(value, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes, name: str, *keys: str) -> Any:
    """
    Return the dictionary given to :func:`to_bytes`, with tensors on the CPU, without running code
    from the data.

    :raises CheckpointError: if the data cannot be read, or a checksum is wrong.
    """
    reason = f"expected a dictionary with {list(keys)}"
    try:
        _check_archive(data)
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if isinstance(value, dict) and value.keys() >= {*keys}:
            return value
    except Exception as error:  # the data may be anything
        reason = f"{type(error).__name__}: {error}".partition(".")[0].strip(": ")
    raise CheckpointError(
        f"{name} cannot be read ({reason}): it is truncated, changed, or no file of a checkpoint. "
        "Use an intact copy"
    )


@contextmanager
def check_contents(name: str) -> Iterator[None]:
    """
    Raise a CheckpointError in place of errors that unexpected values cause inside. Errors of this
    package, which say more, remain.

    :param str name: of the file that is read, for the error.
    """
    try:
        yield
    except (ModelError, CheckpointError):
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{name} holds other values than a run writes there ({type(error).__name__}: {error}); "
            "it was changed, or written by another version of pyro_aeb. Use an intact copy"
        ) from error


def _length(draws: StoredDraws) -> int:
    return next(iter(draws["sample_stats"].values())).shape[1]


def _copy(draws: StoredDraws, place: slice) -> StoredDraws:
    """Copy some draws: a file of views would hold all that they are views of."""
    return map_draws(lambda values: values[:, place].clone(), draws)


def _read(path: Path, *keys: str) -> Any:
    return from_bytes(_read_bytes(path), str(path), *keys)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # a folder, no permission, a disk that fails
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}), expected a file of a checkpoint that this "
            "process may read"
        ) from error


def _check_archive(data: bytes) -> None:
    """
    Check that the data are an archive of tensors with correct checksums. torch.load compares none,
    and opens files of other kinds in ways that are less safe.

    :raises ValueError: if not.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        is_script = any(name.endswith("/constants.pkl") for name in archive.namelist())
        damaged = archive.testzip()
    if is_script or not data.startswith(b"PK\x03\x04"):
        raise ValueError("no archive of tensors")
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged!r} in it does not fit")


def _save(value: Any, file: Any) -> None:
    """Call torch.save with the checksums that :func:`_check_archive` compares."""
    options: Any = torch.serialization
    if not hasattr(options, "set_crc32_options"):  # an older torch, which always writes them
        torch.save(value, file)
        return
    before = options.get_crc32_options()
    options.set_crc32_options(True)
    try:
        torch.save(value, file)
    finally:
        options.set_crc32_options(before)


def _write(path: Path, write: Callable[[str], object], owner: str = "") -> None:
    """Write a file so that at any moment the old or the new one is there as a whole."""
    part = path.with_name(f"{path.name}.{owner}part")
    write(str(part))
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
