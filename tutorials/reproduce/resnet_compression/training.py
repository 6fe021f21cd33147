# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The data of a run, and one chain of it with its scores."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyro
from pyro.infer import MCMC
from torch import nn
from vision.augment import CIFAR_PLAIN, Augmentation, RandomCrop, RandomErasing, RandomFlip
from vision.data import Images, batches, load, split
from vision.networks import ResNet20

import pyro_aeb as aeb

from .methods import Classifier
from .protocol import Protocol

SCORES = ("accuracy", "nll", "ece", "brier")
FIGURES = [f"{score}_{which}" for score in SCORES for which in ("last", "average")]


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
        return _data(
            self.data_dir, self.download, self.protocol.validation, self.score, self.device
        )


@cache
def _data(
    data_dir: Path | None, download: bool, validation: int, score: str, device: str
) -> tuple[Images, Images]:
    store = None if data_dir is None else data_dir / "decoded"
    train, test = load("cifar10", data_dir, download=download, cache=store)
    if validation:
        train, held_out = split(train, validation)
        test = held_out if score == "validation" else test
    return train.to(device), test.to(device)


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
    model: Classifier,
    kernel: aeb.AEBKernel,
    length: Length,
    run: Run,
    seed: int,
) -> tuple[nn.Module, dict[str, float]]:
    """
    Runs a chain, and scores its last draw and the average of the kept draws' probabilities.

    :param net: the Bayesian network.
    :param Classifier model: its model.
    :param kernel: of the model.
    :param Length length: of the chain.
    :param Run run: whose data and images to score.
    :param int seed: of the batches and their augmentation.
    :returns: the network of the last draw, and scores and processor seconds, those of the scoring
        included.
    """
    train, scored = run.data()
    loader = batches(train, length.batch, augmentation(run.protocol.erasing), train=True, seed=seed)
    predict = aeb.nn.PosteriorPredictive(model, data=batches(scored, 500, CIFAR_PLAIN))
    kept = min(length.averaged, length.draws)
    mcmc = MCMC(
        kernel,
        num_samples=kept,
        warmup_steps=length.draws - kept,
        hook_fn=predict.hook,
    )
    pyro.set_rng_seed(seed)
    start = time.process_time()
    mcmc.run(loader)
    seconds = time.process_time() - start
    evaluation = predict.evaluate()
    figures = {f"{name}_last": evaluation.last[name] for name in SCORES}
    figures |= {f"{name}_average": evaluation.average[name] for name in SCORES}
    return aeb.nn.sparse_module(net, mcmc, draw=-1), {**figures, "seconds": seconds}
