# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Which of several processes this is, as :mod:`torch.distributed` counts them."""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist


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
