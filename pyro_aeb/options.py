# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The kernel's options, checked when it is made."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from pyro_aeb.adaptation import StochasticApproximation
from pyro_aeb.pruning import Pruning
from pyro_aeb.transitions import TargetTransition


def check_options(
    model: Any, transition: Any, adaptation: Any, init_strategy: Any, pruning: Any
) -> None:
    """
    :raises TypeError: if an option is of the wrong kind.
    """
    if not callable(model):
        raise TypeError(f"model is {model!r}, expected a Pyro model (a callable)")
    moves = any(callable(getattr(transition, name, None)) for name in ("step", "move"))
    if isinstance(transition, type) or not moves:
        raise TypeError(
            f"transition is {transition!r}, expected a transition such as SGLD(step_size=1e-5)"
        )
    if not (adaptation is None or isinstance(adaptation, StochasticApproximation)):
        raise TypeError(
            f"adaptation is {adaptation!r}, expected StochasticApproximation(weight) or None"
        )
    if not (pruning is None or isinstance(pruning, Pruning)):
        raise TypeError(
            f"pruning is {pruning!r}, expected MagnitudePruning(sparsity=...) or another of "
            "pyro_aeb.pruning, or None"
        )
    if not callable(init_strategy):
        raise TypeError(
            f"init_strategy is {init_strategy!r}, expected one of Pyro's init_to_* functions"
        )


def check_target_transition(transition: Any, noise: Any, compile: Any) -> None:
    """
    Whether the options go with a transition that asks for Q itself.

    :raises ValueError: if one does not.
    """
    if not isinstance(transition, TargetTransition):
        return
    if compile == "update":
        raise ValueError(
            f"compile is 'update' and a step of {transition!r} runs the model, which is not of the "
            "update; use compile='all', which compiles the model's gradient, or None"
        )
    if noise != "normal" and transition.noise_size(1) > 1:
        raise ValueError(
            f"noise is {noise!r} and {transition!r} decides by its numbers, expected 'normal'"
        )


def check_counts(steps_per_draw: Any, save: Any, seed: Any) -> None:
    """
    :raises TypeError: if an option is of the wrong kind.
    :raises ValueError: if ``steps_per_draw`` is no integer of at least 1.
    """
    if not isinstance(steps_per_draw, Integral) or steps_per_draw < 1:
        raise ValueError(f"steps_per_draw is {steps_per_draw!r}, expected an integer of at least 1")
    check_names("save", save)
    if not (seed is None or isinstance(seed, Integral)):
        raise TypeError(f"seed is {seed!r}, expected an integer or None")


def check_names(name: str, value: Any) -> None:
    """
    :raises TypeError: if an option is neither None nor a list of names.
    """
    if isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, expected a list of names, e.g. [{value!r}]")
    if value is not None and not (
        isinstance(value, Collection)
        and not isinstance(value, (np.ndarray, Tensor))
        and all(isinstance(own, str) for own in value)
    ):
        raise TypeError(f"{name} is {value!r}, expected a list of names of sites, or None")


def check_run_options(
    initial_params: Any, hook_fn: Any, mp_context: Any, paths: Mapping[str, Any]
) -> None:
    """
    Checks options of a run.

    :param paths: those that are paths, by name.
    :raises TypeError: if an option is of the wrong kind.
    :raises ValueError: if there is no such way to start processes.
    """
    if initial_params is not None and not (
        isinstance(initial_params, Mapping)
        and all(isinstance(value, Tensor) for value in initial_params.values())
    ):
        raise TypeError(
            f"initial_params is {initial_params!r}, expected site names to tensors, in "
            "unconstrained space"
        )
    if hook_fn is not None and not callable(hook_fn):
        raise TypeError(
            f"hook_fn is {hook_fn!r}, expected a function hook_fn(kernel, draw, stage, i)"
        )
    contexts = ("fork", "spawn", "forkserver")
    if mp_context is not None and not (isinstance(mp_context, str) and mp_context in contexts):
        raise ValueError(f"mp_context is {mp_context!r}, expected one of {list(contexts)}")
    for name, path in paths.items():
        if path is not None and not (isinstance(path, (str, os.PathLike)) and os.fspath(path)):
            raise TypeError(f"{name} is {path!r}, expected a path")


def check_switch(name: str, value: Any) -> None:
    """
    :raises TypeError: if an option is no bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected True or False")


def check_data_parallel(data_parallel: Any, seed: Any) -> None:
    """
    :raises TypeError: if ``data_parallel`` is no bool.
    :raises ValueError: if it is True and there is no seed.
    """
    check_switch("data_parallel", data_parallel)
    if data_parallel and seed is None:
        raise ValueError(
            "data_parallel=True without a seed, expected seed=..., the same on all ranks, from "
            "which they draw the same noise and minibatches"
        )
