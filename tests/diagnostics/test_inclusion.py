# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Inclusion probabilities of traces that are known to the last digit, and of short runs."""

import enumeration
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from enumeration import enumerate_models, tensors
from refusals import raises_with
from small_runs import make_kernel, run_mcmc
from traces import make_trace

import pyro_aeb as aeb
from pyro_aeb import priors
from pyro_aeb.diagnostics import plot_inclusion

RNG = np.random.default_rng(0)
GAMMA = RNG.random((2, 40, 3)) < [0.9, 0.5, 0.1]
PROBABILITY = RNG.beta(2.0, 2.0, size=(2, 40, 3))


def error(series):
    """Batch means written out: ten batches of four draws in each of two chains."""
    chains, draws = series.shape
    batches = [[series[c, 4 * b : 4 * b + 4].mean() for b in range(10)] for c in range(chains)]
    within = np.mean([np.var(own, ddof=1) / 10 for own in batches])
    between = (series[0].mean() - series[1].mean()) ** 2 / 2
    return np.sqrt(max(within, between) / chains)


@pytest.mark.parametrize("tree", [False, True])
def test_the_mean_probability_with_its_error(tree):
    found = aeb.inclusion(make_trace(GAMMA, PROBABILITY, tree=tree))
    own = found["beta"]
    assert found.estimate == "probabilities" and list(found) == ["beta"]
    np.testing.assert_allclose(own.probability, PROBABILITY.mean((0, 1)))
    np.testing.assert_allclose(own.by_chain, PROBABILITY.mean(1))
    np.testing.assert_array_equal(own.lowest, PROBABILITY.mean(1).min(0))
    np.testing.assert_array_equal(own.highest, PROBABILITY.mean(1).max(0))
    expected = [error(PROBABILITY[..., j]) for j in range(3)]
    np.testing.assert_allclose(own.error, expected)
    changes = (GAMMA[:, 1:] != GAMMA[:, :-1]).sum((0, 1))
    np.testing.assert_array_equal(own.flips, changes)


def test_rejected_flips_make_it_the_mean_of_gamma():
    gamma = GAMMA.copy()
    gamma[..., 0] = True
    found = aeb.inclusion(make_trace(gamma, PROBABILITY, accepted=49.0))
    assert found.estimate == "draws"
    np.testing.assert_allclose(found["beta"].probability, gamma.mean((0, 1)))
    np.testing.assert_allclose(found["beta"].error[1], error(gamma[..., 1].astype(float)))
    assert np.isnan(found["beta"].error[0])  # of a gamma that never moved nothing is known
    assert "1.000      -" in repr(found)


def test_chains_that_disagree_have_the_error_of_their_means():
    probability = np.stack([np.full((40, 3), 0.1), np.full((40, 3), 0.9)])
    found = aeb.inclusion(make_trace(GAMMA, probability))
    np.testing.assert_allclose(found["beta"].error, 0.4)
    assert "chains differ most in beta[0]: 0.100 to 0.900" in repr(found)


def test_too_few_draws_have_no_error():
    found = aeb.inclusion(make_trace(GAMMA[:, :19], PROBABILITY[:, :19]))
    assert np.isnan(found["beta"].error).all()


def test_a_group_is_one_row_and_all_of_its_weights():
    wide = [x.repeat(2, -1).reshape(2, 40, 3, 2) for x in (GAMMA, PROBABILITY)]
    found = aeb.inclusion(make_trace(*wide, group=2, coords=["a", "b", "c"]))
    assert found["beta"].probability.shape == found["beta"].flips.shape == (3, 2)
    np.testing.assert_allclose(found["beta"].probability[:, 1], PROBABILITY.mean((0, 1)))
    assert repr(found).count("beta[") == 4 and "beta[c] " in repr(found)
    np.testing.assert_array_equal(found.by_unit("probability"), found["beta"].probability[:, 0])


def test_a_table_has_the_largest_first_and_not_all():
    probability = np.linspace(0.0, 1.0, 30) + np.zeros((1, 40, 30))
    lines = repr(aeb.inclusion(make_trace(probability > 0.5, probability))).splitlines()
    assert lines[0] == "inclusion probabilities, 1 chain of 40 draws, Gibbs(every=10, flips=True)"
    assert lines[2].split()[:2] == ["beta[29]", "1.000"] and len(lines) == 23
    assert lines[-1] == "10 more, of P(in) at most 0.310"


def test_what_has_no_draws_of_gamma():
    mcmc = run_mcmc(draws=10, warmup=5, chains=1)
    text = ["beta_rho is the running average of (4)", "no inclusion probability", "scans=1"]
    for function in (aeb.inclusion, aeb.select, aeb.models, aeb.intervals):
        with raises_with("this run is by stochastic approximation", *text, error=ValueError):
            function(mcmc)
    with raises_with("stochastic approximation", *text, error=ValueError):
        aeb.inclusion(aeb.to_arviz(mcmc))
    with raises_with("the run has kept none", "aeb.Gibbs()", error=ValueError):
        aeb.inclusion(xarray.DataTree.from_dict({"posterior": xarray.Dataset({"beta": 1.0})}))
    with raises_with("takes a run", "or a trace", "found dict", error=TypeError):
        aeb.inclusion({})
    with raises_with("no beta_gamma", "save=", error=ValueError):
        aeb.models(make_trace(None, PROBABILITY))
    assert aeb.inclusion(make_trace(None, PROBABILITY))["beta"].flips is None


def test_a_plot_has_errors_and_chains():
    trace = make_trace(GAMMA, PROBABILITY)
    (axes,) = plot_inclusion(trace).axes
    bars = axes.containers[0]
    own = aeb.inclusion(trace)["beta"]
    np.testing.assert_allclose(bars[0].get_ydata(), own.probability)
    (segments,) = (part.get_segments() for part in bars[2])
    np.testing.assert_allclose([s[1, 1] - s[0, 1] for s in segments], 4.0 * own.error)
    dots = [line.get_ydata() for line in axes.lines if line.get_marker() == "."]
    np.testing.assert_allclose(dots, own.by_chain)
    matrix = [x[..., None].repeat(2, -1) for x in (GAMMA, PROBABILITY)]
    image = plot_inclusion(aeb.inclusion(make_trace(*matrix))).axes[0].images[0]
    np.testing.assert_allclose(image.get_array()[:, 1], PROBABILITY.mean((0, 1)))


# Runs


def run(adaptation, draws=40, **options):
    torch.set_default_dtype(torch.float64)
    kernel = aeb.AEBKernel(enumeration.model, aeb.SGLD(2e-4), adaptation, seed=1, steps_per_draw=4)
    options = {"num_chains": 2, "disable_progbar": True, **options}
    mcmc = aeb.MCMC(kernel, draws, 10, **options)
    mcmc.run(*tensors())
    return mcmc


def test_a_run_by_gibbs_against_the_sum_over_all_models(tmp_path):
    models, weights = enumerate_models()
    mcmc = run(aeb.Gibbs(every=4), trace=tmp_path / "run.zarr")
    found = aeb.inclusion(mcmc)["beta"]
    assert (np.abs(found.probability - weights @ models) < 5.0 * found.error + 1e-3).all()
    assert (found.flips > 0).all()
    trace, idata = aeb.open_trace(tmp_path / "run.zarr"), aeb.to_arviz(mcmc)
    for saved in (trace, idata):
        again = aeb.inclusion(saved)["beta"]
        np.testing.assert_array_equal(again.probability, found.probability)
        np.testing.assert_array_equal(again.flips, found.flips)
        kinds = {name: x.attrs["kind"] for name, x in saved.adaptation.data_vars.items()}
        assert kinds == {"beta_rho": "probability", "beta_gamma": "draw"}
    assert aeb.models(trace).visited == aeb.models(mcmc).visited
    assert repr(aeb.intervals(trace)) == repr(aeb.intervals(mcmc))


def test_groups_are_known_to_a_trace():
    def model(x, y):
        pairs = priors.Group(aeb.SSGL(0.1, 1.0, 0.3, 1.0).expand([2, 2]))
        beta = pyro.sample("beta", pairs.to_event(1))
        pyro.sample("y", dist.Normal(x @ beta.flatten(), 1.0).to_event(1), obs=y)

    torch.set_default_dtype(torch.float64)
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-4), aeb.Gibbs(every=2), seed=0)
    mcmc = aeb.MCMC(kernel, 4, 0, disable_progbar=True)
    mcmc.run(*tensors())
    for source in (mcmc, aeb.to_arviz(mcmc)):
        found = aeb.inclusion(source)
        assert found.draws.names == ["beta[0]", "beta[1]"]
        assert aeb.models(source).sizes.shape[0] <= 3


def test_scans_of_a_run_by_stochastic_approximation():
    """Rho of this run is below 0.1 for weights whose probabilities are 0.76 and 0.47."""
    models, weights = enumerate_models()
    mcmc = run(aeb.StochasticApproximation(aeb.Polynomial(1.0, 100.0, 0.7)))
    before = mcmc.kernel.chain.state.position.clone()
    one, three = (
        aeb.inclusion(mcmc, scans=scans, draws=20)["beta"].probability for scans in (1, 3)
    )
    rho = np.mean([d["adaptation"]["beta_rho"].numpy() for d in mcmc._diagnostics], (0, 1))
    rms = [np.sqrt(np.mean((p - weights @ models) ** 2)) for p in (rho, one, three)]
    assert rms[0] > 0.3 and max(rms[1:]) < 0.5 * rms[0]
    assert torch.equal(mcmc.kernel.chain.state.position, before)
    selection = aeb.select(aeb.inclusion(mcmc, scans=1, draws=20))
    assert selection.median["beta"].shape == (4,)
    with raises_with("inclusion(scans=1) runs the model and takes a run", error=TypeError):
        aeb.inclusion(aeb.to_arviz(mcmc), scans=1)
    with raises_with("scans is -1, expected an integer of at least 1", error=ValueError):
        aeb.inclusion(mcmc, scans=-1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"adaptation": aeb.Gibbs(every=5)}, "gammas are drawn in the run itself"),
        ({"inverse_temperature": 2.0}, "the draws are at the inverse temperature 2"),
        ({"pruning": aeb.MagnitudePruning(0.5)}, "pruned weights are no draws"),
        ({"adaptation": None}, "no latents of a spike-and-slab prior are learned"),
    ],
)
def test_scans_that_are_refused(options, reason):
    mcmc = run_mcmc(make_kernel(**options), draws=2, warmup=0, chains=1)
    with raises_with("scans draw gamma given all data", reason, error=ValueError):
        aeb.inclusion(mcmc, scans=1)
