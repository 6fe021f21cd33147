# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The variables of a saved trace, by the names of their sites."""

from __future__ import annotations

from typing import Any

from pyro_aeb.testing.linear import Array


def find_posterior(trace: Any, caller: str) -> Any:
    """
    Return the group ``posterior`` of a trace.

    :param str caller: for the error message.
    :raises TypeError: if the object is no trace.
    """
    posterior = _group(trace, "posterior")
    if posterior is None:
        raise TypeError(
            f"{caller} takes a run, pyro.infer.MCMC or aeb.MCMC with an AEBKernel, or a trace of "
            f"one, as of to_arviz() or open_trace(), found {type(trace).__name__}"
        )
    return posterior


def variables(trace: Any, group: str) -> dict[str, Any]:
    """Return the variables of a group by source; empty if there is no such group."""
    found = _group(trace, group)
    named = {} if found is None else found.data_vars
    return {x.attrs.get("source", name): x for name, x in named.items()}


def values(trace: Any, group: str) -> dict[str, Array]:
    """Return the values of the variables of a group."""
    return {name: x.values for name, x in variables(trace, group).items()}


def kinds(trace: Any, group: str) -> dict[str, str]:
    """Return the kinds of the variables of a group."""
    return {name: x.attrs.get("kind", "") for name, x in variables(trace, group).items()}


def _group(trace: Any, name: str) -> Any:
    """Return a group of a trace, a dataset or a node; None if there is none."""
    group = getattr(trace, name, None)
    return group if hasattr(group, "data_vars") else None
