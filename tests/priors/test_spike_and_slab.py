# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Every spike-and-slab prior as a distribution: against the mixture of Pyro's own densities, by
quadrature and by Monte Carlo. ``tests/priors/test_distributions.py`` has further tests of SSGL.
"""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from prior_families import FAMILIES
from scipy.stats import kstest
from ssgl_references import integral

from pyro_aeb import priors
from pyro_aeb.model.links import is_sparse

DELTA, SIGMA = 0.3, 1.7
TWO_SCALES = {name: f for name, f in FAMILIES.items() if issubclass(f.make, priors.TwoScales)}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=TWO_SCALES.values(), ids=TWO_SCALES)
def two_scales(request):
    return request.param


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def mixture(family, value):
    """The terms of the density, by Pyro."""
    sigma = double(SIGMA)
    terms = family.spike(sigma).log_prob(value), family.slab(sigma).log_prob(value)
    return (1 - DELTA) * terms[0].exp(), DELTA * terms[1].exp()


def test_log_prob_is_the_mixture(family):
    value = torch.cat([torch.linspace(-9.0, 9.0, 101), torch.linspace(-0.5, 0.5, 101)]).double()
    expected = sum(mixture(family, value)).log()
    torch.testing.assert_close(family.prior(DELTA, SIGMA).log_prob(value), expected)
    of_tensors = family.make(*map(double, family.numbers), double(DELTA), double(SIGMA))
    torch.testing.assert_close(of_tensors.log_prob(value), expected)


def test_the_density_integrates_to_one(family):
    prior = family.prior(double(DELTA), double(SIGMA))
    # Right of the range lies the share of a Cauchy slab: 0.3 * 1.7 / (pi 1e12).
    half = integral(lambda x: prior.log_prob(x).exp(), 1e-14, 1e12, nodes=200_001)
    assert abs(2 * half - 1) < 1e-9


def test_inclusion_is_bayes_rule(family):
    value = torch.linspace(-9.0, 9.0, 101).double()
    spike, slab = mixture(family, value)
    prior = family.prior(DELTA, SIGMA)
    torch.testing.assert_close(prior.inclusion(value), slab / (spike + slab))
    near = value[value.abs() < 2.0]
    spike, slab = mixture(family, near)
    torch.testing.assert_close(prior.inclusion_logit(near), slab.log() - spike.log())


def test_samples_have_the_moments(family):
    prior, n = family.prior(double(DELTA), double(SIGMA)), 100_000
    value = prior.sample((n,))
    assert value.shape == (n,) and value.dtype == torch.float64 and prior.mean == 0
    if prior.variance.isfinite():
        torch.testing.assert_close(
            prior.variance,
            (1 - DELTA) * family.spike(double(SIGMA)).variance
            + DELTA * family.slab(double(SIGMA)).variance,
        )
    # E min(|x|, 3) exists for all, and has a spread below 3.
    clamped = value.abs().clamp(max=3.0)
    near = integral(lambda x: 2 * x * prior.log_prob(x).exp(), 1e-12, 3.0)
    far = integral(lambda x: 6 * prior.log_prob(x).exp(), 3.0, 1e12, nodes=100_001)
    assert (clamped.mean() - near - far).abs() < 5 * clamped.std() / math.sqrt(n)
    assert value.sign().mean().abs() < 5 / math.sqrt(n)


def test_gradients(family):
    value = torch.tensor([-2.0, 0.3, 4.0]).double().requires_grad_()
    numbers = [double(v).requires_grad_() for v in (*family.numbers, DELTA, SIGMA)]
    assert torch.autograd.gradcheck(
        lambda x, *given: family.make(*given, validate_args=False).log_prob(x), [value, *numbers]
    )


def test_shapes_expansion_and_pickling(family):
    delta = torch.rand(3, 1)
    prior = family.make(*family.numbers, delta, 2.0, validate_args=False)
    big = prior.expand((2, 3, 4))
    assert type(big) is family.make and big.batch_shape == (2, 3, 4)
    assert big.sample().shape == (2, 3, 4) and big.sample((5,)).shape == (5, 2, 3, 4)
    assert big.mean.shape == big.variance.shape == big.delta.shape == (2, 3, 4)
    value = torch.randn(2, 3, 4)
    torch.testing.assert_close(big.log_prob(value), prior.log_prob(value))
    copy = pickle.loads(pickle.dumps(big))
    assert torch.equal(copy.log_prob(value), big.log_prob(value))
    assert repr(big).startswith(f"{family.make.__name__}(v0: ")
    with pytest.raises(ValueError, match=f"Cannot expand {family.make.__name__}"):
        prior.expand((4, 1))


def test_bad_parameters(family):
    names = [*family.prior(DELTA, SIGMA).given]
    good = dict(zip(names, (*family.numbers, DELTA, SIGMA), strict=True))
    for name in names:
        bad = 1.5 if name == "delta" else -1.0
        message = f"^{family.make.__name__} expects {name} to be .*, but found {bad:g}: .*{name}"
        with pytest.raises(ValueError, match=message):
            family.make(**{**good, name: bad}, validate_args=True)
        family.make(**{**good, name: bad}, validate_args=False)
        with pytest.raises(TypeError, match=f"{family.make.__name__} expects {name} to be a numb"):
            family.make(**{**good, name: "1"})


def test_parameters_that_do_not_broadcast(family):
    with pytest.raises(ValueError, match=r"expects v0, .* and sigma to broadcast, but found shape"):
        family.make(*family.numbers, torch.rand(3), torch.rand(2))


def test_whole_numbers_are_numbers(family):
    found = family.make(*(1 for _ in family.numbers), 1, 10**400, validate_args=False)
    assert all(type(value) is float for value in found.given.values())
    with pytest.raises(ValueError, match="sigma to be positive and finite, but found inf"):
        family.make(*(1 for _ in family.numbers), 1, 10**400, validate_args=True)


def test_the_densities_are_those_of_pyro(family):
    value = torch.linspace(-3.0, 3.0, 7).double()
    spike, slab = family.prior(DELTA, torch.full((7,), SIGMA).double()).densities
    torch.testing.assert_close(spike.log_prob(value), family.spike(double(SIGMA)).log_prob(value))
    torch.testing.assert_close(slab.log_prob(value), family.slab(double(SIGMA)).log_prob(value))


def test_parameters_by_name(family):
    prior = family.prior(DELTA, torch.tensor([1.0, 2.0]))
    for name, value in prior.shape_parameters.items():
        assert getattr(prior, name).tolist() == pytest.approx([value, value])
    assert prior.sigma.tolist() == [1.0, 2.0] and prior.delta.tolist() == pytest.approx([DELTA] * 2)


def test_the_kernel_takes_it_for_sparse(family):
    assert is_sparse({"fn": family.prior(DELTA, SIGMA).expand([2, 3]).to_event(2)})
    assert is_sparse({"fn": priors.Group(family.prior(DELTA, SIGMA).expand([2, 3])).to_event(1)})
    assert not is_sparse({"fn": dist.Normal(0.0, 1.0)})


# What priors of two scales have more


def test_quantiles_and_samples_agree(two_scales):
    prior = two_scales.prior(double(DELTA), double(SIGMA))
    value = prior.sample((20_000,))
    assert kstest(value.numpy(), lambda x: prior.cdf(torch.as_tensor(x)).numpy()).pvalue > 0.01
    q = torch.tensor([1e-6, 0.01, 0.3, 0.5, 0.9]).double()
    torch.testing.assert_close(prior.cdf(prior.icdf(q)), q)
    x = torch.linspace(-4.0, 4.0, 41).double().requires_grad_()
    (slope,) = torch.autograd.grad(prior.cdf(x).sum(), x)
    torch.testing.assert_close(slope, prior.log_prob(x).exp().detach())


def test_entropy(two_scales):
    prior = two_scales.prior(double(DELTA), double(SIGMA))
    expected = integral(lambda x: -2 * prior.log_prob(x).exp() * prior.log_prob(x), 1e-14, 400.0)
    assert abs(prior.entropy() - expected) < 1e-8


def test_reparameterised_samples_follow_the_quantiles(two_scales):
    numbers = [double(v) for v in (*two_scales.numbers, DELTA, SIGMA)]
    prior = two_scales.make(*(v.clone().requires_grad_() for v in numbers))
    pyro.set_rng_seed(4)
    value = prior.rsample()
    found = torch.autograd.grad(value, list(prior.given.values()))
    lower = -value.detach().abs()  # where quantiles keep their precision
    q = two_scales.make(*numbers).cdf(lower)
    for i, slope in enumerate(found):
        step = 1e-6 * numbers[i]
        moved = [[*numbers[:i], numbers[i] + s, *numbers[i + 1 :]] for s in (step, -step)]
        up, down = (two_scales.make(*m).icdf(q) for m in moved)
        expected = (up - down) / (2 * step) * -value.sign()
        torch.testing.assert_close(slope, expected.squeeze(), rtol=1e-4, atol=1e-8)


def test_a_student_slab_without_closed_forms_says_so():
    prior = priors.SpikeAndSlabStudent(0.1, 1.0, 3.0, 0.5)
    assert not prior.has_rsample
    for f in (prior.cdf, prior.icdf):
        with pytest.raises(NotImplementedError):
            f(torch.tensor(0.2))


def test_a_student_slab_tends_to_ssgl():
    value = torch.linspace(-5.0, 5.0, 101).double()
    heavy = priors.SpikeAndSlabStudent(0.1, 2.0, 1e9, 0.5)
    torch.testing.assert_close(
        heavy.log_prob(value), priors.SSGL(0.1, 2.0, 0.5).log_prob(value), rtol=1e-6, atol=1e-6
    )
