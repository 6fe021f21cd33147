# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Record the operations of a model through which no gradient passes."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CONVERSIONS = {
    "item": "x.item()",
    "__float__": "float(x)",
    "__int__": "int(x)",
    "__index__": "an index",
    "tolist": "x.tolist()",
    "numpy": "NumPy",
    "__array__": "NumPy",
    "detach": "x.detach()",
    "detach_": "x.detach()",
    "data": "x.data",
}
"""Operations that return numbers without their gradient, by their names in torch."""

STEPS = {
    **dict.fromkeys(("gt", "lt", "ge", "le", "eq", "ne", "greater", "less"), "a comparison"),
    **dict.fromkeys(("__gt__", "__lt__", "__ge__", "__le__", "__eq__", "__ne__"), "a comparison"),
    **dict.fromkeys(("greater_equal", "less_equal", "heaviside"), "a comparison"),
    **dict.fromkeys(("round", "floor", "ceil", "trunc", "fix", "frac"), "rounding"),
    **dict.fromkeys(("floor_divide", "__floordiv__", "remainder", "__mod__", "fmod"), "rounding"),
    **dict.fromkeys(("long", "int", "short", "byte", "bool", "to", "type"), "rounding"),
    **dict.fromkeys(("sign", "sgn", "signbit"), "the sign"),
    **dict.fromkeys(("argmax", "argmin", "argsort", "bucketize", "searchsorted"), "an index"),
}
"""Operations that are steps of their arguments."""

LIBRARIES = tuple(
    str(Path(module.__file__).parent) + os.sep
    for module in (torch, pyro, sys.modules["pyro_aeb"])
    if module.__file__ is not None
)
"""Folders of PyTorch, Pyro and this package, each with a separator at its end."""


class Loss(NamedTuple):
    """
    An operation that a gradient does not pass.

    :param str kind: of the operation, in words.
    :param bool step: whether it is a step of its arguments, and no plain conversion.
    :param str place: the line of the model.
    :param frozenset sites: the latent sites that its arguments were computed from.
    """

    kind: str
    step: bool
    place: str
    sites: frozenset[str]


class GradientWatch(TorchFunctionMode):
    """
    Records losses of gradients while it is active.

    :param leaves: latent site name to value, which requires a gradient.
    """

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        self.losses: list[Loss] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(func.__self__, "__name__", "")
        if name in CONVERSIONS or name in STEPS:
            self._add(name, [*args, *kwargs.values()])
        return func(*args, **kwargs)

    def _add(self, name: str, args: list[Any]) -> None:
        if name in ("to", "type") and not any(_is_whole_number(arg) for arg in args):
            return
        values = [arg for arg in args if isinstance(arg, Tensor) and arg.requires_grad]
        sites = [site for value in values for site in find_ancestors(value, self._names)]
        if sites:
            kind = CONVERSIONS.get(name) or STEPS[name]
            self.losses.append(Loss(kind, name in STEPS, _find_place(), frozenset(sites)))


def _is_whole_number(kind: Any) -> bool:
    return isinstance(kind, torch.dtype) and not (kind.is_floating_point or kind.is_complex)


def _find_place() -> str:
    """Return the innermost line that is neither torch's, Pyro's nor this package's."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(LIBRARIES):
        frame = frame.f_back
    if frame is None:
        return "the model"
    file, number = frame.f_code.co_filename, frame.f_lineno
    line = linecache.getline(file, number).strip()
    return f"line {number} of {Path(file).name}" + (f", `{line}`" if line else "")


def find_ancestors(value: Tensor, names: Mapping[int, str]) -> list[str]:
    """
    Return the leaves that a value was computed from. The time does not grow with the number of
    other leaves.

    :param names: of the leaves, by their ids.
    """
    if id(value) in names:
        return [names[id(value)]]
    ancestors, visited, pending = [], set(), [value.grad_fn]
    while pending:
        node: Any = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in names:
            ancestors.append(names[id(leaf)])
        pending.extend(parent for parent, _ in node.next_functions)
    return ancestors
