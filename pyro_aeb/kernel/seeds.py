# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The random numbers of a chain: its number, its generator, its loader's seed."""

from __future__ import annotations

import multiprocessing

import numpy as np
import torch


def worker_chain() -> int | None:
    """
    Return the number of the chain whose worker process this is, None in any other process. Both
    Pyro's MCMC and this package's name the process of a chain after its number.
    """
    name = multiprocessing.current_process().name
    is_worker = multiprocessing.parent_process() is not None and name.isdigit()
    return int(name) if is_worker else None


def chain_number(started: int) -> int:
    """
    Return the number of the chain that a kernel starts.

    :param int started: chains that the kernel object has started before.
    """
    number = worker_chain()
    return started if number is None else number


def generator_of(seed: int | None, chain: int, device: torch.device) -> torch.Generator | None:
    """Return the chain's own generator; None, for torch's global one, without a seed."""
    if seed is None:
        return None
    return torch.Generator(device=device).manual_seed((seed + chain) % 2**64)


def tuning_seed(seed: int | None, chain: int) -> int:
    """Return the seed of tuning's random numbers, which are not to be those of the noise."""
    if seed is None:
        return int(torch.randint(2**62, ()))
    words = np.random.SeedSequence([(seed + chain) % 2**64, 2, 0]).generate_state(1, np.uint64)
    return int(words[0] >> 1)


def loader_seed(seed: int | None, chain: int, rank: int = 0) -> int | None:
    """
    Return the seed of a DataLoader. With the seed of :func:`generator_of` the loader's random
    numbers would be those of the noise.

    :param int rank: of this process, where several share a chain's data, each with a loader.
    """
    if seed is None:
        return None
    entropy = [(seed + chain) % 2**64, 1, *([rank] if rank else [])]
    words = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(words[0] >> 1)
