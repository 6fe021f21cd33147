# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Say how to make tensors of the arrays, data frames and lists among a model's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pyro_aeb.data.contents import is_plain


def advise_tensors(arguments: Mapping[str, Any]) -> str | None:
    """
    Return which arguments are arrays, data frames, series or lists, and the lines that make tensors
    of them; None where there are none.

    :param arguments: by the names that the user knows.
    """
    lines = {name: line for name, value in arguments.items() if (line := _line(name, value))}
    if not lines:
        return None
    kinds = ", ".join(f"{name!r} ({type(arguments[name]).__name__})" for name in lines)
    return f"not a tensor: {kinds}; write {'; '.join(lines.values())} before the run"


def _line(name: str, value: Any) -> str | None:
    """Return the line that makes a tensor of an argument; None where it needs none."""
    name = name if name.isidentifier() else "x"
    source = f"{name}.to_numpy()" if callable(getattr(value, "to_numpy", None)) else name
    is_list = isinstance(value, list) and is_plain(value) and len(value) > 0
    if not (is_list or source != name or isinstance(value, np.ndarray)):
        return None
    columns = getattr(value, "columns", None)
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    if numbers.dtype.kind in "biuf":
        # Classes and counts stay integers.
        is_count = numbers.ndim < 2 and numbers.dtype.kind != "f"
        dtype = "" if is_count else f", dtype={torch.get_default_dtype()}"
        return f"{name} = torch.tensor({source}{dtype})"
    if is_list:  # of names, say
        return None
    if columns is not None:
        return (
            f"{name} = torch.tensor(pandas.get_dummies({name}).to_numpy(float), "
            f"dtype={torch.get_default_dtype()}) (some columns are not numbers)"
        )
    return f"{name} = torch.tensor(pandas.factorize({name})[0]) (it holds no numbers)"
