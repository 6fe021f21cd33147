# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The rows of the table, and how one fit is made and scored."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyro
import torch
from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

import pyro_aeb as aeb

from .data import Split, made_up_table, read_table, split
from .network import Network, Prior, covered, log_density, predictions

Schedule = Callable[[int], float]

FIGURES = (
    "rmse rmse_last nll nll_last coverage sigma delta1 delta2 collapsed restarts draws steps "
    "seconds"
).split()

LEVEL = 0.9

#: Not given for these experiments; the one of the paper's first experiment.
OMEGA = aeb.Polynomial(scale=10.0, offset=1000.0, power=0.7)

#: The annealing of the "A-" rows: tau grows by this factor at every step.
ANNEALING = 1.003


@dataclass(frozen=True)
class Settings:
    """
    Everything that decides a fit, apart from data and seed.

    :param Prior prior: of the model.
    :param tau: inverse temperature, a number or a schedule.
    :param weight: the stochastic approximation's omega; 0 keeps the latents at their first values.
    :param first_penalty: where kappa_0 and kappa_1 start; None for equation (5).
    :param step_size: of SGHMC.
    :param float friction: one minus the momentum.
    :param int batch_size: rows of a minibatch; all where there are fewer.
    :param steps_per_draw: steps between draws; None for an epoch.
    :param int draws: in all.
    :param int warmup: of these, left out of the average.
    :param int chains: how many are averaged.
    :param float first_sigma: where sigma starts.
    :param float first_delta: where every delta and rho start.
    """

    prior: Prior
    tau: Schedule | float
    weight: Schedule | float = OMEGA
    first_penalty: float | None = 1e-4
    step_size: Schedule | float = 1e-5
    friction: float = 0.1
    batch_size: int = 50
    steps_per_draw: int | None = None
    draws: int = 201
    warmup: int = 100
    chains: int = 1
    first_sigma: float = 10.0
    first_delta: float = 0.5


#: tau and v0 of each table, the paper's; for power the paper gives none, and yacht's stand in.
TAU_V0 = {
    "boston": (1.0, 0.1),
    "yacht": (1.0, 0.1),
    "energy": (0.1, 0.1),
    "wine": (0.5, 0.01),
    "concrete": (0.5, 0.07),
    "power": (1.0, 0.1),
}

LABELS = {
    "sghmc": "SGHMC",
    "a-sghmc": "A-SGHMC",
    "sghmc-em": "SGHMC-EM",
    "a-sghmc-em": "A-SGHMC-EM",
    "sghmc-sa": "SGHMC-SA",
    "a-sghmc-sa": "A-SGHMC-SA",
}
PAPER_ROWS = tuple(LABELS)

LABELS["ours"] = "SGHMC-SA, ours"
METHODS = tuple(LABELS)

#: The same for every table. sigma is the noise's scale too, so likelihood and prior are in its
#: unit; the Laplace is wide enough not to hold back what the data ask for; delta cannot collapse
#: (a = 2); batches are large, for little noise in the gradient; and several chains are averaged.
OURS = Settings(
    Prior(v0=1.0, a=2.0, bias_scale=1.0, noise_variance=None),
    tau=1.0,
    first_penalty=None,
    step_size=5e-5,
    batch_size=200,
    steps_per_draw=20,
    draws=125,
    warmup=50,
    chains=3,
    first_sigma=1.0,
)

#: How often a chain may start, see :func:`run_until_finite`.
TRIES = 10

#: What is added to the seed for the next chain, and for the next start of one.
CHAIN, RESTART = 100_000, 1_000_000


def settings_for(method: str, table: str) -> Settings:
    """
    The settings of a row on a table.

    The plain rows have the same prior as the others, its latents fixed at the first values of the
    others (rho = delta = 1/2, sigma = 10) and kappa by equation (5).

    The power table, of which the paper gives no settings, has a target of 454 +- 17 and nine times
    as many rows as the next largest: its first gradients are a hundred times as large, and with the
    others' settings every chain overflows or runs away at once. Its target is centred, and its step
    sizes are a tenth.

    :raises KeyError: if there is no such row or table.
    """
    tau, v0 = TAU_V0[table]
    if method == "ours":
        return replace(OURS, step_size=5e-6) if table == "power" else OURS
    settings = Settings(Prior(v0=v0), tau, step_size=1e-6 if table == "power" else 1e-5)
    if method not in LABELS:
        raise KeyError(method)
    if method.startswith("a-"):
        settings = replace(settings, tau=aeb.Geometric(tau, ANNEALING))
    if method.endswith("-em"):
        settings = replace(settings, weight=1.0)
    elif not method.endswith("-sa"):
        settings = replace(settings, weight=0.0, first_penalty=None)
    return settings


def settings_text(task: str, smoke: bool) -> str:
    """
    Return the settings of a task as text.

    :param str task: ``<table>/<method>``.
    :raises KeyError: if it is not known.
    """
    table, _, method = task.partition("/")
    text = str(_shortened(settings_for(method, table), smoke))
    return f"{text}, target centred" if table == "power" else text


def _shortened(settings: Settings, smoke: bool) -> Settings:
    return replace(settings, draws=6, warmup=3) if smoke else settings


def run_one(task: str, seed: int, data_dir: Path | None, smoke: bool) -> dict[str, float]:
    """
    Makes one fit on one thread and scores it.

    :param str task: ``<table>/<method>``.
    :param int seed: of the split and of the chain.
    :param data_dir: folder of the tables; None for a made-up one.
    :param bool smoke: a few epochs only.
    """
    torch.set_num_threads(1)
    table, _, method = task.partition("/")
    X, y = made_up_table() if data_dir is None else read_table(data_dir / f"{table}.csv")
    data = split(X, y, seed)
    if table == "power":
        mean = data.y.mean()
        data = data._replace(y=data.y - mean, y_test=data.y_test - mean)
    return fit_and_score(data, _shortened(settings_for(method, table), smoke), seed)


def fit_and_score(data: Split, settings: Settings, seed: int) -> dict[str, float]:
    """
    One fit, with its figures :data:`FIGURES` on the test rows.

    :param Split data: the split.
    :param Settings settings: what to run.
    :param int seed: of the chain.
    """
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", aeb.CollapseWarning)
        runs = [
            run_until_finite(data.X, data.y, settings, seed + CHAIN * chain)
            for chain in range(settings.chains)
        ]
    seconds = time.process_time() - started
    each = [mcmc.get_samples() for mcmc, _ in runs]
    samples = {name: torch.cat([draws[name] for draws in each]) for name in each[0]}
    means = predictions(samples, data.X_test)
    scales = noise_scales(samples, settings)
    last = errors(means[-1:], scales[-1:], data.y_test)
    return {
        **errors(means, scales, data.y_test),
        "rmse_last": last["rmse"],
        "nll_last": last["nll"],
        "sigma": float(samples["sigma2"].sqrt().mean()),
        "delta1": float(samples["delta1"].mean()),
        "delta2": float(samples["delta2"].mean()),
        "collapsed": float(any(issubclass(w.category, aeb.CollapseWarning) for w in caught)),
        "restarts": sum(tries - 1 for _, tries in runs),
        "draws": len(means),
        "steps": sum(mcmc.kernel.chain.step for mcmc, _ in runs),
        "seconds": seconds,
    }


def run_until_finite(X: Tensor, y: Tensor, settings: Settings, seed: int) -> tuple[MCMC, int]:
    """
    A chain that did not blow up. The paper's step size is at the edge: from some first weights a
    chain overflows within its first hundred steps. Then it starts again, from other weights.

    :returns: the chain, and how often it was started.
    :raises NonFiniteError: if :data:`TRIES` chains in a row blow up.
    """
    for tries in range(1, TRIES):
        try:
            return run_chain(X, y, settings, seed + RESTART * (tries - 1)), tries
        except aeb.NonFiniteError:
            continue
    return run_chain(X, y, settings, seed + RESTART * (TRIES - 1)), TRIES


def run_chain(X: Tensor, y: Tensor, settings: Settings, seed: int) -> MCMC:
    """
    One chain.

    :param X: inputs, shape (n, d).
    :param y: targets, shape (n,).
    :param Settings settings: what to run.
    :param int seed: of the chain.
    """
    network = Network(settings.prior, X.shape[1])
    first = network.first_values(settings.first_sigma, settings.first_delta, seed)
    batch = min(settings.batch_size, len(y))
    kernel = aeb.AEBKernel(
        network,
        aeb.SGHMC(settings.step_size, friction=settings.friction),
        adaptation=aeb.StochasticApproximation(
            settings.weight,
            initial_inclusion=settings.first_delta,
            initial_penalty=settings.first_penalty,
        ),
        inverse_temperature=settings.tau,
        steps_per_draw=settings.steps_per_draw or len(y) // batch,
        init_strategy=init_to_value(values=first),
        seed=seed,
    )
    mcmc = MCMC(
        kernel,
        num_samples=settings.draws - settings.warmup,
        warmup_steps=settings.warmup,
        disable_progbar=True,
    )
    with pyro.validation_enabled(False):
        mcmc.run(X, y, batch_size=batch)
    return mcmc


def noise_scales(samples: dict[str, Tensor], settings: Settings) -> Tensor:
    """The standard deviation of the noise at every draw, shape (draws, 1)."""
    sigma2 = samples["sigma2"].unsqueeze(-1)
    fixed = settings.prior.noise_variance
    return sigma2.sqrt() if fixed is None else torch.full_like(sigma2, fixed).sqrt()


def errors(means: Tensor, scales: Tensor, y: Tensor) -> dict[str, float]:
    """
    Root mean squared error of the average, mean negative log density, and coverage.

    :param means: shape (draws, rows).
    :param scales: shape (draws, 1).
    :param y: shape (rows,).
    """
    return {
        "rmse": float((means.mean(0) - y).square().mean().sqrt()),
        "nll": -float(log_density(means, scales, y).mean()),
        "coverage": float(covered(means, scales, y, LEVEL).double().mean()),
    }
