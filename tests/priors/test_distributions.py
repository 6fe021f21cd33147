# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""SSGL against closed forms, quadrature, finite differences and Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.gof import auto_goodness_of_fit
from scipy.stats import kstest
from ssgl_references import PARAMETERS, components, integral, mixture_terms, ordered_scales
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

from pyro_aeb.priors import SSGL
from pyro_aeb.priors.two_scales import _Implicit

# (v0, v1, delta, sigma)
CASES = {
    "laplace_spike": (0.1, 10.0, 0.1, 1.7),
    "gaussian_spike": (0.005, 1e-5, 0.6, 1.0),
    "alike": (1.0, 0.1, 0.3, 0.5),
    "far_apart": (1e-4, 1.0, 0.9, 30.0),
}
reparameterised = partial(_Implicit.apply, SSGL.components)
# Monte Carlo errors allowed, in standard errors: a false alarm in 1.7 million.
SIGMAS = 5.0


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> list[Tensor]:
    """v0, v1, delta and sigma of one case as 0-d tensors in double precision."""
    return [torch.tensor(x, dtype=torch.float64) for x in request.param]


# Density


def test_log_prob_is_the_mixture(case: list[Tensor]) -> None:
    narrow, wide = ordered_scales(*case[:2], case[3])
    value = torch.cat([narrow * torch.linspace(-9, 9, 37), wide * torch.linspace(-9, 9, 37)])
    expected = sum(mixture_terms(value, *map(float, case)))
    actual = SSGL(*case).log_prob(value.double())
    torch.testing.assert_close(actual, expected.log(), rtol=1e-12, atol=1e-12)


def test_density_integrates_to_one(case: list[Tensor]) -> None:
    narrow, wide = ordered_scales(*case[:2], case[3])
    # Both halves are equal. Left of the range lies less than 1e-14 of the narrow scale; right of
    # it exp(-40).
    half = integral(lambda x: SSGL(*case).log_prob(x).exp(), 1e-14 * narrow, 40 * wide)
    assert abs(2 * half - 1) < 1e-11


def test_numbers_lose_no_precision() -> None:
    # 0.1 in single precision is off by 1.5e-8 of itself, which at 50 scales is 7e-7.
    value = torch.tensor(5.0, dtype=torch.float64)
    expected = -50.0 - math.log(0.2)
    assert abs(SSGL(0.1, 10.0, 0.0).log_prob(value) - expected) < 1e-13
    assert abs(SSGL(0.1, 10.0, 0.0).log_prob(value).item() - expected) < 1e-13


FAR = [0.0, 1e-30, 1e-3, 1.0, 30.0, 1e3, 1e6]
DELTAS = [0.0, 1e-37, 1e-6, 0.5, 1 - 2.0**-24, 1.0]


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("v0, v1", [(0.1, 10.0), (0.005, 1e-5)])
@pytest.mark.parametrize("sigma", [1e-3, 1.0, 1e3])
def test_single_precision_as_far_as_a_million_sigma(
    v0: float, v1: float, delta: float, sigma: float
) -> None:
    value = sigma * torch.tensor(FAR + [-x for x in FAR])
    value.requires_grad_()
    parameters = [torch.tensor(x, requires_grad=True) for x in (v0, v1, delta, sigma)]
    actual = SSGL(*parameters).log_prob(value)

    exact, d = value.detach().double(), parameters[2].detach().double()
    laplace, gaussian = (c.log_prob(exact) for c in components(v0, v1, sigma))
    expected = torch.logaddexp((1 - d).log() + laplace, d.log() + gaussian)
    torch.testing.assert_close(actual.double(), expected, rtol=2e-6, atol=2e-6)

    # A mixture of the components' slopes, -sign(x) / (sigma v0) and -x / (sigma**2 v1).
    rho = ((d / (1 - d)).log() + gaussian - laplace).sigmoid()
    slope = -(1 - rho) * exact.sign() / (sigma * v0) - rho * exact / (sigma**2 * v1)
    actual_slope, *others = grad(actual.sum(), [value, *parameters])
    torch.testing.assert_close(actual_slope.double(), slope, rtol=1e-4, atol=1e-6 / (sigma * v0))
    assert actual_slope[0] == 0 and actual_slope[len(FAR)] == 0
    assert not any(x.isnan().any() for x in others)


@pytest.mark.parametrize("x", [0.0, 0.3, -1.0, 4.0])
def test_delta_has_a_derivative_at_its_ends(x: float) -> None:
    # d log p / d delta = (N - L) / p, with p = L at delta = 0 and p = N at delta = 1.
    laplace, gaussian = (2 * y for y in mixture_terms(torch.tensor(x), 0.5, 2.0, 0.5, 1.0))
    for end, p in [(0.0, laplace), (1.0, gaussian)]:
        delta = torch.tensor(end, dtype=torch.float64, requires_grad=True)
        (slope,) = grad(SSGL(0.5, 2.0, delta).log_prob(torch.tensor(x).double()), delta)
        torch.testing.assert_close(slope, (gaussian - laplace) / p)


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
def test_infinite_value_has_no_density(delta: float) -> None:
    value = torch.tensor([math.inf, -math.inf])
    assert SSGL(0.1, 10.0, delta).log_prob(value).tolist() == [-math.inf, -math.inf]


def test_log_prob_gradients(case: list[Tensor]) -> None:
    v0, v1, delta, sigma = case
    narrow, wide = ordered_scales(v0, v1, sigma)
    # In units of the value's own scale, so that a finite difference suits each.
    unit = torch.tensor([-3.0 * narrow, narrow, 0.7 * wide]).double()
    factor = torch.ones(3).double().requires_grad_()

    def log_prob(factor: Tensor, *logs: Tensor) -> Tensor:
        v0, v1, sigma = (x.exp() for x in logs[:3])
        return SSGL(v0, v1, logs[3].sigmoid(), sigma).log_prob(factor * unit)

    inputs = [x.requires_grad_() for x in (v0.log(), v1.log(), sigma.log(), delta.logit())]
    assert gradcheck(log_prob, [factor, *inputs])
    # Second derivatives grow with the square of wide / narrow, which finite differences cannot bear
    # where that is 10 ** 4.
    if wide < 1e3 * narrow:
        assert gradgradcheck(log_prob, [factor, *inputs], atol=1e-4, rtol=1e-3)


# Distribution function


def test_cdf_is_the_integral_of_the_density(case: list[Tensor]) -> None:
    d = SSGL(*case)
    narrow, wide = ordered_scales(*case[:2], case[3])
    ends = [0.01 * narrow, narrow, 3 * narrow, 0.5 * wide, wide, 5 * wide]
    for low, high in zip(ends, ends[1:], strict=False):
        low, high = min(low, high), max(low, high)
        mass = integral(lambda x: d.log_prob(x).exp(), low, high)
        low, high = torch.tensor(low).double(), torch.tensor(high).double()
        assert abs(d.cdf(high) - d.cdf(low) - mass) < 1e-8
        assert abs(d.cdf(-low) - d.cdf(-high) - mass) < 1e-8


def test_cdf_is_monotone_and_symmetric(case: list[Tensor]) -> None:
    narrow, wide = ordered_scales(*case[:2], case[3])
    x = torch.logspace(math.log10(narrow) - 3, math.log10(wide) + 2, 2001, dtype=torch.float64)
    cdf = SSGL(*case).cdf(torch.cat([-x.flip(0), x.new_zeros(1), x]))
    assert (cdf.diff() >= 0).all() and (cdf[:1500].diff() >= 0).all()
    assert cdf[2001] == 0.5
    torch.testing.assert_close(cdf + cdf.flip(0), torch.ones_like(cdf), rtol=0, atol=1e-15)
    assert SSGL(*case).cdf(torch.tensor([-math.inf, math.inf])).tolist() == [0.0, 1.0]


def test_cdf_has_the_density_as_derivative(case: list[Tensor]) -> None:
    x = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0]).double() * case[3]
    x.requires_grad_()
    (slope,) = grad(SSGL(*case).cdf(x).sum(), x)
    torch.testing.assert_close(slope, SSGL(*case).log_prob(x).exp().detach())


def test_lower_tail_is_precise() -> None:
    # Laplace: exp(-x / s) / 2. Normal: Phi(-x) = phi(x) / x * (1 - 1/x^2 + 3/x^4 - 15/x^6 + ...),
    # an alternating series whose first term left out, 105 / x^8, bounds the error: 3e-10 at 30.
    x = torch.tensor(-30.0)
    laplace = math.exp(-30.0) / 2
    series = 1 - 30.0**-2 + 3 * 30.0**-4 - 15 * 30.0**-6
    gaussian = math.exp(-450.0) / math.sqrt(2 * math.pi) / 30.0 * series
    assert SSGL(1.0, 1.0, 0.0).cdf(x).item() == pytest.approx(laplace, rel=3e-6)
    assert SSGL(1.0, 1.0, 0.0).cdf(x.double()).item() == pytest.approx(laplace, rel=1e-13)
    assert SSGL(1.0, 1.0, 1.0).cdf(x.double()).item() == pytest.approx(gaussian, rel=1e-9)


def test_icdf_inverts_cdf(case: list[Tensor]) -> None:
    d = SSGL(*case)
    lower = torch.logspace(-300, math.log10(0.5), 601, dtype=torch.float64)
    x = d.icdf(lower)
    # A relative error e of x is one of |x| p(x) / F(x) e of F: in the tails log(1 / F) = 690 times
    # e for a Laplace, twice that for a Gaussian. So 1e-12 is 3 units in the last place of x.
    torch.testing.assert_close(d.cdf(x), lower, rtol=1e-12, atol=0)
    assert (x.diff() > 0).all() and (x <= 0).all()
    # The upper tail mirrors the lower one, as far as 1 - q can be told from 1.
    q = 2.0 ** -torch.arange(1.0, 53.0, dtype=torch.float64)
    assert torch.equal(d.icdf(1 - q), -d.icdf(q))


def test_icdf_in_single_precision(case: list[Tensor]) -> None:
    q = torch.tensor([1e-35, 1e-20, 1e-6, 0.01, 0.3, 0.4999, 0.6, 0.99, 0.9999])
    single = SSGL(*(x.float() for x in case)).icdf(q)
    double = SSGL(*case).icdf(q.double())
    assert single.dtype == torch.float32
    # As in double precision, the error is that of q times F / (|x| p): below 1, but at the middle.
    torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=1e-6 * float(case[3]))


@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])
def test_icdf_at_its_ends(delta: float) -> None:
    q = torch.tensor([0.0, 0.5, 1.0, math.nan], requires_grad=True)
    x = SSGL(0.1, 10.0, delta).icdf(q)
    assert not x.requires_grad
    assert x[:3].tolist() == [-math.inf, 0.0, math.inf] and x[3].isnan()


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_icdf_of_one_component(delta: float) -> None:
    d = SSGL(0.1, 10.0, torch.tensor(delta).double(), 2.0)
    q = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    component = d.gaussian if delta else d.laplace
    torch.testing.assert_close(d.icdf(q), component.icdf(q), rtol=1e-12, atol=1e-12)


# Samples


def test_goodness_of_fit(case: list[Tensor]) -> None:
    d = SSGL(*case)
    value = d.sample((30_000,))
    assert auto_goodness_of_fit(value, d.log_prob(value).exp()) > 0.01
    # Pyro's p-value is wrong for a very bad fit (chi2sf(500, 30) is 1), so another judge besides,
    # which tells sigma off by 10 %.
    assert kstest(value.numpy(), lambda x: d.cdf(torch.as_tensor(x)).numpy()).pvalue > 0.01
    wrong = SSGL(*case[:3], 1.1 * case[3])
    assert kstest(value.numpy(), lambda x: wrong.cdf(torch.as_tensor(x)).numpy()).pvalue < 1e-4


def test_moments(case: list[Tensor]) -> None:
    v0, v1, delta, sigma = case
    d = SSGL(*case)
    n = 100_000
    value = d.sample((n,))
    # E x^4 is 24 s^4 for Laplace(s), 3 s^4 for a Gaussian of standard deviation s.
    fourth = sigma**4 * ((1 - delta) * 24 * v0**4 + delta * 3 * v1**2)
    assert d.mean == 0
    assert value.mean().abs() < SIGMAS * (d.variance / n).sqrt()
    assert (value.square().mean() - d.variance).abs() < (
        SIGMAS * ((fourth - d.variance**2) / n).sqrt()
    )
    torch.testing.assert_close(d.stddev, d.variance.sqrt())


def test_share_of_components() -> None:
    # Scales so different that |x| > 1e-2 tells the component, but for 2 * 1e-2 / sqrt(2 pi) = 0.8 %
    # of the Gaussian's.
    share = (SSGL(1e-6, 1.0, 0.25).sample((100_000,)).abs() > 1e-2).double().mean()
    expected = 0.25 * (1 - 2 * (dist.Normal(0.0, 1.0).cdf(torch.tensor(1e-2)) - 0.5))
    assert abs(share - expected) < SIGMAS * math.sqrt(0.25 * 0.75 / 100_000)
    # u < 1 for every u, u < 0 for none.
    assert (SSGL(1e-6, 1.0, 0.0).sample((10_000,)).abs() < 1e-3).all()
    assert SSGL(1e-6, 1.0, 1.0).sample((10_000,)).std() > 0.9


def test_same_seed_same_sample() -> None:
    d = SSGL(0.1, 10.0, torch.rand(3))
    pyro.set_rng_seed(1)
    first = d.sample((2,))
    pyro.set_rng_seed(1)
    assert torch.equal(first, d.rsample((2,)))
    assert first.shape == (2, 3) and not torch.equal(first, d.sample((2,)))


def quantile(x: Tensor, case: list[Tensor]) -> Callable[..., Tensor]:
    """x as a function of the parameters, held at the quantile that it has for those of case."""
    q = SSGL(*case).cdf(x)
    return lambda *parameters: SSGL(*parameters).icdf(q)


def comparison_points(case: list[Tensor]) -> Tensor:
    """Points to compare derivatives at: the lower half, where quantiles are precise."""
    narrow, wide = ordered_scales(*case[:2], case[3])
    return torch.tensor([-8 * wide, -2 * wide, -0.3 * wide, -3 * narrow, -0.1 * narrow]).double()


@pytest.mark.parametrize("index", range(4), ids=PARAMETERS)
def test_reparameterisation_against_quantiles(case: list[Tensor], index: int) -> None:
    x = comparison_points(case)
    f = quantile(x, case)
    step = 1e-5 * case[index] * (1 - case[2] if index == 2 else 1)
    up, down = ([*case[:index], case[index] + s, *case[index + 1 :]] for s in (step, -step))
    expected = (f(*up) - f(*down)) / (2 * step)

    arguments = [y.expand(x.shape).requires_grad_() for y in case]
    actual = grad(reparameterised(x, *arguments).sum(), arguments)[index]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7 * float(case[3]))
    # The mirror image moves the opposite way.
    mirror = grad(reparameterised(-x, *arguments).sum(), arguments)[index]
    torch.testing.assert_close(mirror, -actual)


@pytest.mark.parametrize("index", range(4), ids=PARAMETERS)
def test_reparameterisation_twice(index: int) -> None:
    case = [torch.tensor(y).double() for y in (0.5, 2.0, 0.4, 1.5)]
    x = comparison_points(case)
    f = quantile(x, case)
    step = 1e-3 * case[index]
    up, down = ([*case[:index], case[index] + s, *case[index + 1 :]] for s in (step, -step))
    expected = (f(*up) - 2 * f(*case) + f(*down)) / step**2

    arguments = [y.expand(x.shape).requires_grad_() for y in case]
    (first,) = grad(reparameterised(x, *arguments).sum(), arguments[index], create_graph=True)
    # Terms are of the order of |x| / parameter^2, and the error of the difference is 1e-6 of that.
    scale = (x.abs() / case[index] ** 2).max().item()
    if index == 3:  # x = sigma z is linear in sigma: what is left of (4)'s u = |z| is rounding.
        assert expected.abs().max() < 1e-6 * scale
    (second,) = grad(first.sum(), arguments[index])
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-6 * scale)


def test_rsample_gradients_are_those_of_expectations(case: list[Tensor]) -> None:
    v0, v1, delta, sigma = (x.clone().requires_grad_() for x in case)
    # E |x| = sigma ((1 - delta) v0 + delta sqrt(2 v1 / pi)), as for a Laplace and a half-normal.
    absolute = sigma * ((1 - delta) * v0 + delta * (2 * v1 / math.pi).sqrt())
    square = sigma**2 * ((1 - delta) * 2 * v0**2 + delta * v1)
    n = 50_000
    for f, expectation in [(torch.abs, absolute), (torch.square, square)]:
        expected = grad(expectation, [v0, v1, delta, sigma])
        # One copy of the parameters a sample gives the gradient of each, and so its spread.
        copies = [x.expand(n).clone().requires_grad_() for x in case]
        each = grad(f(SSGL(*copies).rsample()).sum(), copies)
        for name, sample, truth in zip(PARAMETERS, each, expected, strict=True):
            error = (sample.mean() - truth).abs()
            assert error < SIGMAS * sample.std() / math.sqrt(n), name


@pytest.mark.parametrize("delta", DELTAS)
def test_reparameterisation_is_finite_in_the_tails(delta: float) -> None:
    v0, v1, sigma = 0.1, 10.0, 2.0
    x = sigma * torch.tensor(FAR + [-y for y in FAR])
    arguments = [torch.full(x.shape, y).requires_grad_() for y in (v0, v1, delta, sigma)]
    slopes = dict(
        zip(
            PARAMETERS,
            grad(reparameterised(x, *arguments).sum(), arguments),
            strict=True,
        )
    )
    assert all(y.isfinite().all() for y in slopes.values())
    torch.testing.assert_close(slopes["sigma"], x / sigma)
    # Far out the Laplace component is all there is, unless delta = 1: then
    # x = sigma v0 log((1 - delta) / (2 (1 - q))), dx = x dv0 / v0 - sigma v0 / (1 - delta) d delta.
    if 0 < delta < 1:
        far = x > 1e4
        torch.testing.assert_close(slopes["v0"][far], x[far] / v0)
        tail = torch.full_like(x[far], -sigma * v0) / (1 - arguments[2].detach()[far])
        torch.testing.assert_close(slopes["delta"][far], tail)
        assert (slopes["v1"][far] < 1e-20).all()


# Entropy


@pytest.mark.parametrize("ratio", [1e-6, 1e-2, 1.0, 1e2, 1e6])
def test_entropy_of_one_component(ratio: float) -> None:
    v0, sigma = (torch.tensor(x, dtype=torch.float64).requires_grad_() for x in (ratio, 3.0))
    # Laplace of scale s: 1 + log(2 s).
    entropy = SSGL(v0, 1.0, 0.0, sigma).entropy()
    assert abs(entropy - (1 + math.log(2 * 3 * ratio))) < 1e-9
    slopes = grad(entropy, [v0, sigma])
    assert slopes[0].item() == pytest.approx(1 / ratio, rel=1e-9)
    assert slopes[1].item() == pytest.approx(1 / 3, rel=1e-9)
    # Normal of standard deviation s: log(2 pi e s^2) / 2.
    v1 = torch.tensor(ratio**2, dtype=torch.float64).requires_grad_()
    entropy = SSGL(1.0, v1, 1.0, sigma).entropy()
    assert abs(entropy - 0.5 * math.log(2 * math.pi * math.e * 9 * ratio**2)) < 1e-9
    slopes = grad(entropy, [v1, sigma])
    assert slopes[0].item() == pytest.approx(0.5 / ratio**2, rel=1e-9)
    # Single precision.
    single = SSGL(ratio, 1.0, 0.0, 3.0).entropy()
    assert single.dtype == torch.float32
    assert abs(single - (1 + math.log(2 * 3 * ratio))) < 2e-5


def test_entropy(case: list[Tensor]) -> None:
    d = SSGL(*case)
    narrow, wide = ordered_scales(*case[:2], case[3])

    def integrand(x: Tensor) -> Tensor:
        return -2 * d.log_prob(x).exp() * d.log_prob(x)

    assert abs(d.entropy() - integral(integrand, 1e-14 * narrow, 40 * wide)) < 1e-9
    information = -d.log_prob(d.sample((50_000,)))
    error = (information.mean() - d.entropy()).abs()
    assert error < SIGMAS * information.std() / math.sqrt(50_000)


def test_entropy_gradients(case: list[Tensor]) -> None:
    # dH = -integral of (1 + log p) dp, and dp integrates to 0: -E[log p d log p] for delta.
    v0, v1, delta, sigma = case
    narrow, wide = ordered_scales(v0, v1, sigma)
    d = SSGL(v0, v1, delta.clone().requires_grad_(), sigma)
    (slope,) = grad(d.entropy(), d.given["delta"])

    def integrand(x: Tensor) -> Tensor:
        difference = d.gaussian.log_prob(x).exp() - d.laplace.log_prob(x).exp()
        return -2 * difference * d.log_prob(x)

    with torch.no_grad():
        expected = integral(integrand, 1e-14 * narrow, 40 * wide)
    torch.testing.assert_close(slope, expected, rtol=1e-8, atol=1e-8)
