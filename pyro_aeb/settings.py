# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A kernel's options as plain values, and back, without running code from a file.

Options that are frozen dataclasses of this package (transitions, schedules, prunings, the
adaptation) are stored as their class's name and their fields. Whatever else a user passes (a
schedule of their own, an initialisation strategy) is stored as a word about it, and has to be
given again.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from pyro_aeb.errors import CheckpointError

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
