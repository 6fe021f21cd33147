# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The buffers that a run of the model changes, such as BatchNorm's running averages.

They belong to the model's modules, and a chain changes them as it steps. Chains that step together
need one set each: :class:`Buffers` then holds them with a leading axis of chains, and lends each
chain its own while the model runs.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_aeb.storage.checkpoint import reading

Place = tuple[nn.Module, str]
"""A module, and the name of a buffer in it."""


@contextmanager
def unchanged_buffers() -> Iterator[list[Place]]:
    """
    Lets every module that runs inside, and what is in it, run on copies of its buffers. Compiled
    modules run as they were written, for the compiler cannot follow this.

    :returns: the places of the buffers that were changed, filled in at the end.
    """
    own: dict[nn.Module, dict[str, Tensor | None]] = {}
    lent: dict[nn.Module, dict[str, Tensor | None]] = {}
    changed: list[Place] = []

    def lend_copies(module: nn.Module, _: Any) -> None:
        if module in own:
            return
        for part in module.modules():
            if part not in own:
                own[part] = dict(part._buffers)
                lent[part] = {n: None if b is None else b.clone() for n, b in own[part].items()}
                part._buffers.update(lent[part])

    handle = register_module_forward_pre_hook(lend_copies)
    try:
        with _eager():
            yield changed
    finally:
        handle.remove()
        for module, buffers in own.items():
            changed += [
                (module, name)
                for name in buffers
                if _changed(buffers[name], lent[module][name], module._buffers[name])
            ]
            module._buffers.update(buffers)


def _eager() -> AbstractContextManager[Any]:
    """Runs compiled modules as they were written."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _changed(own: Tensor | None, lent: Tensor | None, now: Tensor | None) -> bool:
    if own is None or now is None:
        return False
    # Torch does not count the changes that BatchNorm makes to its running averages.
    return now is not lent or now._version > 0 or not torch.equal(now, own)


class Buffers:
    """
    The buffers that a model changes.

    :param places: where they are, from :func:`unchanged_buffers`.
    :param chains: how many chains have sets of their own; None for one chain, which changes those
        in the modules.
    """

    def __init__(self, places: Sequence[Place], chains: int | None) -> None:
        self.places = tuple(places)
        self._stacks: list[Tensor] | None = None
        if chains is not None:
            self._stacks = [
                value.detach().expand(chains, *value.shape).clone() for value in self._in_modules()
            ]

    def values(self) -> list[Tensor]:
        """The buffers as they stand, with a leading axis of chains where they have sets."""
        return self._in_modules() if self._stacks is None else list(self._stacks)

    def load(self, values: Sequence[Tensor]) -> None:
        """
        Puts other values in place of all buffers.

        :param values: from :meth:`values`.
        """
        if self._stacks is not None:
            self._stacks = [new.to(old) for new, old in zip(values, self._stacks, strict=True)]
            return
        with torch.no_grad():
            for buffer, value in zip(self._in_modules(), values, strict=True):
                buffer.copy_(value)

    def run(self, values: Sequence[Tensor], model: Callable[[], None]) -> list[Tensor]:
        """
        Runs a model of one chain, with that chain's buffers in the modules.

        :param values: one chain's.
        :returns: the chain's buffers after it.
        """
        own = self._in_modules()
        self._lend(values)
        try:
            model()
            return self._in_modules()
        finally:
            self._lend(own)

    def run_on(self, values: Sequence[Tensor], model: Callable[[], None]) -> list[Tensor]:
        """
        Runs a model, of all chains, on other values in place of all buffers, which it may change.

        :param values: in the form of :meth:`values`.
        :returns: these buffers after it; those of the chains stay as they are.
        """
        if self._stacks is None:
            return self.run(values, model)
        own, self._stacks = self._stacks, list(values)
        try:
            model()
            return self._stacks
        finally:
            self._stacks = own

    def keep(self, stacks: Sequence[Tensor]) -> None:
        """Takes in what :meth:`run` returned, with the axis of chains."""
        self._stacks = [stack.detach() for stack in stacks]

    def hand_back(self) -> None:
        """Leaves the last chain's buffers in the modules, as chains one after the other would."""
        if self._stacks is not None:
            with torch.no_grad():
                for buffer, stack in zip(self._in_modules(), self._stacks, strict=True):
                    buffer.copy_(stack[-1])

    def _in_modules(self) -> list[Tensor]:
        return [module._buffers[name] for module, name in self.places]  # type: ignore[misc]

    def _lend(self, values: Sequence[Tensor]) -> None:
        for (module, name), value in zip(self.places, values, strict=True):
            module._buffers[name] = value


def global_random_state() -> dict[str, Any]:
    """The states of torch's, NumPy's and Python's global generators."""
    numpy: Any = np.random.get_state()
    name, keys, *rest = numpy
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_global_random_state(state: Mapping[str, Any]) -> None:
    """
    Puts back what :func:`global_random_state` read.

    :raises CheckpointError: if it is something else.
    """
    with reading("the saved random numbers"):
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        version, numbers, own = state["python"]
        random.setstate((version, tuple(numbers), own))


@contextmanager
def unchanged_random_numbers() -> Iterator[None]:
    """Puts back the random number generators of torch, Python and NumPy."""
    state = pyro.util.get_rng_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            pyro.util.set_rng_state(state)
