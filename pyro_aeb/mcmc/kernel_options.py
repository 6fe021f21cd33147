# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The options of a kernel in a checkpoint."""

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
from pyro_aeb.storage.checkpoint import check_contents

OPTIONS = tuple(
    name
    for name in inspect.signature(AEBKernel).parameters
    if name not in ("model", "init_strategy")  # code, and of no use to a chain that has started
)


FIXED = ("seed", "steps_per_draw", "save")
"""Options that a run keeps: random numbers, steps and draws are counted by them."""


def options_of(kernel: AEBKernel) -> dict[str, Any]:
    """Return the kernel's options but for its code, as plain values and tensors."""
    options = {name: getattr(kernel, name) for name in OPTIONS}
    return {name: to_plain(value) for name, value in options.items()}


def restore_kernel(
    stored: Mapping[str, Any], model: Callable[..., Any], options: Mapping[str, Any]
) -> AEBKernel:
    """
    Make a kernel with stored options.

    :param options: in place of stored ones.
    :raises CheckpointError: if a stored option cannot be read and is not among ``options``.
    :raises TypeError: if ``options`` names no option.
    :raises ValueError: if it names one that a run keeps.
    """
    if unknown := sorted(options.keys() - {*OPTIONS}):
        raise TypeError(f"{unknown} are no options of AEBKernel, expected some of {list(OPTIONS)}")
    if kept := [name for name in FIXED if name in options]:
        raise ValueError(
            f"{kept[0]} = {options[kept[0]]!r} is given, but a run keeps its {', '.join(FIXED)}; "
            "leave it out, or begin another run"
        )
    with check_contents("the checkpoint's kernel"):
        if unknown := sorted(stored.keys() - {*OPTIONS}):
            raise ValueError(f"options {unknown}")
        values = {n: from_plain(n, value) for n, value in stored.items() if n not in options}
        if values.get("compile") in (None, "update", "all"):  # those of version 0.1
            values["compile"] = bool(values.get("compile"))
    with check_contents("the checkpoint's kernel") if not options else nullcontext():
        return AEBKernel(model, **{**values, **options})


PACKAGE = __name__.partition(".")[0]


def to_plain(value: Any) -> Any:
    """
    Convert an option to tensors and plain values.

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
        return {"items": [[to_plain(key), to_plain(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"values": [to_plain(item) for item in value]}
    kind = type(value)
    if dataclasses.is_dataclass(value) and kind.__module__.split(".")[0] == PACKAGE:
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": [kind.__module__, kind.__qualname__], "fields": fields}
    return {"unknown": repr(value)}


def from_plain(name: str, plain: Any) -> Any:
    """
    Convert an option back from the result of :func:`to_plain`.

    :raises CheckpointError: if plain values alone do not determine it.
    """
    if not isinstance(plain, dict):
        return plain
    if "items" in plain:
        return {from_plain(name, key): from_plain(name, item) for key, item in plain["items"]}
    if "values" in plain:
        return tuple(from_plain(name, item) for item in plain["values"])
    if "class" in plain:
        fields = {n: from_plain(name, value) for n, value in plain["fields"].items()}
        kind = _import_class(name, *plain["class"])
        try:
            return kind(**{**getattr(kind, "absent_fields", {}), **fields})
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's {name} is a {kind.__name__} of {fields}, which this version of "
                f"{PACKAGE} does not take ({error}); give it again, MCMC.resume(path, model, "
                f"{name}=...)"
            ) from error
    raise CheckpointError(
        f"the checkpoint cannot hold {name} = {plain.get('unknown')}, which is no object of "
        f"{PACKAGE}; give it again, MCMC.resume(path, model, {name}=...)"
    )


def _import_class(name: str, module: str, kind: str) -> Any:
    """Return a dataclass of this package by name; nothing else is imported."""
    if module.split(".")[0] == PACKAGE and kind.isidentifier():
        try:
            importlib.import_module(module)
        except ImportError:
            pass
        value = getattr(sys.modules.get(module), kind, None)
        if isinstance(value, type) and "__dataclass_fields__" in vars(value):  # not a base's
            return value
    raise CheckpointError(
        f"the checkpoint's {name} is a {module}.{kind}, which this version of {PACKAGE} does not "
        f"have; give it again, MCMC.resume(path, model, {name}=...)"
    )
