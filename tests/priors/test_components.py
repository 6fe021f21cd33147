# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Components, and equations (4) and (5) for any two of them."""

import math
from itertools import product

import pyro.distributions as dist
import pytest
import torch

from pyro_aeb.priors.components import (
    Component,
    Gaussian,
    Laplace,
    Student,
    inclusion_logit,
    penalties,
)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


# A component, and the same density of Pyro's.
COMPONENTS = {
    "Laplace": (Laplace(0.3), dist.Laplace(double(0.0), 0.3)),
    "Gaussian": (Gaussian(2.0), dist.Normal(double(0.0), math.sqrt(2.0))),
    "Student": (Student(2.0, 3.0), dist.StudentT(3.0, double(0.0), math.sqrt(2.0))),
    "Cauchy": (Student(0.5, 1.0), dist.Cauchy(double(0.0), math.sqrt(0.5))),
    "per weight": (Gaussian(double(*[2.0] * 50)), dist.Normal(double(0.0), math.sqrt(2.0))),
}
U = torch.linspace(0.0, 8.0, 50, dtype=torch.float64)
PAIRS = list(product(["Laplace", "Gaussian", "Student", "per weight"], repeat=2))


@pytest.fixture(params=COMPONENTS.values(), ids=COMPONENTS)
def pair(request):
    return request.param


def test_the_density_is_pyros(pair):
    component, density = pair
    torch.testing.assert_close(component.log_density(U), density.log_prob(U))
    peak = torch.as_tensor(component.log_peak).double()
    torch.testing.assert_close(peak.expand(50), density.log_prob(double(0.0)).expand(50))


def test_the_distribution_is_pyros(pair):
    component, _ = pair
    sigma = double(1.7).expand(50)
    found = component.distribution(sigma).log_prob(U)
    torch.testing.assert_close(found, component.log_density(U / 1.7) - math.log(1.7))


def slope_error(component: Component) -> float:
    """Return the largest distance of E'(u), by autograd, from l + k(u) u."""
    u = U.clone().requires_grad_()
    (slope,) = torch.autograd.grad(component.energy(u).sum(), u)
    expected = component.linear + component.quadratic(U) * U
    return float((slope - expected).abs().max())


def test_the_penalties_are_the_slope_of_the_energy(pair):
    assert slope_error(pair[0]) < 1e-12


class Mistaken(Student):
    """A Student component whose penalty is a Gaussian's."""

    def quadratic(self, u=None):
        return 1.0 / self.v


def test_a_mistaken_penalty_is_seen():
    assert slope_error(Mistaken(2.0, 3.0)) > 0.1


def test_the_variance(pair):
    component, density = pair
    found = torch.as_tensor(component.variance).double().expand(50)
    expected = double(math.inf) if isinstance(density, dist.Cauchy) else density.variance.double()
    torch.testing.assert_close(found, expected.expand(50))


def test_the_strength_is_that_of_a_tiny_weight(pair):
    component, _ = pair
    u = double(1e-4).expand(50)
    power = 1 if isinstance(component, Laplace) else 2
    expected = power * component.energy(u) / u**power
    found = torch.as_tensor(component.strength).double().expand(50)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_equation_4_is_bayes_rule(pair):
    (spike, first), (slab, second) = (COMPONENTS[name] for name in pair)
    for delta in (0.01, 0.5, 0.9):
        found = inclusion_logit(U, torch.logit(double(delta)), spike, slab)
        expected = torch.logit(double(delta)) + second.log_prob(U) - first.log_prob(U)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("excess", [0.0, 0.7, double(0.7)], ids=["none", "number", "tensor"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_equation_5_is_the_slope_of_the_expected_energy(pair, excess):
    spike, slab = (COMPONENTS[name][0] for name in pair)
    share = torch.rand(50, dtype=torch.float64)
    u = U.clone().requires_grad_()
    expected = (1 + excess - share) * spike.energy(u) + share * slab.energy(u)
    (slope,) = torch.autograd.grad(expected.sum(), u)
    linear, quadratic = penalties(share, excess, spike, slab, U)
    found = (0.0 if linear is None else linear) + (0.0 if quadratic is None else quadratic * U)
    torch.testing.assert_close(found, slope, rtol=1e-12, atol=1e-12)
    # What is never needed is never made.
    assert (linear is None) == ("Laplace" not in pair)
    assert (quadratic is None) == (set(pair) == {"Laplace"})


class TestPenaltiesOfSSGL:
    def of(self, share, excess, v0, v1):
        return penalties(share, excess, Laplace(v0), Gaussian(v1))

    def test_equation_5(self):
        kappa0, kappa1 = self.of(double(0.0, 0.25, 1.0), 0.0, v0=0.1, v1=8.0)
        torch.testing.assert_close(kappa0, double(10.0, 7.5, 0.0))
        torch.testing.assert_close(kappa1, double(0.0, 0.03125, 0.125))

    def test_the_excess_carries_first_values_that_are_not_those_of_equation_5(self):
        # kappa0 = kappa1 = 3 with v0 = 0.5, v1 = 4: slab = 12, and 1 + excess = 3 * 0.5 + 3 * 4.
        kappa0, kappa1 = self.of(double(12.0), 12.5, v0=0.5, v1=4.0)
        assert kappa0 == 3.0 and kappa1 == 3.0

    def test_every_weight_may_have_its_own_v0_and_v1(self):
        kappa0, kappa1 = self.of(double(0.5, 0.5), 0.0, v0=double(0.1, 0.2), v1=double(1.0, 5.0))
        torch.testing.assert_close(kappa0, double(5.0, 2.5))
        torch.testing.assert_close(kappa1, double(0.5, 0.1))


def test_a_weight_that_is_surely_in_the_slab_is_not_touched_by_a_narrow_spike():
    # In single precision (1 - rho) / v0 would be off by 6e-8 / v0 = 0.06 where it is 0.
    _, quadratic = penalties(torch.ones(1), 0.0, Gaussian(1e-6), Gaussian(3.0))
    assert quadratic == torch.tensor(1.0 / 3.0)
