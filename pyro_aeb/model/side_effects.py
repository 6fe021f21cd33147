# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The side effects of running a model: module buffers and global random numbers.

Modules may change buffers as they run, as BatchNorm does its running averages. Chains that step
together need a set each: :class:`Buffers` holds the sets with a leading axis of chains and puts
each chain's into the modules while the model runs.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_aeb.storage.checkpoint import check_contents

Place = tuple[nn.Module, str]
"""A module, and the name of a buffer in it."""


def buffer_kind(module: nn.Module, name: str) -> str:
    """Return the type of a module and the name of its buffer, which are known in any process."""
    return f"{type(module).__name__}.{name}"


@contextmanager
def preserve_buffers() -> Iterator[list[Place]]:
    """
    Run every module that is called inside, and its submodules, on copies of their buffers. Compiled
    modules run uncompiled: the compiler cannot follow the exchange.

    :returns: the places of the buffers that were changed; filled on exit.
    """
    originals: dict[nn.Module, dict[str, Tensor | None]] = {}
    copies: dict[nn.Module, dict[str, Tensor | None]] = {}
    changed: list[Place] = []

    def insert_copies(module: nn.Module, _: Any) -> None:
        if module in originals:
            return
        for part in module.modules():
            if part not in originals:
                originals[part] = dict(part._buffers)
                copies[part] = {
                    n: None if b is None else b.clone() for n, b in originals[part].items()
                }
                part._buffers.update(copies[part])

    handle = register_module_forward_pre_hook(insert_copies)
    try:
        with _without_compilation():
            yield changed
    finally:
        handle.remove()
        for module, buffers in originals.items():
            changed += [
                (module, name)
                for name in buffers
                if _has_changed(buffers[name], copies[module][name], module._buffers[name])
            ]
            module._buffers.update(buffers)


def start_autograd() -> None:
    """
    Start autograd's engine, as any first gradient does. To be called before a compiler of torch's:
    to an engine that starts after one, the compiler's meta device is an accelerator, and chains in
    forked processes cannot take a gradient any more.
    """
    torch.zeros((), requires_grad=True, device="cpu").backward()


def _without_compilation() -> AbstractContextManager[Any]:
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _has_changed(original: Tensor | None, copy: Tensor | None, current: Tensor | None) -> bool:
    if original is None or current is None:
        return False
    # BatchNorm's changes of its running averages do not show in the version.
    return current is not copy or current._version > 0 or not torch.equal(current, original)


class Buffers:
    """
    The buffers that a model changes.

    :param chains: the number of chains with a set each; None for one chain, whose buffers are those
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
        """Return the current buffers, with a leading axis of chains where each has a set."""
        return self._in_modules() if self._stacks is None else list(self._stacks)

    def values_of_last(self) -> list[Tensor]:
        """Return the current buffers of the last chain."""
        return self._in_modules() if self._stacks is None else [s[-1] for s in self._stacks]

    def copies(self) -> list[Tensor]:
        """Return copies of :meth:`values`."""
        return [value.clone() for value in self.values()]

    def load(self, values: Sequence[Tensor]) -> None:
        """Replace the values of all buffers."""
        if self._stacks is not None:
            self._stacks = [new.to(old) for new, old in zip(values, self._stacks, strict=True)]
        else:
            self._copy_to_modules(values)

    def run(self, values: Sequence[Tensor], model: Callable[[], None]) -> list[Tensor]:
        """
        Run a model with one chain's buffers in the modules.

        :returns: the chain's buffers afterwards.
        """
        originals = self._in_modules()
        self._insert(values)
        try:
            model()
            return self._in_modules()
        finally:
            self._insert(originals)

    def run_by_chain(self, run: Callable[[int], None], chains: int) -> None:
        """Run a function of every chain's number with copies of that chain's buffers."""
        for chain in range(chains):
            copies = [value[chain].clone() for value in self._stacks or ()]
            self.run(copies or self._in_modules(), partial(run, chain))

    def run_on(self, values: Sequence[Tensor], model: Callable[[], None]) -> list[Tensor]:
        """
        Run a model of all chains on other buffers, which it may change; those held here stay.

        :returns: the other buffers afterwards.
        """
        if self._stacks is None:
            return self.run(values, model)
        stacks, self._stacks = self._stacks, list(values)
        try:
            model()
            return self._stacks
        finally:
            self._stacks = stacks

    def store(self, stacks: Sequence[Tensor]) -> None:
        """Store the results of :meth:`run`, stacked along the axis of chains."""
        self._stacks = [stack.detach() for stack in stacks]

    def copy_last_to_modules(self) -> None:
        """Copy the last chain's set into the modules, as if the chains had run one by one."""
        if self._stacks is not None:
            self._copy_to_modules(self.values_of_last())

    @torch.no_grad()
    def _copy_to_modules(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self._in_modules(), values, strict=True):
            buffer.copy_(value)

    def _in_modules(self) -> list[Tensor]:
        return [module._buffers[name] for module, name in self.places]  # type: ignore[misc]

    def _insert(self, values: Sequence[Tensor]) -> None:
        for (module, name), value in zip(self.places, values, strict=True):
            module._buffers[name] = value


def global_random_state() -> dict[str, Any]:
    """Return the states of torch's, NumPy's and Python's global generators."""
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
    Restore the states that :func:`global_random_state` returned.

    :raises CheckpointError: if ``state`` is of another form.
    """
    with check_contents("the saved random numbers"):
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore torch's, NumPy's and Python's global generators on exit."""
    numpy, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)
