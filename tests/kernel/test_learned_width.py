# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Runs in which the width v0 of the spikes is learned: what they record, resume and refuse."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from loader_data import shuffling_loader
from models import N, P, linear_data
from refusals import raises_with
from runs import Stop, StopAt, assert_same_records, copy_records, make_mcmc, resume_mcmc

import pyro_aeb as aeb
from pyro_aeb import priors, transitions
from pyro_aeb.adaptation import sweep, width
from pyro_aeb.errors import CompileWarning
from pyro_aeb.model.initial_values import init_to_default
from pyro_aeb.posterior import compiled_code

X, Y = linear_data()
GIBBS = aeb.Gibbs(every=3)
TOGETHER = aeb.Gibbs(every=3, flips=False)
OMEGA = aeb.Polynomial(1.0, 2.0, 0.7)
CURRENT = aeb.StochasticApproximation(OMEGA, penalties="current")
PUBLISHED = aeb.StochasticApproximation(OMEGA)
ADAPTATIONS = {"flips": GIBBS, "no flips": TOGETHER, "current": CURRENT, "averaged": PUBLISHED}
adaptations = pytest.mark.parametrize("adaptation", ADAPTATIONS.values(), ids=ADAPTATIONS)


def learned_width(X, y=None, batch_size=None, first=None, make=priors.SSGL, group=False, **prior):
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    if first is None:
        v0 = priors.spike_width("v0", X.shape[1])
    else:
        site = {"init_value": torch.tensor(first)}
        v0 = pyro.sample("v0", dist.InverseGamma(1.0, 0.07), infer=site)
    fn = make(v0, 1.0, delta=delta, sigma=sigma2.sqrt(), **prior)
    if group:
        pairs = priors.Group(fn.expand([X.shape[1], 2])).to_event(1)
        beta = pyro.sample("beta", pairs).sum(-1)
    else:
        beta = pyro.sample("beta", fn.expand([X.shape[1]]).to_event(1))
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        i = slice(None) if batch_size is None else i
        pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=None if y is None else y[i])


MODELS = {
    "SSGL": learned_width,
    "lasso": partial(learned_width, make=priors.SpikeAndSlabLasso),
    "student": partial(learned_width, make=priors.SpikeAndSlabStudent, df=3.0),
    "groups": partial(learned_width, group=True),
}


def make_kernel(model=learned_width, transition=aeb.SGHMC, step_size=0.01, **options):
    options = {"adaptation": GIBBS, "seed": 7, "steps_per_draw": 2, **options}
    return aeb.AEBKernel(model, transition(step_size), **options)


def record_steps(kernel, chains=0, data=(X, Y), number=24, **kwargs):
    kernel.start(0, chains, data, kwargs)
    found = []
    for _ in range(number):
        kernel.advance(1)
        found.append({**kernel.chain.state._asdict(), **kernel.latents._asdict()})
    return {n: torch.stack([torch.as_tensor(f[n]) for f in found]) for n in found[0]}


@adaptations
@pytest.mark.parametrize("name", MODELS)
def test_v0_moves_in_scans_alone(name, adaptation):
    every = 3 if isinstance(adaptation, aeb.Gibbs) else 10
    found = record_steps(make_kernel(MODELS[name], adaptation=adaptation), number=44)["width"]
    assert found.isfinite().all() and (found > 0.0).all() and (found <= 0.5).all()
    changed = (found[1:] != found[:-1]).flatten(1).any(1)
    assert not changed[(2 + torch.arange(len(changed))) % every != 0].any()
    assert len(found.unique()) > 2


@adaptations
@pytest.mark.parametrize("name", MODELS)
def test_chains_that_step_together_are_those_of_each_alone(name, adaptation):
    torch.set_default_dtype(torch.float64)
    data, options = (
        linear_data(dtype=torch.float64),
        {"adaptation": adaptation, "model": MODELS[name]},
    )
    together = record_steps(make_kernel(**options), range(3), data)
    for chain in range(3):
        for latent, value in record_steps(make_kernel(**options), chain, data).items():
            own = together[latent]
            own = own if own.dim() == value.dim() else own[:, chain]
            torch.testing.assert_close(own, value, msg=lambda m, n=latent: f"{n}: {m}")


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
@adaptations
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, adaptation, method):
    def start(**options):
        kernel = make_kernel(adaptation=adaptation)
        return make_mcmc(kernel, draws=10, method=method, every=1, **options)

    whole = start()
    whole.run(X, Y, batch_size=5)
    stage = "Sample" if method == "vectorized" else "Sample [1]"
    stopped = start(checkpoint=tmp_path, hook_fn=StopAt(stage, 3))
    with pytest.raises(Stop):
        stopped.run(X, Y, batch_size=5)
    resumed = resume_mcmc(tmp_path, learned_width)
    resumed.run(X, Y, batch_size=5)
    assert_same_records(copy_records(resumed), copy_records(whole))
    assert len(whole.get_samples()["v0"].unique()) > 2


@pytest.mark.parametrize("chains", [0, range(2)])
@adaptations
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


@adaptations
def test_what_a_run_records(tmp_path, adaptation):
    pytest.importorskip("zarr")
    mcmc = make_mcmc(make_kernel(adaptation=adaptation), draws=12, trace=tmp_path / "run.zarr")
    mcmc.run(X, Y)
    samples = mcmc.get_samples(group_by_chain=True)
    assert samples["v0"].shape == (2, 12)
    role = "draw" if isinstance(adaptation, aeb.Gibbs) else "stochastic approximation"
    assert mcmc.diagnostics()["roles"]["chain 0"]["v0"] == role
    assert aeb.to_arviz(mcmc).posterior["v0"].shape == (2, 12)
    found = aeb.open_trace(tmp_path / "run.zarr").posterior["v0"].values
    assert torch.equal(torch.as_tensor(found), samples["v0"])
    stats = mcmc.diagnostics()["sample_stats"]["chain 0"]
    assert ("widths_accepted" in stats) == isinstance(adaptation, aeb.Gibbs)
    aeb.check(mcmc, quiet=True)


def test_the_potential_and_the_gradient_are_those_of_the_prior_at_this_width():
    torch.set_default_dtype(torch.float64)
    kernel = make_kernel(adaptation=CURRENT)
    kernel.start(0, 0, linear_data(dtype=torch.float64), {})
    posterior, latents = kernel.chain.posterior, kernel.chain.latents
    rule, ssgl = posterior.adaptation.spike_and_slab, latents.ssgl
    beta = torch.randn(P, requires_grad=True)
    prior = priors.SSGL(ssgl.width, 1.0, ssgl.delta, ssgl.sigma)
    expected = prior.log_prob(beta).sum()
    found = -rule.potential(ssgl, beta)
    torch.testing.assert_close(found - P * ssgl.sigma.log()[0], expected)
    (slope,) = torch.autograd.grad(expected, beta)
    gradient = torch.zeros(P)
    rule.add_gradient(gradient, ssgl, beta.detach())
    torch.testing.assert_close(gradient, slope)


def test_a_step_is_in_units_of_the_spikes():
    """Of size s^2 times as large, for the same weights and noise."""
    torch.set_default_dtype(torch.float64)
    data = linear_data(dtype=torch.float64)
    kernel = make_kernel(transition=aeb.SGLD, step_size=0.1)
    kernel.start(0, 0, data, {})
    chain = kernel.chain
    unit = float(chain.latents.ssgl.width * chain.latents.ssgl.sigma)
    before, noise = chain.state, torch.randn(P)
    batch = chain.data.next()
    evaluate = partial(chain.posterior.evaluate_likelihood, before.position, chain.latents, batch)
    after, _ = chain.update(
        before, chain.latents, evaluate(), noise, transitions.StepNumbers(0.1, 1.0), 0.0
    )
    gradient = chain.posterior.add_prior(evaluate().gradient, before.position, chain.latents)
    small = 0.1 * unit**2
    expected = before.position + small * gradient + math.sqrt(2.0 * small) * noise
    torch.testing.assert_close(after.position, expected)


@pytest.mark.parametrize("adaptation", [GIBBS, CURRENT], ids=["gibbs", "current"])
def test_a_wide_start_of_v0_does_not_explode(monkeypatch, adaptation):
    """The columns of X share a factor, so that steps of v0 = 0.4 would be far too long."""
    x = X + 100.0
    model = partial(learned_width, first=0.4)

    def largest_potential(most):
        monkeypatch.setattr(sweep, "STIFFEST", most)
        kernel = make_kernel(model, adaptation=adaptation)
        kernel.start(0, 0, (x, Y), {})
        potentials = []
        try:
            for _ in range(200):
                kernel.advance(1)
                potentials.append(float(kernel.chain.statistics()["potential"]))
        except aeb.NonFiniteError:
            return math.inf
        return max(potentials[100:])

    assert largest_potential(width.STIFFEST) < 1e3
    assert largest_potential(math.inf) > 1e6


@pytest.mark.parametrize("together", [0, range(2)])
@adaptations
def test_a_model_that_has_no_density_far_from_its_start_begins(adaptation, together):
    def model(X, y):
        v0 = priors.spike_width("v0", P)
        beta = pyro.sample("beta", priors.SSGL(v0, 1.0, 0.3).expand([P]).to_event(1))
        scale = torch.where(beta.abs().max() < 0.02, 1.0, -1.0)
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ beta, scale), obs=y)

    near = aeb.AEBKernel(model, aeb.SGHMC(1e-9), adaptation=adaptation, init_strategy=at_zero)
    near.start(0, together, (X, Y), {})
    near.advance(1)


def at_zero(site):
    return init_to_default(site) * (0.0 if site["name"] == "beta" else 1.0)


def test_v0_is_held_while_a_chain_is_cold_and_once_it_is_frozen():
    for options, learns in (
        ({"inverse_temperature": 3.0}, False),
        ({"freeze_after_warmup": True}, False),
        ({}, True),
    ):
        found = record_steps(make_kernel(adaptation=CURRENT, **options))["width"]
        assert (len(found.unique()) > 1) == learns


@pytest.mark.slow
def test_both_starts_and_both_adaptations_agree():
    """Small effects of all weights, which a narrow spike would deny."""
    n, p = 60, 100
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, p, generator=generator)
    y = x @ (0.08 * torch.randn(p, generator=generator)) + torch.randn(n, generator=generator)
    logs = {}
    # Draws of warm-up and after it: scans leave the start at once.
    current = aeb.StochasticApproximation(aeb.Polynomial(10.0, 1000.0, 0.7), penalties="current")
    runs = [(aeb.Gibbs(every=10), 40, 60), (current, 100, 100)]
    for start in (0.002, 0.1):
        model = partial(learned_width, first=start)
        for adaptation, warmup, draws in runs:
            kernel = make_kernel(model, adaptation=adaptation, steps_per_draw=10)
            mcmc = make_mcmc(kernel, draws, warmup, number=16, method="vectorized")
            mcmc.run(x, y)
            logs[type(adaptation), start] = mcmc.get_samples()["v0"].log()
    for kind in (aeb.Gibbs, aeb.StochasticApproximation):
        means = [float(logs[kind, start].mean()) for start in (0.002, 0.1)]
        print(kind.__name__, *(math.exp(mean) for mean in means))
        assert abs(means[0] - means[1]) < 0.3
    draws = logs[aeb.Gibbs, 0.1]
    mean = float(logs[aeb.StochasticApproximation, 0.1].mean())
    assert abs(mean - float(draws.mean())) < 2.0 * float(draws.std())


# What is refused


def refused(*parts, model=learned_width, data=(X, Y), **options):
    with raises_with(*parts, error=aeb.ModelError):
        make_kernel(model, **options).start(0, 0, data, {})


def test_options_that_do_not_go_with_a_learned_width():
    refused("width v0", "'v0'", "steps of HMC", adaptation=CURRENT, transition=transitions.HMC)
    refused("in warm-up", adaptation=CURRENT, transition=lambda step: transitions.TunedBAOAB())
    first = aeb.StochasticApproximation(OMEGA, initial_penalty=1.0)
    refused("initial_penalty is 1.0", "expected None", adaptation=first)


@pytest.mark.parametrize("adaptation", [GIBBS, CURRENT])
def test_data_of_a_loader_are_refused(adaptation):
    def model(x, y=None):
        v0 = priors.spike_width("v0", P)
        beta = pyro.sample("beta", priors.SSGL(v0, 1.0, 0.3).expand([P]).to_event(1))
        with pyro.plate("data", N, subsample=x):
            pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)

    kernel = make_kernel(model, adaptation=adaptation)
    with raises_with("all data", "DataLoader", error=aeb.ModelError):
        make_mcmc(kernel, number=1).run(shuffling_loader())


def model_of(sample):
    def model(X, y):
        beta = sample()
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(X @ beta, 1.0), obs=y)

    return model


def a_width(*shape):
    fn = dist.InverseGamma(1.0, 0.1).expand(shape).to_event(len(shape))
    return pyro.sample("v0", fn)


def gaussian_spike():
    return pyro.sample(
        "beta", priors.SpikeAndSlabNormal(a_width(), 1.0, 0.3).expand([P]).to_event(1)
    )


def slab():
    return pyro.sample("beta", priors.SSGL(0.1, a_width(), 0.3).expand([P]).to_event(1))


def several_numbers():
    return pyro.sample("beta", priors.SSGL(a_width(P), 1.0, 0.3).to_event(1))


def a_multiple():
    return pyro.sample("beta", priors.SSGL(2.0 * a_width(), 1.0, 0.3).expand([P]).to_event(1))


def another_prior():
    v0 = pyro.sample("v0", dist.Gamma(1.0, 1.0))
    return pyro.sample("beta", priors.SSGL(v0, 1.0, 0.3).expand([P]).to_event(1))


def lost():
    return pyro.sample("beta", priors.SSGL(float(a_width()), 1.0, 0.3).expand([P]).to_event(1))


def one_of_two():
    other = pyro.sample("other", priors.SSGL(0.1, 1.0, 0.3).expand([P]).to_event(1))
    return other + pyro.sample("beta", priors.SSGL(a_width(), 1.0, 0.3).expand([P]).to_event(1))


def sigma_too():
    v0 = a_width()
    return pyro.sample("beta", priors.SSGL(v0, 1.0, 0.3, v0.sqrt()).expand([P]).to_event(1))


@pytest.mark.parametrize(
    ("sample", "parts"),
    [
        (gaussian_spike, ["v0 depends on", "expected a number", "Laplace spikes"]),
        (slab, ["v1 depends on", "expected a number"]),
        (several_numbers, [f"site 'v0' of {P} numbers", "one width"]),
        (a_multiple, ["v0 depends on site 'v0' but is not the value of it"]),
        (another_prior, ["v0 depends on", "InverseGamma"]),
        (lost, ["v0 changes with a latent site", "float(x)"]),
        (one_of_two, ["'other': None", "one width"]),
        (sigma_too, ["both v0 and sigma"]),
    ],
)
def test_widths_that_are_not_learned(sample, parts):
    refused(*parts, model=model_of(sample))


def test_a_width_by_hand():
    model = model_of(lost)
    kernel = make_kernel(model, links={"beta": {"v0": "v0"}})
    with raises_with("v0", error=aeb.ModelError):  # its value does not reach the prior by a tensor
        make_kernel(model, links={"beta": {"v0": "beta"}}).start(0, 0, (X, Y), {})
    assert len(record_steps(kernel)["width"].unique()) > 2


def test_the_prior_of_a_width():
    site = pyro.poutine.trace(lambda: priors.spike_width("v0", 500)).get_trace().nodes["v0"]
    median = math.sqrt(0.05 / 500)
    assert float(site["infer"]["init_value"]) == pytest.approx(median)
    draws = site["fn"].sample((20_000,))
    assert float((draws < median).double().mean()) == pytest.approx(0.5, abs=0.02)
    with raises_with("spike_width: weights is 0", error=ValueError):
        priors.spike_width("v0", 0)
    with raises_with("spike_width: share", error=ValueError):
        priors.spike_width("v0", 5, share=-1.0)
