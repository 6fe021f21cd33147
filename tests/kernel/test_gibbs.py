# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Runs whose latents are drawn: what they record, resume and refuse. That their law is the posterior
is in ``proofs/test_gibbs_posterior.py``.
"""

from __future__ import annotations

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from loader_data import shuffling_loader
from models import (
    P,
    linear_data,
    loader_regression,
    outputs_regression,
    sparse_classification,
    sparse_layers,
    sparse_regression,
)
from prior_families import FAMILIES
from refusals import raises_with
from runs import Stop, StopAt, assert_same_records, copy_records, make_mcmc, resume_mcmc

import pyro_aeb as aeb
from pyro_aeb import priors, transitions
from pyro_aeb.errors import CompileWarning
from pyro_aeb.mcmc.kernel_options import from_plain, to_plain
from pyro_aeb.posterior import compiled_code

X, Y = linear_data()
GIBBS = aeb.Gibbs(every=3)
TOGETHER = aeb.Gibbs(every=3, flips=False)


def make_kernel(model=sparse_regression, transition=aeb.SGHMC, **options):
    options = {"adaptation": GIBBS, "seed": 7, "steps_per_draw": 2, **options}
    return aeb.AEBKernel(model, transition(1e-3), **options)


def record_steps(kernel, chains=0, data=(X, Y), number=20, **kwargs) -> dict[str, torch.Tensor]:
    """All that a kernel moves, after every step."""
    kernel.start(0, chains, data, kwargs)
    found = []
    for _ in range(number):
        kernel.advance(1)
        found.append({**kernel.chain.state._asdict(), **kernel.latents._asdict()})
    return {name: torch.stack([torch.as_tensor(f[name]) for f in found]) for name in found[0]}


def grouped_regression(X, y=None):
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    base = aeb.SSGL(0.1, 10.0, delta, sigma2.sqrt()).expand([2, P])
    w = pyro.sample("w", priors.Group(base).to_event(1))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ w.sum(0), sigma2.sqrt()), obs=y)


def family_regression(X, y=None, family="SSGL"):
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    prior = FAMILIES[family].prior(delta, sigma)
    beta = pyro.sample("beta", prior.expand([P]).to_event(1))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


MODELS = {
    "regression": sparse_regression,
    "classification": sparse_classification,
    "layers": sparse_layers,
    "outputs": outputs_regression,
    "groups": grouped_regression,
    **{family: partial(family_regression, family=family) for family in FAMILIES},
}


@pytest.mark.parametrize("adaptation", [GIBBS, TOGETHER], ids=["flips", "no flips"])
@pytest.mark.parametrize("name", MODELS)
def test_latents_move_in_scans_alone(name, adaptation):
    number = 120 if name == "layers" else 20  # whose sigma stays where it is for tens of scans
    found = record_steps(make_kernel(MODELS[name], adaptation=adaptation), number=number)
    for latent in ("sigma", "delta", "slab"):
        values = found[latent]
        changed = (values[1:] != values[:-1]).flatten(1).any(1)
        steps = 2 + torch.arange(len(changed))
        assert not changed[steps % 3 != 0].any(), latent
        if latent == "delta":
            assert changed[steps % 3 == 0].all()
    assert len(found["sigma"].unique(dim=0)) > 2
    assert ((found["slab"] == 0.0) | (found["slab"] == 1.0)).all()
    assert ((found["rho"] >= 0.0) & (found["rho"] <= 1.0)).all()
    assert found["sigma"].isfinite().all() and (found["sigma"] > 0.0).all()
    counts = found["counts"][-1]
    assert counts[2] == number // 3  # one move of sigma a scan
    assert adaptation.flips or counts[0] == 0.0


@pytest.mark.parametrize("adaptation", [GIBBS, TOGETHER], ids=["flips", "no flips"])
@pytest.mark.parametrize("name", MODELS)
def test_chains_that_step_together_are_those_of_each_alone(name, adaptation):
    torch.set_default_dtype(torch.float64)
    data = linear_data(dtype=torch.float64)
    options = {"adaptation": adaptation, "model": MODELS[name]}
    together = record_steps(make_kernel(**options), range(3), data)
    for chain in range(3):
        alone = record_steps(make_kernel(**options), chain, data)
        for latent, value in alone.items():
            own = together[latent]
            own = own if own.dim() == value.dim() else own[:, chain]
            torch.testing.assert_close(own, value, msg=lambda m, n=latent: f"{n}: {m}")


def test_a_run_by_flips_accepts_all_where_the_likelihood_is_quadratic():
    mcmc = make_mcmc(make_kernel(), draws=600)
    mcmc.run(X, Y)
    stats = mcmc.diagnostics()["sample_stats"]["chain 0"]
    assert (stats["flips_proposed"] == stats["flips_accepted"]).all()
    assert (stats["sigmas_proposed"] == stats["sigmas_accepted"]).all()
    assert stats["flips_proposed"][-1] > 3 and stats["sigmas_proposed"][-1] == 2 * 603 // 3


def test_what_a_run_records():
    mcmc = make_mcmc(make_kernel(), draws=12)
    mcmc.run(X, Y)
    report = mcmc.diagnostics()
    roles = report["roles"]["chain 0"]
    assert roles["sigma2"] == roles["delta"] == "draw"
    adaptation = report["adaptation"]["chain 0"]
    assert adaptation["beta_gamma"].shape == adaptation["beta_rho"].shape == (12, P)
    assert set(adaptation["beta_gamma"].flatten().tolist()) <= {0.0, 1.0}
    assert not any(name.startswith("sa_residual") for name in report["sample_stats"]["chain 0"])
    idata = aeb.to_arviz(mcmc)
    assert idata.adaptation["beta_gamma"].shape == (2, 12, P)
    text = str(aeb.check(mcmc, quiet=True))
    assert "frozen" not in text and "drawn in scans" in text


def test_a_subsample_is_scanned_whole():
    """By N / n runs of the model, whose sums are those of one run on all data."""
    torch.set_default_dtype(torch.float64)
    data = linear_data(dtype=torch.float64)
    found = []
    for options in ({}, {"batch_size": 5}):
        kernel = make_kernel(seed=3)
        kernel.start(0, 0, data, options)
        chain = kernel.chain
        chain.step = 3
        generator = chain.generators[0]
        generator.manual_seed(11)
        chain.scan(chain)
        found.append((chain.state.position, *chain.latents.ssgl))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
@pytest.mark.parametrize("adaptation", [GIBBS, TOGETHER], ids=["flips", "no flips"])
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, adaptation, method):
    def start(**options):
        return make_mcmc(make_kernel(adaptation=adaptation), method=method, every=1, **options)

    whole = start()
    whole.run(X, Y, batch_size=5)
    stage = "Sample" if method == "vectorized" else "Sample [1]"
    stopped = start(checkpoint=tmp_path, hook_fn=StopAt(stage, 3))
    with pytest.raises(Stop):
        stopped.run(X, Y, batch_size=5)
    resumed = resume_mcmc(tmp_path)
    assert resumed.kernel.adaptation == adaptation
    resumed.run(X, Y, batch_size=5)
    assert_same_records(copy_records(resumed), copy_records(whole))


def test_a_trace_keeps_gammas(tmp_path):
    pytest.importorskip("zarr")
    mcmc = make_mcmc(make_kernel(), trace=tmp_path / "trace.zarr")
    mcmc.run(X, Y)
    found = aeb.open_trace(tmp_path / "trace.zarr")
    expected = mcmc.diagnostics()["adaptation"]["chain 1"]["beta_gamma"]
    assert torch.equal(torch.as_tensor(found.adaptation["beta_gamma"].values[1]), expected)


@pytest.mark.parametrize("chains", [0, range(2)])
@pytest.mark.parametrize("adaptation", [GIBBS, TOGETHER], ids=["flips", "no flips"])
def test_steps_in_between_may_be_compiled(monkeypatch, adaptation, chains):
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(compiled_code, "compile_graph", lambda graph, inputs: graph)
    data = linear_data(dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        expected, found = (
            record_steps(make_kernel(adaptation=adaptation, compile=way), chains, data)
            for way in (False, True)
        )
    for name, value in expected.items():
        torch.testing.assert_close(found[name].to(value), value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "transition", [aeb.SGLD, transitions.HMC, transitions.BAOAB, transitions.SGNHT]
)
def test_any_transition_moves_the_weights(transition):
    found = record_steps(make_kernel(transition=transition))
    assert found["position"].isfinite().all()


# What is refused


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"inverse_temperature": 2.0}, ["inverse_temperature is", "expected 1", "normalising"]),
        ({"inverse_temperature": aeb.Geometric(1.0, 1.1)}, ["Geometric", "expected 1"]),
        ({"pruning": aeb.MagnitudePruning(0.5)}, ["pruning is", "no draw of a spike"]),
        ({"freeze_after_warmup": True}, ["freeze_after_warmup is True", "expected False"]),
        ({"data_parallel": True}, ["data_parallel is True", "takes all data"]),
        (
            {"transition": lambda step: transitions.ReplicaExchange(aeb.SGLD(step))},
            ["transition is ReplicaExchange", "SGLD, SGHMC or HMC"],
        ),
        (
            {"transition": lambda step: transitions.ContourSGLD(step, (0.0, 9.0))},
            ["transition is ContourSGLD", "law of the posterior"],
        ),
    ],
)
def test_options_that_do_not_go_with_gibbs(options, parts):
    first, *others = parts
    with raises_with(first, "Gibbs(every=3", *others, error=ValueError):
        make_kernel(**options)


def test_its_own_options():
    with raises_with("Gibbs: every is 0, expected an integer of at least 1", error=ValueError):
        aeb.Gibbs(0)
    with raises_with("Gibbs: flips is 1, expected True or False", error=TypeError):
        aeb.Gibbs(flips=1)
    options = aeb.Gibbs(every=4, flips=False)
    assert eval(repr(options), vars(aeb)) == options
    assert from_plain("adaptation", to_plain(options)) == options


def test_data_of_a_loader_are_refused():
    with raises_with("all data", "DataLoader", "StochasticApproximation", error=aeb.ModelError):
        make_mcmc(make_kernel(loader_regression), number=1).run(shuffling_loader())


def heavy_tails(X, y=None):
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, 0.3, sigma2.sqrt()).expand([P]).to_event(1))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.StudentT(4.0, X @ beta, sigma2.sqrt()), obs=y)


def changing_scale(X, y=None):
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, 0.3, sigma2.sqrt()).expand([P]).to_event(1))
    spread = pyro.sample("spread", dist.Normal(0.0, 1.0)).exp()
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ beta, spread * sigma2.sqrt()), obs=y)


@pytest.mark.parametrize("model", [heavy_tails, changing_scale])
def test_likelihoods_that_sigma_has_no_law_under_are_refused(model):
    with raises_with("sigma is the scale of ['y']", "fixed multiple", error=aeb.ModelError):
        make_kernel(model).start(0, 0, (X, Y), {})


class Spread(priors.Gaussian):
    """A component of a user's own."""


class OwnPrior(priors.TwoScales):
    @staticmethod
    def components(v0, v1):
        return priors.Laplace(v0), Spread(v1)


def own_components(X, y=None):
    beta = pyro.sample("beta", OwnPrior(0.1, 10.0, 0.3, 1.0).expand([P]).to_event(1))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ beta, 1.0), obs=y)


def large_group(X, y=None):
    base = aeb.SSGL(0.1, 10.0, 0.3, 1.0).expand([1, 65])
    w = pyro.sample("w", priors.Group(base).to_event(1))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ w[0, :P], 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (own_components, ["a Spread component", "Laplace, Gaussian and Student"]),
        (large_group, ["the largest group has 65 weights", "at most 64", "flips=False"]),
    ],
)
def test_priors_that_cannot_be_drawn_are_refused(model, parts):
    with raises_with(*parts, error=aeb.ModelError):
        make_kernel(model).start(0, 0, (X, Y), {})
    if model is large_group:
        record_steps(make_kernel(model, adaptation=TOGETHER), number=4)


# Where a chain begins


def many_features(X, y=None, likelihood="normal", group=False):
    """With far more features than data, two of which matter."""
    sigma = 1.0
    if likelihood == "normal":
        sigma = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5)).sqrt()
    delta = pyro.sample("delta", dist.Beta(2.0, float(X.shape[1])))
    prior = aeb.SSGL(0.01, 4.0, delta, sigma)
    if group:
        prior = priors.Group(prior.expand([X.shape[1] // 2, 2]))
    else:
        prior = prior.expand([X.shape[1]])
    beta = pyro.sample("beta", prior.to_event(1)).flatten()
    with pyro.plate("data", len(X)):
        mean = X @ beta
        laws = {
            "normal": lambda: dist.Normal(mean, sigma),
            "bernoulli": lambda: dist.Bernoulli(logits=mean),
            "poisson": lambda: dist.Poisson(mean.exp()),
        }
        pyro.sample("y", laws[likelihood](), obs=y)


@pytest.mark.parametrize(
    ("likelihood", "group"),
    [
        *(("normal", False), ("normal", True)),
        *(("bernoulli", False), ("bernoulli", True)),
        *(("poisson", False), ("poisson", True)),
    ],
)
def test_a_chain_begins_with_few_weights_in_the_slab(likelihood, group):
    """
    From a delta of 1/2 the first scan would put a tenth of them there, where they may stay; and
    with the curvature of the spikes it would leave out a strong effect.
    """
    n, p = 100, 400
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, p, generator=generator)
    mean = x[:, 0] + x[:, 1]
    if likelihood == "normal":
        y = 3.0 * mean + torch.randn(n, generator=generator)
    else:
        counts = torch.poisson((0.7 * mean).exp(), generator=generator)
        y = counts if likelihood == "poisson" else 1.0 * (mean > 0)
    model = partial(many_features, likelihood=likelihood, group=group)
    kernel = aeb.AEBKernel(model, aeb.SGHMC(2e-5), aeb.Gibbs(every=5), seed=7)
    kernel.start(0, [0, 1, 2], (x, y), {})
    kernel.advance(15)
    in_slab = kernel.latents.slab
    assert (in_slab.sum(-1) <= 12).all(), in_slab.sum(-1)
    assert (in_slab[..., :2] > 0.5).any(-1).all()
    assert (kernel.latents.delta < 0.1).all()
