# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Run modules in evaluation mode, and BatchNorm modules with the statistics of one draw.

The context managers change modules as the model calls them, and restore flags, momenta and buffers
on exit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook

ModuleBuffers = dict[str, Tensor | None]


@contextmanager
def evaluation_mode() -> Iterator[dict[nn.Module, bool]]:
    """
    Run every module that is called inside as after ``module.eval()``: without dropout, say.

    :returns: whether each module that was called was in training mode; filled as they are.
    """
    training: dict[nn.Module, bool] = {}

    def switch(module: nn.Module, _: Any) -> None:
        if module not in training:
            for part in module.modules():
                training.setdefault(part, part.training)
            module.eval()

    handle = register_module_forward_pre_hook(switch)
    try:
        yield training
    finally:
        handle.remove()
        for module, flag in training.items():
            module.training = flag


class BatchNormStatistics:
    """
    Means and variances for the BatchNorm and InstanceNorm modules of a model, kept apart from the
    modules' own.

    :meth:`estimate` gathers them, as :func:`torch.optim.swa_utils.update_bn` does, and
    :meth:`apply` puts them into the modules. Both restore the modules on exit. Modules
    without running statistics are left alone.
    """

    def __init__(self) -> None:
        self._buffers: dict[nn.Module, ModuleBuffers] = {}

    @property
    def buffers(self) -> Mapping[nn.Module, ModuleBuffers]:
        """The buffers, by module."""
        return self._buffers

    def __len__(self) -> int:
        """Return the number of modules with statistics."""
        return len(self._buffers)

    @contextmanager
    def estimate(self) -> Iterator[None]:
        """
        Let BatchNorm modules that are called inside normalise by the batch, as in training, and add
        its mean and variance to the statistics: plain averages over all batches, of whatever size.
        For use inside :func:`evaluation_mode`, in which all other modules stay.
        """
        originals: dict[_NormBase, tuple[ModuleBuffers, float | None, bool]] = {}

        def prepare(module: nn.Module, _: Any) -> None:
            if not isinstance(module, _NormBase) or not module.track_running_stats:
                return
            if module not in originals:
                originals[module] = dict(module._buffers), module.momentum, module.training
                if module in self._buffers:
                    module._buffers.update(self._buffers[module])
                else:
                    copies = {n: b.clone() for n, b in module._buffers.items() if b is not None}
                    module._buffers.update(copies)
                    module.reset_running_stats()
                module.momentum = None  # the plain average over batches
                module.training = True
            if not isinstance(module, _BatchNorm):  # InstanceNorm does not count
                count = module.get_buffer("num_batches_tracked").add_(1)
                module.momentum = 1.0 / int(count)

        handle = register_module_forward_pre_hook(prepare)
        try:
            yield
        finally:
            handle.remove()
            for module, (buffers, momentum, training) in originals.items():
                self._buffers[module] = dict(module._buffers)
                module._buffers.update(buffers)
                module.momentum, module.training = momentum, training

    @contextmanager
    def apply(self) -> Iterator[None]:
        """Run the modules with these statistics."""
        originals = {module: dict(module._buffers) for module in self._buffers}
        try:
            for module, buffers in self._buffers.items():
                module._buffers.update(buffers)
            yield
        finally:
            for module, buffers in originals.items():
                module._buffers.update(buffers)
