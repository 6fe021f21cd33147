# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Runs beside the exact posterior on the same data. Chains of a run step together."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from calibration.exact import Array, Draws, Prior, gibbs
from calibration.fits import CORRELATION, INTERVAL, LEARNED, SIGMA, SIZE, TRUTH, P
from calibration.models import features, regression
from sparse_linear import data as experiment

import pyro_aeb as aeb

from . import reference

OMEGA = aeb.Polynomial(3.0, 10.0, 0.75)
ADAPTATIONS: dict[str, Any] = {
    "published": aeb.StochasticApproximation(OMEGA),
    "current": aeb.StochasticApproximation(OMEGA, penalties="current"),
    "slab": aeb.StochasticApproximation(OMEGA, sigma_from="slab"),
    "no flips": aeb.Gibbs(every=10, flips=False),
    "gibbs": aeb.Gibbs(every=10),
}
METHODS = {
    "coverage": ("published", "current", "no flips", "gibbs"),
    "wide v1=10": ("gibbs",),
    "wide v1=1": ("gibbs",),
    "logistic": ("gibbs",),
    "batches": ("gibbs",),
    **{
        f"sigma {kind} {case}": ("published", "slab")
        for kind in ("p=20", "p=1000")
        for case in ("tau=1", "tau=3", "tau=10", "pruned")
    },
    "cost": ("p=20", "p=1000"),
}
"""Adaptations by problem; for the cost of a step, its size."""

WIDE = {
    "wide v1=10": Prior(0.005, 10.0, (4.0, 1000.0)),
    "wide v1=1": Prior(0.005, 1.0, (4.0, 1000.0)),
}
BATCHES = (500, 50)
LOGISTIC = {"v0": 0.05, "v1": 1.0, "delta": 0.3}
LOGITS: Array = np.array([1.2, -0.8, 0.5, 0.3, 0.15, 0.0, 0.0, 0.0])

FIGURES = (
    *("undecided", "sd_ratio", "inclusion_square", "covered", "exact_covered"),
    *("sigma", "sigma_ratio", "sigma_error", "sigma_sd_ratio"),
    *("third_error", "most_in_slab", "test_mse", "mse_over_exact", "mse_over_oracle"),
    *("accepted", "seconds", "exact_seconds", "step_ratio", "scan_in_steps"),
)


@dataclass(frozen=True)
class Lengths:
    """
    :param chains: of a run.
    :param draws: that each chain keeps; a sixth as many come before them.
    :param exact: chains, sweeps and warm-up of the exact sampler.
    """

    chains: int
    draws: int
    exact: tuple[int, int, int]


LENGTHS = {
    "coverage": Lengths(40, 100, (60, 200, 50)),
    "wide": Lengths(8, 400, (40, 400, 50)),
    "logistic": Lengths(40, 250, (10, 300, 50)),
    "batches": Lengths(8, 600, (40, 200, 50)),
    "sigma": Lengths(1, 600, (1, 1, 0)),
    "cost": Lengths(1, 200, (1, 1, 0)),
}
SMOKE = Lengths(2, 6, (2, 4, 1))


def settings_of(name: str, smoke: bool) -> str:
    """Return the settings that decide a run's figures, beside the seed."""
    problem, _, method = name.partition("; ")
    if method not in METHODS.get(problem, ()):
        raise KeyError(name)
    lengths = SMOKE if smoke else LENGTHS[problem.split()[0]]
    return f"{ADAPTATIONS.get(method, method)}; {lengths}"


def run_one(name: str, seed: int, smoke: bool) -> dict[str, float]:
    """The figures of a run."""
    problem, _, method = name.partition("; ")
    kind = problem.split()[0]
    lengths = SMOKE if smoke else LENGTHS[kind]
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "cost":
            return _cost(method, seed, lengths)
        if kind == "sigma":
            return _sigma(problem, method, seed, lengths)
        return {"coverage": _coverage, "wide": _wide, "logistic": _logistic, "batches": _batches}[
            kind
        ](problem, method, seed, lengths)


def _run(
    model: Any,
    transition: Any,
    adaptation: Any,
    lengths: Lengths,
    seed: int,
    *args: Any,
    **options: Any,
) -> tuple[dict[str, Array], dict[str, Array], float]:
    """Run chains; return draws and records, shape (chains, draws, ...), and the seconds."""
    thin, start = options.pop("thin", 10), options.pop("start", None)
    kernel = aeb.AEBKernel(
        model, transition, adaptation, steps_per_draw=thin, seed=1000 * seed, **options
    )
    mcmc = aeb.MCMC(
        kernel,
        lengths.draws,
        max(lengths.draws // 6, 1),
        num_chains=lengths.chains,
        chain_method="vectorized",
        disable_progbar=True,
        initial_params=start,
    )
    started = time.process_time()
    mcmc.run(*args)
    seconds = time.process_time() - started
    draws = {k: v.double().numpy() for k, v in mcmc.get_samples(group_by_chain=True).items()}
    report = mcmc.diagnostics()
    records: dict[str, Array] = {}
    for part in ("adaptation", "sample_stats"):
        by_chain = list(report[part].values())
        for key in by_chain[0]:
            records[key] = np.stack([np.asarray(chain[key], float) for chain in by_chain])
    return draws, records, seconds


def _tensors(*values: Array) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float32) for value in values)


def _exact(x: Array, y: Array, prior: Prior, lengths: Lengths, seed: int) -> tuple[Draws, float]:
    started = time.process_time()
    draws = gibbs(x, y, prior, *lengths.exact, seed)
    return draws, time.process_time() - started


def _inclusion(method: str, records: dict[str, Array]) -> Array:
    """The mean over draws by Gibbs; by stochastic approximation, that of the chains' last rho."""
    rho = records["beta_rho"]
    return rho.mean((0, 1)) if isinstance(ADAPTATIONS[method], aeb.Gibbs) else rho[:, -1].mean(0)


def _accepted(records: dict[str, Array]) -> float:
    proposed = records.get("flips_proposed", np.zeros((1, 1)))[:, -1].sum()
    return float(records["flips_accepted"][:, -1].sum() / proposed) if proposed else float("nan")


# -- undecided weights and coverage


@lru_cache(maxsize=2)
def _coverage_set(seed: int, lengths: Lengths) -> tuple[Array, Array, Draws, float]:
    rng = np.random.default_rng(7000 + seed)
    x = features(SIZE, P, CORRELATION, rng)
    y = x @ TRUTH + rng.normal(0.0, SIGMA, SIZE)
    return x, y, *_exact(x, y, LEARNED, lengths, seed)


def _coverage(problem: str, method: str, seed: int, lengths: Lengths) -> dict[str, float]:
    x, y, exact, exact_seconds = _coverage_set(seed, lengths)
    step = 0.05 * SIGMA**2 / np.linalg.eigvalsh(x.T @ x)[-1]
    draws, records, seconds = _run(
        regression,
        aeb.SGHMC(step, 0.1),
        ADAPTATIONS[method],
        lengths,
        seed,
        *_tensors(x, y),
        LEARNED,
    )
    figures = _weights(draws["beta"], _inclusion(method, records), exact)
    return (
        figures
        | _sigma_figures(draws, exact)
        | {
            "accepted": _accepted(records),
            "seconds": seconds,
            "exact_seconds": exact_seconds,
        }
    )


def _weights(beta: Array, rho: Array, exact: Draws) -> dict[str, float]:
    """Figures of the weights whose exact inclusion probability is between 0.1 and 0.9."""
    expected = exact.gamma.mean((0, 1))
    undecided = (expected > 0.1) & (expected < 0.9)
    figures = {"undecided": float(undecided.sum())}
    if not undecided.any():
        return figures
    own, reference_ = (b.reshape(-1, b.shape[-1])[:, undecided] for b in (beta, exact.beta))
    truth = TRUTH[undecided]
    covered = []
    for sample in (own, reference_):
        low, high = np.quantile(sample, INTERVAL, axis=0)
        covered.append(float(((low <= truth) & (truth <= high)).mean()))
    return figures | {
        "sd_ratio": float((own.std(0) / reference_.std(0)).mean()),
        "inclusion_square": float(((rho - expected)[undecided] ** 2).mean()),
        "covered": covered[0],
        "exact_covered": covered[1],
    }


def _sigma_figures(draws: dict[str, Array], exact: Draws) -> dict[str, float]:
    sigma = np.sqrt(draws["sigma2"])
    return {
        "sigma": float(sigma.mean()),
        "sigma_error": float(sigma.mean() - exact.sigma.mean()),
        "sigma_sd_ratio": float(sigma.std() / exact.sigma.std()),
    }


# -- a thousand features


def _wide(problem: str, method: str, seed: int, lengths: Lengths) -> dict[str, float]:
    data = experiment.simulate(8000 + seed)
    prior = WIDE[problem]
    exact, exact_seconds = _exact(data.X, data.y, prior, lengths, seed)
    draws, records, seconds = _run(
        regression, aeb.SGHMC(1e-5, 0.1), ADAPTATIONS[method], lengths, seed,
        *_tensors(data.X, data.y), prior,
    )  # fmt: skip
    oracle = np.zeros_like(data.beta)
    oracle[:3] = np.linalg.lstsq(data.X[:, :3], data.y, rcond=None)[0]
    means = (draws["beta"].mean((0, 1)), exact.beta.mean((0, 1)), oracle)
    mse, exact_mse, oracle_mse = (
        float(((data.y_test - data.X_test @ beta) ** 2).mean()) for beta in means
    )
    rho = _inclusion(method, records)
    return _sigma_figures(draws, exact) | {
        "third_error": float(rho[2] - exact.gamma.mean((0, 1))[2]),
        "most_in_slab": float(records["beta_gamma"].sum(-1).max()),
        "test_mse": mse,
        "mse_over_exact": mse - exact_mse,
        "mse_over_oracle": mse - oracle_mse,
        "accepted": _accepted(records),
        "seconds": seconds,
        "exact_seconds": exact_seconds,
    }


# -- other likelihoods, and batches


def logistic(x: torch.Tensor, y: torch.Tensor) -> None:
    """Logistic regression with sigma = 1."""
    prior = aeb.SSGL(LOGISTIC["v0"], LOGISTIC["v1"], LOGISTIC["delta"], 1.0)
    beta = pyro.sample("beta", prior.expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def _logistic(problem: str, method: str, seed: int, lengths: Lengths) -> dict[str, float]:
    rng = np.random.default_rng(9000 + seed)
    x = features(200, len(LOGITS), CORRELATION, rng)
    y = (rng.uniform(size=200) < 1 / (1 + np.exp(-x @ LOGITS))).astype(float)
    chains, sweeps, warmup = lengths.exact
    started = time.process_time()
    expected = reference.inclusion(
        x, y, **LOGISTIC, chains=chains, sweeps=sweeps, warmup=warmup, seed=seed
    )
    exact_seconds = time.process_time() - started
    step = 0.2 / np.linalg.eigvalsh(x.T @ x)[-1]
    _, records, seconds = _run(
        logistic, aeb.SGHMC(step, 0.1), ADAPTATIONS[method], lengths, seed, *_tensors(x, y)
    )
    # gamma itself: the probability it was drawn with leaves out the Metropolis ratio
    error = records["beta_gamma"].mean((0, 1)) - expected
    return {
        "inclusion_square": float((error**2).mean()),
        "accepted": _accepted(records),
        "seconds": seconds,
        "exact_seconds": exact_seconds,
    }


def in_batches(x: torch.Tensor, y: torch.Tensor, prior: Prior) -> None:
    """The regression, 50 rows of 500 a step."""
    sigma = pyro.sample("sigma2", dist.InverseGamma(prior.nu / 2, prior.nu_lambda / 2)).sqrt()
    delta = pyro.sample("delta", dist.Beta(*prior.beta))
    slab = aeb.SSGL(prior.v0, prior.v1, delta, sigma)
    beta = pyro.sample("beta", slab.expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(y), subsample_size=BATCHES[1]) as rows:
        pyro.sample("y", dist.Normal(x[..., rows, :] @ beta, sigma), obs=y[rows])


def _batches(problem: str, method: str, seed: int, lengths: Lengths) -> dict[str, float]:
    rng = np.random.default_rng(9500 + seed)
    x = features(BATCHES[0], P, CORRELATION, rng)
    y = x @ TRUTH + rng.normal(0.0, SIGMA, len(x))
    exact, exact_seconds = _exact(x, y, LEARNED, lengths, seed)
    step = 0.02 * SIGMA**2 / np.linalg.eigvalsh(x.T @ x)[-1]
    draws, records, seconds = _run(
        in_batches,
        aeb.SGHMC(step, 0.3),
        ADAPTATIONS[method],
        lengths,
        seed,
        *_tensors(x, y),
        LEARNED,
    )
    return (
        _weights(draws["beta"], _inclusion(method, records), exact)
        | _sigma_figures(draws, exact)
        | {
            "accepted": _accepted(records),
            "seconds": seconds,
            "exact_seconds": exact_seconds,
        }
    )


# -- sigma against temperature and pruning


def _sigma(problem: str, method: str, seed: int, lengths: Lengths) -> dict[str, float]:
    _, size, case = problem.split()
    if size == "p=1000":
        data = experiment.simulate(8000 + seed)
        x, y, prior, step = data.X, data.y, WIDE["wide v1=10"], 1e-5
        support, truth = [0, 1, 2], np.sqrt(experiment.NOISE_VARIANCE)
    else:
        rng = np.random.default_rng(7000 + seed)
        x = features(SIZE, P, CORRELATION, rng)
        y = x @ TRUTH + rng.normal(0.0, SIGMA, SIZE)
        prior, truth = LEARNED, SIGMA
        step, support = 0.02 / np.linalg.eigvalsh(x.T @ x)[-1], list(np.flatnonzero(TRUTH))
    tau = float(case.removeprefix("tau=")) if case.startswith("tau") else 1.0
    options: dict[str, Any] = {"inverse_temperature": tau}
    effects = np.linalg.lstsq(x[:, support], y, rcond=None)[0]
    rest = y - x[:, support] @ effects
    residual = float(np.sqrt(rest @ rest / (len(y) - len(support))))
    if size == "p=1000":  # from the prior chains lose the effects, or fit noise
        beta = np.zeros(x.shape[1])
        beta[support] = effects
        beta_, log_sigma2 = _tensors(beta, 2.0 * np.log(residual))
        options["start"] = {"beta": beta_, "sigma2": log_sigma2}
    if case == "pruned":
        options["pruning"] = aeb.MagnitudePruning(0.9)
    else:  # of the data, given the weights that are not zero
        truth = residual
    draws, _, seconds = _run(
        regression, aeb.SGHMC(step / tau, 0.1), ADAPTATIONS[method], lengths, seed,
        *_tensors(x, y), prior, thin=20, **options,
    )  # fmt: skip
    sigma = float(np.sqrt(draws["sigma2"])[:, -lengths.draws // 3 :].mean())
    return {"sigma": sigma, "sigma_ratio": sigma / truth, "seconds": seconds}


# -- seconds


def _cost(size: str, seed: int, lengths: Lengths) -> dict[str, float]:
    """The time of a step between scans over one by stochastic approximation, and of a scan."""
    if size == "p=1000":
        data = experiment.simulate(8000 + seed)
        x, y, prior, step = data.X, data.y, WIDE["wide v1=10"], 1e-5
    else:
        x, y, _, _ = _coverage_set(seed, SMOKE)
        prior, step = LEARNED, 1e-4
    seconds: dict[str, list[float]] = {}
    kernels = {
        "published": ADAPTATIONS["published"],
        "no scan": aeb.Gibbs(every=10**9),
        "each": aeb.Gibbs(every=1),
    }
    kernels = {
        name: aeb.AEBKernel(regression, aeb.SGHMC(step, 0.1), own, seed=seed)
        for name, own in kernels.items()
    }
    for kernel in kernels.values():
        kernel.start(0, 0, (*_tensors(x, y), prior), {})
        kernel.advance(lengths.draws)
    for _ in range(12):
        for name, kernel in kernels.items():
            started = time.process_time()
            kernel.advance(lengths.draws)
            seconds.setdefault(name, []).append((time.process_time() - started) / lengths.draws)
    published, none, each = (min(own) for own in seconds.values())
    return {
        "step_ratio": none / published,
        "scan_in_steps": (each - none) / published,
        "seconds": published,
    }
