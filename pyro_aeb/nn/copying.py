# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Copies of modules that keep results of calls, such as activations and computed weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pyro_aeb.errors import ModelError


def copy_module(module: nn.Module) -> nn.Module:
    """
    Return a deep copy of a module. Results of calls that it keeps are copied without their graphs.

    :raises ModelError: if it keeps something that cannot be copied.
    """
    memo = _detach_results(module)
    try:
        return copy.deepcopy(module, memo)
    except (TypeError, RuntimeError) as error:
        raise ModelError(
            f"{type(module).__name__} cannot be copied by copy.deepcopy ({error}), expected a "
            "module whose attributes can be; take off the attribute that cannot be copied, such as "
            "a lock, an open file or a generator"
        ) from error


def keeps_results(module: nn.Module) -> bool:
    """Whether a module keeps results of calls with their graphs, which cannot be pickled."""
    return bool(_detach_results(module))


@torch.no_grad()
def compute_weights(module: nn.Module) -> None:
    """Compute the weights that old weight norms, spectral norms and pruning masks make."""
    for part in module.modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod)):
                training, part.training = part.training, False  # no step of a power method
                hook(part, None)
                part.training = training


def _detach_results(module: nn.Module) -> dict[int, Any]:
    """Return copies of all tensors that have a graph, as the memo of a deep copy."""
    memo: dict[int, Any] = {}
    seen: set[int] = set()
    for part in module.modules():
        _add_results(vars(part), memo, seen)
    return memo


def _copy_result(value: Tensor) -> Tensor:
    """Copy a tensor without its graph; of chains that stepped together, that of the last one."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(value):
        axis = functorch.maybe_get_bdim(value)
        value = functorch.get_unwrapped(value)
        value = value if axis < 0 else value.select(axis, -1)
    return value.detach().clone()


def _add_results(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_leaf or torch._C._functorch.is_functorch_wrapped_tensor(value):
            memo[id(value)] = _copy_result(value)
    elif isinstance(value, dict):
        for item in value.values():
            _add_results(item, memo, seen)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            _add_results(item, memo, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        _add_results(vars(value), memo, seen)
