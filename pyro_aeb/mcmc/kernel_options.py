# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A kernel's options in a checkpoint, and a kernel made from them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from pyro_aeb.errors import CheckpointError
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.storage.checkpoint import reading

OPTIONS = tuple(
    name
    for name in inspect.signature(AEBKernel).parameters
    if name not in ("model", "init_strategy")  # code, and of no use to a chain under way
)


FIXED = ("seed", "steps_per_draw", "save")
"""Options that a run keeps: random numbers, steps and draws are counted by them."""


def recipe_of(kernel: AEBKernel) -> dict[str, Any]:
    """The kernel's options as plain values and tensors, all but the model."""
    options = {name: getattr(kernel, name) for name in OPTIONS}
    return {name: plain(value) for name, value in options.items()}


def kernel_from(
    recipe: Mapping[str, Any], model: Callable[..., Any], given: Mapping[str, Any]
) -> AEBKernel:
    """
    :param recipe: from :func:`recipe_of`.
    :param model: the Pyro model.
    :param given: options that go before those of the recipe.
    :raises CheckpointError: if an option can neither be read nor is given.
    :raises TypeError: if ``given`` names no option.
    :raises ValueError: if it names one that a run keeps.
    """
    if unknown := sorted(given.keys() - {*OPTIONS}):
        raise TypeError(f"{unknown} are no options of AEBKernel, expected some of {list(OPTIONS)}")
    if kept := [name for name in FIXED if name in given]:
        raise ValueError(
            f"{kept[0]} = {given[kept[0]]!r} is given, but a run keeps its {', '.join(FIXED)}; "
            "leave it out, or begin another run"
        )
    with reading("the checkpoint's kernel"):
        if unknown := sorted(recipe.keys() - {*OPTIONS}):
            raise ValueError(f"options {unknown}")
        stored = {n: restored(n, value) for n, value in recipe.items() if n not in given}
    with reading("the checkpoint's kernel") if not given else nullcontext():
        return AEBKernel(model, **{**stored, **given})


PACKAGE = __name__.partition(".")[0]


def plain(value: Any) -> Any:
    """
    An option as tensors and plain values.

    :param value: a dataclass of this package, a number, a string, None, a tensor, or a list, tuple
        or mapping of such.
    """
    if value is None or isinstance(value, (bool, str, Tensor)):
        return value
    if isinstance(value, Integral):  # NumPy's too, which a file without code cannot hold
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {"items": [[plain(key), plain(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"values": [plain(item) for item in value]}
    kind = type(value)
    if dataclasses.is_dataclass(value) and kind.__module__.split(".")[0] == PACKAGE:
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": [kind.__module__, kind.__qualname__], "fields": fields}
    return {"unknown": repr(value)}


def restored(name: str, stored: Any) -> Any:
    """
    An option from what :func:`plain` made of it.

    :param str name: the option's name, for errors.
    :raises CheckpointError: if it cannot be made from plain values alone.
    """
    if not isinstance(stored, dict):
        return stored
    if "items" in stored:
        return {restored(name, key): restored(name, item) for key, item in stored["items"]}
    if "values" in stored:
        return tuple(restored(name, item) for item in stored["values"])
    if "class" in stored:
        fields = {n: restored(name, value) for n, value in stored["fields"].items()}
        kind = _class(name, *stored["class"])
        try:
            return kind(**fields)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's {name} is a {kind.__name__} of {fields}, which this version of "
                f"{PACKAGE} does not take ({error}); give it again, MCMC.resume(path, model, "
                f"{name}=...)"
            ) from error
    raise CheckpointError(
        f"the checkpoint cannot hold {name} = {stored.get('unknown')}, which is no object of "
        f"{PACKAGE}; give it again, MCMC.resume(path, model, {name}=...)"
    )


def _class(name: str, module: str, kind: str) -> Any:
    """A dataclass of this package, by name; nothing else is imported."""
    if module.split(".")[0] == PACKAGE and kind.isidentifier():
        try:
            importlib.import_module(module)
        except ImportError:
            pass
        found = getattr(sys.modules.get(module), kind, None)
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
    raise CheckpointError(
        f"the checkpoint's {name} is a {module}.{kind}, which this version of {PACKAGE} does not "
        f"have; give it again, MCMC.resume(path, model, {name}=...)"
    )
