# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The dense network that all rows start from: SGHMC under Normal priors, in a checkpoint.

The checkpoint holds the last draw's weights and the averages of the batch norms, the scores, and
the settings it was made with; one that is there is not made again. The scores are on test images,
whatever the rows are scored on: nothing is chosen by them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from vision.chain import State, write

import pyro_aeb as aeb

from .methods import FRICTION, Classifier, dense_network
from .protocol import OneCycle, Protocol, falling
from .training import Length, Run, sample

INVERSE_TEMPERATURE = 2e4
SEED = 0
"""There is one dense network, whatever the seeds of the rows."""


def settings(protocol: Protocol) -> str:
    """Return the settings that decide the dense network, as text."""
    names = (
        "dense_epochs dense_batch dense_step_size one_cycle validation erasing precision width "
        "depth"
    ).split()
    return ", ".join(f"{name}={getattr(protocol, name)!r}" for name in names)


def dense_network_of(run: Run) -> tuple[nn.Module, dict[str, float]]:
    """
    The dense network and its scores: from the checkpoint, or trained now.

    :raises RuntimeError: if the checkpoint was made with other settings.
    """
    path = checkpoint(run)
    if not path.exists():
        _save(run, path)
    stored = torch.load(path, weights_only=True, map_location=run.device)
    wanted = settings(run.protocol)
    if stored["settings"] != wanted:
        raise RuntimeError(
            f"{path} was made with\n    {stored['settings']}\nand now it would be made with\n"
            f"    {wanted}\nChoose another --out, or delete it."
        )
    network = run.network()
    network.load_state_dict(stored["network"])
    return network, stored["figures"]


def checkpoint(run: Run) -> Path:
    """Return the path of the dense network."""
    return run.out / "dense.pt"


def _save(run: Run, path: Path) -> None:
    state, figures = _train(replace(run, score="test"))
    write(path, {"network": state, "figures": figures, "settings": settings(run.protocol)})


def _train(run: Run) -> tuple[State, dict[str, float]]:
    protocol = run.protocol
    data = len(run.data()[0].labels)
    length = Length(
        protocol.dense_epochs,
        data,
        protocol.dense_batch,
        protocol.draws_per_epoch,
        protocol.averaged_draws,
    )
    torch.manual_seed(SEED)
    net = dense_network(run.network())
    model = Classifier(net, data, protocol.precision)
    peak = protocol.dense_step_size * (50_000 / data)
    schedule = OneCycle(peak, length.steps) if protocol.one_cycle else falling(peak, length.steps)
    kernel = aeb.AEBKernel(
        model,
        aeb.SGHMC(schedule, FRICTION),
        inverse_temperature=INVERSE_TEMPERATURE,
        steps_per_draw=length.steps_per_draw,
        save=["fc.bias"],
        seed=SEED,
        compile=False,
    )
    folder = run.folder("dense", SEED, settings(protocol))
    return sample(net, kernel, length, run, SEED, folder)
