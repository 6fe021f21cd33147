# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The draws of a run, one after the other.

A *lane* is what advances at one time: a chain, or several chains that step together. A
:class:`Plan` says at which step every draw of a lane is taken, so that a lane that stopped anywhere
goes on to the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.data.ranks import Ranks
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.kernel.chain import Chain
from pyro_aeb.kernel.chain_state import load, state_of
from pyro_aeb.model.side_effects import global_random_state, set_global_random_state
from pyro_aeb.posterior.data_parallel import check_agreement, values_of
from pyro_aeb.storage.checkpoint import from_bytes, reading, to_bytes
from pyro_aeb.storage.recorder import Recorder

Hook = Callable[[AEBKernel, Mapping[str, Tensor], str, int], Any]


@dataclass(frozen=True)
class Plan:
    """
    Which steps are draws.

    :param int warmup: draws of warm-up, which are not kept.
    :param int kept: draws that are kept.
    :param int thinning: kernel draws for every one that is kept.
    :param int steps: steps of a kernel draw.
    """

    warmup: int
    kept: int
    thinning: int
    steps: int

    @property
    def draws(self) -> int:
        """All draws, warm-up included."""
        return self.warmup + self.kept

    def kept_of(self, draws: int) -> int:
        """How many of so many draws are kept ones."""
        return max(draws - self.warmup, 0)

    def step_of(self, draw: int) -> int:
        """The step after which draw number ``draw`` is taken, counted from 1."""
        warm = min(draw, self.warmup)
        return self.steps * (warm + self.thinning * (draw - warm))


@dataclass
class Lane:
    """
    A chain of a run, or several that step together.

    :param chains: its number, or their numbers.
    :param state: where it stands, where :attr:`chain` does not: after a resume, or when it ran in
        another process.
    :param chain: the chain, once it has started in this process.
    :param buffers: those of the chain where another one has run in between, which may have changed
        those in the modules.
    :param facts: what the kernel said of it last; see
        :meth:`pyro_aeb.kernel.aeb_kernel.AEBKernel.facts`.
    :param int draws: how many it has made, warm-up included.
    :param int saved: how many kept ones its last checkpoint counts.
    :param bool own_random: whether the global random numbers come back with its state. Not where
        lanes take turns in one process: each then goes on with those that the one before left.
    """

    chains: int | tuple[int, ...]
    state: bytes | None = None
    chain: Chain | None = None
    buffers: list[Tensor] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    draws: int = 0
    saved: int = 0
    own_random: bool = True

    @property
    def numbers(self) -> tuple[int, ...]:
        """The chains' numbers."""
        return (self.chains,) if isinstance(self.chains, int) else self.chains

    def start(
        self,
        kernel: AEBKernel,
        plan: Plan,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        recorder: Recorder | None = None,
    ) -> Chain:
        """
        Makes the kernel's chain the lane's, started, put back or taken up again.

        :param Recorder recorder: receives the draws of a chain that is started or put back.
        """
        if self.chain is not None:
            kernel.take_up(self.chain)
            if self.buffers is not None:
                self.chain.buffers.load(self.buffers)
            return self.chain
        before = global_random_state()
        kernel.start(plan.warmup, self.chains, args, kwargs, recorder)
        self.chain = kernel.chain
        if self.state is not None:
            saved = _saved(self.state)
            load(self.chain, saved)
            set_global_random_state(saved["random"] if self.own_random else before)
            self.state = None
        return self.chain

    def rest(self) -> None:
        """Lets the chain wait, with the buffers that it has left in the modules."""
        assert self.chain is not None
        chain, chain.finished = self.chain, True
        chain.data.suspend()
        chain.buffers.copy_last_to_modules()
        self.buffers = [value.clone() for value in chain.buffers.values()]

    def snapshot(self, kernel: AEBKernel) -> bytes:
        """Where the lane stands, as the bytes of a file; the kernel has its chain."""
        facts = {name: value for name, value in kernel.facts().items() if name != "observed_data"}
        return to_bytes({"chain": state_of(kernel.chain), "facts": facts})

    def put_back(self, state: bytes, name: str) -> None:
        """
        Stands where a snapshot was taken.

        :param bytes state: from :meth:`snapshot`.
        :param str name: where it is from, for errors.
        :raises CheckpointError: if it is no snapshot.
        """
        found = from_bytes(state, name, "chain", "facts")
        self.state, self.chain, self.buffers = state, None, None
        with reading(name):
            self.draws, self.facts = int(found["chain"]["draws"]), {**found["facts"]}


def take_turns(lanes: Sequence[Lane], plan: Plan, last: int) -> dict[str, Any] | None:
    """
    Has lanes that were put back share one stream of global random numbers, as in the process that
    advanced one after the other: going on with each lane's own, the first would draw again what the
    second has drawn.

    :param int last: how many kept draws the turn under way, or the last one, adds to every lane.
    :returns: the state of the stream, None if none of them had begun.
    """
    for lane in lanes:
        lane.own_random = False
    begun = [_saved(lane.state) for lane in lanes if lane.state is not None]
    before = plan.step_of(plan.draws - last) if plan.kept > last else -1
    in_turn = [saved for saved in begun if saved["step"] > before] or begun
    return in_turn[-1]["random"] if in_turn else None


def _saved(state: bytes) -> Any:
    chain = from_bytes(state, "the saved chain", "chain")["chain"]
    with reading("the saved chain"):
        if missing := {"random"} - chain.keys():
            raise ValueError(f"no {missing}")
        return {**chain, "step": int(chain["step"])}


def advance(
    kernel: AEBKernel,
    plan: Plan,
    after_draw: Callable[[Mapping[str, Tensor]], object],
    between: Callable[[], object],
) -> None:
    """
    Takes the draws that the kernel's chain has still to make.

    :param after_draw: called with every draw.
    :param between: called before every step; what it raises stops the chain there.
    """
    chain = kernel.chain
    while chain.draws < plan.draws:
        after_draw(kernel.advance(plan.step_of(chain.draws + 1) - chain.step, between))


def stage_of(chain: Chain, plan: Plan, label: int | None) -> tuple[str, int]:
    """
    The stage of the last draw and its number in the stage, as Pyro's hooks get them.

    :param label: the chain's number where there are several, for ``"Sample [1]"``.
    """
    number = chain.draws - 1
    warm = number < plan.warmup
    stage = "Warmup" if warm else "Sample"
    return (stage if label is None else f"{stage} [{label}]"), (
        number if warm else number - plan.warmup
    )


def agree_to_stop(ranks: Ranks, chain: Chain, between: Callable[[], object]) -> bool:
    """
    Makes sure that all ranks have made the same draw; whether one of them wants to stop after it
    (in a run of one process, False).

    :param between: raises KeyboardInterrupt where this rank wants to.
    :raises RankError: if the ranks are not at the same state.
    """
    if ranks.world == 1:
        return False
    stop = False
    try:
        between()
    except KeyboardInterrupt:
        stop = True
    place = torch.tensor([chain.step, chain.draws], device=chain.structure.device)
    return check_agreement(ranks, (place, *chain.state, *values_of(chain.latents)), stop)
