# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
One chain on several processes, each with a part of every minibatch.

Weights, latents, noise and permutations are the same on all ranks. Each rank takes the gradient on
its own data, and :class:`Average` averages them: with n data a rank, a step on w ranks is a step on
n w data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_aeb.adaptation.sweep import Latents, SufficientStatistics
from pyro_aeb.data.fingerprint import check_same_on_all_ranks, describe_tensors
from pyro_aeb.data.ranks import ALONE, Ranks, process_ranks
from pyro_aeb.errors import ModelError, RankError
from pyro_aeb.model.side_effects import Buffers
from pyro_aeb.model.structure import Residuals
from pyro_aeb.posterior.likelihood import Evaluation


def ranks_of_data(data_parallel: bool) -> Ranks:
    """
    Return the processes that share every minibatch.

    :param bool data_parallel: the kernel's option; False for this process alone.
    :raises RuntimeError: if there is no process group.
    """
    return process_ranks("data_parallel=True") if data_parallel else ALONE


class Average:
    """
    Averages over ranks, by one all-reduce of one flat tensor: the gradient, the log density, the
    statistics, and in place the buffers that the model changes (running averages of BatchNorm).

    :param Ranks ranks: this process's place in the default process group.
    """

    def __init__(self, ranks: Ranks, buffers: Buffers) -> None:
        self._ranks = ranks
        self._buffers = buffers

    def __call__(self, own: Evaluation) -> Evaluation:
        """Return the mean over ranks, the same on all of them, bit for bit."""
        if self._ranks.world == 1:
            return own
        buffers = self._buffers.values()
        parts: dict[Any, Tensor] = {"gradient": own.gradient, "log_density": own.log_density}
        residuals, seen = own.statistics
        for name, residual in residuals.items():
            parts[name, "square"] = residual.square
            if isinstance(residual.data, Tensor):
                parts[name, "data"] = residual.data
        for name, view in seen.items():
            parts |= {(name, "statistics", n): value for n, value in view.statistics.items()}
            for order in ("gradient", "curvature"):
                if (slope := getattr(view, order)) is not None:
                    parts[name, order] = slope
        for i, buffer in enumerate(buffers):
            if buffer.is_floating_point():
                parts["buffer", i] = buffer
        means = self._means(parts)
        self._buffers.load([means.get(("buffer", i), buffer) for i, buffer in enumerate(buffers)])
        residuals = {
            name: Residuals(means[name, "square"], means.get((name, "data"), residual.data))
            for name, residual in residuals.items()
        }
        seen = {
            name: view._replace(
                statistics={n: means[name, "statistics", n] for n in view.statistics},
                gradient=means.get((name, "gradient")),
                curvature=means.get((name, "curvature")),
            )
            for name, view in seen.items()
        }
        statistics = SufficientStatistics(residuals, seen)
        return Evaluation(means["log_density"], means["gradient"], statistics)

    def _means(self, parts: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
        """Return the means of tensors over ranks, in their shapes and dtypes."""
        flat = torch.cat([part.detach().reshape(-1) for part in parts.values()])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:
            raise RankError(
                "the ranks could not add up their gradients: another rank has ended (an error, "
                "killed, or out of memory), or runs another model. Start the program again, and "
                "resume with MCMC.resume(path, model) where there is a checkpoint"
            ) from error
        flat /= self._ranks.world
        means = flat.split([part.numel() for part in parts.values()])
        return {
            name: mean.reshape(part.shape).to(part.dtype)
            for (name, part), mean in zip(parts.items(), means, strict=True)
        }


def check_shares(ranks: Ranks, plates: Mapping[str, tuple[int, int]]) -> None:
    """
    Check that every plate has enough data for all ranks.

    :param plates: plate name to (size N, subsample size n), n a rank.
    :raises ModelError: if a plate's minibatch is larger than its data, all ranks taken together.
    """
    for name, (size, batch) in plates.items():
        if batch < size < batch * ranks.world:
            raise ModelError(
                f"plate {name!r} takes {batch} of {size} data on each of {ranks.world} ranks, "
                "together more than there are; use a subsample size of at most "
                f"{size // ranks.world}"
            )


def check_same_data(ranks: Ranks, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """
    Check that all ranks have the same data.

    :raises ValueError: if the arguments are not the same tensors on all ranks.
    """
    found: list[Any] = [None] * ranks.world
    dist.all_gather_object(found, describe_tensors(args, kwargs))
    check_same_on_all_ranks(found)


def check_agreement(state: tuple[Any, ...], stop: bool = False) -> bool:
    """
    Check that all ranks are at the same state, bit for bit; return whether one wants to stop.

    :raises RankError: if the ranks are not at the same state.
    """
    tensors = [value for value in state if isinstance(value, Tensor)]
    sums = torch.stack([_sum_of_bits(tensor) for tensor in tensors])
    wishes = torch.full((1,), int(stop), dtype=sums.dtype, device=sums.device)
    largest = torch.cat([sums, -sums, wishes])
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    high, low, (stopped,) = largest.split([len(sums), len(sums), 1])
    if not torch.equal(high, -low):
        raise RankError(
            "the ranks are not at the same step, weights and latents, so their gradients are not "
            "of one chain. Every rank must run the same program on the same kind of device, with a "
            "model made alike on all (pyro.set_rng_seed before it is made), and resume from the "
            "same checkpoint"
        )
    return bool(stopped)


def values_of(latents: Latents | None) -> tuple[Any, ...]:
    """Return the values of all latents in a flat tuple."""
    return () if latents is None else (*(latents.ssgl or ()), *latents.sites.values())


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Return an integer that changes with any bit of a tensor, in any order of summation."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().view(words[tensor.element_size()]).sum(dtype=torch.int64)
