# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The forms of a log joint density under a conjugate prior, and their maximisers."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_aeb.latents.closed_form import FORMS, ClosedForm
from pyro_aeb.latents.contract import Seen

# The log density of each form as the module's table has it.
DENSITIES = {
    dist.InverseGamma: lambda x, a, b: -a * x.log() - b / x,
    dist.Gamma: lambda x, a, b: a * x.log() - b * x,
    dist.Beta: lambda x, a, b: a * x.log() + b * (1 - x).log(),
    dist.Normal: lambda x, a, b: a * x - b * x.square() / 2,
}
A = torch.tensor([0.5, 3.0, 40.0], dtype=torch.float64)
B = torch.tensor([2.0, 0.7, 10.0], dtype=torch.float64)
AT = torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64)


def derivatives(density, value):
    value = value.clone().requires_grad_()
    (first,) = torch.autograd.grad(density(value).sum(), value, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), value)
    return first.detach(), second


@pytest.mark.parametrize("prior", DENSITIES)
class TestForm:
    def test_two_derivatives_tell_its_numbers(self, prior):
        found = FORMS[prior].numbers(AT, *derivatives(lambda x: DENSITIES[prior](x, A, B), AT))
        torch.testing.assert_close(found, (A, B))

    def test_its_gradient_is_that_of_its_density(self, prior):
        first, _ = derivatives(lambda x: DENSITIES[prior](x, A, B), AT)
        torch.testing.assert_close(FORMS[prior].gradient(AT, A, B), first)

    def test_the_gradient_is_zero_at_its_maximiser_and_falls(self, prior):
        maximiser = FORMS[prior].maximiser(A, B)
        first, second = derivatives(lambda x: DENSITIES[prior](x, A, B), maximiser)
        torch.testing.assert_close(first, torch.zeros_like(A), atol=1e-12, rtol=0.0)
        assert (second < 0.0).all()

    def test_the_maximiser_does_not_depend_on_where_the_derivatives_are_taken(self, prior):
        update = ClosedForm().of(prior(torch.tensor(2.0), torch.tensor(3.0)))
        for at in (AT, 0.5 * AT, 1.0 - 0.1 * AT):
            slopes = derivatives(lambda x: DENSITIES[prior](x, A, B), at)
            found = update.update(Seen(at, {}, {}, *slopes))
            torch.testing.assert_close(found, FORMS[prior].maximiser(A, B))


@pytest.mark.parametrize("divided", [True, False], ids=["Categorical", "sum of logarithms"])
def test_shares_of_a_dirichlet(divided):
    counts = torch.tensor([[4.0, 1.0, 5.0], [2.0, 2.0, 6.0]], dtype=torch.float64)
    value = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], dtype=torch.float64)

    def density(x):  # a Categorical divides its probabilities by their sum
        return (counts * (x / x.sum(-1, keepdim=True) if divided else x).log()).sum()

    leaf = value.clone().requires_grad_()
    (first,) = torch.autograd.grad(density(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first[..., 0].sum(), leaf)
    update = ClosedForm().of(dist.Dirichlet(torch.ones(3)))
    found = update.update(Seen(value, {}, {}, first.detach(), second))
    torch.testing.assert_close(found, counts / 10.0)


@pytest.mark.parametrize("prior", [dist.InverseGamma, dist.Gamma, dist.Beta])
def test_no_statistics_at_all_keep_the_value_inside_the_support(prior):
    """A Gamma(1, 1) with nothing below it has its maximiser at 0, on the edge."""
    zero = torch.zeros(())
    for numbers in ((zero, zero + 1.0), (zero + 1.0, zero), (zero, zero)):
        value = FORMS[prior].maximiser(*numbers)
        assert prior(torch.tensor(2.0), torch.tensor(3.0)).support.check(value)


def test_a_prior_without_a_form_is_refused():
    with pytest.raises(ValueError, match="Exponential.*expected one of InverseGamma, Gamma"):
        ClosedForm().of(dist.Exponential(1.0))
