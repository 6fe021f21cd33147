# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The scripts that measure the theorem, calibration and coverage: the exact posterior that they hold
the kernel against, their arithmetic by hand, and the scripts at smoke size.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import laplace, norm
from tutorial_runs import read_rows, require_packages, run_script

from pyro_aeb.testing import assert_agrees, replicates

require_packages("matplotlib", "pandas", "scipy", "tqdm")
designs = importlib.import_module("theorem.designs")
runs = importlib.import_module("theorem.runs")
theorem_settings = importlib.import_module("theorem.settings")
choices = importlib.import_module("choices.fits")
exact = importlib.import_module("calibration.exact")
fits = importlib.import_module("calibration.fits")
fits_report = importlib.import_module("calibration.fits_report")
ranks = importlib.import_module("calibration.ranks")


# -- the exact posterior is that of quadrature


def mixture(prior: Any, beta: Any, sigma: Any, delta: float) -> tuple[Any, Any]:
    """The two parts of the prior's density at beta."""
    wide = delta * norm.pdf(beta, 0.0, sigma * prior.v1**0.5)
    return wide, (1.0 - delta) * laplace.pdf(beta, 0.0, sigma * prior.v0)


def chain_means(draws: Any) -> tuple[Any, Any]:
    """Mean over chains, which are independent, and its standard error; shape (sweeps, chains)."""
    return replicates(draws.mean(0))


def test_gibbs_draws_of_one_weight_with_sigma_and_delta_are_those_of_quadrature() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((8, 1))
    y = 0.4 * x[:, 0] + 0.7 * rng.standard_normal(8)
    prior = exact.Prior(v0=0.1, v1=4.0, beta=(2.0, 3.0), nu=3.0, nu_lambda=2.0)
    draws = exact.gibbs(x, y, prior, chains=400, sweeps=100, warmup=200, seed=0)

    beta, log_sigma = np.linspace(-4.0, 4.0, 2001)[:, None], np.linspace(-2.5, 4.0, 201)
    sigma = np.exp(log_sigma)
    error = ((y - beta * x[:, 0]) ** 2).sum(1, keepdims=True)
    # InverseGamma(nu/2, nu lambda/2) of sigma^2 is sigma^-(nu + 2) per sigma^2, -nu per log sigma.
    likelihood = -(8 + prior.nu) * log_sigma - (error + prior.nu_lambda) / (2 * sigma**2)
    likelihood = np.exp(likelihood - likelihood.max())
    a, b = prior.beta
    wide, narrow = mixture(prior, beta, sigma, a / (a + b))  # delta is integrated out by its mean
    weight = likelihood * (wide + narrow)
    weight /= weight.sum()
    inclusion = (likelihood * wide).sum() / (likelihood * (wide + narrow)).sum()
    delta = (a + inclusion) / (a + b + 1)  # E(delta | gamma) = (a + gamma) / (a + b + 1)
    for found, expected in (
        (draws.beta[..., 0], (weight * beta).sum()),
        (draws.beta[..., 0] ** 2, (weight * beta**2).sum()),
        (draws.gamma[..., 0], inclusion),
        (draws.sigma, (weight * sigma).sum()),
        (draws.delta, delta),
    ):
        mean, error = chain_means(found)
        assert_agrees(mean, expected, error)


def test_gibbs_draws_of_two_correlated_weights_are_those_of_quadrature() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((12, 2)) @ np.array([[1.0, 0.7], [0.0, 0.7]])
    y = x @ np.array([0.5, 0.2]) + 0.8 * rng.standard_normal(12)
    prior = exact.Prior(v0=0.15, v1=4.0, sigma=0.8, delta=0.3)
    draws = exact.gibbs(x, y, prior, chains=400, sweeps=100, warmup=50, seed=0)

    grid = np.linspace(-3.0, 3.0, 1001)
    one, two = grid[:, None], grid
    error = sum((y[i] - x[i, 0] * one - x[i, 1] * two) ** 2 for i in range(12))
    likelihood = np.exp(-(error - error.min()) / (2 * prior.sigma**2))
    parts = [mixture(prior, beta, prior.sigma, prior.delta) for beta in (one, two)]
    weight = likelihood * sum(parts[0]) * sum(parts[1])
    weight /= weight.sum()
    odds = [wide / (wide + narrow) for wide, narrow in parts]
    for j, beta in enumerate((one, two)):
        for found, expected in (
            (draws.beta[..., j], (weight * beta).sum()),
            (draws.beta[..., j] ** 2, (weight * beta**2).sum()),
            (draws.gamma[..., j], (weight * odds[j]).sum()),
        ):
            mean, standard_error = chain_means(found)
            assert_agrees(mean, expected, standard_error)
    mean, standard_error = chain_means(draws.beta[..., 0] * draws.beta[..., 1])
    assert_agrees(mean, (weight * one * two).sum(), standard_error)


# -- the theorem's arithmetic


def test_a_slope_by_hand() -> None:
    omegas = np.array([0.1, 0.01, 0.001])
    factors = np.linspace(0.5, 1.5, 40)  # of the chains, each with an exact slope of 2
    slope, error = runs.slope_and_error(omegas, 3.0 * omegas[:, None] ** 2 * factors)
    assert slope == pytest.approx(2.0) and error == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
def test_the_designs_are_what_the_page_says() -> None:
    assert designs.gain("main", theorem_settings.LARGE_STEP) > 0.38
    low, high = (designs.fixed_point("main", 0.0, rho) for rho in (0.01, 0.99))
    np.testing.assert_allclose(low, high, atol=1e-7)  # one point from either side
    upper, lower = runs.two_points(theorem_settings.SETTINGS["two points"])
    assert upper[1] > 0.95 and lower[1] < 0.5  # and here two
    small = theorem_settings.SETTINGS["small gain"].omega
    gain = small.scale * designs.gain("main", theorem_settings.LARGE_STEP)
    assert gain == pytest.approx(0.25, abs=0.01)


def test_quantiles_are_those_of_the_law() -> None:
    # A Normal with a kink: without the penalty's kink quantile 1/2 would be the mean.
    at = (np.arange(20_000) + 0.5) / 20_000
    draws = designs.quantiles("main", 0, 0.0, at)
    law = designs.MAIN.law(0, designs.fixed_point("main", 0.0), 0.0)
    assert np.all(np.diff(draws) > 0.0)
    assert draws.mean() == pytest.approx(law.one @ law.nodes, abs=1e-3)
    assert (draws**2).mean() == pytest.approx(law.one @ law.nodes**2, abs=1e-3)


# -- calibration's and coverage's


def test_true_weights_have_the_law_of_the_prior() -> None:
    rng = np.random.default_rng(0)
    truth = ranks.draw_prior(ranks.SETTINGS["sgld frozen"], 20_000, rng)
    grid = np.linspace(-30.0, 30.0, 60_001)[:, None]
    kappa0, kappa1 = (1 - ranks.RHO) / ranks.PRIOR.v0, ranks.RHO / ranks.PRIOR.v1
    density = np.exp(-kappa0 * np.abs(grid) - kappa1 * grid**2 / 2)  # sigma is 1
    for power in (1, 2):
        expected = (density * np.abs(grid) ** power).sum(0) / density.sum(0)
        mean, error = replicates(np.abs(truth) ** power)
        assert_agrees(mean, expected, error)


def test_coverage_by_hand() -> None:
    rows = []
    for seed, shift in ((0, 0.0), (1, 0.3)):
        row = {"seed": seed, "method": "exact"}
        for j, truth in enumerate(fits.TRUTH, 1):
            row |= {f"low_{j}": truth + shift - 0.2, f"high_{j}": truth + shift + 0.2}
        rows.append({**dict.fromkeys(fits.FIGURES, float("nan")), **row})
    table = fits_report.frame(rows, fits.FIGURES)
    (line,) = [v for v in fits_report.coverage(table, ["exact"]) if v["weights"] == "zero"]
    assert line["coverage"] == 0.5 and line["width"] == pytest.approx(0.4)
    assert line["coverage_se"] == pytest.approx(0.5)  # of 0 and 1


# -- the scripts


@pytest.mark.slow
@pytest.mark.tutorial
@pytest.mark.parametrize(
    ("script", "arguments", "images"),
    [
        ("convergence", ("--settings", "alpha 0.75", "omega 1", "two points", "law 0.4"),
         ("rates.png", "law.png")),
        ("sbc", (), ("ranks.png",)),
        ("interval_coverage", (), ("against_exact.png",)),
        ("choosing", (), ("choices.png",)),
        ("gibbs", ("--problems", "coverage", "logistic", "batches"), ()),
        ("learned_width", ("--problems", "dense"), ()),
        ("nothing_set", (), ()),
        ("gibbs_sbc", (), ()),
    ],
)  # fmt: skip
def test_a_script_runs_at_smoke_size(
    tmp_path: Path, script: str, arguments: tuple[str, ...], images: tuple[str, ...]
) -> None:
    command = ("--smoke", *arguments, "--out", "results")
    run_script(f"reproduce/{script}.py", *command, cwd=tmp_path)
    results = tmp_path / "results"
    rows = read_rows(results / "replicates.csv")
    expected = {"convergence": 4, "sbc": len(ranks.SETTINGS), "interval_coverage": 10}
    expected |= {"gibbs": 6, "learned_width": 6, "nothing_set": 3, "gibbs_sbc": 9}
    expected["choosing"] = 2 * len(choices.METHODS)
    assert len(rows) == expected[script]
    page = (results / "table.md").read_text(encoding="utf-8")
    assert f"{script}.py --smoke" in page and "nan" not in page.split("## Settings")[0]
    for image in images:
        assert (results / image).read_bytes().startswith(b"\x89PNG")
    before = (results / "replicates.csv").read_bytes()
    run_script(f"reproduce/{script}.py", *command, cwd=tmp_path)
    assert (results / "replicates.csv").read_bytes() == before
