# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A run on disk, from which it goes on.

A checkpoint is a folder::

    run.pt                     what the run is: the kernel's options, the number of draws, the data
    chain-0.pt                 where chain 0 stands (or all chains, where they step together)
    chain-0-draws-000000000.pt its draws from number 0 on, up to the next such file

Every file is written beside its place and moved there when it is complete, and a file of draws is
never written again once a state counts on it: whenever the process dies, the folder holds the last
complete checkpoint. The files hold tensors and plain values only, and are read without running
code from them (``weights_only``). What is in them has a checksum, which is compared when they are
read: a byte that has changed is an error.
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
from pyro_aeb.storage.recorder import StoredDraws

FORMAT = 1
"""Raised by one whenever older files can no longer be read."""


SEGMENT_BYTES = 2**20
"""About how large a file of draws gets: while it is written, its draws are in memory twice."""


class Checkpoint:
    """
    A folder with a run in it.

    :param path: the folder, made where it is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r})"

    def exists(self) -> bool:
        """Whether there is a run in the folder."""
        return (self.path / "run.pt").exists()

    def describe(self, run: Mapping[str, Any]) -> None:
        """Write the description of the run: plain values and tensors."""
        self.path.mkdir(parents=True, exist_ok=True)
        whose = f"{socket.gethostname()}-{os.getpid()}."  # several ranks may write it at a time
        _write(self.path / "run.pt", partial(_save, {"format": FORMAT, **run}), whose)

    def read_description(self, *keys: str) -> dict[str, Any]:
        """
        Return the description of the run.

        :param keys: that it must have.
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
                "writes there. Take a copy that is whole"
            )
        return run

    def save(self, lane: int, state: bytes, rows: StoredDraws | None, since: int) -> None:
        """
        Saves where a chain stands, after its new draws.

        :param int lane: number of the chain, of the first where several step together.
        :param bytes state: its state, by :func:`to_bytes`.
        :param rows: draws from number ``since`` on, by group and name, of shape (chains, draws,
            ...); None where there are none, or they are kept elsewhere.
        :param int since: how many draws the last save counted.
        """
        if rows is not None:
            values = [value for own in rows.values() for value in own.values()]
            count = _length(rows)
            piece = max(SEGMENT_BYTES * count // max(sum(v.nbytes for v in values), 1), 1)
            for first in range(0, count, piece):
                place = slice(first, first + piece)
                own = {g: {n: v[:, place].clone() for n, v in v.items()} for g, v in rows.items()}
                _write(self._segment(lane, since + first), partial(_save, own))
        _write(self.path / f"chain-{lane}.pt", lambda part: Path(part).write_bytes(state))

    def state(self, lane: int) -> bytes | None:
        """What :meth:`save` was given last, None before."""
        path = self.path / f"chain-{lane}.pt"
        return _bytes(path) if path.exists() else None

    def rows(self, lane: int, draws: int) -> Iterator[StoredDraws]:
        """
        The draws of a chain, in pieces that follow one another, read one at a time.

        :param int draws: how many its state counts.
        :raises CheckpointError: if some are missing.
        """
        found = 0
        while found < draws:
            path = self._segment(lane, found)
            if not path.exists():
                raise CheckpointError(
                    f"{path} is missing: the folder holds {found} of the {draws} draws that chain "
                    f"{lane} had made. Copy a checkpoint as a whole folder"
                )
            piece: StoredDraws = _read(path, "posterior", "sample_stats")
            with reading(str(path)):
                length = _length(piece)
                if not length:
                    raise ValueError("no draws")
            found += length
            yield piece

    def _segment(self, lane: int, first: int) -> Path:
        return self.path / f"chain-{lane}-draws-{first:09d}.pt"


def to_bytes(value: Any) -> bytes:
    """Tensors and plain values as the bytes of a file."""
    buffer = io.BytesIO()
    _save(value, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes, name: str, *keys: str) -> Any:
    """
    The dictionary that :func:`to_bytes` was given, without running code from the data, and only if
    all of it is as it was written; tensors are on the CPU.

    :param str name: where the data are from, for the error.
    :param keys: what is in it.
    :raises CheckpointError: if they cannot be read.
    """
    why = f"expected a dictionary with {list(keys)}"
    try:
        _check_archive(data)
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if isinstance(found, dict) and found.keys() >= {*keys}:
            return found
    except Exception as error:  # bytes of anything can be there
        why = f"{type(error).__name__}: {error}".partition(".")[0].strip(": ")
    raise CheckpointError(
        f"{name} cannot be read ({why}): it is truncated, changed, or no file of a checkpoint. "
        "Take a copy that is whole"
    )


def _length(rows: StoredDraws) -> int:
    return next(iter(rows["sample_stats"].values())).shape[1]


def _read(path: Path, *keys: str) -> Any:
    return from_bytes(_bytes(path), str(path), *keys)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # a folder, no permission, a disk that fails
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}), expected a file of a checkpoint that this "
            "process may read"
        ) from error


def _check_archive(data: bytes) -> None:
    """
    That torch.load will find an archive of tensors, with the bytes that were written to it: it
    compares no checksum itself, and opens files of other kinds in ways that are less safe.

    :raises ValueError: if not.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        script = any(name.endswith("/constants.pkl") for name in archive.namelist())
        damaged = archive.testzip()
    if script or not data.startswith(b"PK\x03\x04"):
        raise ValueError("no archive of tensors")
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged!r} in it does not fit")


def _save(value: Any, to: Any) -> None:
    """By torch.save, with the checksums that :func:`_check_archive` compares."""
    options: Any = torch.serialization
    if not hasattr(options, "set_crc32_options"):  # an older torch, which always writes them
        torch.save(value, to)
        return
    before = options.get_crc32_options()
    options.set_crc32_options(True)
    try:
        torch.save(value, to)
    finally:
        options.set_crc32_options(before)


def _write(path: Path, write: Callable[[str], object], whose: str = "") -> None:
    """
    Writes a file so that at any moment there is the old one or the new one, whole.

    :param write: writes what is to be in it to another path.
    """
    part = path.with_name(f"{path.name}.{whose}part")
    write(str(part))
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """
    Where what was read is of another kind than what is written, says so.

    :param str name: what is read, for the error.
    :raises CheckpointError: in place of what goes wrong inside, unless that is a ValueError of this
        package, which says more.
    """
    try:
        yield
    except (ModelError, CheckpointError):
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{name} holds other values than a run writes there ({type(error).__name__}: {error}); "
            "it was changed, or written by another version of pyro_aeb. Take a copy that is whole"
        ) from error
