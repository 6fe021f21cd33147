# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Warn of parameters in a model that nothing learns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pyro
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_aeb.errors import shorten

_PRIORS = {
    "real": "dist.Normal({zero}, 1.0)",
    "positive": "dist.LogNormal({zero}, 1.0)",
    "unit": "dist.Beta({one}, 1.0)",
    "simplex": "dist.Dirichlet({one})",
}


def is_learnable(node: Mapping[str, Any]) -> bool:
    """Whether a node of a trace is a parameter that an optimizer would learn."""
    if node["type"] != "param" or not isinstance(node["value"], Tensor):
        return False
    value = node["value"]
    leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
    return bool(leaf.requires_grad)


def warn_of_parameters(parameters: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Warn that parameters stay as they are, and say which sites would take their place.

    :param parameters: nodes of a trace, by name.
    """
    if not parameters:
        return
    modules = sorted({name.split("$$$")[0] for name in parameters if "$$$" in name})
    single = [name for name in parameters if "$$$" not in name]
    lines = [_suggest(name, parameters[name]) for name in single[:3]]
    lines += [f"{name} = aeb.nn.bayesianize({name}, ...)" for name in modules[:3]]
    warnings.warn(
        f"the model has parameters that are not learned, {shorten([*single, *modules])}: "
        "pyro.param, pyro.module and parameters of a PyroModule stay at their values in the whole "
        f"run. To learn them, give them priors: {'; '.join(lines)}. One that is to stay may be a "
        "plain tensor, or have requires_grad=False",
        stacklevel=7,
    )


def _suggest(name: str, node: Mapping[str, Any]) -> str:
    """Return a line of code that samples a parameter."""
    plain = constraints.real if name in pyro.get_param_store() else "its support"
    constraint, shape = node["kwargs"].get("constraint", plain), node["value"].shape
    if isinstance(node["value"], nn.Parameter):
        constraint = constraints.real
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    kind, dims = "real", len(shape)
    if constraint in (constraints.positive, constraints.nonnegative):
        kind = "positive"
    elif constraint in (constraints.unit_interval,):
        kind = "unit"
    elif constraint is constraints.simplex:
        kind, dims = "simplex", len(shape) - 1
    elif constraint is not constraints.real:
        return f"{name} = pyro.sample({name!r}, ...) with a prior on {constraint}"
    numbers = {"zero": "0.0", "one": "1.0"}
    if shape:
        size = ", ".join(map(str, shape))
        numbers = {"zero": f"torch.zeros({size})", "one": f"torch.ones({size})"}
    event = f".to_event({dims})" if dims else ""
    variable = name.rsplit(".", 1)[-1]
    return f'{variable} = pyro.sample("{name}", {_PRIORS[kind].format(**numbers)}{event})'
