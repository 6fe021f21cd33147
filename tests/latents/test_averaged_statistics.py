# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Updates that average statistics in place of values converge to the limit of EM."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_value

import pyro_aeb as aeb
from pyro_aeb.errors import ModelError
from pyro_aeb.latents import AveragedStatistics, ClosedForm, GradientStep, LatentUpdate

# One weight with a precision of its own, and one observation: the weight's law is wide, and so are
# the maximisers for single draws of it.
SHAPE, RATE, Y, STEP = 2.0, 0.2, 1.0, 0.05


def model():
    alpha = pyro.sample("alpha", dist.Gamma(SHAPE, RATE))
    weight = pyro.sample("weight", dist.Normal(0.0, alpha.rsqrt()))
    pyro.sample("y", dist.Normal(weight, 1.0), obs=torch.tensor(Y))


def law(alpha):
    """Mean and variance of the weight's draws given alpha, SGLD's for steps of this size."""
    curvature = alpha + 1.0
    return Y / curvature, 1.0 / (curvature * (1.0 - STEP * curvature / 2.0))


def maximiser(half_square):
    return (SHAPE - 0.5) / (RATE + half_square)


def fixed_point(update):
    alpha = 1.0
    for _ in range(2000):
        alpha += 0.5 * (update(alpha) - alpha)
    assert update(alpha) == pytest.approx(alpha)
    return alpha


def em_step(alpha):
    mean, variance = law(alpha)
    return maximiser((mean**2 + variance) / 2.0)


POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(200)


def average_of_maximisers(alpha):
    mean, variance = law(alpha)
    draws = mean + math.sqrt(variance) * POINTS
    return float(WEIGHTS @ maximiser(draws**2 / 2.0) / WEIGHTS.sum())


class Values(LatentUpdate):
    """The closed form with its values averaged."""

    derivatives = 2

    def of(self, prior):
        self._form = ClosedForm().of(prior)
        return self

    def update(self, seen):
        return self._form.update(seen)


def run_chains(update, **options):
    # The mean over the second half of the run, for every one of 16 chains.
    adaptation = aeb.StochasticApproximation(
        aeb.Polynomial(5.0, 50.0, 0.75), latents={"alpha": update}
    )
    kernel = aeb.AEBKernel(
        model, aeb.SGLD(STEP), adaptation, steps_per_draw=10, seed=0,
        init_strategy=init_to_value(values={"alpha": torch.tensor(1.0)}),
    )  # fmt: skip
    mcmc = aeb.MCMC(kernel, 60, warmup_steps=40, num_chains=16, chain_method="vectorized",
                    disable_progbar=True)  # fmt: skip
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)["alpha"].mean(1)


@pytest.mark.slow
@pytest.mark.parametrize("update", [ClosedForm(), GradientStep(0.3)])
def test_they_end_at_the_fixed_point_of_em(update):
    mean, error = aeb.testing.replicates(run_chains(update))
    aeb.testing.assert_agrees(mean, fixed_point(em_step), error)
    aeb.testing.assert_tells_apart(mean, fixed_point(average_of_maximisers), error)


@pytest.mark.slow
def test_averaged_values_end_where_their_average_is():
    """Which is elsewhere: with one draw in hand, a small weight asks for a large precision."""
    mean, error = aeb.testing.replicates(run_chains(Values()))
    aeb.testing.assert_agrees(mean, fixed_point(average_of_maximisers), error)
    aeb.testing.assert_tells_apart(mean, fixed_point(em_step), error)


# -- one step


def run_step(update, weight, start=2.0, weight_value=0.5, draws=1):
    adaptation = aeb.StochasticApproximation(weight, latents={"alpha": update})
    first = {"alpha": torch.tensor(start), "weight": torch.tensor(weight_value)}
    kernel = aeb.AEBKernel(
        model, aeb.SGLD(1e-9), adaptation, seed=0, init_strategy=init_to_value(values=first)
    )
    mcmc = aeb.MCMC(kernel, draws, warmup_steps=0, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()["alpha"]


def test_a_closed_form_moves_its_statistics():
    half_square = 0.5**2 / 2.0
    new = maximiser(half_square)
    assert float(run_step(ClosedForm(), 1.0)) == pytest.approx(new, rel=1e-4)
    # A is known; the first value stands for a B of A / 2, which moves by a quarter.
    b = 0.75 * (SHAPE - 0.5) / 2.0 + 0.25 * (RATE + half_square)
    assert float(run_step(ClosedForm(), 0.25)) == pytest.approx((SHAPE - 0.5) / b, rel=1e-4)


def test_an_inverse_gamma_moves_as_its_values_do():
    """Its maximiser is linear in B, so the two averages are one."""

    def variances():
        variance = pyro.sample("alpha", dist.InverseGamma(2.0, 1.0))
        pyro.sample("weight", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, variance.sqrt()), obs=torch.tensor(3.0))

    adaptation = aeb.StochasticApproximation(0.25, latents={"alpha": ClosedForm()})
    kernel = aeb.AEBKernel(variances, aeb.SGLD(1e-3), adaptation, seed=0)
    mcmc = aeb.MCMC(kernel, 2, warmup_steps=0, disable_progbar=True)
    mcmc.run()
    new = (1.0 + 4.5) / (2.0 + 1.0 + 0.5)
    first = 0.75 * 1.0 + 0.25 * new
    expected = torch.tensor([first, 0.75 * first + 0.25 * new])
    torch.testing.assert_close(mcmc.get_samples()["alpha"], expected, rtol=1e-4, atol=0.0)


def test_a_gradient_step_is_taken_in_unconstrained_space():
    gradient = (SHAPE - 0.5) / 2.0 - (RATE + 0.5**2 / 2.0)  # of the log joint density, at 2
    expected = math.exp(math.log(2.0) + 0.25 * 0.3 * 2.0 * gradient)
    assert float(run_step(GradientStep(0.3), 0.25)) == pytest.approx(expected, rel=1e-4)


class Squares(AveragedStatistics):
    """Statistics of a user's own: E w^2, and alpha is one over it."""

    def statistics(self, seen):
        return seen.values["weight"].square()

    def maximiser(self, statistics):
        return 1.0 / statistics


def test_statistics_of_ones_own_begin_with_those_of_the_first_step():
    torch.testing.assert_close(
        run_step(Squares(), 0.25, draws=2), torch.tensor([4.0, 4.0]), rtol=1e-3, atol=0.0
    )


# -- refused


def test_statistics_that_are_no_tensor():
    class Pair(Squares):
        def statistics(self, seen):
            return seen.value, seen.value

    with pytest.raises(ModelError, match="statistics of latent 'alpha' are .*expected a tensor"):
        run_step(Pair(), 0.5)


def test_statistics_whose_shape_changes():
    class Growing(Squares):
        size = 0

        def statistics(self, seen):
            self.size += 1
            return seen.value.expand(self.size)

        def maximiser(self, statistics):
            return statistics.sum()

    with pytest.raises(ModelError, match=r"of shape \(1,\) and are of shape \(2,\) now"):
        run_step(Growing(), 0.5, draws=2)
