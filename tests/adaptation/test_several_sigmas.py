# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A sigma and a delta for each output, in one plate: m outputs in one model are m models run apart,
with the same noise and batches, to rounding.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_aeb as aeb
from pyro_aeb import priors
from pyro_aeb.adaptation.segments import Members, Segments, find_segments
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.testing import check_adaptation, check_model

N, P, M, BATCH = 30, 4, 3, 10
GENERATOR = torch.Generator().manual_seed(7)
X = torch.randn(N, P, generator=GENERATOR).double()
W = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]).double()
Y = X @ W + torch.tensor([0.2, 0.5, 1.0]) * torch.randn(N, M, generator=GENERATOR).double()
MASK = torch.rand(N, M, generator=GENERATOR) < 0.7
WEIGHTS = 0.5 + torch.rand(N, generator=GENERATOR).double()
FIRST, SECOND = torch.tensor([1.5, 2.0, 3.0]).double(), torch.tensor([0.5, 2.0, 1.0]).double()
ALL = slice(None)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def sample_latents(prior, k=ALL, event=0):
    """The delta and the sigma of outputs ``k``, whose priors differ."""
    a, b = FIRST[k], SECOND[k]
    delta = pyro.sample("delta", dist.Beta(a, b).to_event(event))
    if prior == "InverseGamma":
        return delta, pyro.sample("sigma", dist.InverseGamma(a, b).to_event(event)).sqrt()
    families = {"HalfCauchy": dist.HalfCauchy(b), "Gamma": dist.Gamma(a, b)}
    return delta, pyro.sample("sigma", families[prior].to_event(event))


def density(likelihood, mean, sigma):
    if likelihood == "StudentT":
        return dist.StudentT(4.0, mean, 2.0 * sigma)
    return dist.Normal(mean, 2.0 * sigma)


def observe(x, y, mean_of, sigma, likelihood, mask, batch, event=1):
    with pyro.plate("data", len(x), subsample_size=batch, dim=-2 + event) as i:
        fn = density(likelihood, mean_of(x[i]), sigma)
        if likelihood == "masked":
            fn = fn.mask(mask[i])
        weights = WEIGHTS[i] if event else WEIGHTS[i, None]
        with poutine.scale(scale=weights if likelihood == "weighted" else 1.0):
            pyro.sample("y", fn.to_event(event), obs=y[i])


def columns(x, y, prior, likelihood, batch=None):
    with pyro.plate("outputs", M):
        delta, sigma = sample_latents(prior)
    w = pyro.sample("w", aeb.SSGL(0.1, 4.0, delta, sigma).expand([P, M]).to_event(2))
    observe(x, y, lambda x: x @ w, sigma, likelihood, MASK, batch)


def rows(x, y, prior, likelihood, batch=None):
    delta, sigma = sample_latents(prior, event=1)
    slab = aeb.SSGL(0.1, 4.0, delta[:, None], sigma[:, None]).expand([M, P])
    w = pyro.sample("w", slab.to_event(2))
    observe(x, y, lambda x: x @ w.T, sigma, likelihood, MASK, batch)


def plates(x, y, prior, likelihood, batch=None):
    with pyro.plate("outputs", M, dim=-1):
        delta, sigma = sample_latents(prior)
        with pyro.plate("features", P, dim=-2):
            w = pyro.sample("w", aeb.SSGL(0.1, 4.0, delta, sigma))
        observe(x, y, lambda x: x @ w, sigma, likelihood, MASK, batch, event=0)


def site_by_site(x, y, prior, likelihood, batch=None):
    """A number of the plate for each of several sites, and of several likelihoods."""
    with pyro.plate("outputs", M):
        delta, sigma = sample_latents(prior)
    for k in range(M):
        prior_k = aeb.SSGL(0.1, 4.0, delta[k], sigma[k]).expand([P]).to_event(1)
        w = pyro.sample(f"w{k}", prior_k)
        part(x, y, w, sigma[k], likelihood, batch, k)


def part(x, y, w, sigma, likelihood, batch, k):
    with pyro.plate(f"data{k}", len(x), subsample_size=batch) as i:
        fn = density(likelihood, x[i] @ w, sigma)
        fn = fn.mask(MASK[i, k]) if likelihood == "masked" else fn
        with poutine.scale(scale=WEIGHTS[i] if likelihood == "weighted" else 1.0):
            pyro.sample(f"y{k}", fn, obs=y[i, k])


def alone(x, y, k, prior, likelihood, batch=None):
    """Output ``k`` by itself."""
    delta, sigma = sample_latents(prior, k)
    w = pyro.sample("w", aeb.SSGL(0.1, 4.0, delta, sigma).expand([P]).to_event(1))
    part(x, y, w, sigma, likelihood, batch, k)


LAYOUTS = {columns: [P, M], rows: [M, P], plates: [P, M], site_by_site: [M, P]}


class Chain:
    """Steps of Algorithm 1 with given noise and batches."""

    def __init__(self, model, *args, **kwargs):
        self.arguments = Arguments((X, Y, *args), kwargs)
        self.structure = inspect_model(model, *self.arguments, adapt=True)
        adaptation = aeb.StochasticApproximation(0.3)
        self.posterior = Posterior(model, self.structure, adaptation=adaptation)

    def start(self, position, values):
        self.position = position
        self.latents = self.posterior.adaptation.init(values)

    def step(self, noise, indices):
        plates = self.structure.plates.items()
        batch = {n: torch.arange(m) if b == m else indices for n, (m, b) in plates}
        batch = Batch(self.arguments, batch)
        found = self.posterior.evaluate(self.position, self.latents, batch)
        self.position = self.position + 1e-3 * found.gradient + 0.05 * noise
        adaptation = self.posterior.adaptation
        self.latents = adaptation.update(self.latents, self.position, found.statistics, 0.3)


@pytest.mark.parametrize("likelihood", ["Normal", "StudentT", "masked", "weighted"])
@pytest.mark.parametrize("prior", ["InverseGamma", "HalfCauchy", "Gamma"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_outputs_together_are_models_apart(layout, prior, likelihood):
    options = {"prior": prior, "likelihood": likelihood, "batch": BATCH}
    together = Chain(layout, **options)
    apart = [Chain(alone, k, **options) for k in range(M)]
    generator = torch.Generator().manual_seed(1)

    def split(flat):
        """The vector of all weights, by output."""
        shaped = flat.reshape(LAYOUTS[layout])
        return shaped.unbind(1) if LAYOUTS[layout] == [P, M] else shaped.unbind(0)

    start = torch.randn(P * M, generator=generator)
    values = {"delta": torch.tensor([0.3, 0.5, 0.7]), "sigma": torch.tensor([0.5, 1.0, 2.0])}
    together.start(start, values)
    for k, (chain, own) in enumerate(zip(apart, split(start), strict=True)):
        chain.start(own, {name: value[k] for name, value in values.items()})
    for _ in range(8):
        noise = torch.randn(P * M, generator=generator)
        indices = torch.randperm(N, generator=generator)[:BATCH]
        together.step(noise, indices)
        for chain, own in zip(apart, split(noise), strict=True):
            chain.step(own, indices)
    sites = together.posterior.adaptation.values(together.latents)
    for k, (chain, own) in enumerate(zip(apart, split(together.position), strict=True)):
        torch.testing.assert_close(own, chain.position, rtol=1e-9, atol=1e-12)
        for name, value in chain.posterior.adaptation.values(chain.latents).items():
            torch.testing.assert_close(sites[name][k], value, rtol=1e-9, atol=0.0)
            assert sites[name].shape == (M,)
    for name in ("rho", "slab"):
        by_output = split(getattr(together.latents.ssgl, name))
        for chain, own in zip(apart, by_output, strict=True):
            torch.testing.assert_close(own, getattr(chain.latents.ssgl, name))


@pytest.mark.parametrize("prior", ["InverseGamma", "HalfCauchy"])
@pytest.mark.parametrize("layout", [columns, plates], ids=lambda layout: layout.__name__)
def test_the_checks_of_the_package_pass(layout, prior):
    options = {"prior": prior, "likelihood": "Normal", "batch": 3}
    check_adaptation(layout, X[:6], Y[:6], **options)
    check_model(layout, X[:4], Y[:4], **{**options, "batch": 2})


def run(model, *args, omega=0.1, step=1e-4, draws=10, warmup=10, chains=1, **kwargs):
    kernel = aeb.AEBKernel(model, aeb.SGLD(step), aeb.StochasticApproximation(omega), seed=0)
    method = "vectorized" if chains > 1 else "sequential"
    mcmc = aeb.MCMC(
        kernel, draws, warmup, num_chains=chains, chain_method=method, disable_progbar=True
    )
    mcmc.run(*args, **kwargs)
    return mcmc


def test_a_run_ends_at_the_solutions_given_its_state():
    mcmc = run(
        columns, X, Y, omega=1.0, step=1e-14, warmup=100, prior="InverseGamma", likelihood="Normal"
    )
    chain = mcmc.kernel.chain
    w, slab = chain.state.position.reshape(P, M), chain.ssgl.slab.reshape(P, M)
    a = N + P + 2.0 * FIRST + 2.0
    b = ((1.0 - slab) / 0.1 * w.abs()).sum(0)
    c = (slab / 4.0 * w.square()).sum(0) + ((Y - X @ w) / 2.0).square().sum(0) + 2.0 * SECOND
    expected = (b + (b.square() + 4.0 * a * c).sqrt()) / (2.0 * a)
    torch.testing.assert_close(mcmc.get_samples()["sigma"][-1].sqrt(), expected)
    delta = (chain.ssgl.rho.reshape(P, M).sum(0) + FIRST - 1.0) / (FIRST + SECOND + P - 2.0)
    torch.testing.assert_close(mcmc.get_samples()["delta"][-1], delta)


@pytest.mark.parametrize("chains", [1, 2])
def test_draws_have_the_shape_and_the_names_of_the_plate(chains):
    mcmc = run(plates, X, Y, chains=chains, prior="HalfCauchy", likelihood="Normal", batch=BATCH)
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws["sigma"].shape == draws["delta"].shape == (chains, 10, M)
    assert aeb.to_arviz(mcmc).posterior["sigma"].dims == ("chain", "draw", "outputs")
    assert mcmc.kernel.chain.structure.latent_sites == ("sigma", "delta")


def test_groups_of_outputs_and_groups_of_weights():
    """Two outputs share a number, a third has its own; a delta for each group of weights."""

    def model():
        with pyro.plate("kinds", 2):
            sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
        with pyro.plate("layers", M):
            delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        scale = sigma2.sqrt()[torch.tensor([0, 1, 0])]
        base = aeb.SSGL(0.1, 4.0, delta[:, None], scale[:, None]).expand([M, P])
        w = pyro.sample("w", priors.Group(base).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ w.T, scale).to_event(1), obs=Y)

    found = inspect_model(model, (), {}, adapt=True)
    assert found.sparse[0].sigma[:, 0].tolist() == [0, 1, 0]
    assert found.sparse[0].delta[:, 0].tolist() == [0, 1, 2]
    assert found.sigmas_of_data["y"].flatten().tolist() == [0, 1, 0]
    posterior = Posterior(model, found, adaptation=aeb.StochasticApproximation(1.0))
    w, values = torch.randn(M * P), {"sigma2": torch.tensor([1.0, 4.0]), "delta": torch.rand(M)}
    latents = posterior.adaptation.init(values)
    indices = {name: torch.arange(size) for name, (size, _) in found.plates.items()}
    statistics = posterior.evaluate(w, latents, Batch(Arguments((), {}), indices)).statistics
    after = posterior.adaptation.update(latents, w, statistics, 1.0).ssgl
    w, rho = w.reshape(M, P), after.rho.reshape(M, P)
    assert torch.equal(rho, rho[:, :1].expand(M, P))
    torch.testing.assert_close(after.delta, (rho[:, 0] + 1.0) / (2.0 + 3.0 + 1 - 2.0))
    for k, members in enumerate(([0, 2], [1])):
        own, share = w[members], rho[members]
        a = len(members) * (N + P) + 3.0 + 2.0
        b = ((1.0 - share) / 0.1 * own.abs()).sum()
        c = (share / 4.0 * own.square()).sum() + (Y - X @ w.T)[:, members].square().sum() + 4.0
        torch.testing.assert_close(after.sigma[k], (b + (b**2 + 4.0 * a * c).sqrt()) / (2.0 * a))


@pytest.mark.parametrize("count, shape", [(3, (40, 3)), (3, (3, 40)), (7, (300, 7)), (7, (7, 300))])
@pytest.mark.parametrize("chains", [(), (2,)])
def test_segments_in_any_order(count, shape, chains):
    axis = shape.index(count)
    index = torch.arange(count).reshape(-1, *(1 for _ in range(1 - axis))).expand(shape)
    segments = find_segments([0, index], [5, index.numel()], count + 1, torch.device("cpu"))
    assert isinstance(segments, Members if axis else Segments)
    members = torch.cat([torch.zeros(5, dtype=torch.int64), index.flatten()])
    values, numbers = torch.randn(*chains, len(members)), torch.randn(*chains, count + 1)
    expected = torch.zeros(*chains, count + 1).index_add(-1, members, values)
    torch.testing.assert_close(segments.sum(values), expected)
    assert expected[..., -1].eq(0.0).all()  # a number without weights
    assert torch.equal(segments.spread(numbers), numbers[..., members])
    assert segments.lengths() == torch.bincount(members, minlength=count + 1).tolist()


# Refused


def refusal(use):
    """The message about a model that uses a vector of sigmas and one of deltas."""

    def model():
        with pyro.plate("outputs", M):
            sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
            delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        use(delta, sigma2.sqrt())

    with pytest.raises(aeb.ModelError) as info:
        inspect_model(model, (), {}, adapt=True)
    return str(info.value)


def weights(delta, sigma):
    return pyro.sample("w", aeb.SSGL(0.1, 4.0, delta, sigma).expand([P, M]).to_event(2))


def test_a_mean_of_sigmas_or_deltas_is_refused():
    message = refusal(lambda delta, sigma: weights(delta, sigma.mean()))
    assert "sigma depends on site 'sigma2' but is not the square root" in message
    message = refusal(lambda delta, sigma: weights(delta.mean(), sigma))
    assert "delta depends on site 'delta' but is not the value" in message
    message = refusal(lambda delta, sigma: weights(delta.cumsum(0) / M, sigma))
    assert "delta depends on site 'delta' but is not the value" in message


def test_a_likelihood_with_a_mean_of_sigmas_is_refused():
    def use(delta, sigma):
        w = weights(delta, sigma)
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ w, sigma.mean()).to_event(1), obs=Y)

    assert "in a way that has no closed-form update" in refusal(use)


def test_a_sigma_for_each_group_of_data_is_refused_with_the_cure():
    def use(delta, sigma):
        w = weights(delta, sigma)
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ w[:, 0], sigma[torch.arange(N) % M]), obs=Y[:, 0])

    message = refusal(use)
    assert "different numbers of 'sigma2' along plate 'data'" in message
    assert ".to_event(1)" in message and "latents.NewtonStep()" in message


@pytest.mark.parametrize("by_loader", [False, True])
def test_a_sigma_that_a_batch_chooses_is_refused_with_the_cure(by_loader):
    """The group of a batch's first datum: another number in the next batch."""

    def model(group, size=None):
        with pyro.plate("groups", M):
            sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
        w = pyro.sample("w", aeb.SSGL(0.1, 4.0, 0.5, sigma2.sqrt()[0]).expand([P]).to_event(1))
        with pyro.plate("data", N, subsample_size=size) as i:
            scale = sigma2.sqrt()[group[i][0]]
            pyro.sample("y", dist.Normal(X[i] @ w, scale), obs=Y[i, 0])

    options = {"loader_sizes": frozenset({N})} if by_loader else {}
    group = torch.arange(N) % M
    size = None if by_loader else BATCH
    with pytest.raises(aeb.ModelError, match="take 1 of the 3 numbers.*a site of its own"):
        inspect_model(model, (group, size), {}, adapt=True, **options)
    inspect_model(model, (group,), {}, adapt=True)  # all data at every step


def test_a_plate_that_is_not_sigmas_is_refused_with_the_cure():
    def use(delta, sigma):
        w = weights(delta, sigma)
        with pyro.plate("others", M, dim=-1), pyro.plate("data", N, dim=-2):
            pyro.sample("y", dist.Normal(X @ w, sigma), obs=Y)

    assert "along plate 'others'" in refusal(use)
