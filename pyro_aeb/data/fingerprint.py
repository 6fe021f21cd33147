# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Fingerprints of a run's data, compared when it is resumed and between ranks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from pyro_aeb.data.arguments import Arguments, named_tensors
from pyro_aeb.data.loaders import length

Fingerprint = list[tuple[str, str]]
"""Names and descriptions of arguments."""


def fingerprint(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fingerprint:
    """
    Describe every argument: a tensor or array by dtype, shape and CRC, which is the same on all
    machines; a DataLoader by its sizes; a number or string by its value.
    """
    entries = [
        (name, f"{tensor.dtype} of shape {tuple(tensor.shape)}, CRC {_crc(tensor):08x}")
        for name, tensor in named_tensors(Arguments(args, kwargs))
    ]
    for name, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, DataLoader):
            entries.append((repr(name), _loader(value)))
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            crc = zlib.crc32(np.ascontiguousarray(value).data)
            entries.append((repr(name), f"{value.dtype} of shape {value.shape}, CRC {crc:08x}"))
        elif value is None or isinstance(value, (bool, int, float, str)):
            entries.append((repr(name), repr(value)))
    return entries


def check_same(before: Sequence[tuple[str, str]], now: Fingerprint) -> None:
    """
    Check that a run is resumed with the arguments it began with.

    :raises ValueError: if it is not.
    """
    saved, given = dict(before), dict(now)
    for name in {**saved, **given}:
        if saved.get(name) != given.get(name):
            raise ValueError(
                f"argument {name} is {given.get(name, 'missing')}, but the run began with "
                f"{saved.get(name, 'none')}: resume a run with the arguments it began with. For "
                "other data make another MCMC object"
            )


def _crc(tensor: torch.Tensor) -> int:
    """Return the CRC of a tensor's bytes."""
    rows = tensor.detach().resolve_conj().resolve_neg().to_dense().cpu().contiguous().reshape(-1)
    return zlib.crc32(rows.view(torch.uint8).numpy().data)


def _loader(loader: DataLoader) -> str:
    size = length(loader.dataset)
    count = "uncounted" if size is None else size
    return f"a DataLoader of {count} data in batches of {loader.batch_size}"


def check_same_on_all_ranks(descriptions: list[Mapping[str, Any]]) -> None:
    """
    Check that all ranks have the same options and data.

    :raises ValueError: if they differ.
    """
    first = descriptions[0]
    for rank, other in enumerate(descriptions):
        for name in {**first, **other}:
            if other.get(name) != first.get(name):
                raise ValueError(
                    f"{name} is {other.get(name)} on rank {rank} and {first.get(name)} on rank 0, "
                    "expected the same on all; give every rank the same options and data (data "
                    "made at random: with the same seed)"
                )


def describe_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, str]:
    """
    Describe every tensor among a model's arguments, for a comparison between ranks. Descriptions do
    not depend on the order in which a machine adds numbers.
    """
    return {
        f"argument {name}": f"{t.dtype} of shape {tuple(t.shape)}, absolute sum {_absolute_sum(t)}"
        for name, t in named_tensors(Arguments(args, kwargs))
    }


def _absolute_sum(tensor: torch.Tensor) -> str:
    return f"{float(tensor.detach().abs().sum(dtype=torch.float64)):.6g}"
