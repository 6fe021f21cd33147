# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Modules in evaluation mode, and BatchNorm statistics of one draw, for as long as a ``with`` lasts.

Which modules a model calls is found out as it calls them, so neither needs to be told. Flags,
momenta and buffers are put back at the end, on an error too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

Buffers = dict[str, Tensor | None]


@contextmanager
def evaluation_mode() -> Iterator[None]:
    """Every module that is called inside runs as after ``module.eval()``: no dropout, say."""
    training: dict[nn.Module, bool] = {}

    def switch(module: nn.Module, _: Any) -> None:
        if module not in training:
            for part in module.modules():
                training.setdefault(part, part.training)
            module.eval()

    handle = register_module_forward_pre_hook(switch)
    try:
        yield
    finally:
        handle.remove()
        for module, flag in training.items():
            module.training = flag


class _Own(NamedTuple):
    """What a BatchNorm module had before."""

    buffers: Buffers
    momentum: float | None
    training: bool


class BatchNormStatistics:
    """
    Means and variances for the BatchNorm modules of a model, estimated apart from the modules' own.

    :meth:`estimated` gathers them, as :func:`torch.optim.swa_utils.update_bn` does, and
    :meth:`used` lends them to the modules. Both leave the modules as they were. BatchNorm modules
    without running statistics are left alone.
    """

    def __init__(self) -> None:
        self._buffers: dict[_BatchNorm, Buffers] = {}

    def __len__(self) -> int:
        """How many modules there are statistics of."""
        return len(self._buffers)

    @contextmanager
    def estimated(self) -> Iterator[None]:
        """
        BatchNorm modules that are called inside normalise by the batch, as in training, and add its
        mean and variance to the statistics: plain averages over all batches, a shorter batch
        counting as much as any other. Use it inside :func:`evaluation_mode`; all modules but
        BatchNorm stay in evaluation mode.
        """
        owns: dict[_BatchNorm, _Own] = {}

        def prepare(module: nn.Module, _: Any) -> None:
            if isinstance(module, _BatchNorm) and module not in owns and module.track_running_stats:
                owns[module] = _Own(dict(module._buffers), module.momentum, module.training)
                if module in self._buffers:
                    module._buffers.update(self._buffers[module])
                else:
                    module._buffers.update(_copies(module._buffers))
                    module.reset_running_stats()
                module.momentum = None  # the plain average over batches
                module.training = True

        handle = register_module_forward_pre_hook(prepare)
        try:
            yield
        finally:
            handle.remove()
            for module, own in owns.items():
                self._buffers[module] = dict(module._buffers)
                module._buffers.update(own.buffers)
                module.momentum = own.momentum
                module.training = own.training

    @contextmanager
    def used(self) -> Iterator[None]:
        """The modules have these statistics inside."""
        own = {module: dict(module._buffers) for module in self._buffers}
        try:
            for module, buffers in self._buffers.items():
                module._buffers.update(buffers)
            yield
        finally:
            for module, buffers in own.items():
                module._buffers.update(buffers)


def _copies(buffers: Buffers) -> Buffers:
    return {name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()}
