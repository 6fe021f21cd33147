# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The contract of transitions, whatever they sample; see :mod:`pyro_aeb.transitions.base`.

A step is a pure function of its arguments: it changes none of them, keeps no hidden state, draws no
random numbers of its own, and gives every chain of a leading axis what that chain gets alone.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.schedules import Constant
from pyro_aeb.testing.reports import Outcome, Report, require
from pyro_aeb.testing.steps import (
    NUMBERS,
    advance,
    are_equal,
    copy_state,
    random_numbers,
    relative_error,
    run_steps,
    target_at,
)
from pyro_aeb.transitions import AnyTransition, HasStatistics, statistics_of
from pyro_aeb.transitions.base import noise_size

DTYPES = (torch.float32, torch.float64)
CHAINS, SIZE, STEPS = 3, 7, 5


def check_contract(transition: AnyTransition) -> Report:
    """
    Check that a transition keeps the contract of transitions, in single and in double precision.

    :param transition: any transition.
    :returns: the outcomes of the checks.
    :raises AssertionError: if the transition breaks the contract.
    """
    for _, _, function in CHECKS:
        for dtype in DTYPES:
            function(transition, dtype)
    outcomes = tuple(Outcome(check, result) for check, result, _ in CHECKS)
    return Report(repr(transition), outcomes)


def _noise(transition: AnyTransition, *shape: int, dtype: torch.dtype) -> Tensor:
    return random_numbers(*shape, noise_size(transition, SIZE), dtype=dtype, seed=1)


def _check_state(transition: AnyTransition, dtype: torch.dtype) -> None:
    position = random_numbers(SIZE, dtype=dtype)
    states = run_steps(transition, position, _noise(transition, STEPS, dtype=dtype))
    for state in states:
        fields: tuple[str, ...] = getattr(state, "_fields", ())
        require(
            fields[:1] == ("position",) and all(map(torch.is_tensor, state)),
            "state",
            f"{type(state).__name__} with fields {fields}",
            "a NamedTuple of tensors whose first field is 'position'",
            "checkpoints, a leading axis of chains and pruning rely on it",
        )
        kinds = [(f, tuple(t.shape), t.dtype) for f, t in zip(fields, state, strict=True)]
        first = [(f, tuple(t.shape), t.dtype) for f, t in zip(fields, states[0], strict=True)]
        require(
            kinds == first,
            "state after a step",
            kinds,
            first,
            "a step must keep fields, shapes and dtypes as init made them",
        )
        require(
            state.position.shape == position.shape and state.position.dtype == dtype,
            "position",
            (tuple(state.position.shape), state.position.dtype),
            (tuple(position.shape), dtype),
            "a position must have the shape and dtype that init was given",
        )
        floats = [tensor for tensor in state if tensor.is_floating_point()]
        require(
            all(bool(tensor.isfinite().all()) for tensor in floats),
            "state after small steps on a standard normal",
            "numbers that are not finite",
            "finite numbers",
            "look for a division by a number that starts at 0",
        )
    require(
        torch.equal(states[0].position, position),
        "init",
        "another position",
        "the position that it was given",
        "a chain must start at the position that the kernel chooses",
    )


def _check_inputs(transition: AnyTransition, dtype: torch.dtype) -> None:
    noise = _noise(transition, STEPS, dtype=dtype)
    state = run_steps(transition, random_numbers(SIZE, dtype=dtype), noise)[-1]
    gradient = random_numbers(SIZE, dtype=dtype, seed=2)
    z = random_numbers(noise_size(transition, SIZE), dtype=dtype, seed=3)
    inputs = {**state._asdict(), "gradient": gradient, "noise": z}
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    after = copy_state(shared := advance(transition, state, gradient, z, NUMBERS))
    changed = [name for name, tensor in inputs.items() if not torch.equal(tensor, before[name])]
    require(
        not changed,
        "inputs of a step",
        f"{changed} changed",
        "all unchanged",
        "do not use in-place operations on the inputs",
    )
    gradient.zero_(), z.zero_()
    require(
        are_equal(shared, after),
        "state after a step",
        "a state that shares memory with the gradient or the noise",
        "a state with memory of its own",
        "the kernel writes the next numbers into the same memory: clone what the state keeps",
    )


def _check_determinism(transition: AnyTransition, dtype: torch.dtype) -> None:
    noise = _noise(transition, STEPS, dtype=dtype)
    states = run_steps(transition, random_numbers(SIZE, dtype=dtype), noise)
    z = noise[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        generator = torch.get_rng_state()
        first = copy_state(advance(transition, states[-2], -states[-2].position, z, NUMBERS))
        require(
            torch.equal(torch.get_rng_state(), generator),
            "random numbers",
            "a step that draws from torch's generator",
            "a step that uses only the noise it is given",
            "a run could not be replayed, nor resumed bit for bit",
        )
        advance(transition, states[0], -states[0].position, z, NUMBERS)  # another step in between
        again = advance(transition, states[-2], -states[-2].position, z, NUMBERS)
    require(
        are_equal(first, again),
        "the same step twice",
        "two different states",
        "the same to the last digit",
        "a step must keep its memory in the state, not in the transition",
    )


def _check_pickle(transition: AnyTransition, dtype: torch.dtype) -> None:
    noise = _noise(transition, STEPS, dtype=dtype)
    state = run_steps(transition, random_numbers(SIZE, dtype=dtype), noise)[-1]
    try:
        other, copy = pickle.loads(pickle.dumps((transition, state)))
    except Exception as error:
        raise AssertionError(
            f"pickle: found {type(error).__name__}: {error}, expected a transition and a state "
            "that can be pickled, as chains in processes of their own need; define classes at the "
            "top level of a module, and use no lambda for a schedule"
        ) from error
    step = advance(transition, state, -state.position, noise[0], NUMBERS)
    require(
        are_equal(advance(other, copy, -copy.position, noise[0], NUMBERS), step),
        "pickle",
        "another step from a copy",
        "the same to the last digit",
        "pickle loses a part of the transition",
    )


def _check_chains(transition: AnyTransition, dtype: torch.dtype) -> None:
    positions = random_numbers(CHAINS, SIZE, dtype=dtype)
    noise = _noise(transition, STEPS, CHAINS, dtype=dtype)
    together = run_steps(transition, positions, noise)
    for c in range(CHAINS):
        alone = run_steps(transition, positions[c], noise[:, c])
        for a, b in zip(together, alone, strict=True):
            shapes = [tuple(tensor.shape) for tensor in a]
            expected = [(CHAINS, *tensor.shape) for tensor in b]
            require(
                shapes == expected,
                "leading axis of chains",
                f"a state of shapes {shapes}",
                expected,
                "every field of a state must have the axis of chains in front",
            )
            error = relative_error((tensor[c] for tensor in a), b)
            require(
                error <= 100 * torch.finfo(dtype).eps,
                "leading axis of chains",
                f"a relative difference of {error:.2g} between chain {c} of {CHAINS} and alone",
                "no more than rounding",
                "sum over the last axis only, so that chains stay independent",
            )


def _check_numbers(transition: AnyTransition, dtype: torch.dtype) -> None:
    schedule: Any = getattr(transition, "step_size", None)
    require(
        callable(schedule) and float(schedule(1)) > 0.0,
        "step_size",
        repr(schedule),
        "a schedule: step number to a positive float",
        "the kernel evaluates it at every step; see schedules.as_schedule",
    )
    position, noise = random_numbers(SIZE, dtype=dtype), _noise(transition, 1, dtype=dtype)
    start = transition.init(position)

    def step(transition: AnyTransition, step_size: float) -> Any:
        numbers = NUMBERS._replace(step_size=step_size)
        return advance(transition, start, -position, noise[0], numbers)

    require(
        not are_equal(step(transition, 0.05), step(transition, 0.1)),
        "step size",
        "the same step at step sizes 0.05 and 0.1",
        "different ones",
        "a step must take its size from its numbers, so that schedules work",
    )
    fields: Any = dataclasses.fields(transition) if dataclasses.is_dataclass(transition) else ()
    if any(field.name == "step_size" for field in fields):  # not that of an inner transition
        replace: Any = dataclasses.replace
        for other in (Constant(1e-3), Constant(0.7)):
            changed = replace(transition, step_size=other)
            require(
                are_equal(step(changed, 0.05), step(transition, 0.05)),
                "step size",
                "a step that depends on the transition's own schedule",
                "one that takes its size from its numbers alone",
                "the kernel evaluates the schedule and passes the step size on",
            )


def _check_precision(transition: AnyTransition, dtype: torch.dtype) -> None:
    position = random_numbers(SIZE, dtype=torch.float32)
    noise = _noise(transition, STEPS, dtype=torch.float32)
    double = run_steps(transition, position.double(), noise.double())[-1]
    error = relative_error(run_steps(transition, position.to(dtype), noise.to(dtype))[-1], double)
    require(
        error <= 1000 * torch.finfo(dtype).eps,
        f"precision of {dtype}",
        f"a relative difference of {error:.2g} from float64 after {STEPS} steps",
        "no more than rounding",
        "look for a difference of nearly equal numbers, or a constant of another dtype",
    )
    if dtype == torch.float64:
        _check_digits(transition, position.double(), noise[0].double())


def _check_digits(transition: AnyTransition, position: Tensor, noise: Tensor) -> None:
    """Check that a step in float64 reacts to changes that float32 cannot represent."""
    start = transition.init(position)

    def step(gradient_factor: float, noise_factor: float) -> Any:
        gradient, z = -position * gradient_factor, noise * noise_factor
        return advance(transition, start, gradient, z, NUMBERS)

    usual, change = step(1.0, 1.0), 2e-11
    for name, doubled, close in (
        ("gradient", step(2.0, 1.0), step(1.0 + change, 1.0)),
        ("noise", step(1.0, 2.0), step(1.0, 1.0 + change)),
    ):
        require(
            are_equal(doubled, usual) or not are_equal(close, usual),
            "precision of torch.float64",
            f"a step that does not react to a relative change of {change} of the {name}",
            "float64 throughout",
            "look for a conversion to float32",
        )


def _check_statistics(transition: AnyTransition, dtype: torch.dtype) -> None:
    if not isinstance(transition, HasStatistics):
        return

    def statistics(before: Any, after: Any) -> Mapping[str, Tensor]:
        target = target_at(before.position, -before.position, STEPS)
        return statistics_of(transition, before, after, NUMBERS, target)

    positions = random_numbers(CHAINS, SIZE, dtype=dtype)
    noise = _noise(transition, STEPS, CHAINS, dtype=dtype)
    *_, before, after = run_steps(transition, positions, noise)
    copies = [copy_state(before), copy_state(after)]
    together = statistics(before, after)
    shapes = {name: tuple(value.shape) for name, value in together.items()}
    require(
        set(shapes.values()) <= {(CHAINS,)},
        "statistics",
        f"values of shapes {shapes} for {CHAINS} chains",
        "one number per chain",
        "they become variables of sample_stats: reduce over the last axis",
    )
    require(
        are_equal(before, copies[0]) and are_equal(after, copies[1]),
        "statistics",
        "states that have changed",
        "unchanged states",
        "do not use in-place operations on the inputs",
    )
    for c in range(CHAINS):
        *_, before, after = run_steps(transition, positions[c], noise[:, c])
        alone = statistics(before, after)
        require(
            alone.keys() == together.keys()
            and relative_error((value[c] for value in together.values()), alone.values())
            <= 1000 * torch.finfo(dtype).eps,
            "statistics",
            f"different values for chain {c} of {CHAINS} and for that chain alone",
            "the same up to rounding",
            "reduce over the last axis only",
        )


CHECKS: tuple[tuple[str, str, Callable[[AnyTransition, torch.dtype], None]], ...] = (
    ("state", "a NamedTuple that keeps shapes and dtypes, position first", _check_state),
    ("inputs", "unchanged; the state has memory of its own", _check_inputs),
    ("determinism", "a function of its arguments alone", _check_determinism),
    ("pickle", "a copy makes the same step", _check_pickle),
    ("chains", "a leading axis gives every chain what it gets alone", _check_chains),
    ("step size", "from the step's numbers, whatever the schedule", _check_numbers),
    ("statistics", "one number per chain, if there are any", _check_statistics),
    ("precision", "float32 agrees with float64 to rounding", _check_precision),
)
