# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The calls of networks in one run of a model: the first one samples the weights, all share them.

A run is what one handler records: Pyro's traces, and the package's own handlers, which have
``networks``, and the name of the ``last_site`` that they saw.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from pyro_aeb.errors import ModelError

Values = dict[str, Tensor]
_TRACES: WeakKeyDictionary[Any, dict[nn.Module, Values]] = WeakKeyDictionary()


def sample_once(net: nn.Module, sites: Sequence[str], sample: Callable[[], Values]) -> Values:
    """
    Return a network's weights: those of an earlier call in the same run, or else samples.

    :param sites: the names of its sites; the last one is sampled last.
    :raises ModelError: if the model has other sites with these names.
    """
    runs = list(_runs())
    for handler, networks in runs:
        if net in networks:
            return networks[net]
        if isinstance(handler, TraceMessenger):
            _check_names(net, sites, handler.trace.nodes)
    values = sample()
    last = sites[-1]
    for handler, networks in runs:
        # Under a handler that renames or hides sites, each call has its own.
        is_trace = isinstance(handler, TraceMessenger)
        if last in handler.trace.nodes if is_trace else last == handler.last_site:
            networks[net] = values
    return values


def _runs() -> Iterator[tuple[Any, dict[nn.Module, Values]]]:
    """Yield the handlers that record this run, with the networks that they saw."""
    for handler in _PYRO_STACK:
        if isinstance(handler, TraceMessenger):
            yield handler, _TRACES.setdefault(handler.trace, {})
        elif (networks := getattr(handler, "networks", None)) is not None:
            yield handler, networks


def _check_names(net: nn.Module, sites: Collection[str], nodes: Collection[str]) -> None:
    if clash := [name for name in sites if name in nodes]:
        raise ModelError(
            f"site {clash[0]!r} is in the model before {type(net.module).__name__} is called, "
            "which has a site of this name, expected names of its own for every network; give "
            'each a prefix, bayesianize(..., name="encoder")'
        )
