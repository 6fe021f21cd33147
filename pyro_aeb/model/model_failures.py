# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Failures of a model on its arguments, with their likely causes and cures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.data.arguments import numbers_in
from pyro_aeb.data.not_tensors import advise_tensors
from pyro_aeb.errors import ModelError, first_line, is_domain_error
from pyro_aeb.model.data_checks import INDEX_ADVICE
from pyro_aeb.model.missing_data import explain_missing


@contextmanager
def explain_failures(arguments: Mapping[str, Any]) -> Iterator[None]:
    """
    Turn a model's failure on its arguments into a ModelError, where their kinds, dtypes, devices,
    lengths or missing numbers may be the cause.
    """
    tensors = named_tensors(arguments)
    try:
        with explain_missing(tensors):
            yield
    except (TypeError, KeyError, AttributeError) as error:
        if (advice := advise_tensors(arguments)) is None:
            raise
        raise ModelError(
            f"the model fails on its data: {advice}. The failure was: {first_line(error)}"
        ) from error
    except IndexError as error:
        lengths = {name: len(value) for name, value in tensors.items() if value.dim()}
        if len({*lengths.values()}) < 2:
            raise
        raise ModelError(
            f"the model fails on its data: {error}. Its arguments have different lengths, "
            f"{lengths}, expected as many data in all that the plate's indices pick from"
        ) from error
    except ValueError as error:
        if str(error).startswith("Expected scale > 0"):
            raise ModelError(
                f"the weights of data, poutine.scale(scale=...), are not all greater than 0, as "
                f"Pyro wants them: {error}; leave data out with poutine.mask(mask=w > 0), and give "
                "them any positive weight"
            ) from error
        if not str(error).startswith("Shape mismatch inside plate"):
            raise
        raise ModelError(_describe_mismatch(str(error), tensors)) from error
    except RuntimeError as error:
        if is_domain_error(error):
            raise
        if (kinds := _describe_kinds(first_line(error), tensors)) is None:
            raise
        raise ModelError(kinds) from error


def named_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the model's arguments, each once, by the names that the model gives them."""
    try:
        signature = inspect.signature(model)
        bound = signature.bind(*args, **kwargs).arguments
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        named = {n: v for n, v in bound.items() if signature.parameters[n].kind not in kinds}
    except (TypeError, ValueError):  # no signature, or arguments that the model will refuse itself
        named = {}
    named |= {**kwargs, **{f"argument {i}": value for i, value in enumerate(args)}}
    once, values = dict[str, Any](), set[int]()
    for name, value in named.items():
        if id(value) not in values:
            once[name] = value
        values.add(id(value))
    return once


def named_tensors(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors and arrays in the model's arguments, by name."""
    tensors = dict[str, Tensor]()
    for name, value in arguments.items():
        tensors |= numbers_in(name, value)
    return tensors


def note_shapes(error: Exception, tensors: Mapping[str, Tensor]) -> None:
    """Add the shapes of the data to an error of the model, where Python can (from 3.11 on)."""
    shapes = ", ".join(f"{name!r} of shape {tuple(x.shape)}" for name, x in tensors.items())
    if shapes and (add_note := getattr(error, "add_note", None)):
        add_note(f"The data that the model ran on: {shapes}.")


def _describe_mismatch(error: str, tensors: Mapping[str, Tensor]) -> str:
    """Return an error that a distribution does not fit into its plate, with the cure."""
    summary, *_ = error.splitlines()
    length = summary.rpartition(" ")[2]
    event = (
        f"if a datum has {length} numbers (outputs of a network, say), make them one event of it "
        "by .to_event(1) on the distribution"
    )
    cure = INDEX_ADVICE
    if length not in {str(len(value)) for value in tensors.values() if value.dim()}:
        is_row = any(
            value.dim() > 1 and str(value.shape[-1]) == length for value in tensors.values()
        )
        cure = event if is_row else f"{cure}; or {event}"
    return (
        f"{summary}: the distribution's last axis is not the plate's, expected one datum for each "
        f"of the plate's indices; {cure}"
    )


def _describe_kinds(error: str, tensors: Mapping[str, Tensor]) -> str | None:
    """
    Return an error that data are of another dtype or device than torch's defaults, with the cure;
    None where they are not.
    """
    default = torch.zeros(())
    about_dtypes = "dtype" in error or "scalar type" in error  # in any torch version
    unusual = {
        name: value
        for name, value in tensors.items()
        if (value.dtype, value.device.type) != (default.dtype, default.device.type)
        # Classes are integers: no cause of a failure, unless torch names dtypes.
        and (value.is_floating_point() or about_dtypes)
    }
    if not unusual:
        return None
    kinds = ", ".join(f"{n!r} is {v.dtype} on {v.device}" for n, v in unusual.items())
    return (
        f"the model fails on its data: {kinds}, where priors of plain numbers are "
        f"{default.dtype} on {default.device}; convert the data, {_conversion(unusual)}, or "
        "use torch.set_default_dtype and torch.set_default_device, or give priors of the "
        f"data's kind. The failure was: {error}"
    )


def _conversion(unusual: Mapping[str, Tensor]) -> str:
    """Return the call that converts the first of some tensors to torch's defaults."""
    name = next((name for name in unusual if name.isidentifier()), "x")
    default = torch.zeros(())
    same_device = unusual.get(name, default).device.type == default.device.type
    place = "" if same_device else f'"{default.device.type}", '
    return f"{name}.to({place}{default.dtype})"
