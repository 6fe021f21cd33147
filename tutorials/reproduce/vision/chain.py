# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Long runs in folders: one that was killed goes on, and ends in the same numbers.

While it runs, a folder holds the checkpoint of a chain or of Adam, the network's state at every
kept draw, and the processor time so far. :class:`RunFolder` knows its files, and :func:`run_chain`
runs a chain in it. A draw counts once its file is there; the checkpoint is written after that, so
a run that is killed between the two makes the draw again, bit for bit.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pyro_aeb as aeb

State = dict[str, Tensor]


def write(path: Path, content: Any) -> None:
    """Save tensors and plain values; a run that stops in mid-write leaves the file before."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


class RunFolder:
    """
    The files of one run.

    :param path: of the folder, which is made.
    :param str settings: what decides the run's numbers, as a line of text.
    :raises RuntimeError: if the folder holds a run of other settings.
    """

    def __init__(self, path: Path, settings: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        stored = path / "settings.txt"
        if not stored.exists():
            stored.write_text(settings)
        if stored.read_text() != settings:
            raise RuntimeError(
                f"{path} holds a run made with\n    {stored.read_text()}\nand now it would be made "
                f"with\n    {settings}\nChoose another --out, or delete it."
            )
        self._before = self._stored_seconds()
        self._start = time.process_time()

    @property
    def seconds(self) -> float:
        """Processor seconds of all starts of the run up to now; what a kill undid is left out."""
        return self._before + time.process_time() - self._start

    def save_draw(self, number: int, state: State, figures: dict[str, float]) -> None:
        """Save a kept draw, counted from 0."""
        write(self._draw(number), {"state": state, "figures": figures})

    def save_seconds(self) -> None:
        """Save the processor time so far."""
        part = self.path / "seconds.part"
        part.write_text(json.dumps(self.seconds))
        part.replace(self.path / "seconds.json")

    def is_complete(self, count: int) -> bool:
        """Whether all draws are there."""
        return all(self._draw(number).exists() for number in range(count))

    def draws(self, count: int, device: str) -> tuple[list[State], dict[str, float]]:
        """Return the states of all draws, the figures of the last one, and processor seconds."""
        contents = [
            torch.load(self._draw(number), weights_only=True, map_location=device)
            for number in range(count)
        ]
        figures = {**contents[-1]["figures"], "seconds": self._stored_seconds()}
        return [content["state"] for content in contents], figures

    def discard(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path)

    def _draw(self, number: int) -> Path:
        return self.path / f"draw-{number:03d}.pt"

    def _stored_seconds(self) -> float:
        path = self.path / "seconds.json"
        return float(json.loads(path.read_text())) if path.exists() else 0.0


def copy_state(module: nn.Module) -> State:
    """Return a copy of a module's weights and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def run_chain(
    net: aeb.nn.BayesianModule,
    kernel: aeb.AEBKernel,
    loader: DataLoader[tuple[Tensor, Tensor]],
    *,
    warmup: int,
    kept: int,
    folder: RunFolder,
    after_draw: Callable[[State, int], None] | None = None,
) -> None:
    """
    Run a chain, or what is left of it, and save its kept draws: the plain module's state, with the
    running averages of batch normalisation as they stand at the draw.

    :param net: in which the chain runs.
    :param kernel: at the start of the chain; a checkpoint in the folder takes its place.
    :param loader: of training batches.
    :param int warmup: draws that are not kept.
    :param int kept: draws that are.
    :param folder: of the run.
    :param after_draw: called with the state and the number of every draw, warm-up included.
    """

    def hook(current: aeb.AEBKernel, samples: object, stage: str, i: int) -> None:
        values = current.chain.values()
        state = copy_state(net.module)
        state |= {name: values[name].clone() for name in state if name in values}
        is_warmup = stage.startswith("Warmup")
        if not is_warmup:
            folder.save_draw(i, state, _figures(current))
        if after_draw is not None:
            after_draw(state, i if is_warmup else warmup + i)
        folder.save_seconds()

    if folder.is_complete(kept):
        return
    checkpoint = folder.path / "chain"
    try:
        mcmc = aeb.MCMC.resume(
            checkpoint,
            kernel.model,
            hook_fn=hook,
            disable_progbar=True,
            transition=kernel.transition,  # its schedule may be a script's own
        )
    except aeb.CheckpointError:
        mcmc = aeb.MCMC(  # raises an error if there is a checkpoint that cannot be read
            kernel,
            num_samples=kept,
            warmup_steps=warmup,
            hook_fn=hook,
            disable_progbar=True,
            checkpoint=checkpoint,
            every=1,
        )
    mcmc.run(loader)


def _figures(kernel: aeb.AEBKernel) -> dict[str, float]:
    """Return where the learned latents are, as means over layers."""
    if kernel.latents is None:
        return {}
    return {
        "delta": float(kernel.latents.delta.mean()),
        "sigma": float(kernel.latents.sigma.mean()),
        "sparsity": float(kernel.diagnostics()["sample_stats"]["sparsity"][-1]),
    }
