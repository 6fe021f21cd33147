# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""By what a run knows its data again."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from pyro_aeb.data.arguments import Arguments, named_tensors

Fingerprint = list[tuple[str, str]]
"""Argument, and a word about its value."""


def fingerprint(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fingerprint:
    """
    A word about every argument: of a tensor its dtype, shape and CRC, of a DataLoader its sizes, of
    a number or string itself. A CRC is that of the same bytes in the same order on any machine.

    :param args: positional arguments of ``mcmc.run``.
    :param kwargs: its keyword arguments.
    """
    words = [
        (name, f"{tensor.dtype} of shape {tuple(tensor.shape)}, CRC {_crc(tensor):08x}")
        for name, tensor in named_tensors(Arguments(args, kwargs))
    ]
    for name, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, DataLoader):
            words.append((repr(name), _loader(value)))
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            crc = zlib.crc32(np.ascontiguousarray(value).data)
            words.append((repr(name), f"{value.dtype} of shape {value.shape}, CRC {crc:08x}"))
        elif value is None or isinstance(value, (bool, int, float, str)):
            words.append((repr(name), repr(value)))
    return words


def check_same(before: Sequence[tuple[str, str]], now: Fingerprint) -> None:
    """
    :raises ValueError: if the arguments of a run are not those it began with.
    """
    was, there = dict(before), dict(now)
    for name in {**was, **there}:
        if was.get(name) != there.get(name):
            raise ValueError(
                f"argument {name} is {there.get(name, 'missing')}, but the run began with "
                f"{was.get(name, 'none')}: a run goes on with the arguments it began with. For "
                "other data make another MCMC object"
            )


def _crc(tensor: torch.Tensor) -> int:
    """Of the numbers' bytes: takes about as long as to read them."""
    rows = tensor.detach().resolve_conj().resolve_neg().to_dense().cpu().contiguous().reshape(-1)
    return zlib.crc32(rows.view(torch.uint8).numpy().data)


def _loader(loader: DataLoader) -> str:
    data = loader.dataset
    try:
        size = f"{len(data)}" if isinstance(data, Sized) else "uncounted"
    except (TypeError, NotImplementedError):
        size = "uncounted"
    return f"a DataLoader of {size} data in batches of {loader.batch_size}"


def check_same_everywhere(found: list[Mapping[str, Any]]) -> None:
    """
    :param found: of every rank, what has to be the same on all of them.
    :raises ValueError: if it is not.
    """
    first = found[0]
    for rank, own in enumerate(found):
        for name in {**first, **own}:
            if own.get(name) != first.get(name):
                raise ValueError(
                    f"{name} is {own.get(name)} on rank {rank} and {first.get(name)} on rank 0, "
                    "expected the same on all; give every rank the same options and data (data "
                    "made at random: with the same seed)"
                )


def words_about(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, str]:
    """
    A word about every tensor among a model's arguments, by which ranks compare them. Machines that
    add up in another order say the same.
    """
    return {
        f"argument {name}": f"{t.dtype} of shape {tuple(t.shape)}, absolute sum {_absolute_sum(t)}"
        for name, t in named_tensors(Arguments(args, kwargs))
    }


def _absolute_sum(tensor: torch.Tensor) -> str:
    return f"{float(tensor.detach().abs().sum(dtype=torch.float64)):.6g}"
