# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A kernel's options in a checkpoint, and a kernel made from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from pyro_aeb.errors import reading
from pyro_aeb.kernel import AEBKernel
from pyro_aeb.settings import plain, restored

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
    options["save"] = kernel.wanted
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
