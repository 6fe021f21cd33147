# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The draws of a Gibbs scan, each against its law: by quadrature, and by tests that fail once in a
million.
"""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyro_aeb.adaptation.conditionals import (
    GaussianConditional,
    LaplaceConditional,
    log_half_mass,
    positive_normal,
)
from pyro_aeb.adaptation.draws import (
    Random,
    draw_beta,
    draw_mixing,
    draw_scale,
    log_scale_density,
    walk_scale,
)
from pyro_aeb.adaptation.units import Units, diagonal, make_positive, multiply
from pyro_aeb.priors.scales import ScaleTerms
from pyro_aeb.testing import check_law


def make_random(rng, chains=None):
    """Random numbers of one chain, or of several."""
    seeds = rng.integers(2**31, size=1 if chains is None else chains)
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    shape = torch.Size([] if chains is None else [chains])
    return Random(generators, shape, torch.device("cpu"))


def cdf_of(log_density, low, high, nodes=40_001):
    """A distribution function by the trapezoidal rule, from a log density up to a constant."""
    x = np.linspace(low, high, nodes)
    log_values = log_density(x)
    values = np.exp(log_values - log_values.max())
    total = integrate.cumulative_trapezoid(values, x, initial=0.0)
    return lambda t: np.interp(t, x, total / total[-1])


def full(size, value):
    return torch.full((size,), value, dtype=torch.float64)


# Sigma


@pytest.mark.parametrize(
    ("a", "b", "c"),
    [
        (103.0, 0.0, 250.0),
        (23.0, 40.0, 30.0),
        (1103.0, -12.0, 300.0),
        (3.0, 0.1, 2.0),
        (1.0, -2.0, 1.0),
        (6.0, -9.0, 2.0),
    ],
)
def test_a_scale_has_its_law(a, b, c):
    def log_density(s):
        return -(a + 1) * np.log(s) - b / s - c / (2 * s**2)

    top = math.sqrt(c / a) + max(b, 0.0) / a
    cdf = cdf_of(log_density, top / 50, top * (200 if a < 5 else 5))
    check_law(
        lambda n, rng: draw_scale(full(n, a), full(n, b), full(n, c), make_random(rng)).numpy(), cdf
    )


def test_a_scale_with_a_huge_tilt_has_its_law():
    """Of 1 / sigma a Normal; a Gamma would hardly ever be accepted."""
    a, b, c = 103.0, -1e9, 3.0
    law = stats.norm(-b / c, c**-0.5)
    check_law(
        lambda n, rng: (
            1.0 / draw_scale(full(n, a), full(n, b), full(n, c), make_random(rng)).numpy()
        ),
        law.cdf,
    )


def test_scales_of_chains_are_those_of_each_alone():
    """Though one rejects more proposals than another."""
    a, b, c = torch.tensor([[30.0, 3.0], [2.0, 8.0], [1.0, 1.0]]).double(), 0.0, 1.0
    b = torch.tensor([[-40.0, 0.0], [-9.0, 1.0], [-3.0, 5.0]]).double()
    c = torch.ones_like(a)
    together = make_random(np.random.default_rng(1), 3)
    found = [draw_scale(a, b, c, together) for _ in range(5)]
    seeds = np.random.default_rng(1).integers(2**31, size=3)
    for chain, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(int(seed))
        alone = Random([generator], torch.Size([]), torch.device("cpu"))
        for drawn in found:
            own = draw_scale(a[chain], b[chain], c[chain], alone)
            assert torch.equal(own, drawn[chain])


PRIORS = {
    "HalfCauchy": (ScaleTerms(cauchy=0.64), lambda s: stats.halfcauchy(scale=0.8).logpdf(s)),
    "HalfNormal": (ScaleTerms(quadratic=1 / 0.64), lambda s: stats.halfnorm(scale=0.8).logpdf(s)),
    "Exponential": (ScaleTerms(linear=1.3), lambda s: stats.expon(scale=1 / 1.3).logpdf(s)),
    "Gamma": (ScaleTerms(1.5, linear=1.3), lambda s: stats.gamma(2.5, scale=1 / 1.3).logpdf(s)),
}


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
@pytest.mark.parametrize("which", [1, 2])
def test_a_scale_given_what_is_not_finite_is_nan(wrong, which):
    """A chain that has diverged does not keep the others waiting."""
    terms = [full(3, value).unsqueeze(-1) for value in (5.0, 1.0, 2.0)]
    terms[which][1] = wrong
    found = draw_scale(*terms, make_random(np.random.default_rng(0), 3))
    assert found.isnan().flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("name", PRIORS)
def test_the_terms_of_a_prior_of_sigma_are_its_log_density(name):
    terms, expected = PRIORS[name]
    s = np.linspace(0.1, 5.0, 30)
    found = log_scale_density(torch.from_numpy(np.log(s)), terms).numpy()
    np.testing.assert_allclose(found - found[0], expected(s) - expected(s)[0], rtol=1e-10)


@pytest.mark.parametrize("count", [0.0, 12.0])
@pytest.mark.parametrize("name", PRIORS)
def test_a_walk_keeps_the_law_of_a_scale_and_goes_to_it(name, count):
    terms, log_prior = PRIORS[name]
    b, c = (0.0, 0.0) if count == 0.0 else (1.5, 9.0)

    def log_density(s):
        return -count * np.log(s) - b / s - c / (2 * s**2) + log_prior(s)

    # by the logarithm, as a Cauchy goes far out
    cdf = cdf_of(lambda x: log_density(np.exp(x)) + x, -14.0, 14.0)

    def draw(n, rng):
        random, sigma = make_random(rng), full(n, 1.0)
        for _ in range(6):
            sigma = walk_scale(sigma, full(n, count), full(n, b), full(n, c), terms, random)
        return sigma.log().numpy()

    check_law(draw, cdf)


# Delta and the mixing variances of a Student's t


def test_a_delta_has_its_law():
    def draw(n, rng):
        return draw_beta(full(n, 1.5), full(n, 40.0), make_random(rng)).numpy()

    check_law(draw, stats.beta(1.5, 40.0).cdf)


@pytest.mark.parametrize(("square", "law"), [(7.0, (3.0, 6.0)), (-1.0, (2.5, 2.5))])
def test_a_mixing_variance_has_its_law(square, law):
    """With a value InverseGamma((n + 1) / 2, (n + u^2 / v) / 2), without one of n / 2 each."""
    shape, rate = law
    check_law(
        lambda n, rng: draw_mixing(full(n, 5.0), full(n, square), make_random(rng)).numpy(),
        stats.invgamma(shape, scale=rate).cdf,
    )


# A weight given its gamma


@pytest.mark.parametrize("mean", [-1e4, -40.0, -3.0, 0.0, 2.0, 50.0])
def test_a_normal_above_zero_has_its_law(mean):
    def draw(n, rng):
        return positive_normal(full(n, mean), torch.from_numpy(rng.uniform(size=n))).numpy()

    if mean < -30:  # in units of the exponential that it tends to
        scale = -1.0 / mean
        cdf = cdf_of(lambda x: mean * x - x**2 / 2, 0.0, 40 * scale)
        check_law(draw, cdf)
    else:
        check_law(draw, stats.truncnorm(-mean, np.inf, loc=mean).cdf)


@pytest.mark.parametrize("z", [-1e4, -50.0, -8.0, -1e-9, 0.0, 1.0, 30.0])
def test_half_masses(z):
    from mpmath import mp, mpf, ncdf

    with mp.workdps(60):
        expected = float(mp.log(ncdf(mpf(z))) + mpf(z) ** 2 / 2)
    found = float(log_half_mass(torch.tensor(z).double()))
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-12)


SINGLE = Units([(3, 1)])
H = torch.tensor([40.0, 3.0, 0.5]).double()
T = torch.tensor([12.0, -30.0, 0.1]).double()
V = torch.tensor([0.01, 0.3, 2.0]).double()


def conditional(kind, units=SINGLE, blocks=None, scale=V):
    blocks = [H.reshape(3, 1, 1)] if blocks is None else blocks
    return kind(units, blocks, scale)


def log_component(kind, scale):
    if kind is LaplaceConditional:
        return lambda x: stats.laplace(scale=scale).logpdf(x)
    return lambda x: stats.norm(scale=math.sqrt(scale)).logpdf(x)


@pytest.mark.parametrize("kind", [LaplaceConditional, GaussianConditional])
def test_the_law_of_a_single_weight(kind):
    law = conditional(kind)
    for j in range(3):
        h, t, component = float(H[j]), float(T[j]), log_component(kind, float(V[j]))

        def log_density(x, h=h, t=t, component=component):
            return component(x) + t * x - h * x**2 / 2

        grid = np.linspace(-25.0, 25.0, 2_000_001)
        values = log_density(grid)
        top = values.max()
        expected = math.log(np.trapezoid(np.exp(values - top), grid)) + top
        assert float(law.log_mass(T)[j]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
        x = torch.tensor([0.3, -0.2, 1.0]).double()
        assumed = float(law.log_likelihood(T, x)[j])
        assert assumed == pytest.approx(t * float(x[j]) - h * float(x[j]) ** 2 / 2)
        low, high = grid[values > top - 40][[0, -1]]

        def draw(n, rng, j=j):
            uniform = torch.from_numpy(rng.uniform(size=(n, 3)))
            laws = conditional(
                kind, blocks=[H.reshape(3, 1, 1).expand(n, 3, 1, 1)], scale=V.expand(n, 3)
            )
            return laws.draw(T.expand(n, 3), uniform)[:, j].numpy()

        check_law(draw, cdf_of(log_density, low, high), seed=j)


def test_the_law_of_a_group_under_gaussians():
    units = Units([(2, 1), (4, 2)])
    root = torch.randn(2, 2, 2).double()
    blocks = [torch.tensor([3.0, 5.0]).double().reshape(2, 1, 1), root @ root.mT]
    v, t = 0.5 + torch.rand(6).double(), torch.randn(6).double()
    law = GaussianConditional(units, blocks, v)
    whole = torch.block_diag(*blocks[0], *blocks[1])
    for unit, places in enumerate(([0], [1], [2, 3], [4, 5])):
        h, own, variance = whole[places][:, places], t[places], v[places]
        covariance = torch.linalg.inv(h + torch.diag(1 / variance))
        mean = covariance @ own
        # The density of y = h^-1 t under N(0, v + h^-1), by the ratio at beta = 0.
        at_zero = torch.distributions.MultivariateNormal(mean, covariance).log_prob(0 * mean)
        prior = torch.distributions.Normal(0.0, variance.sqrt()).log_prob(0 * mean).sum()
        assert float(law.log_mass(t)[unit]) == pytest.approx(float(prior - at_zero))
        drawn = law.draw(t.expand(50_000, 6), torch.rand(50_000, 6).double())[:, places]
        torch.testing.assert_close(drawn.mean(0), mean, atol=0.02, rtol=0.0)
        torch.testing.assert_close(
            drawn.T.cov().reshape(covariance.shape), covariance, atol=0.03, rtol=0.0
        )
        x = torch.randn(6).double()
        expected = own @ x[places] - x[places] @ h @ x[places] / 2
        assert float(law.log_likelihood(t, x)[unit]) == pytest.approx(float(expected))


def test_units():
    units = Units([(2, 1), (3, 1), (6, 3)])
    assert units.count == 7 and units.largest == 3
    values = torch.arange(11.0)
    assert units.sum(values).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 18.0, 27.0]
    assert units.first(values).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 8.0]
    assert units.spread(torch.arange(7.0)).tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 6, 6, 6]
    first, second = units.columns()
    assert first.tolist() == [[0], [1], [2], [3], [4]]
    assert second.tolist() == [[5, 6, 7]] * 3 + [[8, 9, 10]] * 3
    flat = torch.randn(2, 5 + 18)
    blocks = units.blocks(flat)
    assert [tuple(block.shape) for block in blocks] == [(2, 5, 1, 1), (2, 2, 3, 3)]
    x = torch.randn(2, 11)
    found = units.map(multiply, blocks, x)
    for chain in range(2):
        whole = torch.block_diag(*blocks[0][chain], *blocks[1][chain])
        torch.testing.assert_close(found[chain], whole @ x[chain])
        torch.testing.assert_close(units.map(diagonal, blocks)[chain], whole.diagonal())
    positive = make_positive(blocks[1])
    assert torch.linalg.eigvalsh(positive).min() > -1e-5
