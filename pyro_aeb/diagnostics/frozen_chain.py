# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A chain with its latents held still, to try things on: further steps, and gradients on other
minibatches. Afterwards the run stands where it stood.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabLatents
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Batch, map_leaves
from pyro_aeb.data.minibatches import Minibatches
from pyro_aeb.errors import NonFiniteError
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.kernel.algorithm import step_numbers
from pyro_aeb.kernel.chain import Chain
from pyro_aeb.kernel.chain_state import load, state_of
from pyro_aeb.mcmc.api import MCMC as AEBMCMC
from pyro_aeb.model.side_effects import (
    preserve_buffers,
    preserve_random_state,
)
from pyro_aeb.storage.inference_data import chain_reports


class Frozen:
    """
    One chain of a run within a ``with`` statement, its latents, step size and temperature those of
    the last step. The chain, module buffers and global random numbers are put back at the end; a
    DataLoader is read again up to its place.

    :param MCMC mcmc: a run of an AEBKernel. Of several chains under Pyro's own MCMC, only the last
        is left in this process, and none of chains in processes of their own.
    :param int chain: which.
    :param str reader: who asks, for errors.
    :raises TypeError: if ``mcmc`` is no run of an AEBKernel.
    :raises RuntimeError: if there is no such chain in this process.
    """

    def __init__(self, mcmc: MCMC, chain: int, reader: str) -> None:
        chain_reports(mcmc, reader)
        self._mcmc, self._number = mcmc, chain
        self.kernel: AEBKernel = mcmc.kernel

    def __enter__(self) -> Frozen:
        with ExitStack() as stack:
            self.chain, self._row = stack.enter_context(
                _chain_of(self._mcmc, self.kernel, self._number)
            )
            stack.enter_context(preserve_buffers())
            stack.callback(load, self.chain, copy.deepcopy(state_of(self.chain)))
            self._stack = stack.pop_all()
        self.structure = self.chain.structure
        self.numbers = step_numbers(self.kernel, max(self.chain.step, 1))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @property
    def state(self) -> Any:
        """The transition's state, of this chain alone."""
        return self._own_state(self.chain.state)

    @property
    def latents(self) -> Latents | None:
        """The chain's latents."""
        latents = self.chain.latents
        if latents is None or self._row is None:
            return latents
        ssgl = latents.ssgl
        if ssgl is not None:
            own: list[Any] = [self._own(v) if _has_axes(v) else v for v in ssgl]
            ssgl = SpikeAndSlabLatents(*own)
        return Latents(ssgl, {name: self._own(value) for name, value in latents.sites.items()})

    def steps(self, count: int, step_size: float | None = None) -> Iterator[tuple[Any, Any]]:
        """
        The states before and after every one of some further steps, with frozen latents. Pruning
        goes on, at the share of the last step.

        :param int count: how many.
        :param float step_size: in place of the run's.
        :raises NonFiniteError: if they run away.
        """
        chain, numbers = self.chain, self.numbers
        if step_size is not None:
            numbers = numbers._replace(step_size=step_size)
        for _ in range(count):
            before, batch = chain.state, chain.data.next()
            found = chain.posterior.evaluate_likelihood(before.position, chain.latents, batch)
            target = chain.target(batch) if chain.needs_target else None
            chain.state, _ = chain.update(
                before, chain.latents, found, chain.noise.draw(), numbers, 0.0, target
            )
            if not bool(torch.isfinite(chain.state.position).all()):
                raise NonFiniteError(
                    f"further steps of size {numbers.step_size:g} ran away, expected the chain to "
                    "stay where it is; the step size is too large",
                    chain.step,
                    None,
                    {},
                )
            yield self._own_state(before), self._own_state(chain.state)
            if chain.pruner is not None:
                k = max(chain.step, 1)
                chain.state = chain.pruner.prune(chain.state, k, chain.wide_probability)

    def minibatch_gradients(self, count: int) -> Tensor:
        """
        Gradients of Q where the chain stands on fresh minibatches, shape (count, D). Plates draw
        each anew from all data; a loader gives the next ones of its epoch.
        """
        order, structure, found = self.kernel.minibatches, self.structure, []
        for _ in range(count):
            indices = Minibatches(structure.plates, order, structure.device).next()
            batch = self.next_batch()._replace(indices=indices)
            gradient = self.chain.posterior.evaluate(self.state.position, self.latents, batch)
            found.append(gradient.gradient)
        return torch.stack(found)

    @property
    def sites(self) -> dict[str, slice]:
        """Where every site is in the position; ``"all"`` is all of it."""
        places, at = {"all": slice(None)}, 0
        for block in self.structure.blocks:
            places[block.name] = slice(at, at + block.size)
            at += block.size
        return places

    def next_batch(self) -> Batch:
        """The next arguments of this chain, without indices of plates."""
        source = self.chain.data.arguments
        arguments = source.next()
        if source.per_chain:
            arguments = map_leaves(lambda v: self._own(v) if _has_axes(v) else v, arguments)
        return Batch(arguments, {})

    def _own(self, value: Any) -> Any:
        return value if self._row is None else value[self._row]

    def _own_state(self, state: Any) -> Any:
        return type(state)(*(self._own(v) if v.dim() else v for v in state))


def _has_axes(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


@contextmanager
def _chain_of(mcmc: Any, kernel: AEBKernel, number: int) -> Iterator[tuple[Chain, int | None]]:
    """
    Make a chain the kernel's; return it and its place on a leading axis of chains, None without
    one. At the end the kernel, module buffers and global random numbers are as before.
    """
    if isinstance(mcmc, AEBMCMC):
        with mcmc.chain(number) as chain_and_place:
            yield chain_and_place
        return
    chain = kernel._chain
    if chain is None or number != mcmc.num_chains - 1:
        raise RuntimeError(
            f"chain {number} is not in this process. Of the chains of Pyro's MCMC, only the last "
            "of those that ran one after the other is; aeb.MCMC keeps them all"
        )
    buffers = chain.buffers.copies()
    with preserve_random_state():
        try:
            yield chain, None
        finally:
            chain.buffers.load(buffers)
