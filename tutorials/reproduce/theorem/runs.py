# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""One run: many chains side by side, their distances to the truth, and slopes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyro
import torch
from pyro.infer.autoguide.initialization import init_to_value

import pyro_aeb as aeb

from .designs import DESIGNS, Array, data, fixed_point, model, quantiles
from .settings import SETTINGS, Setting

CHECKPOINTS = 24
WEIGHTS = (1, 2)
GROUPS = 20
FIRST, SECOND = 0.98, 0.1
"""First rho of the second weight, from which the mean field leads to either of two points."""

TARGETS = ("chain", "limit", "nearest")
FIGURES = (
    *(f"{target}_{i}" for target in TARGETS for i in range(1, CHECKPOINTS + 1)),
    *(f"{target}_{what}" for target in TARGETS for what in ("slope", "slope_se", "last_se")),
    *(f"w1_{j}" for j in WEIGHTS),
    *(f"w1_predicted_{j}" for j in WEIGHTS),
    "second_share",
)


@dataclass(frozen=True)
class Protocol:
    """
    :param chains: independent chains of a run.
    :param shorten: every chain has the setting's steps over this number.
    :param first: the first checkpoint.
    """

    chains: int = 400
    shorten: int = 1
    first: int = 200

    def steps(self, setting: Setting) -> int:
        return setting.steps // self.shorten

    def checkpoints(self, setting: Setting) -> list[int]:
        """Steps at which distances are taken, evenly spaced in log k, increasing."""
        last = self.steps(setting)
        return [round(k) for k in np.geomspace(min(self.first, last / 2), last, CHECKPOINTS)]


SMOKE = Protocol(chains=20, shorten=100, first=20)


def settings_of(name: str, protocol: Protocol) -> str:
    """Return the settings that decide a run's figures, beside the seed."""
    setting = SETTINGS[name]
    return (
        f"{setting.omega!r}; step {setting.step!r}; {setting.design}; {setting.steps}; {protocol}"
    )


def run_one(name: str, seed: int, protocol: Protocol) -> dict[str, float]:
    """The figures of a setting."""
    setting = SETTINGS[name]
    thetas, draws = chains(setting, seed, protocol)
    omegas = np.array([setting.omega(k) for k in protocol.checkpoints(setting)])
    figures: dict[str, float] = {}
    for target, errors in distances(setting, thetas).items():
        means = errors.mean(-1)
        figures |= {f"{target}_{i}": float(e) for i, e in enumerate(means, 1)}
        figures[f"{target}_last_se"] = float(errors[-1].std(ddof=1) / np.sqrt(errors.shape[1]))
        if omegas[0] != omegas[-1]:
            slope, error = slope_and_error(omegas, errors)
            figures |= {f"{target}_slope": slope, f"{target}_slope_se": error}
    if setting.design == "two points":
        upper, lower = two_points(setting)
        errors = [((thetas[-1] - point) ** 2).sum(-1) for point in (upper, lower)]
        figures["second_share"] = float((errors[1] < errors[0]).mean())
    if setting.kept:
        figures |= distances_of_laws(setting, draws)
    return figures


def kernel(setting: Setting) -> aeb.AEBKernel:
    """The kernel of a setting."""
    design = DESIGNS[setting.design]
    assert design.noise is not None
    epsilon = design.noise**2 / design.size
    first = {
        "sigma2": torch.ones(()),
        "delta": torch.tensor(0.5),
        "beta": torch.tensor(design.b, dtype=torch.float32),
    }
    return aeb.AEBKernel(
        partial(model, design),
        aeb.SGLD(lambda k: epsilon * setting.step(k)),
        aeb.StochasticApproximation(setting.omega),
        inverse_temperature=design.tau,
        init_strategy=init_to_value(values=first),
    )


def chains(setting: Setting, seed: int, protocol: Protocol) -> tuple[Array, Array]:
    """
    Runs the chains.

    :returns: theta at the checkpoints, shape (checkpoints, chains, 2 p + 2), and draws of the
        weights every 20 steps of the part that is kept, shape (draws, chains, p).
    """
    pyro.set_rng_seed(seed)
    stops, last = protocol.checkpoints(setting), protocol.steps(setting)
    kept = range(last - int(setting.kept * last) + 20, last + 1, 20) if setting.kept else ()
    thetas: dict[int, Array] = {}
    draws: list[Array] = []
    chain_kernel = kernel(setting)
    with pyro.validation_enabled(False):
        chain_kernel.start(0, range(protocol.chains), data(DESIGNS[setting.design]), {})
        done = 0
        for stop in sorted({*stops, *kept}):
            draw = chain_kernel.advance(stop - done)
            done = stop
            if stop in stops:
                rho, slab, _, sigma, delta = chain_kernel.latents
                thetas[stop] = torch.cat([rho, slab, sigma, delta], -1).double().numpy()
            if stop in kept:
                draws.append(draw["beta"].double().numpy())
    return np.stack([thetas[k] for k in stops]), np.array(draws)


def two_points(setting: Setting) -> tuple[Array, Array]:
    """The fixed points of the design that has two."""
    step = setting.fixed_step
    assert step is not None
    return fixed_point(setting.design, step, FIRST), fixed_point(setting.design, step, SECOND)


def distances(setting: Setting, thetas: Array) -> dict[str, Array]:
    """
    ||theta_k - theta*||^2 of every chain, shape (checkpoints, chains), to the fixed point of the
    chain with its steps, to that of the limit of small steps, and to the nearest of two.
    """

    def to(point: Array) -> Array:
        return ((thetas - point) ** 2).sum(-1)

    if setting.design == "two points":
        upper, lower = map(to, two_points(setting))
        return {"chain": upper, "nearest": np.minimum(upper, lower)}
    found = {"limit": to(fixed_point(setting.design, 0.0))}
    if setting.fixed_step is not None:
        found["chain"] = to(fixed_point(setting.design, setting.fixed_step))
    return found


def slope_and_error(omegas: Array, errors: Array) -> tuple[float, float]:
    """
    The slope of log mean squared error against log omega by least squares, and its standard error
    by the jackknife over groups of chains.

    :param omegas: shape (checkpoints,).
    :param errors: shape (checkpoints, chains).
    """
    groups = errors.reshape(len(errors), GROUPS, -1).mean(-1)
    without = (groups.sum(-1, keepdims=True) - groups) / (GROUPS - 1)
    x = np.log(omegas)
    slope = np.polyfit(x, np.log(groups.mean(-1)), 1)[0]
    slopes = np.polyfit(x, np.log(without), 1)[0]
    return float(slope), float(np.sqrt((GROUPS - 1) * slopes.var()))


def distances_of_laws(setting: Setting, draws: Array) -> dict[str, float]:
    """
    The Wasserstein distance of the draws of each weight to exp(tau Q(.; theta*)), and what
    quadrature predicts for it, in standard deviations of the latter.
    """
    count = draws[..., 0].size
    at = (np.arange(count) + 0.5) / count
    figures = {}
    for j in WEIGHTS:
        target = quantiles(setting.design, j - 1, 0.0, at)
        found = np.sort(draws[..., j - 1].ravel())
        assert setting.fixed_step is not None
        predicted = quantiles(setting.design, j - 1, setting.fixed_step, at)
        figures[f"w1_{j}"] = float(np.abs(found - target).mean() / target.std())
        figures[f"w1_predicted_{j}"] = float(np.abs(predicted - target).mean() / target.std())
    return figures
