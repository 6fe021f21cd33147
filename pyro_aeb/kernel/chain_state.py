# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
All that the next step of a chain depends on, as tensors and plain values, and back.

A chain that :func:`load` has put back goes on bit for bit as the one that :func:`state_of` read:
weights, momentum, latents, masks, buffers, the place in the data, and random numbers.
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
    """
    The state of a chain between two steps.

    :returns: tensors, numbers, strings, and lists and dicts of them.
    """
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
    }


def load(chain: Chain, state: Mapping[str, Any]) -> None:
    """
    Puts a chain that has just been started where another one stood. The global random numbers stay
    as they are; see :func:`set_global_random_state`.

    :param Chain chain: of the same model and data, started with the same options.
    :raises ModelError: if the state is not one of such a chain.
    :raises CheckpointError: if it is no state at all.
    """
    with check_contents("the saved chain"):
        _check(chain, state)
        _load(chain, state)


def _load(chain: Chain, state: Mapping[str, Any]) -> None:
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
    chain.data.load(state)
    chain.buffers.load(state["buffers"])
    chain.recording.moments.load(state["moments"], device)
    chain.collapsed = {str(name) for name in state["collapsed"]}
    for generator, own in zip(chain.generators, state["generators"], strict=True):
        if generator is not None:
            generator.set_state(own)
    chain.last_draw = chain.draw()
    chain.restart_clock()


def _check(chain: Chain, state: Mapping[str, Any]) -> None:
    sites = _sites(chain)
    if state["sites"] != sites:
        raise ModelError(
            f"the saved chain has sites of shapes {state['sites']}, and this model has {sites}; go "
            "on with the model that the run began with"
        )
    found, expected = _kinds(state["transition"]), _kinds(chain.state._asdict())
    if found != expected:
        raise ModelError(
            f"the saved chain has a state of {found}, and this model and transition make "
            f"{expected}; go on with the model, data and transition that the run began with"
        )
    for what, there in (("latents", chain.ssgl), ("pruner", chain.pruner)):
        if (state[what] is None) != (there is None):
            raise ModelError(
                f"the saved chain has {'no ' if state[what] is None else ''}{what}, this kernel "
                f"{'none' if there is None else 'some'}; go on with the options that the run "
                "began with"
            )
    if chain.ssgl is not None:
        found, expected = _kinds(state["latents"]), _kinds(chain.ssgl._asdict())
        if found != expected:
            raise ModelError(
                f"the saved chain has latents of {found}, and this model has {expected}; go on "
                "with the model that the run began with"
            )
    if len(state["buffers"]) != len(chain.buffers.places):
        raise ModelError(
            f"the saved chain changes {len(state['buffers'])} buffers of the model's modules, this "
            f"model {len(chain.buffers.places)}; go on with the model in the same mode "
            "(train or eval) as the run began with"
        )


def _kinds(values: Mapping[str, Any]) -> dict[str, str]:
    """What the fields of a state are; a number may be a tensor, as in compiled steps."""

    def kind(value: Any) -> str:
        if isinstance(value, Tensor) and value.dim():
            return f"{value.dtype} of shape {tuple(value.shape)}"
        return "a number" if isinstance(value, (Real, Tensor)) else type(value).__name__

    return {name: kind(value) for name, value in values.items()}


def _sites(chain: Chain) -> dict[str, list[int]]:
    """The sites of the position in their order, those learned, and their shapes."""
    sites = {block.name: list(block.shape) for block in chain.structure.blocks}
    return {**sites, **{site.name: list(site.shape) for site in chain.structure.learned}}
