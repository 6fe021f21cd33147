# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Which of several processes this is, as :mod:`torch.distributed` counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pyro_aeb.arguments import Arguments, tensors_of


class Ranks(NamedTuple):
    """
    A place among processes that run the same program.

    :param int rank: of this process, from 0.
    :param int world: how many there are.
    """

    rank: int = 0
    world: int = 1


ALONE = Ranks()


def the_ranks(option: str) -> Ranks:
    """
    This process's place in the process group.

    :param str option: what needs one, for the error.
    :raises RuntimeError: if there is no process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{option} needs a process group, and there is none. Call "
            "torch.distributed.init_process_group() at the start of the program, and start it with "
            "`torchrun --nproc_per_node 2 program.py`"
        )
    return Ranks(dist.get_rank(), dist.get_world_size())


def check_as_begun(ranks: Ranks, begun: int | None) -> None:
    """
    :param Ranks ranks: those that share a chain's data.
    :param begun: how many there were when the run began; None where that is not known.
    :raises ValueError: if there are more or fewer now.
    """
    if begun is not None and ranks.world != begun:
        raise ValueError(
            f"a chain's minibatches are shared out among {ranks.world} ranks, and the run began "
            f"with {begun}, so its steps would be on other data; go on with data_parallel="
            f"{begun > 1} and {begun} processes in all, or begin another run"
        )


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
        for name, t in tensors_of(Arguments(args, kwargs))
    }


def _absolute_sum(tensor: torch.Tensor) -> str:
    return f"{float(tensor.detach().abs().sum(dtype=torch.float64)):.6g}"
