# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Structures of weights to prune, and runs of a pruner without a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy

import torch
from torch import Tensor
from torch.distributions.transforms import ExpTransform

from pyro_aeb.model.structure import Block, NormalBlock, SparseBlock, Structure
from pyro_aeb.pruning import Pruner
from pyro_aeb.transitions import SGHMCState, SGLDState

Shape = Sequence[int]

# ResNet20 for CIFAR10: all convolutions but the first are sparse; the first, BatchNorm, the
# shortcuts' and the last layer's weights are not.
RESNET20 = {
    **{f"layer1.{i}.weight": (16, 16, 3, 3) for i in range(6)},
    "layer2.0.weight": (32, 16, 3, 3),
    **{f"layer2.{i}.weight": (32, 32, 3, 3) for i in range(1, 6)},
    "layer3.0.weight": (64, 32, 3, 3),
    **{f"layer3.{i}.weight": (64, 64, 3, 3) for i in range(1, 6)},
}
RESNET20_DENSE = {
    "conv1.weight": (16, 3, 3, 3),
    "bn": (1376,),
    "fc.weight": (10, 64),
    "fc.bias": (10,),
}

# Sizes without common factors, so that a share of them is hardly ever a whole number.
ODD = {"a.weight": (7, 11), "b.weight": (13, 3), "c.weight": (5,), "d.weight": (29, 17)}
ODD_DENSE = {"a.bias": (7,), "b.bias": (13,)}


def make_structure(
    sparse: Mapping[str, Shape],
    dense: Mapping[str, Shape] | None = None,
    positive: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> Structure:
    """Return a structure of SSGL sites, sites with a normal prior, and positive scalars."""
    return Structure(
        sparse=tuple(SparseBlock(n, torch.Size(s)) for n, s in sparse.items()),
        normal=tuple(NormalBlock(n, torch.Size(s)) for n, s in (dense or {}).items()),
        general=tuple(Block(n, torch.Size(), ExpTransform()) for n in positive),
        sigmas=(),
        deltas=(),
        observed=(),
        plates={},
        dims={},
        observations={},
        dtype=dtype,
        device=torch.device("cpu"),
    )


def refuse_probabilities() -> Tensor:
    raise AssertionError("this pruning does not ask for probabilities")


def prune_once(pruner: Pruner, position: Tensor, k: int = 1, wide=refuse_probabilities) -> Tensor:
    """Return a copy of a position, pruned at step k."""
    return pruner.prune(SGLDState(position.clone()), k, wide).position


def pruned_walk(
    pruner: Pruner, layout: Structure, steps: int, seed: int = 0
) -> Iterator[tuple[int, SGHMCState]]:
    """Yield the steps of a random walk with momentum that is pruned after every step."""
    generator = torch.Generator().manual_seed(seed)
    state = SGHMCState(*torch.zeros(2, layout.size, dtype=layout.dtype))
    for k in range(1, steps + 1):
        noise = torch.randn(layout.size, dtype=layout.dtype, generator=generator)
        momentum = 0.9 * state.momentum + noise
        state = SGHMCState(state.position + momentum, momentum)
        state = pruner.prune(state, k, refuse_probabilities)
        yield k, state


class CoarseWalk:
    """
    A random walk with momentum, pruned after every step. It takes few distinct values, so that many
    weights are equal, and many are zero.

    :param Structure layout: structure of the weights.
    :param int steps: length of the walk.
    :param shape: shape of the chains, () for a single one.
    """

    def __init__(self, layout: Structure, steps: int, shape: Shape = ()) -> None:
        generator = torch.Generator().manual_seed(0)
        sizes = (steps, *shape, layout.size), (steps, *shape, layout.sparse_size)
        noise, wide = (torch.randn(s, dtype=layout.dtype, generator=generator) for s in sizes)
        self.noise, self.wide = noise.round(), (2.0 * wide).round().clamp(0.0, 1.0)

    def chain(self, i: int) -> CoarseWalk:
        """Return the walk of one chain."""
        walk = copy(self)
        walk.noise, walk.wide = self.noise[:, i], self.wide[:, i]
        return walk

    def start(self) -> SGHMCState:
        return SGHMCState(torch.zeros_like(self.noise[0]), torch.zeros_like(self.noise[0]))

    def advance(self, pruner: Pruner, state: SGHMCState, steps: range) -> SGHMCState:
        """Return the state after these steps, counted from 1."""
        for k in steps:
            momentum = (0.9 * state.momentum).round() + self.noise[k - 1]
            state = SGHMCState(state.position + momentum, momentum)
            state = pruner.prune(state, k, lambda k=k: self.wide[k - 1])
        return state


def count_zeros(position: Tensor, layout: Structure) -> dict[str, int]:
    """Count the zero weights of each SSGL site."""
    values = layout.unflatten(position)
    return {block.name: int((values[block.name] == 0).sum()) for block in layout.sparse}
