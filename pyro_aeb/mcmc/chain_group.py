# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Groups of chains that advance together, and the loop that makes their draws.

A chain that runs alone is a group of its own; vectorized chains are one group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_aeb.data.ranks import Ranks
from pyro_aeb.errors import NonFiniteError, RankError
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.kernel.chain import Chain
from pyro_aeb.kernel.chain_state import load, state_of
from pyro_aeb.model.side_effects import global_random_state, set_global_random_state
from pyro_aeb.posterior.data_parallel import check_agreement, ranks_of_data, values_of
from pyro_aeb.storage.checkpoint import check_contents, from_bytes, to_bytes
from pyro_aeb.storage.recorder import Recorder

Hook = Callable[[AEBKernel, Mapping[str, Tensor], str, int], Any]


@dataclass(frozen=True)
class Plan:
    """
    The steps at which draws are made.

    :param int warmup: draws of warm-up, which are not kept.
    :param int thinning: draws of the kernel for every one that is kept.
    :param int steps: steps of a draw of the kernel.
    """

    warmup: int
    kept: int
    thinning: int
    steps: int

    @property
    def draws(self) -> int:
        """Number of all draws, warm-up included."""
        return self.warmup + self.kept

    def kept_of(self, draws: int) -> int:
        """Return how many of the first ``draws`` draws are kept."""
        return max(draws - self.warmup, 0)

    def step_of(self, draw: int) -> int:
        """Return the step after which draw number ``draw`` is made, counted from 1."""
        warmup = min(draw, self.warmup)
        return self.steps * (warmup + self.thinning * (draw - warmup))


class Sink(Protocol):
    """Receives what a running chain group makes, besides the draws that its recorder gets."""

    def start(self, metadata: dict[str, Any]) -> None:
        """Prepare for draws; the chain has started."""
        ...

    def draw(self, figures: Callable[[], Mapping[str, str]]) -> None:
        """Count a draw, which has been recorded; ``figures`` are those of a progress bar."""
        ...

    def save(self, snapshot: Callable[[], bytes]) -> None:
        """Save the state of the chain."""
        ...

    def close(self) -> None:
        """End the run of the group."""
        ...


@dataclass
class ChainGroup:
    """
    A chain of a run, or several vectorized ones.

    :param str name: added to the stage that hooks and progress bars show, such as ``" [3]"``.
    :param chain: once it has started in this process.
    :param saved: the state of a chain that has not, from a checkpoint or another process.
    :param buffers: those of the chain while another chain may change them in the modules.
    :param bool own_random: whether the global random state is restored with the chain's. It is not
        where groups run in turn in one process: each then continues the stream of the one before.
    """

    numbers: tuple[int, ...]
    name: str = ""
    chain: Chain | None = None
    saved: Mapping[str, Any] | None = None
    buffers: list[Tensor] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    draws: int = 0
    saved_draws: int = 0
    own_random: bool = True

    @property
    def first(self) -> int:
        """Number of its first chain."""
        return self.numbers[0]

    @property
    def vectorized(self) -> bool:
        """Whether it has several chains, which step together."""
        return len(self.numbers) > 1

    @property
    def row(self) -> int | None:
        """Index of its draws in a store; None for those of all chains."""
        return None if self.vectorized else self.first

    def start(
        self,
        kernel: AEBKernel,
        plan: Plan,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        recorder: Recorder | None = None,
    ) -> Chain:
        """
        Start the chain, restore it, or continue with it, as the kernel's chain.

        :param Recorder recorder: receives the draws of a chain that is new in this process.
        """
        if self.chain is not None:
            kernel.take_up(self.chain)
            if self.buffers is not None:
                self.chain.buffers.load(self.buffers)
            return self.chain
        before = global_random_state()
        chains = self.numbers if self.vectorized else self.first
        kernel.start(plan.warmup, chains, args, kwargs, recorder)
        if self.saved is not None:
            load(kernel.chain, self.saved)
            set_global_random_state(self.saved["random"] if self.own_random else before)
        self.chain, self.saved = kernel.chain, None
        return self.chain

    def run(
        self,
        kernel: AEBKernel,
        plan: Plan,
        sink: Sink,
        between: Callable[[], object],
        hook: Hook | None,
        every: int,
    ) -> None:
        """
        Make all remaining draws of a plan.

        :param between: called before every step; an exception that it raises stops the chain there.
            Ranks of one chain call it after every draw, and all stop where it raises on one.
        :param int every: draws between two saves. The starting point is saved too, and the state at
            the end, unless the chain diverged.
        """
        chain, ranks = kernel.chain, ranks_of_data(kernel.data_parallel)
        alone, is_valid, snapshot = ranks.world == 1, True, partial(self.snapshot, kernel)
        agree_to_stop(ranks, chain, int)
        with closing(sink):
            sink.start(kernel.metadata())
            if chain.step == 0:
                sink.save(snapshot)
            try:
                while chain.draws < plan.draws:
                    steps = plan.step_of(chain.draws + 1) - chain.step
                    draw = kernel.advance(steps, between if alone else None, plan.thinning)
                    self.draws = chain.draws
                    stop = agree_to_stop(ranks, chain, between)
                    sink.draw(kernel.logging)
                    if hook is not None:
                        hook(kernel, draw, *self._stage(plan))
                    if chain.draws % every == 0:
                        sink.save(snapshot)
                    if stop:
                        raise KeyboardInterrupt
            except (NonFiniteError, RankError):
                is_valid = False
                raise
            finally:
                self._suspend(kernel)
                if is_valid and not chain.torn:
                    sink.save(snapshot)

    def snapshot(self, kernel: AEBKernel) -> bytes:
        """Return the state of the kernel's chain, as the bytes of a file."""
        metadata = {name: x for name, x in kernel.metadata().items() if name != "observed_data"}
        return to_bytes({"chain": state_of(kernel.chain), "facts": metadata})

    def saved_bytes(self) -> bytes | None:
        """Return the saved state as a snapshot, without metadata; None where there is none."""
        return None if self.saved is None else to_bytes({"chain": self.saved, "facts": {}})

    def restore(self, state: bytes, name: str) -> None:
        """
        Return to the state of a snapshot; the chain starts from it.

        :raises CheckpointError: if it is not one.
        """
        content = from_bytes(state, name, "chain", "facts")
        observed = {n: data for n, data in self.metadata.items() if n == "observed_data"}
        with check_contents(name):
            saved = {**content["chain"], "step": int(content["chain"]["step"])}
            if "random" not in saved:
                raise ValueError("no random state")
            if saved.get("tuning") is not None:
                int(saved["tuning"]["progress"]["drawn_at"])
            self.draws, self.metadata = int(saved["draws"]), {**content["facts"], **observed}
        self.saved, self.chain, self.buffers = saved, None, None

    def _suspend(self, kernel: AEBKernel) -> None:
        """Keep the chain for a later run, and leave its buffers in the modules."""
        chain = kernel.chain
        self.metadata = kernel.metadata()
        kernel.warn_of_draws()
        chain.finished = True
        chain.data.suspend()
        chain.buffers.copy_last_to_modules()
        self.buffers = chain.buffers.copies()

    def _stage(self, plan: Plan) -> tuple[str, int]:
        """Return the stage of the last draw and its number in it, as Pyro's hooks get them."""
        number = self.draws - 1
        if number < plan.warmup:
            return f"Warmup{self.name}", number
        return f"Sample{self.name}", number - plan.warmup


def share_random_stream(
    groups: Sequence[ChainGroup], plan: Plan, last: int
) -> dict[str, Any] | None:
    """
    Let restored groups share one stream of global random numbers, as in the process that ran one
    after the other. With its own saved state, the first would repeat the numbers of the second.

    :param int last: kept draws that the current turn, or the last one, adds to every group.
    :returns: the state of the stream, None if no group had started.
    """
    for group in groups:
        group.own_random = False
    started = [group.saved for group in groups if group.saved is not None]
    in_turn = [saved for saved in started if _has_begun(saved, plan, last)] or started
    return in_turn[-1]["random"] if in_turn else None


def _has_begun(saved: Mapping[str, Any], plan: Plan, last: int) -> bool:
    """Return whether a saved chain has made a step of the last draws of a plan."""
    if plan.kept <= last:
        return True
    first = plan.draws - last
    if saved.get("tuning") is None:
        return bool(saved["step"] > plan.step_of(first))
    drawn_at = saved["tuning"]["progress"]["drawn_at"]
    return bool(saved["draws"] > first or (saved["draws"] == first and saved["step"] > drawn_at))


def agree_to_stop(ranks: Ranks, chain: Chain, between: Callable[[], object]) -> bool:
    """
    Check that all ranks have made the same draw; return whether one of them is to stop after it.

    :param Ranks ranks: that run one chain together; of one process the result is False.
    :param between: raises KeyboardInterrupt where this rank is to stop.
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
    return check_agreement((place, *chain.state, *values_of(chain.latents)), stop)
