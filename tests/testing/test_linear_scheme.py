# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The measured linear map of a step, against equations (3a) and (3b)."""

import broken_samplers as broken
import numpy as np
import pytest

from pyro_aeb import SGHMC, SGLD
from pyro_aeb.testing import (
    LinearScheme,
    check_stationary_law,
    linear_scheme,
    sghmc_covariance,
    sgld_variance,
    stability_limit,
    target_variance,
)
from pyro_aeb.transitions import StepNumbers

H, M = np.array([[3.0]]), np.array([0.7])
NUMBERS = StepNumbers(0.2, 0.5)


def test_the_map_of_sgld_is_equation_3a():
    scheme = linear_scheme(SGLD(1.0), H, M, NUMBERS)
    # beta' = beta - epsilon h (beta - m) + sqrt(2 epsilon / tau) z + epsilon e
    np.testing.assert_allclose(scheme.matrix, [[1 - 0.6]], rtol=1e-14)
    np.testing.assert_allclose(scheme.offset, [0.6 * 0.7], rtol=1e-14)
    np.testing.assert_allclose(scheme.noise, [[np.sqrt(0.8)]], rtol=1e-14)
    np.testing.assert_allclose(scheme.gradient, [[0.2]], rtol=1e-14)


def test_the_map_of_sghmc_is_equation_3b():
    scheme = linear_scheme(SGHMC(1.0, friction=0.3), H, M, NUMBERS)
    # The position comes first: (beta, v)' with v' = 0.7 v - eta h (beta - m), beta' = beta + v'.
    np.testing.assert_allclose(scheme.matrix, [[0.4, 0.7], [-0.6, 0.7]], rtol=1e-14)
    np.testing.assert_allclose(scheme.offset, [0.42, 0.42], rtol=1e-14)
    np.testing.assert_allclose(scheme.noise, np.full((2, 1), np.sqrt(0.24)), rtol=1e-14)


@pytest.mark.parametrize("gradient_variance", [0.0, 2.5])
@pytest.mark.parametrize("tau", [0.5, 8.0])
def test_the_lyapunov_equation_gives_the_closed_forms(tau, gradient_variance):
    numbers = StepNumbers(0.2, tau)
    found = linear_scheme(SGLD(1.0), H, M, numbers).covariance(gradient_variance)
    np.testing.assert_allclose(found, [[sgld_variance(0.2, tau, 3.0, gradient_variance)]], 1e-12)
    for friction, b in ((0.3, 0.0), (0.3, 0.1), (1.0, 0.4)):
        scheme = linear_scheme(SGHMC(1.0, friction, b), H, M, numbers)
        expected = sghmc_covariance(0.2, tau, 3.0, friction, b, gradient_variance)
        found = scheme.covariance(gradient_variance)[::-1, ::-1]  # (momentum, position) there
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        np.testing.assert_allclose(scheme.mean(), [0.7, 0.0], atol=1e-12)


def test_the_closed_form_of_sgld_is_that_of_the_docs():
    # 1 / (tau h (1 - epsilon h / 2))
    assert sgld_variance(0.2, 0.5, 3.0) == pytest.approx(1 / (1.5 * 0.7), rel=1e-14)
    assert target_variance(0.5, 3.0) == 1 / 1.5


def test_correlated_coordinates_are_chains_of_their_own_along_the_axes():
    curvature = np.array([[2.0, 0.6], [0.6, 0.5]])
    values, axes = np.linalg.eigh(curvature)
    scheme = linear_scheme(SGLD(1.0), curvature, np.zeros(2), NUMBERS)
    along = axes.T @ scheme.position_covariance() @ axes
    expected = np.diag([sgld_variance(0.2, 0.5, h) for h in values])
    np.testing.assert_allclose(along, expected, rtol=1e-12, atol=1e-14)


def test_the_limits_of_stability():
    # SGLD: |1 - epsilon h| < 1. SGHMC: the roots of x^2 - (2 - alpha - eta h) x + 1 - alpha are
    # inside the unit circle where eta h < 2 (2 - alpha).
    assert stability_limit(SGLD(1.0)) == pytest.approx(2.0, rel=1e-6)
    assert stability_limit(SGHMC(1.0, friction=0.3)) == pytest.approx(3.4, rel=1e-6)


def test_an_unstable_chain_has_no_stationary_law():
    scheme = linear_scheme(SGLD(1.0), H, M, StepNumbers(0.7, 1.0))
    assert scheme.spectral_radius == pytest.approx(1.1)
    with pytest.raises(ValueError, match="spectral radius is 1.1, expected less than 1"):
        scheme.covariance()


@pytest.mark.parametrize("transition", [broken.Thermostat(), broken.Clipped(0.1)], ids=repr)
def test_what_is_not_linear_is_told(transition):
    assert linear_scheme(transition, H, M, NUMBERS) is None
    with pytest.raises(ValueError, match="not linear on Gaussians.*check_simulated_law"):
        check_stationary_law(transition)


def test_a_scheme_can_be_written_by_hand():
    scheme = LinearScheme(*(np.array(x) for x in ([[0.5]], [1.0], [[1.0]], [[0.0]])))
    np.testing.assert_allclose(scheme.mean(), [2.0])
    np.testing.assert_allclose(scheme.covariance(), [[4 / 3]])
