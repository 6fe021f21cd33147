# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Enumerated discrete sites are summed out: the density is that of sums over all their values by hand,
and the posterior that of a grid.
"""

from __future__ import annotations

import math
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb.model.summed_out import FACTOR, SummedOut
from pyro_aeb.model.tracing import trace_sites
from pyro_aeb.nn import PosteriorPredictive

PARALLEL = {"enumerate": "parallel"}
GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.cat(
    [torch.randn(30, generator=GENERATOR) - 2.0, torch.randn(20, generator=GENERATOR) + 2.0]
)
SERIES = torch.randn(2, 4, generator=GENERATOR)
CAUGHT = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])


def mixture(data, batch_size=None):
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([3.0, 2.0])))
    means = pyro.sample("means", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
    with pyro.plate("data", len(data), subsample_size=batch_size) as i:
        z = pyro.sample("z", dist.Categorical(weights), infer=PARALLEL)
        pyro.sample("x", dist.Normal(means[z], 1.0), obs=data[i])


@pytest.mark.parametrize("scale", [2.0, 0.5, 0.01])
def test_a_datum_may_be_much_more_likely_under_another_value(scale):
    # Of assignments at random some are impossible in single precision beside the right ones.
    data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])

    def narrow(data, scale):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer=PARALLEL)
            pyro.sample("x", dist.Normal(torch.tensor([0.0, 10.0])[z], scale), obs=data)

    model = SummedOut(narrow, (data, scale), {})
    found = poutine.trace(model).get_trace(data, scale).log_prob_sum()
    each = dist.Normal(torch.tensor([0.0, 10.0]), scale).log_prob(data[:, None]) - math.log(2.0)
    assert found == pytest.approx(float(torch.logsumexp(each, 1).sum()), rel=1e-5)


def mixture_by_hand(data, weights, means):
    parts = [weights[k].log() + dist.Normal(means[k], 1.0).log_prob(data) for k in (0, 1)]
    return torch.logsumexp(torch.stack(parts), 0).sum()


def two_causes(data):
    """Two binary sites for every datum, one of them under the other, and a site without them."""
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    size = pyro.sample("size", dist.Normal(1.0, 1.0))
    pyro.sample("beside", dist.Normal(size, 1.0), obs=torch.tensor(0.3))
    with pyro.plate("data", len(data)):
        a = pyro.sample("a", dist.Bernoulli(p), infer=PARALLEL)
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.6 * a), infer=PARALLEL)
        pyro.sample("x", dist.Normal(size * (a - 2.0 * b), 1.0), obs=data)


def two_causes_by_hand(data, p, size):
    parts = []
    for a, b in product((0.0, 1.0), repeat=2):
        a, b = torch.tensor(a), torch.tensor(b)
        prior = dist.Bernoulli(p).log_prob(a) + dist.Bernoulli(0.2 + 0.6 * a).log_prob(b)
        parts.append(prior + dist.Normal(size * (a - 2.0 * b), 1.0).log_prob(data))
    return torch.logsumexp(torch.stack(parts), 0).sum()


def markov(series):
    """A hidden Markov model of several series."""
    stay = pyro.sample("stay", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    z = torch.tensor(0)
    with pyro.plate("series", len(series)):
        for t in pyro.markov(range(series.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(rows(stay)[z]), infer=PARALLEL)
            pyro.sample(f"x_{t}", dist.Normal(means[z], 1.0), obs=series[:, t])


def rows(stay):
    return torch.stack([torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])])


def markov_by_hand(series, stay, means):
    total = torch.tensor(0.0)
    for line in series:
        paths = []
        for path in product((0, 1), repeat=len(line)):
            before, log_prob = 0, torch.tensor(0.0)
            for state, x in zip(path, line, strict=True):
                log_prob = log_prob + rows(stay)[before, state].log()
                log_prob = log_prob + dist.Normal(means[state], 1.0).log_prob(x)
                before = state
            paths.append(log_prob)
        total = total + torch.logsumexp(torch.stack(paths), 0)
    return total


def recapture(caught):
    """Cormack, Jolly and Seber: alive or not, and caught if alive."""
    phi = pyro.sample("phi", dist.Beta(2.0, 2.0))
    rho = pyro.sample("rho", dist.Beta(2.0, 2.0))
    with pyro.plate("animals", len(caught)):
        alive = torch.ones(len(caught))
        for t in pyro.markov(range(1, caught.shape[1])):
            alive = pyro.sample(f"z_{t}", dist.Bernoulli(phi * alive), infer=PARALLEL)
            pyro.sample(f"y_{t}", dist.Bernoulli(rho * alive), obs=caught[:, t])


def recapture_by_hand(caught, phi, rho):
    total = torch.tensor(0.0)
    for line in caught:
        deaths = []
        for last in range(len(line)):  # the last time that it is alive
            if line[last + 1 :].any():
                continue
            seen = [rho if c else 1 - rho for c in line[1 : last + 1]]
            died = 1 - phi if last < len(line) - 1 else torch.tensor(1.0)
            deaths.append(phi**last * died * torch.stack([torch.tensor(1.0), *seen]).prod())
        total = total + torch.stack(deaths).sum().log()
    return total


def switch(data):
    """One discrete site for all data, and one in each of two nested plates."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    on = pyro.sample("on", dist.Bernoulli(0.3), infer=PARALLEL)
    with pyro.plate("columns", 2, dim=-1), pyro.plate("rows", len(data) // 2, dim=-2):
        up = pyro.sample("up", dist.Bernoulli(0.4), infer=PARALLEL)
        pyro.sample("x", dist.Normal(shift * on + up, 1.0), obs=data.reshape(-1, 2))


def switch_by_hand(data, shift):
    totals = []
    for on in (0.0, 1.0):
        parts = [
            dist.Bernoulli(0.4).log_prob(torch.tensor(up))
            + dist.Normal(shift * on + up, 1.0).log_prob(data)
            for up in (0.0, 1.0)
        ]
        prior = dist.Bernoulli(0.3).log_prob(torch.tensor(on))
        totals.append(prior + torch.logsumexp(torch.stack(parts), 0).sum())
    return torch.logsumexp(torch.stack(totals), 0)


CASES = {
    "mixture": (mixture, mixture_by_hand, DATA, ("weights", "means")),
    "two causes": (two_causes, two_causes_by_hand, DATA, ("p", "size")),
    "markov": (markov, markov_by_hand, SERIES, ("stay", "means")),
    "recapture": (recapture, recapture_by_hand, CAUGHT, ("phi", "rho")),
    "switch": (switch, switch_by_hand, DATA, ("shift",)),
}
VALUES = {
    "weights": torch.tensor([0.7, 0.3]),
    "means": torch.tensor([-1.0, 1.5]),
    "p": torch.tensor(0.4),
    "size": torch.tensor(0.7),
    "stay": torch.tensor([0.8, 0.6]),
    "phi": torch.tensor(0.7),
    "rho": torch.tensor(0.45),
    "shift": torch.tensor(-0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_the_density_is_the_sum_by_hand(case):
    model, by_hand, data, names = CASES[case]
    values = {name: VALUES[name] for name in names}
    sites = trace_sites(SummedOut(model, (data,), {}), (data,), {}, values)
    found = sites[FACTOR]["fn"].log_prob(sites[FACTOR]["value"])
    torch.testing.assert_close(found, by_hand(data, *values.values()), rtol=1e-5, atol=1e-4)
    assert sites.keys() - {FACTOR, "beside"} - set(names) <= {
        "data",
        "series",
        "animals",
        "rows",
        "columns",
    }


def without_marks(model):
    """A model whose sites have lost their marks."""

    class Unmark(Messenger):
        def _pyro_sample(self, msg):
            msg["infer"].pop("enumerate", None)

    def unmarked(*args, **kwargs):
        with Unmark():
            return model(*args, **kwargs)

    return unmarked


@pytest.mark.parametrize("case", CASES)
def test_sites_without_marks_are_summed_out_too(case):
    model, by_hand, data, names = CASES[case]
    unmarked, values = without_marks(model), {name: VALUES[name] for name in names}
    sites = trace_sites(SummedOut(unmarked, (data,), {}), (data,), {}, values)
    found = sites[FACTOR]["fn"].log_prob(sites[FACTOR]["value"])
    torch.testing.assert_close(found, by_hand(data, *values.values()), rtol=1e-5, atol=1e-4)


def one_hot(data):
    means = pyro.sample("means", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.6, 0.4])))
        pyro.sample("x", dist.Normal((z * means).sum(-1), 1.0), obs=data)


def binomial(data):
    """Binomial(1, 2/5) is Bernoulli(2/5)."""
    means = pyro.sample("means", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Binomial(1, 0.4))
        pyro.sample("x", dist.Normal(means[0] + z * (means[1] - means[0]), 1.0), obs=data)


def without_an_event(data):
    """The means have an axis outside of plates, which Pyro's check of shapes refuses."""
    means = pyro.sample("means", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.6, 0.4])))
        pyro.sample("x", dist.Normal(means[z], 1.0), obs=data)


@pytest.mark.parametrize("model", [one_hot, binomial, without_an_event])
def test_other_discrete_distributions_are_summed_out(model):
    means = VALUES["means"]
    sites = trace_sites(SummedOut(model, (DATA,), {}), (DATA,), {}, {"means": means})
    found = sites[FACTOR]["fn"].log_prob(sites[FACTOR]["value"])
    expected = mixture_by_hand(DATA, torch.tensor([0.6, 0.4]), means)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_a_run_is_the_same_with_and_without_marks():
    marked, unmarked = (
        run(model, DATA, draws=5, warmup=3) for model in (mixture, without_marks(mixture))
    )
    for name, draws in marked.get_samples().items():
        assert torch.equal(draws, unmarked.get_samples()[name])


def test_minibatches_are_scaled_after_the_sum():
    wrapped = SummedOut(mixture, (DATA, 10), {})
    values = {name: VALUES[name] for name in ("weights", "means")}
    sites = trace_sites(wrapped, (DATA, 10), {}, values)
    batch = wrapped.hidden["x"]["value"]
    assert len(batch) == 10
    expected = 5.0 * mixture_by_hand(batch, *values.values())
    found = sites[FACTOR]["fn"].log_prob(sites[FACTOR]["value"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def run(model, *args, transition=None, draws=300, warmup=50, **kwargs):
    kernel = aeb.AEBKernel(model, transition or aeb.transitions.HMC(0.1, 8), seed=0)
    mcmc = aeb.MCMC(kernel, draws, warmup, disable_progbar=True)
    mcmc.run(*args, **kwargs)
    return mcmc


@pytest.fixture(scope="module")
def mixture_run():
    return run(mixture, DATA, draws=20)


def one_mean(data, batch_size=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(data), subsample_size=batch_size) as i:
        z = pyro.sample("z", dist.Bernoulli(0.4), infer=PARALLEL)
        pyro.sample("x", dist.Normal(-2.0 + (mean + 2.0) * z, 1.0), obs=data[i])


def exact_mean():
    grid = torch.linspace(-1.0, 5.0, 2001, dtype=torch.float64)
    data = DATA.double()[:, None]
    parts = [
        dist.Normal(-2.0, 1.0).log_prob(data).expand(-1, len(grid)) + torch.tensor(0.6).log(),
        dist.Normal(grid, 1.0).log_prob(data) + torch.tensor(0.4).log(),
    ]
    log_density = torch.logsumexp(torch.stack(parts), 0).sum(0) + dist.Normal(0.0, 2.0).log_prob(
        grid
    )
    weights = torch.softmax(log_density, 0)
    mean = (weights * grid).sum()
    return float(mean), float((weights * (grid - mean).square()).sum().sqrt())


@pytest.mark.parametrize("batch_size", [None, 25])
def test_the_posterior_is_that_of_a_grid(batch_size):
    mean, sd = exact_mean()
    transition = aeb.transitions.HMC(0.1, 8) if batch_size is None else aeb.SGLD(1e-3)
    draws, warmup = (80, 15) if batch_size is None else (900, 50)
    sizes = {"draws": draws, "warmup": warmup}
    found = run(one_mean, DATA, batch_size=batch_size, transition=transition, **sizes)
    found = found.get_samples()["mean"]
    assert abs(float(found.mean()) - mean) < 0.5 * sd
    assert 0.6 * sd < float(found.std()) < 1.6 * sd


def test_a_loader_s_batches_are_checked_and_scaled():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(DATA), subsample=x):
            z = pyro.sample("z", dist.Bernoulli(0.4), infer=PARALLEL)
            pyro.sample("x", dist.Normal(-2.0 + (mean + 2.0) * z, 1.0), obs=x)

    def unscaled(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4), infer=PARALLEL)
            pyro.sample("x", dist.Normal(mean * z, 1.0), obs=x)

    loader = DataLoader(TensorDataset(DATA), batch_size=25, shuffle=True)
    mean, sd = exact_mean()
    found = run(model, loader, transition=aeb.SGLD(1e-3), draws=900).get_samples()["mean"]
    assert abs(float(found.mean()) - mean) < 0.5 * sd
    with pytest.raises(aeb.ModelError, match="site 'x' .* not scaled by N/n"):
        run(unscaled, loader)


@pytest.mark.slow
def test_compiled_steps_are_those_as_written():
    draws = []
    for compile in (False, True):
        kernel = aeb.AEBKernel(mixture, aeb.SGLD(1e-3), seed=0, compile=compile)
        mcmc = aeb.MCMC(kernel, 8, 2, disable_progbar=True)
        mcmc.run(DATA, 25)
        draws.append(mcmc.get_samples())
    for name in ("weights", "means"):
        torch.testing.assert_close(draws[1][name], draws[0][name])


def test_the_data_are_exported(mixture_run):
    found = aeb.to_arviz(mixture_run)
    assert set(found.posterior.data_vars) == {"weights", "means"}
    assert found.observed_data["x"].dims == ("data",)


def test_a_learned_latent_beside_a_sum():
    """The mode of the weight of a mixture whose components are known."""

    def model(data):
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        pyro.sample("unused", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Bernoulli(share), infer=PARALLEL)
            pyro.sample("x", dist.Normal(4.0 * z - 2.0, 1.0), obs=data)

    update = aeb.latents.GradientStep(0.02)
    adaptation = aeb.StochasticApproximation(1.0, latents={"share": update})
    mcmc = aeb.MCMC(
        aeb.AEBKernel(model, aeb.SGLD(1e-3), adaptation, seed=0), 5, 300, disable_progbar=True
    )
    mcmc.run(DATA)
    grid = torch.linspace(0.001, 0.999, 999)
    normal = [dist.Normal(mean, 1.0).log_prob(DATA)[:, None] for mean in (-2.0, 2.0)]
    parts = torch.stack([(1 - grid).log() + normal[0], grid.log() + normal[1]])
    mode = grid[(torch.logsumexp(parts, 0).sum(0) + dist.Beta(2.0, 2.0).log_prob(grid)).argmax()]
    torch.testing.assert_close(mcmc.get_samples()["share"][-1], mode, atol=2e-3, rtol=0.0)
    closed = aeb.StochasticApproximation(1.0, latents={"share": aeb.latents.ClosedForm()})
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-3), closed, seed=0)
    with pytest.raises(aeb.ModelError, match="not conjugate"):
        aeb.MCMC(kernel, 5, 5, disable_progbar=True).run(DATA)


def global_switch(data):
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    on = pyro.sample("on", dist.Bernoulli(0.3), infer=PARALLEL)
    with pyro.plate("data", len(data), subsample_size=10) as i:
        pyro.sample("x", dist.Normal(shift * on, 1.0), obs=data[i])


def latent_below(data):
    z = pyro.sample("z", dist.Bernoulli(0.3), infer=PARALLEL)
    mean = pyro.sample("mean", dist.Normal(z, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=data)


def infinite(data):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Poisson(0.3), infer=PARALLEL)
        pyro.sample("x", dist.Normal(mean * z, 1.0), obs=data)


def unmarked_counts(data):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Poisson(0.3))
        pyro.sample("x", dist.Normal(mean * z, 1.0), obs=data)


def in_sequence(data):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "sequential"})
    with pyro.plate("data", len(data)):
        pyro.sample("x", dist.Normal(mean * z, 1.0), obs=data)


def sum_of_values(data):
    """With all values at once, the sum is over the values of one datum's z."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
    with pyro.plate("observed", len(data)):
        pyro.sample("x", dist.Normal(mean * z.sum(), 1.0), obs=data)


def order_of_axes(data):
    """The values of z become those of another axis."""
    means = pyro.sample("means", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(means[z.reshape(3)], 1.0), obs=data[:3])


def branch(data):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.5))
    mean = mean if z == 1 else -mean
    with pyro.plate("data", len(data)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=data)


def no_plate(data):
    """The axis of the data is where the values of z are."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(shift * z, 1.0), obs=data[:2])


def no_plate_of_other_length(data):
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(shift * z, 1.0), obs=data)


@pytest.mark.parametrize(
    "model, message",
    [
        (global_switch, r"\['on'\] .* scaled by different numbers.*subsample_size=None"),
        (latent_below, r"'mean' depends on a discrete site .*(?s:.*)pyro.factor\(\"part\""),
        (in_sequence, r"'z' ~ Bernoulli .* no gradient.*infer={\"enumerate\": \"parallel\"}"),
        (infinite, r"'z' ~ Poisson .* no gradient; sum it out in the model \(e.g."),
        (unmarked_counts, r"'z' ~ Poisson .* no gradient; sum it out in the model \(e.g."),
        (sum_of_values, r"at one value of the discrete sites \['z'\] is -\d.* leading axis"),
        (order_of_axes, r"fails where it runs with all values|at one value of the discrete sites"),
        (
            no_plate,
            r"log density .*at one value of the discrete sites \['z'\].*plate or in an event",
        ),
        (no_plate_of_other_length, r"fails where it runs with all values.*size.*in an event"),
        (branch, r"fails where it runs with all values .*ambiguous.* no sum, sort"),
    ],
)
def test_what_cannot_be_summed_out_is_refused(model, message):
    with pytest.raises(aeb.ModelError, match=message):
        run(model, DATA, draws=2)


def test_chains_that_step_together_are_refused():
    kernel = aeb.AEBKernel(mixture, aeb.SGLD(1e-3), seed=0)
    mcmc = aeb.MCMC(kernel, 2, 1, num_chains=2, chain_method="vectorized", disable_progbar=True)
    with pytest.raises(aeb.ModelError, match='several chains at once.*chain_method="sequential"'):
        mcmc.run(DATA)


def test_predictions_say_what_is_missing(mixture_run):
    with pytest.raises(aeb.ModelError, match=r"\['z'\] are discrete and summed out.*Predictive\("):
        PosteriorPredictive(mixture, mixture_run)(DATA)
    series = run(markov, SERIES, draws=3, warmup=0)
    with pytest.raises(aeb.ModelError, match="'x_3'.*no density for each datum.*MixtureSame"):
        aeb.to_arviz(series, log_likelihood=True)


@pytest.mark.parametrize("batch_size", [None, 25])
def test_replicated_data_are_drawn_with_their_discrete_sites(batch_size):
    """From the mixture at every draw: 30 of 50 data near -2, the others near 2."""
    mcmc = run(mixture, DATA, batch_size, draws=40, transition=aeb.SGLD(1e-3))
    found = aeb.to_arviz(mcmc, posterior_predictive=True).posterior_predictive["x"].values[0]
    assert found.shape == (40, 50)
    draws = mcmc.get_samples()
    weights, means = draws["weights"], draws["means"]
    mean = float((weights * means).sum(-1).mean())
    square = float((weights * (means.square() + 1.0)).sum(-1).mean())
    assert float(found.mean()) == pytest.approx(mean, abs=5 * (square / 2000) ** 0.5)
    assert float((found**2).mean()) == pytest.approx(square, rel=0.15)


def causes_in_batches(data):
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(DATA), subsample=data):
        a = pyro.sample("a", dist.Bernoulli(p))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.6 * a))
        pyro.sample("x", dist.Normal(0.7 * (a - 2.0 * b), 1.0), obs=data)


@pytest.mark.parametrize(
    "model, args, names",
    [
        (mixture, (DATA,), ("weights", "means")),
        (mixture, (DATA, 20), ("weights", "means")),
        (causes_in_batches, (DataLoader(DATA, 25),), ("p",)),
    ],
)
def test_log_densities_of_data_are_those_of_sums(model, args, names):
    mcmc = run(model, *args, draws=6, transition=aeb.SGLD(1e-3))
    found = aeb.to_arviz(mcmc, log_likelihood=True).log_likelihood["x"].values[0]
    by_hand = mixture_by_hand if model is mixture else two_causes_by_hand
    draws, size = mcmc.get_samples(), () if model is mixture else (torch.tensor(0.7),)
    for i in range(6):
        values = [draws[name][i] for name in names]
        expected = torch.stack([by_hand(x[None], *values, *size) for x in DATA])
        torch.testing.assert_close(torch.tensor(found[i]), expected, rtol=1e-4, atol=1e-4)


def test_what_the_errors_of_predictions_advise(mixture_run):
    samples = mixture_run.get_samples()
    drawn = pyro.infer.Predictive(mixture, samples)(DATA)
    assert drawn["z"].shape == (20, 50)

    @pyro.infer.config_enumerate
    def at_a_draw(data):
        with poutine.condition(data={n: v[-1] for n, v in samples.items()}):
            mixture(data)

    discrete = pyro.infer.infer_discrete(at_a_draw, first_available_dim=-2, temperature=0)
    z = poutine.trace(discrete).get_trace(DATA).nodes["z"]["value"]
    share = float((z == (DATA > 0).long()).float().mean())
    assert max(share, 1.0 - share) > 0.9  # components have no order


def test_a_model_is_left_as_it_is_afterwards():
    run(mixture, DATA, draws=2, warmup=0)
    assert "z" in poutine.trace(mixture).get_trace(DATA).nodes
