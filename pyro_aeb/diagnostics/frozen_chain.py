# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A chain with frozen latents, for experiments: further steps, and gradients on other minibatches.
Afterwards the run is restored.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Batch, map_leaves
from pyro_aeb.data.minibatches import Minibatches
from pyro_aeb.errors import NonFiniteError
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.kernel.algorithm import step_numbers
from pyro_aeb.kernel.chain import Chain
from pyro_aeb.kernel.chain_state import load, state_of
from pyro_aeb.kernel.random_bits import convert_bits
from pyro_aeb.kernel.step_units import in_units
from pyro_aeb.mcmc.api import MCMC as AEBMCMC
from pyro_aeb.model.side_effects import preserve_buffers, preserve_random_state
from pyro_aeb.storage.inference_data import chain_reports


@contextmanager
def freeze(mcmc: MCMC, number: int, caller: str) -> Iterator[FrozenChain]:
    """
    Freeze a chain of a run within a ``with`` statement. On exit the chain, module buffers and
    global random states are restored, and a DataLoader is read again up to its position.

    :param int number: number of the chain. Of the chains of Pyro's own MCMC only the last of those
        that ran sequentially is in this process.
    :raises TypeError: if ``mcmc`` is not a run of an AEBKernel.
    :raises RuntimeError: if the chain is not in this process.
    """
    chain_reports(mcmc, caller)
    with _chain_of(mcmc, number) as (chain, place), preserve_buffers():
        saved = copy.deepcopy(state_of(chain))
        try:
            yield FrozenChain(mcmc.kernel, chain, place)
        finally:
            load(chain, saved)


class FrozenChain:
    """
    A chain, or one place of several that step together, whose latents, step size and temperature
    are those of the last step.
    """

    def __init__(self, kernel: AEBKernel, chain: Chain, place: int | None) -> None:
        self.kernel, self.chain, self._place = kernel, chain, place
        self.structure = chain.structure
        self.numbers = step_numbers(kernel, max(chain.step, 1))

    @property
    def state(self) -> Any:
        """The transition's state of this chain."""
        return self._select_state(self.chain.state)

    @property
    def latents(self) -> Latents | None:
        """The latents of this chain."""
        latents = self.chain.latents
        if latents is None or self._place is None:
            return latents
        ssgl = latents.ssgl
        if ssgl is not None:
            fields: list[Any] = [self._select(value) for value in ssgl]
            ssgl = type(ssgl)(*fields)
        return Latents(ssgl, {name: value[self._place] for name, value in latents.sites.items()})

    def in_units(self, state: Any) -> Any:
        """Return a state of this chain with the weights in the unit of a step."""
        chain = self.chain
        adaptation = chain.posterior.adaptation
        if chain.needs_target or not adaptation.learns_width:
            return state
        return in_units(state, adaptation.step_unit(self.latents))

    @property
    def sites(self) -> dict[str, slice]:
        """The slice of the position that holds each site."""
        places, start = {}, 0
        for block in self.structure.blocks:
            places[block.name] = slice(start, start + block.size)
            start += block.size
        return places

    def steps(self, count: int, step_size: float | None = None) -> Iterator[tuple[Any, Any]]:
        """
        Take further steps with frozen latents, pruning with the sparsity of the last step, and
        yield the states before and after each. The step size is by default the run's.

        :raises NonFiniteError: if the steps diverge.
        """
        chain, numbers = self.chain, self.numbers
        if step_size is not None:
            numbers = numbers._replace(step_size=step_size)
        for _ in range(count):
            before, batch = chain.state, chain.data.next()
            likelihood = chain.posterior.evaluate_likelihood(before.position, chain.latents, batch)
            target = chain.target(batch) if chain.needs_target else None
            noise = convert_bits(chain.noise.draw())
            chain.state, _ = chain.update(
                before, chain.latents, likelihood, noise, numbers, 0.0, target
            )
            if not bool(torch.isfinite(chain.state.position).all()):
                raise NonFiniteError(
                    f"further steps of size {numbers.step_size:g} diverged, expected the chain to "
                    "stay in its stationary law; the step size is too large",
                    chain.step,
                    None,
                    {},
                )
            yield self._select_state(before), self._select_state(chain.state)
            if chain.pruner is not None:
                k = max(chain.step, 1)
                chain.state = chain.pruner.prune(chain.state, k, chain.wide_probability)

    def minibatch_gradients(self, count: int) -> Tensor:
        """
        Compute gradients of Q at the chain's position on fresh minibatches, shape (count, D).
        Plates draw each from all data; a DataLoader gives the next batches of its epoch.
        """
        order, structure, gradients = self.kernel.minibatches, self.structure, []
        for _ in range(count):
            indices = Minibatches(structure.plates, order, structure.device).next()
            batch = self.next_batch()._replace(indices=indices)
            evaluation = self.chain.posterior.evaluate(self.state.position, self.latents, batch)
            gradients.append(evaluation.gradient)
        return torch.stack(gradients)

    def next_batch(self) -> Batch:
        """Return the next batch of this chain, without indices of plates."""
        source = self.chain.data.arguments
        arguments = source.next()
        return Batch(map_leaves(self._select, arguments) if source.per_chain else arguments, {})

    def _select(self, value: Any) -> Any:
        """Select this chain's part of a tensor with a leading axis of chains."""
        has_axis = self._place is not None and isinstance(value, Tensor) and value.dim() > 0
        return value[self._place] if has_axis else value

    def _select_state(self, state: Any) -> Any:
        return type(state)(*map(self._select, state))


@contextmanager
def _chain_of(mcmc: Any, number: int) -> Iterator[tuple[Chain, int | None]]:
    """
    Make a chain the kernel's; return it and its place on a leading axis of chains, None without
    one. On exit the kernel, module buffers and global random states are restored.
    """
    if isinstance(mcmc, AEBMCMC):
        with mcmc.chain(number) as chain_and_place:
            yield chain_and_place
        return
    chain = mcmc.kernel._chain
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
