# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The rank of this process in the process group of :mod:`torch.distributed`."""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist


class Ranks(NamedTuple):
    """
    Rank and size of a process group.

    :param int rank: of this process, from 0.
    """

    rank: int = 0
    world: int = 1


ALONE = Ranks()


def process_ranks(option: str) -> Ranks:
    """
    Return rank and size of the process group.

    :param str option: the option that needs one, for the error message.
    :raises RuntimeError: if there is no process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{option} needs a process group, but none is initialized. Call "
            "torch.distributed.init_process_group() at the start of the program, and start it with "
            "`torchrun --nproc_per_node 2 program.py`"
        )
    return Ranks(dist.get_rank(), dist.get_world_size())


def check_world(ranks: Ranks, saved: int | None) -> None:
    """
    Check that as many ranks share a chain's data as when the run began.

    :param saved: their number when the run began; None if unknown.
    :raises ValueError: if the number has changed.
    """
    if saved is not None and ranks.world != saved:
        raise ValueError(
            f"a chain's minibatches are shared out among {ranks.world} ranks, and the run began "
            f"with {saved}, so its steps would be on other data; resume with data_parallel="
            f"{saved > 1} and {saved} processes in all, or begin another run"
        )
