# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Save and restore the complete state of a chain: weights, momentum, latents, masks, buffers, the
place in the data, and random numbers. A restored chain continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import move_to_device
from pyro_aeb.errors import ModelError
from pyro_aeb.kernel.chain import Chain
from pyro_aeb.model.side_effects import global_random_state
from pyro_aeb.storage.checkpoint import check_contents


def state_of(chain: Chain) -> dict[str, Any]:
    """Return the state of a chain between two steps: tensors, plain values, lists and dicts."""
    latents, ssgl, pruner = chain.latents, chain.ssgl, chain.pruner
    return {
        "step": chain.step,
        "draws": chain.draws,
        "name": chain.name,
        "sites": _sites(chain),
        "transition": chain.state._asdict(),
        "latents": None if ssgl is None else ssgl._asdict(),
        "learned": {} if latents is None else latents.sites,
        "pruner": None if pruner is None else pruner.state(),
        **chain.data.state(),
        "buffers": chain.buffers.values(),
        "moments": chain.recording.moments.state(),
        "collapsed": sorted(chain.collapsed),
        "zeros": None if pruner is None or pruner.zero is None else pruner.zero.clone(),
        "noise": chain.noise.state(),
        "generators": [None if g is None else g.get_state() for g in chain.generators],
        "random": global_random_state(),
        "tuning": None if chain.tuner is None else chain.tuner.state(),
    }


def load(chain: Chain, state: Mapping[str, Any]) -> None:
    """
    Restore the state of a chain, but for the global random state.

    :param Chain chain: which has just started, with the same model, data and options.
    :raises ModelError: if model or options are not the same.
    :raises CheckpointError: if it is no state of a chain.
    """
    with check_contents("the saved chain"):
        _check(chain, state)
        _load(chain, state)


def _load(chain: Chain, state: Mapping[str, Any]) -> None:
    if chain.compile_from is not None and int(state["step"]) > chain.compile_from:
        chain.compile()
    chain.noise.load(state["noise"])
    chain.step, chain.draws, chain.name = int(state["step"]), int(state["draws"]), state["name"]
    device = chain.state.position.device
    chain.state = type(chain.state)(**move_to_device(state["transition"], device))
    if chain.latents is not None:
        ssgl = chain.ssgl
        if ssgl is not None:
            ssgl = type(ssgl)(**move_to_device(state["latents"], device))
        chain.latents = Latents(ssgl, move_to_device(state["learned"], device))
    if chain.pruner is not None:
        chain.pruner.load(state["pruner"])
        if state.get("zeros") is not None:
            chain.pruner.zero = move_to_device(state["zeros"], device)
    if chain.tuner is not None:
        chain.tuner.load(state["tuning"], device)
    chain.data.load(state)
    chain.buffers.load(state["buffers"])
    chain.recording.moments.load(state["moments"], device)
    chain.collapsed = {str(name) for name in state["collapsed"]}
    for generator, saved in zip(chain.generators, state["generators"], strict=True):
        if generator is not None:
            generator.set_state(saved)
    chain.last_draw = chain.draw()
    chain.restart_clock()


def _check(chain: Chain, state: Mapping[str, Any]) -> None:
    """Check that a state fits the model and the options."""

    def compare(content: str, saved: Any, expected: Any, remedy: str) -> None:
        if saved != expected:
            raise ModelError(
                f"the saved chain has {content.format(saved)}, and this run has "
                f"{content.format(expected)}; resume with the {remedy} of the saved run"
            )

    compare("sites of shapes {}", state["sites"], _sites(chain), "model")
    forms = _forms(state["transition"]), _forms(chain.state._asdict())
    compare("a state of {}", *forms, "model, data and transition")
    for name, part in (("latents", chain.ssgl), ("pruner", chain.pruner)):
        saved, expected = ("no" if value is None else "a" for value in (state[name], part))
        compare(f"{{}} state of the {name}", saved, expected, "options")
    if chain.ssgl is not None:
        forms = _forms(state["latents"]), _forms(chain.ssgl._asdict())
        compare("latents of {}", *forms, "model")
    counts = len(state["buffers"]), len(chain.buffers.places)
    compare("{} buffers that steps change", *counts, "model in the same mode (train or eval)")


def _forms(values: Mapping[str, Any]) -> dict[str, str]:
    """Describe the fields of a state; a number may be a tensor, as in compiled steps."""

    def form(value: Any) -> str:
        if isinstance(value, Tensor) and value.dim():
            return f"{value.dtype} of shape {tuple(value.shape)}"
        return "a number" if isinstance(value, (Real, Tensor)) else type(value).__name__

    return {name: form(value) for name, value in values.items()}


def _sites(chain: Chain) -> dict[str, list[int]]:
    """Return the shapes of the sites of the position, in their order, and of learned sites."""
    sites = {block.name: list(block.shape) for block in chain.structure.blocks}
    return {**sites, **{site.name: list(site.shape) for site in chain.structure.learned}}
