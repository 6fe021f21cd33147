# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The kernel's options, checked when it is made."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.pruning import Pruning
from pyro_aeb.transitions import TargetTransition
from pyro_aeb.validation import flag


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


def check_seed(seed: Any) -> int | None:
    """
    :raises TypeError: if ``seed`` is neither an integer nor None.
    """
    if not (seed is None or isinstance(seed, Integral)):
        raise TypeError(f"seed is {seed!r}, expected an integer or None")
    return None if seed is None else int(seed)


def check_data_parallel(data_parallel: Any, seed: Any) -> None:
    """
    :raises TypeError: if ``data_parallel`` is no bool.
    :raises ValueError: if it is True and there is no seed.
    """
    flag("data_parallel", data_parallel)
    if data_parallel and seed is None:
        raise ValueError(
            "data_parallel=True without a seed, expected seed=..., the same on all ranks, from "
            "which they draw the same noise and minibatches"
        )
