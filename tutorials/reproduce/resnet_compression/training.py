# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The data of a run, and one chain of it with its scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyro
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from vision.augment import CIFAR_PLAIN, Augmentation, RandomCrop, RandomErasing, RandomFlip
from vision.chain import RunFolder, State, run_chain
from vision.corruptions import corrupt
from vision.data import Images, batches, load, split
from vision.networks import ResNet20
from vision.training import Precision, probabilities_of, scores_of

import pyro_aeb as aeb

from .protocol import Protocol

SCORES = ("accuracy", "nll", "ece", "brier")
FIGURES = [
    f"{score}_{which}"
    for score in (*SCORES, "accuracy_corrupted", "nll_corrupted", "ece_corrupted")
    for which in ("last", "average")
]
TEST_BATCH = 500
RECALIBRATION = 5_000
"""Training images that the statistics of batch normalisation are estimated from, for every draw."""
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Run:
    """
    The source of a run's data, the folder of its results, and its length.

    :param Protocol protocol: sizes, lengths and schedules.
    :param data_dir: folder of the data; None makes images up.
    :param bool download: whether missing data may be fetched.
    :param Path out: folder for the results.
    :param str device: of all tensors.
    :param str score: ``"test"``, or ``"validation"`` for the training images held out.
    """

    protocol: Protocol
    data_dir: Path | None
    download: bool
    out: Path
    device: str = "cpu"
    score: str = "test"

    def network(self) -> ResNet20:
        """An untrained network."""
        return ResNet20(width=self.protocol.width, depth=self.protocol.depth).to(self.device)

    def data(self) -> tuple[Images, Images]:
        """The images to train on and those to score."""
        train, held_out, test = self._parts()
        return train, held_out if self.score == "validation" else test

    def held_out(self) -> Images:
        """The training images held out, none without validation."""
        return self._parts()[1]

    def folder(self, name: str, seed: int, settings: str) -> RunFolder:
        """The folder of a row that is not finished."""
        return RunFolder(self.out / UNFINISHED / f"{name}-{seed}", settings)

    def _parts(self) -> tuple[Images, Images, Images]:
        return _data(self.data_dir, self.download, self.protocol.validation, self.device)


@cache
def _data(
    data_dir: Path | None, download: bool, validation: int, device: str
) -> tuple[Images, Images, Images]:
    store = None if data_dir is None else data_dir / "decoded"
    train, test = load("cifar10", data_dir, download=download, cache=store)
    held_out = train.take(slice(0))
    if validation:
        train, held_out = split(train, validation)
    return train.to(device), held_out.to(device), test.to(device)


@dataclass(frozen=True)
class Length:
    """
    How many steps and draws a chain has.

    :param int epochs: passes over the data.
    :param int data: N, the number of training images.
    :param int batch: images a step.
    :param int draws_per_epoch: draws in an epoch. Steps that do not make a whole draw are left out.
    :param int averaged: the last draws, which are kept; all, if there are fewer.
    """

    epochs: int
    data: int
    batch: int
    draws_per_epoch: int
    averaged: int

    @property
    def steps_per_draw(self) -> int:
        return max(1, self.data // min(self.batch, self.data) // self.draws_per_epoch)

    @property
    def draws(self) -> int:
        return self.epochs * self.draws_per_epoch

    @property
    def steps(self) -> int:
        return self.draws * self.steps_per_draw


def augmentation(erasing: bool) -> Augmentation:
    """Crop, flip, normalise, and random erasing of every other image if asked."""
    last = (RandomErasing(0.5),) if erasing else ()
    return Augmentation((RandomCrop(4), RandomFlip(), *CIFAR_PLAIN.transforms, *last))


def sample(
    net: aeb.nn.BayesianModule,
    kernel: aeb.AEBKernel,
    length: Length,
    run: Run,
    seed: int,
    folder: RunFolder,
) -> tuple[State, dict[str, float]]:
    """
    Runs a chain, or what is left of it, and scores its last draw and the average of the kept draws'
    probabilities.

    :param net: the Bayesian network.
    :param kernel: of its model, at the start of the chain.
    :param Length length: of the chain.
    :param Run run: whose data and images to score.
    :param int seed: of the batches and their augmentation.
    :param folder: of the chain.
    :returns: the state of the last draw, and scores, latents, and processor seconds without those
        of the last scoring.
    """
    train, scored = run.data()
    augment = augmentation(run.protocol.erasing)
    loader = batches(train, length.batch, augment, train=True, seed=seed)
    pyro.set_rng_seed(seed)
    kept = min(length.averaged, length.draws)
    warmup = length.draws - kept
    run_chain(
        net,
        kernel,
        loader,
        warmup=warmup,
        kept=kept,
        folder=folder,
        after_draw=_learning_curve(run, length, folder),
    )
    states, figures = folder.draws(kept, run.device)
    figures.pop("sparsity", None)
    return states[-1], figures | score_states(states, scored, run)


def score_states(states: list[State], scored: Images, run: Run) -> dict[str, float]:
    """
    Scores of the last state and of the average over all, on images as they are and, as means over
    the corruptions, on corrupted ones. The statistics of batch normalisation are estimated anew for
    every state, from augmented training images.

    :param states: at least one, of the run's network.
    :param Images scored: on the run's device.
    """
    network, protocol = run.network(), run.protocol
    sets = {"": scored, **corrupt(scored, protocol.corrupted)}
    totals = dict.fromkeys(sets, torch.zeros(()))
    lasts = dict.fromkeys(sets, torch.zeros(()))
    train = run.data()[0].take(slice(RECALIBRATION))
    for state in states:
        network.load_state_dict(state)
        update_bn(batches(train, TEST_BATCH, augmentation(False)), network)
        for name, images in sets.items():
            lasts[name] = _predict(network, images, protocol.precision)
            totals[name] = totals[name].to(run.device) + lasts[name]
    figures: dict[str, float] = {}
    for which, parts, scale in (("last", lasts, 1.0), ("average", totals, 1.0 / len(states))):
        scores = {name: _scores(scale * parts[name], sets[name]) for name in sets}
        figures |= {f"{score}_{which}": scores[""][score] for score in SCORES}
        for score in ("accuracy", "nll", "ece"):
            values = [scores[name][score] for name in sets if name]
            figures[f"{score}_corrupted_{which}"] = sum(values) / len(values)
    return figures


def _predict(network: nn.Module, images: Images, precision: Precision) -> torch.Tensor:
    return probabilities_of(network, batches(images, TEST_BATCH, CIFAR_PLAIN), precision)[0]


def _scores(probabilities: torch.Tensor, images: Images) -> dict[str, float]:
    """Return scores of probabilities; accuracy and ECE as shares."""
    scores = scores_of(probabilities, images.labels)
    return {n: x / 100.0 if n in ("accuracy", "ece") else x for n, x in scores.items()}


def _learning_curve(
    run: Run, length: Length, folder: RunFolder
) -> Callable[[State, int], None] | None:
    """
    Return a function for the draws of a chain that appends the scores of held-out images to a file
    of ``OUT/curves/`` after every epoch; None where no images are held out.
    """
    held_out, path = run.held_out(), run.out / "curves" / f"{folder.path.name}.csv"
    if not len(held_out.labels):
        return None
    path.parent.mkdir(exist_ok=True)
    network = run.network()

    def after_draw(state: State, number: int) -> None:
        epoch, rest = divmod(number + 1, length.draws_per_epoch)
        lines = path.read_text().splitlines() if path.exists() else ["epoch,accuracy,nll"]
        if rest or len(lines) > epoch:  # a draw that is made again after a kill
            return
        network.load_state_dict(state)
        scores = _scores(_predict(network, held_out, run.protocol.precision), held_out)
        lines.append(f"{epoch},{scores['accuracy']:.6g},{scores['nll']:.6g}")
        path.write_text("\n".join(lines) + "\n")

    return after_draw
