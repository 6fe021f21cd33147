# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The moves of a width v0 that is learned, each against its conditional law by quadrature, and the
step of stochastic approximation against the derivatives of the log likelihood.
"""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyro_aeb import priors
from pyro_aeb.adaptation.draws import Random
from pyro_aeb.adaptation.flips import Evaluated
from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.sigma_draw import WideWeights, draw_sigma_at_fixed_weights
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule
from pyro_aeb.adaptation.sweep import WIDTH_EVERY, AveragedAdaptation
from pyro_aeb.adaptation.width import (
    STIFFEST,
    WidthLaw,
    accept_sigma,
    draw_width,
    largest_curvature,
    make_law,
    newton_factor,
    scale_spikes,
)
from pyro_aeb.model.structure import (
    Delta,
    Residuals,
    Sigma,
    SparseBlock,
    Structure,
    Width,
)
from pyro_aeb.priors.scales import ScaleTerms
from pyro_aeb.testing import check_law

C, D, LIMIT = 1.0, 0.07, 0.5
LAW = WidthLaw(C, D, LIMIT)
RNG = np.random.default_rng(3)
N, P, V1 = 15, 6, 1.0
X = torch.from_numpy(RNG.standard_normal((N, P)))
Y = X @ torch.tensor([1.0, 0.2, -0.1, 0.1, 0.0, 0.0]).double() + torch.from_numpy(
    RNG.standard_normal(N)
)
BETA = torch.tensor([0.9, 0.15, -0.1, 0.05, -0.02, 0.08]).double()
SPIKES = torch.tensor([False, True, True, True, True, True])
WIDTH = Width("v0", C, D)


def make_random(rng, chains):
    generators = [torch.Generator().manual_seed(int(s)) for s in rng.integers(2**31, size=chains)]
    return Random(generators, torch.Size([chains]), torch.device("cpu"))


def full(chains, value):
    return torch.full((chains, 1), value, dtype=torch.float64)


def cdf_of(log_density, low, high, nodes=40_001):
    x = np.linspace(low, high, nodes)
    log_values = log_density(x)
    total = integrate.cumulative_trapezoid(np.exp(log_values - log_values.max()), x, initial=0.0)
    return lambda t: np.interp(t, x, total / total[-1])


def structure(width=WIDTH, **sigma):
    parameters = {"nu": 3.0, "nu_lambda": 2.0, "likelihoods": frozenset({"y"}), **sigma}
    block = SparseBlock("beta", torch.Size([P]), parameters={"v0": 1.0, "v1": V1})
    return Structure(
        sparse=(block,),
        normal=(),
        general=(),
        sigmas=(Sigma("sigma2", **parameters),),
        deltas=(Delta(None, fixed=0.3),),
        observed=("y",),
        plates={},
        dims={},
        observations={},
        dtype=torch.float64,
        device=torch.device("cpu"),
        width=width,
    )


# Gibbs


@pytest.mark.parametrize("total", [2.0, 30.0])
def test_the_centred_move_has_its_law(total):
    """That of 1 / v0 ~ Gamma(c + m, d + total), truncated; the move is repeated for that."""
    m = 5.0

    def draw(n, rng):
        random, v0 = make_random(rng, n), full(n, 0.1)
        for _ in range(12):
            v0 = draw_width(v0, full(n, m), full(n, total), LAW, random)
        return v0[:, 0].numpy()

    if total < 10.0:
        law = stats.invgamma(C + m, scale=D + total)
        check_law(draw, lambda v: law.cdf(v) / law.cdf(LIMIT), size=1000)
        return
    # Far above the limit: each draw leaves v0 where it is.
    assert set(draw(50, np.random.default_rng(0))) == {0.1}


def log_likelihood(beta, sigma=1.0):
    return -0.5 * (Y - beta @ X.T).square().sum(-1) / sigma**2


def test_the_non_centred_move_keeps_its_law_and_goes_to_it():
    v0 = 0.1

    def log_density(e):  # of log v0, the spikes scaled with it
        factor = np.exp(e)[:, None] / v0
        beta = torch.where(SPIKES, BETA * torch.from_numpy(factor), BETA)
        return log_likelihood(beta).numpy() - C * e - D * np.exp(-e)

    def draw(n, rng):
        random, width = make_random(rng, n), full(n, v0)
        beta = BETA.expand(n, P)
        for _ in range(12):
            now = log_likelihood(beta)
            found = scale_spikes(beta, width, SPIKES, now, log_likelihood, LAW, random)
            beta, width = found.beta, found.v0
        spread = (beta[:, 1:] / BETA[1:] - width / v0).abs().max()
        assert spread < 1e-12 and (beta[:, 0] == BETA[0]).all()
        assert 0.0 < found.accepted.mean() < 4.0
        return width[:, 0].log().numpy()

    check_law(draw, cdf_of(log_density, -8.0, math.log(LIMIT)), size=1000)


@pytest.mark.parametrize("terms", [None, ScaleTerms(quadratic=0.5)])
def test_the_move_of_sigma_at_fixed_scale_has_its_law(terms):
    """Also for a prior of sigma itself, a HalfNormal here, that a random walk moves."""
    own = {"terms": terms, "nu": 0.0, "nu_lambda": 0.0} if terms is not None else {}
    rule = SpikeAndSlabRule(structure(**own))
    scale, residual = 0.04, float((Y - X @ BETA).square().sum())
    nu, nu_lambda = (3.0, 2.0) if terms is None else (-1.0, 0.0)

    def log_density(s):
        slab = float(BETA[0].square()) / V1
        value = -(N + 1 - C + nu + 1) * np.log(s) - (residual + slab + nu_lambda) / (2 * s**2)
        prior = 0.0 if terms is None else -0.25 * s**2
        return value + prior - D * s / scale

    def draw(n, rng):
        random, sigma, v0 = make_random(rng, n), full(n, 1.0), full(n, scale)
        wide = WideWeights(
            (~SPIKES).expand(n, P), None, ((~SPIKES) / V1).double().expand(n, P).clone()
        )
        residuals = {"y": Residuals(full(n, residual)[:, 0], float(N))}
        for _ in range(15):
            drawn = draw_sigma_at_fixed_weights(
                rule, BETA.expand(n, P), sigma, wide, residuals, C, random
            )
            sigma, v0 = accept_sigma(sigma, drawn, v0, LAW, random)
        torch.testing.assert_close(sigma * v0, full(n, scale))
        return sigma[:, 0].numpy()

    low = scale / LIMIT
    check_law(draw, cdf_of(log_density, low, 8.0), size=600)


def test_sigma_stays_where_its_density_has_no_mass():
    rule = SpikeAndSlabRule(structure(likelihoods=frozenset(), nu=0.5))
    wide = WideWeights(torch.zeros(1, P).bool(), None, torch.zeros(1, P).double())
    random, sigma = make_random(np.random.default_rng(0), 1), full(1, 1.3)
    drawn = draw_sigma_at_fixed_weights(rule, BETA.expand(1, P), sigma, wide, {}, C, random)
    assert torch.equal(drawn, sigma)


@pytest.mark.parametrize(
    ("slab", "limit"),
    [
        (priors.Gaussian(4.0), 1.0),
        (priors.Laplace(0.6), 0.3),
        (priors.Student(4.0, 1.0), 1.0),
        (priors.Gaussian(torch.tensor([4.0, 1.0])), 0.5),
    ],
)
def test_spikes_stay_narrower_than_half_of_the_slab(slab, limit):
    assert make_law(WIDTH, slab).limit == pytest.approx(limit)


# Stochastic approximation


def test_the_newton_step_ends_at_the_maximum():
    """Of the non-centred density -h (f - 1)^2 / 2 + g (f - 1) - c log v0 - d / v0."""
    start, g, h = 0.1, 3.0, 4.0
    v0 = full(1, start)
    for _ in range(200):
        f = v0 / start
        slope, curvature = f * (g - h * (f - 1.0)), h * f.square()
        v0 = v0 * newton_factor(v0, slope, curvature, LAW, 0.3)
    grid = np.linspace(0.01, LIMIT, 200_001)
    f = grid / start
    density = -h * (f - 1.0) ** 2 / 2 + g * (f - 1.0) - C * np.log(grid) - D / grid
    assert float(v0) == pytest.approx(grid[density.argmax()], rel=1e-3)


def test_a_newton_step_is_bounded():
    one = full(1, 1.0)
    for slope, expected in ((1e9, 1.0), (-1e9, -1.0)):
        factor = newton_factor(0.01 * one, slope * one, one, LAW, 0.5)
        assert float(factor.log()) == pytest.approx(0.5 * expected)
    near = newton_factor(0.9 * LIMIT * one, 1e9 * one, one, LAW, 1.0)
    assert float(0.9 * LIMIT * near) == pytest.approx(LIMIT)
    assert float(newton_factor(0.1 * one, 0.0 * one, -5.0 * one, LAW, 0.0)) == 1.0


class Whole:
    """A quadratic likelihood of all data."""

    def evaluate(self, position, latents):
        residual = (Y - position @ X.T) / latents.ssgl.sigma
        gradient = (residual @ X) / latents.ssgl.sigma
        return Evaluated(-0.5 * residual.square().sum(-1), gradient, {})


@pytest.mark.parametrize("chains", [(), (3,)])
def test_a_scan_moves_v0_and_spikes_along_the_log_likelihood(chains):
    adaptation = AveragedAdaptation(structure(), StochasticApproximation(1.0))
    values = {"v0": torch.tensor(0.1, dtype=torch.float64), "sigma2": torch.tensor(1.44)}
    latents = adaptation.init(values)
    position = BETA.clone()
    if chains:
        own = latents.ssgl._asdict()
        stacked = {n: v.expand(*chains, *v.shape) for n, v in own.items() if n != "excess"}
        latents = latents._replace(ssgl=latents.ssgl._replace(**stacked))
        position = BETA.expand(*chains, P) * torch.tensor([[1.0], [0.5], [2.0]])
    random = make_random(np.random.default_rng(0), 1)
    omega = 0.02
    after, found = adaptation.scan(position, latents, Whole(), random, 10, True, omega)
    ssgl = latents.ssgl
    u = (position / ssgl.sigma).abs()
    rho = priors.SSGL(0.1, V1, 0.3).inclusion(u)
    spikes = (1.0 - rho) * position
    r, w = (Y - position @ X.T) / ssgl.sigma, spikes @ X.T / ssgl.sigma
    slope, curvature = ((r * w).sum(-1, keepdim=True), w.square().sum(-1, keepdim=True))
    torch.testing.assert_close(found.ssgl.curvature_of_width, curvature)
    of_all = 1.0 - (1.0 - omega) ** WIDTH_EVERY
    law = make_law(WIDTH, priors.Gaussian(V1))
    factor = newton_factor(ssgl.width, slope, curvature, law, of_all)
    torch.testing.assert_close(found.ssgl.width, ssgl.width * factor)
    torch.testing.assert_close(after, position + (factor - 1.0) * spikes)
    same, still = adaptation.scan(position, latents, Whole(), random, 10, True, 0.0)
    assert same is position and still is latents


def test_a_first_width_is_below_its_limit():
    adaptation = AveragedAdaptation(structure(), StochasticApproximation(1.0))
    values = {"v0": torch.tensor(7.0), "sigma2": torch.tensor(1.0)}
    assert float(adaptation.init(values).ssgl.width) == LIMIT
    unit = adaptation.step_unit(adaptation.init(values))
    assert float(unit) == LIMIT


@pytest.mark.parametrize("chains", [(), (3,)])
def test_the_largest_curvature_is_the_largest_eigenvalue(chains):
    sigma = torch.tensor([[1.0], [0.5], [2.0]]).double() if chains else torch.ones(1).double()
    random = Random([None] * max(1, len(sigma) * len(chains)), torch.Size(chains), X.device)
    position = BETA.expand(*chains, P)

    def gradient(at):
        return ((Y - at @ X.T) @ X) / sigma.square()

    found = largest_curvature(gradient, position, 0.1 * torch.ones_like(sigma), random)
    expected = torch.linalg.eigvalsh(X.T @ X)[-1] / sigma.square()
    assert found.shape == sigma.shape
    # Ten rounds come from below to an eigenvalue whose neighbour is near.
    assert (found <= 1.001 * expected).all() and (found >= 0.9 * expected).all()


def test_steps_are_bounded_by_the_largest_curvature():
    adaptation = AveragedAdaptation(structure(), StochasticApproximation(1.0))
    values = {"v0": torch.tensor(0.4), "sigma2": torch.tensor(1.44)}
    latents, random = adaptation.init(values), Random([None], torch.Size([]), X.device)
    assert float(adaptation.step_unit(latents)) == pytest.approx(0.4 * 1.2)
    limited = adaptation.limit_steps(BETA, latents, Whole(), random)
    eigenvalue = float(torch.linalg.eigvalsh(X.T @ X)[-1])  # in units of sigma
    most = 1.2 * (STIFFEST / eigenvalue) ** 0.5
    assert float(adaptation.step_unit(limited)) == pytest.approx(min(0.48, most), rel=0.06)
    narrow = limited._replace(ssgl=limited.ssgl._replace(width=torch.tensor([0.01]).double()))
    assert float(adaptation.step_unit(narrow)) == pytest.approx(0.012)
