# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Trains one row of the table: by Adam, or by AEBKernel in Pyro's MCMC.

Either way the outcome is a list of state dicts, "draws": of a chain the posterior draws, of Adam
the iterates at the same places. All are scored alike: the last one alone, and the average of their
predicted probabilities. They are stored, for ``adversarial.py``.

A row in progress has a folder in ``OUT/unfinished/``, with a checkpoint at every draw; a run that
was killed goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from vision.chain import RunFolder, State, copy_state, run_chain, write
from vision.data import Images, batches, load, split
from vision.training import Adam, Classification, Precision, probabilities_of, scores_of

import pyro_aeb as aeb

from .protocol import ADAM, DROPOUT, NETWORKS, Protocol, Row, row_named

SCORES = ("accuracy", "nll", "ece", "brier")
FIGURES = (
    *(f"{score}_{kind}" for score in SCORES for kind in ("average", "last")),
    *("seconds", "steps", "draws", "sparsity", "delta", "sigma"),
)
TEST_BATCH = 500
UNFINISHED = "unfinished"
VALIDATION = 5000


@dataclass(frozen=True)
class Job:
    """
    The settings that all rows of a run share.

    :param protocols: of every data and network.
    :param data_dir: of the images; None makes some up.
    :param bool download: whether they may be downloaded.
    :param str device: of the computations.
    :param out: where draws are stored, in ``draws/``.
    :param bool validation: whether to score images set aside from the training images, to choose
        settings, in place of the test images.
    """

    protocols: dict[tuple[str, str], Protocol]
    data_dir: Path | None
    download: bool
    device: str
    out: Path
    validation: bool = False

    def protocol(self, row: Row) -> Protocol:
        """Return the protocol of a row."""
        return self.protocols[row.data, row.network]

    def settings_of(self, name: str) -> str:
        """Return the settings that decide a row's figures beside the seed, in a line."""
        row = row_named(name)
        scored = "validation" if self.validation else "test"
        return f"{self.protocol(row).settings(row.method)}, {scored} images"

    def images(self, data: str) -> tuple[Images, Images]:
        """To train on and to score, on the device."""
        train, test = load(data, self.data_dir, download=self.download)
        if self.validation:
            train, test = split(train, min(VALIDATION, len(train.labels) // 5))
        return train.to(self.device), test.to(self.device)

    def draws_file(self, row: Row, seed: int) -> Path:
        """Return the path of a row's draws."""
        return self.out / "draws" / f"{row.data}-{row.network}-{row.method}-{seed}.pt"

    def folder(self, row: Row, seed: int) -> RunFolder:
        """Return the folder of a row that is not finished."""
        path = self.out / UNFINISHED / f"{row.data}-{row.network}-{row.method}-{seed}"
        return RunFolder(path, self.settings_of(str(row)))


def network_of(row: Row) -> nn.Module:
    """A fresh network for a row; all methods but Dropout have the plain one."""
    return NETWORKS[row.network](DROPOUT if row.method == "dropout" else 0.0)


def run_one(name: str, seed: int, job: Job) -> dict[str, float]:
    """
    Trains, stores and scores one row.

    :param str name: of the row.
    :param int seed: of first weights, order of images, augmentation and sampler.
    :returns: the figures of :data:`FIGURES`; ``seconds`` is processor time of training alone.
    """
    row = row_named(name)
    train, test = job.images(row.data)
    torch.manual_seed(seed)
    pyro.set_rng_seed(seed)
    module, protocol = network_of(row).to(job.device), job.protocol(row)
    folder = job.folder(row, seed)
    epochs = protocol.adam_epochs if row.method in ADAM else protocol.epochs
    length = _length(protocol, epochs, len(train.labels))
    fit = _train_by_adam if row.method in ADAM else _sample
    fit(module, row, protocol, train, seed, length, folder)
    states, figures = folder.draws(length.draws, job.device)
    figures["steps"] = float((length.burn_in + length.draws) * length.thinning)
    stored = job.draws_file(row, seed)
    stored.parent.mkdir(parents=True, exist_ok=True)
    write(stored, states)
    return figures | score_states(module, states, test, protocol.precision)


def score_states(
    module: nn.Module, states: list[State], test: Images, precision: Precision
) -> dict[str, float]:
    """
    Scores of the last state and of the average over all.

    :param module: which the states fit; it is left in the last one.
    :param states: at least one.
    :param Images test: on the module's device.
    """
    total = torch.zeros(())
    for state in states:
        module.load_state_dict(state)
        last, labels = probabilities_of(module, batches(test, TEST_BATCH), precision)
        total = total.to(last.device) + last
    average = scores_of(total / len(states), labels)
    figures = {f"{score}_average": value for score, value in average.items()}
    figures |= {f"{score}_last": value for score, value in scores_of(last, labels).items()}
    return figures | {"draws": float(len(states))}


class Length(NamedTuple):
    """Draws of burn-in, draws after it, and steps a draw."""

    burn_in: int
    draws: int
    thinning: int


def _length(protocol: Protocol, epochs: float, images: int) -> Length:
    steps = int(epochs * (images // min(protocol.batch, images)))
    thinning = max(1, int(steps * (1.0 - protocol.burn_in) / protocol.draws))
    return Length(max(0, steps // thinning - protocol.draws), protocol.draws, thinning)


def _train_by_adam(
    module: nn.Module,
    row: Row,
    protocol: Protocol,
    train: Images,
    seed: int,
    length: Length,
    folder: RunFolder,
) -> None:
    """Vanilla and Dropout: the iterates where a chain would have its draws."""
    loader = batches(train, protocol.batch, row.augment, train=True, seed=seed)
    adam = Adam(module, loader, protocol.learning_rate, protocol.precision)
    checkpoint, done = folder.path / "adam.pt", 0
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        adam.load(stored["adam"])
        done = stored["done"]
    for number in range(done, length.burn_in + length.draws):
        adam.advance(length.thinning)
        if number >= length.burn_in:
            folder.save_draw(number - length.burn_in, copy_state(module), {})
        folder.save_seconds()
        write(checkpoint, {"adam": adam.state(), "done": number + 1})


def _sample(
    module: nn.Module,
    row: Row,
    protocol: Protocol,
    train: Images,
    seed: int,
    length: Length,
    folder: RunFolder,
) -> None:
    """SGHMC, with all weights Normal, and SGHMC-SA, with the first linear layer SSGL."""
    loader = batches(train, protocol.batch, row.augment, train=True, seed=seed)
    burn_in, draws, thinning = length
    adaptive = row.method == "sghmc-sa"
    p = float(module.fc1.weight.numel())
    net = aeb.nn.bayesianize(
        module,
        sparse="fc1" if adaptive else [],
        v0=protocol.v0,
        v1=protocol.v1,
        delta=dist.Beta(p, p),
        sigma2=dist.InverseGamma(protocol.nu / 2.0, protocol.nu * protocol.nu / 2.0),
        dense_scale=protocol.dense_scale,
    )
    kernel = aeb.AEBKernel(
        Classification(net, len(train.labels), protocol.precision),
        aeb.SGHMC(
            aeb.Piecewise(protocol.step_size, {burn_in * thinning + 1: protocol.late}),
            friction=0.1,
        ),
        adaptation=aeb.StochasticApproximation(protocol.omega) if adaptive else None,
        inverse_temperature=protocol.temperature,
        steps_per_draw=thinning,
        save=[*net.latent_sites] if adaptive else ["fc2.bias"],
        seed=seed,
        compile=False,
    )
    run_chain(net, kernel, loader, warmup=burn_in, kept=draws, folder=folder)
