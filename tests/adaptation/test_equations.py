# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latents' equations, one by one, at values worked out by hand and at the edges. That they are the
maxima of Q is in ``proofs/test_m_steps.py``.
"""

import math
import pickle
import re

import pytest
import torch

from pyro_aeb.adaptation.equations import (
    add_prior_gradient,
    beta_counts,
    beta_mode,
    scale_update,
    stochastic_approximation,
)
from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.schedules import Constant, Polynomial


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def prior_gradient(beta, *latents):
    gradient = torch.ones_like(beta)
    add_prior_gradient(gradient, beta, *latents)
    return gradient - 1.0


class TestPriorGradient:
    def test_equation_2(self):
        # -kappa0 sign(beta) / sigma - kappa1 beta / sigma^2
        found = prior_gradient(double(3.0, -3.0), double(2.0, 2.0), double(0.5, 0.5), double(4.0))
        torch.testing.assert_close(found, double(-0.5 - 1.5 / 16, 0.5 + 1.5 / 16))

    def test_zero_is_pulled_nowhere(self):
        kappa = double(1e3)
        assert prior_gradient(double(0.0), kappa, kappa, double(0.1)) == 0.0

    def test_every_weight_may_have_its_own_sigma(self):
        kappa = double(1.0, 1.0)
        found = prior_gradient(double(1.0, 1.0), kappa, kappa, double(1.0, 2.0))
        torch.testing.assert_close(found, double(-2.0, -0.75))


class TestScaleUpdate:
    def test_equation_6(self):
        # A = 5 + 1 + 2 = 8, B = 4, C = 0.3 + 0.2: (4 + sqrt(16 + 16)) / 16.
        found = scale_update(double(4.0), double(0.3), 5, nu=double(1.0), nu_lambda=double(0.2))
        torch.testing.assert_close(found, double((4.0 + math.sqrt(32.0)) / 16.0))

    def test_it_solves_the_quadratic_of_every_group(self):
        absolute, square, count, nu, nu_lambda = 10.0 * torch.rand(5, 100, dtype=torch.float64)
        sigma = scale_update(absolute, square, count, nu, nu_lambda)
        # dQ/dsigma = 0 times sigma^3: A sigma^2 - B sigma - C = 0 has one positive root.
        a, c = count + nu + 2.0, square + nu_lambda
        assert (sigma > 0.0).all()
        left = a * sigma**2
        torch.testing.assert_close(left, absolute * sigma + c, rtol=1e-12, atol=1e-12)

    def test_with_a_gaussian_prior_alone_it_is_the_mode_of_the_inverse_gamma(self):
        # B = 0: sigma^2 = C / A is the mode of sigma^2 ~ InverseGamma((A - 2) / 2, C / 2).
        found = scale_update(double(0.0), double(7.0), 4, nu=double(3.0), nu_lambda=double(2.0))
        torch.testing.assert_close(found.square(), double(9.0 / 9.0))

    def test_it_is_finite_for_weights_of_a_million_in_float32(self):
        beta = torch.full((1000,), 1e6)
        absolute, square = (10.0 * beta).sum(), (0.1 * beta.square()).sum()
        sigma = scale_update(absolute, square, 1000, torch.tensor(1.0), torch.tensor(1.0))
        # B / A = 1e7 outweighs sqrt(C / A) = 3e5.
        assert sigma.isfinite() and 1e7 * 0.99 < float(sigma) < 1e7 * 1.01


def sparsity_update(total, size, a, b):
    return beta_mode(total, *beta_counts(size, a, b))


class TestSparsityUpdate:
    def test_equation_7(self):
        # (3.5 + 2 - 1) / (2 + 4 + 10 - 2)
        found = sparsity_update(double(3.5), double(10.0), double(2.0), double(4.0))
        torch.testing.assert_close(found, double(4.5 / 14.0))

    def test_a_flat_prior_gives_the_mean_of_rho(self):
        found = sparsity_update(double(3.5), double(10.0), double(1.0), double(1.0))
        torch.testing.assert_close(found, double(0.35))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("total", "a", "b"), [(0.0, 1.0, 3.0), (0.0, 0.5, 3.0)])
    def test_it_stays_above_0(self, dtype, total, a, b):
        found = sparsity_update(*torch.tensor([total, 10.0, a, b], dtype=dtype))
        assert 0.0 < found < 1e-30 and torch.logit(found).isfinite()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("total", "a", "b"), [(10.0, 3.0, 1.0), (10.0, 3.0, 0.5)])
    def test_it_stays_below_1(self, dtype, total, a, b):
        found = sparsity_update(*torch.tensor([total, 10.0, a, b], dtype=dtype))
        assert 1.0 - 1e-6 < found < 1.0 and torch.logit(found).isfinite()


class TestStochasticApproximationOfValues:
    def test_equation_8(self):
        found = stochastic_approximation(double(1.0, 4.0), double(5.0, 0.0), 0.25)
        torch.testing.assert_close(found, double(2.0, 3.0))

    def test_weights_0_and_1_are_exact(self):
        old, new = torch.randn(2, 1000)
        assert torch.equal(stochastic_approximation(old, new, 0.0), old)
        assert torch.equal(stochastic_approximation(old, new, 1.0), new)

    def test_it_never_leaves_the_interval_between(self):
        old, new = torch.rand(2, 10_000)
        for weight in (1e-7, 0.1, 0.49, 0.5, 0.51, 0.9, 1.0 - 1e-7):
            found = stochastic_approximation(old, new, weight)
            assert (found >= torch.minimum(old, new)).all()
            assert (found <= torch.maximum(old, new)).all()


class TestStochasticApproximation:
    def test_a_number_stands_for_a_constant(self):
        assert StochasticApproximation(0.5).weight == Constant(0.5)
        assert StochasticApproximation(0.5).weight_at(10**6) == 0.5

    def test_the_weight_is_that_of_the_step(self):
        request = StochasticApproximation(Polynomial(10.0, 1000.0, 0.7))
        assert request.weight_at(24) == Polynomial(10.0, 1000.0, 0.7)(24)

    def test_defaults(self):
        request = StochasticApproximation(1.0)
        assert request.initial_inclusion == 0.5 and request.initial_penalty is None

    @pytest.mark.parametrize("weight", [0, 1, 0.0, 1.0])
    def test_em_and_frozen_are_allowed(self, weight):
        assert StochasticApproximation(weight).weight_at(1) == weight

    @pytest.mark.parametrize("weight", [-0.1, 1.5])
    def test_a_constant_outside_0_1_is_refused_at_once(self, weight):
        with pytest.raises(
            ValueError, match=re.escape(f"is {weight} at step 1, expected a number")
        ):
            StochasticApproximation(weight)

    def test_a_schedule_that_leaves_0_1_is_refused_at_the_step_that_it_does(self):
        request = StochasticApproximation(Polynomial(10.0))
        assert request.weight_at(10) == 1.0
        with pytest.raises(ValueError, match=r"is 5\.0 at step 2.*a larger offset brings"):
            request.weight_at(2)

    def test_a_weight_that_is_not_a_number_is_refused(self):
        with pytest.raises(ValueError, match="is nan at step 7"):
            StochasticApproximation(lambda k: math.nan).weight_at(7)
        with pytest.raises(TypeError, match="weight is None, expected a number or a schedule"):
            StochasticApproximation(None)

    @pytest.mark.parametrize(
        "inclusion", [-0.1, 1.1, math.nan, {"a": torch.rand(3), "b": torch.tensor([0.5, 1.5])}]
    )
    def test_impossible_inclusions_are_refused(self, inclusion):
        with pytest.raises(ValueError, match=r"expected initial_inclusion in \[0, 1\]"):
            StochasticApproximation(0.5, initial_inclusion=inclusion)

    @pytest.mark.parametrize("penalty", [0.0, -1.0, math.nan])
    def test_impossible_penalties_are_refused(self, penalty):
        with pytest.raises(ValueError, match=r"expected initial_penalty > 0, or None for equation"):
            StochasticApproximation(0.5, initial_penalty=penalty)

    def test_it_pickles_compares_prints_and_is_frozen(self):
        request = StochasticApproximation(Polynomial(10.0, 1000.0, 0.7), 0.3, initial_penalty=2.0)
        copy = pickle.loads(pickle.dumps(request))
        assert copy == request and hash(copy) == hash(request)
        assert eval(repr(request)) == request
        with pytest.raises(AttributeError):
            request.weight = Constant(0.0)
