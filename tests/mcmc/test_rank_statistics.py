# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""R-hat and effective sample sizes of many coordinates at once are those of ArviZ."""

from __future__ import annotations

import time
import warnings

import arviz as az
import numpy as np
import pytest
import xarray

from pyro_aeb.mcmc import rank_statistics
from pyro_aeb.mcmc.rank_statistics import effective_size, r_hat


def by_arviz(function, draws):
    """In double precision: of draws in single precision some versions have 6 digits."""
    data = xarray.Dataset({"x": (("chain", "draw", "d"), draws.astype(np.float64))})
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return np.asarray(getattr(az, function)(data)["x"])


def make_draws(chains, length, dtype, seed=0):
    """Coordinates of every kind: white, slow, alternating, apart, of few values, still, NaN."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(chains, length, 12))
    for coordinate, memory in ((1, 0.5), (2, 0.95), (3, -0.6), (4, 0.999), (5, -0.98)):
        for t in range(1, length):
            noise[:, t, coordinate] += memory * noise[:, t - 1, coordinate]
    noise[..., 6] += 2.0 * np.arange(chains)[:, None]
    noise[..., 7] *= 1.0 + 3.0 * np.arange(chains)[:, None]
    noise[..., 8] = rng.integers(0, 3, size=(chains, length))
    noise[..., 9] = 1.5
    noise[-1, length // 2, 10] = np.nan
    noise[..., 11] = np.arange(length)
    return noise.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chains", [1, 2, 4])
@pytest.mark.parametrize("length", [3, 4, 5, 6, 7, 8, 9, 30, 201])
@pytest.mark.filterwarnings("ignore")
def test_as_arviz(chains, length, dtype):
    draws = make_draws(chains, length, dtype)
    sizes = by_arviz("ess", draws)
    np.testing.assert_allclose(effective_size(draws), sizes, rtol=1e-9, atol=0.0)
    if chains > 1:
        expected = by_arviz("rhat", draws)
        np.testing.assert_allclose(r_hat(draws), expected, rtol=1e-9, atol=0.0)
    else:
        assert np.isnan(r_hat(draws)).all()


@pytest.mark.parametrize("block", [1, 500, 5000])
def test_blocks_make_no_difference(block, monkeypatch):
    draws = make_draws(2, 100, np.float64)
    expected = r_hat(draws), effective_size(draws)
    monkeypatch.setattr(rank_statistics, "BLOCK", block)
    np.testing.assert_allclose(r_hat(draws), expected[0], rtol=1e-12)
    np.testing.assert_allclose(effective_size(draws), expected[1], rtol=1e-12)


def test_independent_draws_have_an_r_hat_of_one_and_their_own_size():
    draws = np.random.default_rng(1).normal(size=(4, 2000, 50))
    assert np.abs(r_hat(draws) - 1.0).max() < 0.005
    assert abs(effective_size(draws).mean() / 8000 - 1.0) < 0.05


def test_an_autoregression_has_the_size_of_its_law():
    """(1 - a) / (1 + a) of the draws."""
    a, rng = 0.6, np.random.default_rng(2)
    draws = rng.normal(size=(4, 4000, 20)) / np.sqrt(1.0 - a**2)
    for t in range(1, draws.shape[1]):
        draws[:, t] = a * draws[:, t - 1] + np.sqrt(1.0 - a**2) * draws[:, t]
    size = effective_size(draws).mean() / 16000
    assert size == pytest.approx((1.0 - a) / (1.0 + a), rel=0.05)


def test_many_coordinates_take_less_time_than_one_by_one():
    draws = np.random.default_rng(3).normal(size=(2, 20, 300))
    r_hat(draws), by_arviz("rhat", draws[..., :2])
    start = time.process_time()
    r_hat(draws)
    ours = time.process_time() - start
    by_arviz("rhat", draws)
    assert ours < (time.process_time() - start - ours) / 5
