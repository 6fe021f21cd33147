# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Trains one row of the table: by Adam, or by AEBKernel in Pyro's MCMC.

Either way the outcome is a list of state dicts, "draws": of a chain the posterior draws, of Adam
the iterates at the same places. All are scored alike: the last one alone, and the average of their
predicted probabilities. They are stored, for ``adversarial.py``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC
from torch import Tensor, nn
from vision.data import Images, batches, load, split
from vision.training import (
    Classification,
    Precision,
    adam_steps,
    probabilities_of,
    scores_of,
)

import pyro_aeb as aeb

from .protocol import ADAM, DROPOUT, NETWORKS, Protocol, Row, row_named

State = dict[str, Tensor]

SCORES = ("accuracy", "nll", "ece", "brier")
FIGURES = (
    *(f"{score}_{kind}" for score in SCORES for kind in ("average", "last")),
    *("seconds", "steps", "draws", "sparsity", "delta", "sigma"),
)
TEST_BATCH = 500
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
    module = network_of(row).to(job.device)
    started = time.process_time()
    fit = _train_by_adam if row.method in ADAM else _sample
    states, figures = fit(module, row, job.protocol(row), train, seed)
    figures["seconds"] = time.process_time() - started
    stored = job.draws_file(row, seed)
    stored.parent.mkdir(parents=True, exist_ok=True)
    torch.save(states, stored)
    return figures | score_states(module, states, test, job.protocol(row).precision)


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


def _steps(protocol: Protocol, epochs: float, images: int) -> tuple[int, int, int]:
    """Draws of burn-in, draws after it, and steps a draw, for a number of epochs."""
    steps = int(epochs * (images // min(protocol.batch, images)))
    thinning = max(1, int(steps * (1.0 - protocol.burn_in) / protocol.draws))
    return max(0, steps // thinning - protocol.draws), protocol.draws, thinning


def _copy(module: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _train_by_adam(
    module: nn.Module, row: Row, protocol: Protocol, train: Images, seed: int
) -> tuple[list[State], dict[str, float]]:
    """Vanilla and Dropout: the iterates where a chain would have its draws."""
    loader = batches(train, protocol.batch, row.augment, train=True, seed=seed)
    burn_in, draws, thinning = _steps(protocol, protocol.adam_epochs, len(train.labels))
    steps = adam_steps(module, loader, protocol.learning_rate, protocol.precision)
    states = []
    for _ in range(burn_in * thinning):
        next(steps)
    for _ in range(draws):
        for _ in range(thinning):
            next(steps)
        states.append(_copy(module))
    return states, {"steps": float((burn_in + draws) * thinning)}


def _sample(
    module: nn.Module, row: Row, protocol: Protocol, train: Images, seed: int
) -> tuple[list[State], dict[str, float]]:
    """SGHMC, with all weights Normal, and SGHMC-SA, with the first linear layer SSGL."""
    loader = batches(train, protocol.batch, row.augment, train=True, seed=seed)
    burn_in, draws, thinning = _steps(protocol, protocol.epochs, len(train.labels))
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
    )
    kept = Kept(net)
    mcmc = MCMC(
        kernel,
        num_samples=draws,
        warmup_steps=burn_in,
        hook_fn=kept.hook,
        disable_progbar=True,
    )
    mcmc.run(loader)
    figures = {"steps": float((burn_in + draws) * thinning)}
    if kernel.latents is not None:
        figures |= {
            "delta": float(kernel.latents.delta),
            "sigma": float(kernel.latents.sigma),
            "sparsity": float(kernel.diagnostics()["sample_stats"]["sparsity"][-1]),
        }
    return kept.states, figures


class Kept:
    """
    The plain module's state at every draw of a chain, for ``MCMC(..., hook_fn=kept.hook)``.

    :param net: of :func:`pyro_aeb.nn.bayesianize`, in which the chain runs: batch normalisation's
        running averages are taken as they stand at the draw, next to its weights.
    """

    def __init__(self, net: aeb.nn.BayesianModule) -> None:
        self.net = net
        self.states: list[State] = []

    def hook(self, kernel: aeb.AEBKernel, samples: object, stage: str, i: int) -> None:
        """Takes down a draw, unless it is one of warm-up."""
        if not stage.startswith("Warmup"):
            values = kernel.chain.values()
            state = _copy(self.net.module)
            state |= {name: values[name].clone() for name in state if name in values}
            self.states.append(state)
