# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Tests of settled latents, on paths of known law."""

from types import SimpleNamespace

import numpy as np
import pytest

from pyro_aeb.diagnostics.agreement import agreement_finding, compare_chains
from pyro_aeb.diagnostics.settling import compute_residuals, settling_finding, wandering_sd

REPLICATES = 400
DRAWS = 400
STEPS = 5


def make_run(paths: np.ndarray, omega: float) -> SimpleNamespace:
    """Return a run with one latent, with paths of shape (chains, draws)."""
    weights = np.full(paths.shape, omega)
    return SimpleNamespace(
        learned={"delta": paths},
        omega=weights,
        omega_sums=STEPS * weights,
        stats={"sa_weight": weights},
        draws=paths.shape[1],
        chains=len(paths),
        steps=STEPS,
    )


def simulate_paths(omega: float, start: float, replicates: int = REPLICATES) -> np.ndarray:
    """Simulate theta <- theta + omega (z - theta) with standard normal z; a draw every 5 steps."""
    generator = np.random.default_rng(8)
    theta, kept = np.full(replicates, start), []
    for k in range(DRAWS * STEPS):
        theta = theta + omega * (generator.normal(size=replicates) - theta)
        if (k + 1) % STEPS == 0:
            kept.append(theta)
    return np.stack(kept, 1)


@pytest.mark.parametrize("omega", [0.003, 0.03, 0.3])
def test_the_wandering_is_that_of_an_autoregression(omega):
    settled_sd = np.sqrt(omega / (2 - omega))  # of theta <- (1 - omega) theta + omega z
    stationary = simulate_paths(omega, 0.0)[:, -200:]
    weights = np.full(200, STEPS * omega)
    found = [wandering_sd(path, weights) for path in stationary]
    # Averaged over replicates; e^-omega and 1 - omega are taken as equal.
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(settled_sd, rel=0.15)


@pytest.mark.parametrize("omega", [0.01, 0.1, 1.0])
def test_settled_latents_raise_few_alarms(omega):
    start = simulate_paths(omega, 0.0)
    alarms = sum(compute_residuals(make_run(path[None], omega))[0].drifts for path in start)
    # 1 % are allowed; 4 standard deviations of a binomial count above it.
    assert alarms <= REPLICATES * 0.01 + 4 * np.sqrt(REPLICATES * 0.01 * 0.99)


@pytest.mark.parametrize("omega", [0.0003, 0.001])
def test_drifting_latents_are_found(omega):
    drifting = simulate_paths(omega, 3.0, replicates=20)
    for path in drifting:
        (found,) = compute_residuals(make_run(path[None], omega))
        assert found.drifts
        assert found.gap == pytest.approx(-found.value, rel=0.25)  # the solution is 0


def test_the_gap_adds_up_to_the_way_that_was_made():
    omega = 0.001
    path = simulate_paths(omega, 3.0, replicates=1)
    (found,) = compute_residuals(make_run(path, omega))
    half = path[0, DRAWS // 2 :]
    length = 10 * ((len(half) - 1) // 10)  # draws in ten whole batches
    assert found.gap == pytest.approx((half[-1] - half[-1 - length]) / (length * STEPS * omega))


def test_the_verdict_names_the_latent_and_the_cure():
    finding = settling_finding(make_run(simulate_paths(0.0003, 3.0, replicates=2), 0.0003))
    assert finding.severity == "warning"
    for word in ("delta still drifts", "its equation asks for"):
        assert word in finding.found
    assert "omega is 0.0003" in finding.cure and "run longer" in finding.cure
    assert (
        settling_finding(make_run(simulate_paths(0.1, 0.0, replicates=2), 0.1)).severity == "good"
    )


def test_too_few_draws_are_not_judged():
    run = make_run(simulate_paths(0.1, 0.0, replicates=2)[:, :39], 0.1)
    assert settling_finding(run).severity == "note" and compute_residuals(run) == []


@pytest.mark.parametrize("omega", [0.003, 0.03])
def test_chains_at_one_fixed_point_agree(omega):
    chains = simulate_paths(omega, 0.0).reshape(-1, 4, DRAWS)
    alarms = sum(not compare_chains(make_run(four, omega))[0].agrees for four in chains)
    count = len(chains)
    assert alarms <= count * 0.01 + 4 * np.sqrt(count * 0.01 * 0.99)


def test_chains_at_two_fixed_points_do_not():
    four = simulate_paths(0.03, 0.0, replicates=4) + np.array([0.0, 1.0, 0.0, 1.0])[:, None]
    finding = agreement_finding(make_run(four, 0.03))
    assert finding.severity == "warning" and "different values of delta" in finding.found
    assert agreement_finding(make_run(four[:1], 0.03)).severity == "note"


def test_chains_that_differ_by_two_percent_are_not_at_two_fixed_points():
    # Their paths hardly wander, so that a test tells means of 1 and 1.02 apart.
    four = 1.0 + 1e-3 * simulate_paths(0.03, 0.0, replicates=4)
    near = four + np.array([0.0, 0.02, 0.0, 0.02])[:, None]
    finding = agreement_finding(make_run(near, 0.03))
    assert finding.severity == "note" and "by at most 2." in finding.found
    assert "fixed points" not in finding.cure
    far = four + np.array([0.0, 0.2, 0.0, 0.2])[:, None]
    assert agreement_finding(make_run(far, 0.03)).severity == "warning"
    # A latent near 0 is compared with its own size.
    small = 1e-4 * four * np.array([1.0, 2.0, 1.0, 2.0])[:, None]
    assert agreement_finding(make_run(small, 0.03)).severity == "warning"


def test_latents_that_follow_weights_on_their_way_are_found():
    # The solution of the equation falls steadily; with large omega the latent stays close to it.
    omega = 0.1
    falling = simulate_paths(omega, 0.0, replicates=3) - np.linspace(0.0, 5.0, DRAWS)
    finding = settling_finding(make_run(falling, omega))
    assert finding.severity == "warning" and "the weights have not settled" in finding.cure
    for path in falling:
        (found,) = compute_residuals(make_run(path[None], omega))
        assert found.drifts and abs(found.gap) < found.wander
