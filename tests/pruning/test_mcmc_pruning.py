# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Pruning in a run of ``pyro.infer.MCMC``: its draws and their statistics."""

from __future__ import annotations

import pytest
import torch
from models import dense_regression, sparse_layers, sparse_regression
from pyro_runs import (
    X,
    Y,
    assert_same_draws,
    make_kernel,
    make_parallel_mcmc,
    make_pyro_mcmc,
    make_sequential_mcmc,
    samples_by_chain,
)
from refusals import raises_with

import pyro_aeb as aeb

SGHMC = {"transition": aeb.SGHMC(1e-4, friction=0.2)}
LAYERS = ("w0", "w1")


def layers_kernel(pruning, transition=None, **options) -> aeb.AEBKernel:
    return aeb.AEBKernel(
        sparse_layers,
        transition or aeb.SGLD(1e-4),
        **{"adaptation": aeb.StochasticApproximation(0.1), "pruning": pruning, **options},
    )


def run_mcmc(pruning, transition=None, draws=8, make=make_pyro_mcmc, **options):
    made = make(layers_kernel(pruning, transition, **options), draws=draws, warmup=2)
    made.run(X, Y)
    return made


def share_of_zeros(mcmc) -> torch.Tensor:
    """Of all weights, draw by draw."""
    draws = mcmc.get_samples()
    weights = torch.cat([draws[name].flatten(1) for name in LAYERS], dim=1)
    return (weights == 0).float().mean(1)


def recorded_sparsity(mcmc) -> torch.Tensor:
    return torch.as_tensor(aeb.to_arviz(mcmc).sample_stats["sparsity"].values)[0]


@pytest.mark.parametrize("transition", [aeb.SGLD(1e-4), aeb.SGHMC(1e-4)], ids=["SGLD", "SGHMC"])
@pytest.mark.parametrize("kind", [aeb.MagnitudePruning, aeb.ProbabilityPruning])
def test_every_draw_has_the_zeros_that_the_schedule_asks_for(kind, transition):
    schedule = aeb.PruningSchedule(target=0.7, damping=0.9, period=1)
    made = run_mcmc(kind(schedule), transition)
    size = sum(made.get_samples()[name][0].numel() for name in LAYERS)
    # One step a draw, the first two of warm-up.
    expected = [round(0.7 * (1 - 0.9**k) * size) / size for k in range(3, 11)]
    torch.testing.assert_close(share_of_zeros(made), torch.tensor(expected))
    torch.testing.assert_close(recorded_sparsity(made), torch.tensor(expected))


def test_pruned_weights_grow_back_unless_frozen():
    free, frozen = (run_mcmc(aeb.MagnitudePruning(0.5, freeze=f), **SGHMC) for f in (False, True))
    masks = [made.get_samples()["w0"] == 0 for made in (free, frozen)]
    assert (masks[0] != masks[0][0]).any()
    assert (masks[1] == masks[1][0]).all()


def test_frozen_weights_have_no_momentum():
    made = run_mcmc(aeb.MagnitudePruning(0.5, freeze=True), **SGHMC)
    state = made.kernel.chain.state
    assert torch.equal(state.momentum == 0, state.position == 0) and (state.position == 0).any()


def test_between_pruning_steps_weights_are_free():
    made = run_mcmc(
        aeb.MagnitudePruning(0.5, every=5), draws=8
    )  # steps 3 to 10: pruned at 5 and 10
    zeros = share_of_zeros(made)
    assert (zeros > 0).tolist() == [k in (5, 10) for k in range(3, 11)]


def test_latents_see_the_pruned_weights():
    """rho of a weight at zero is that of the spike: (4) is computed before, so a step later."""
    made = run_mcmc(
        aeb.MagnitudePruning(0.9, freeze=True), adaptation=aeb.StochasticApproximation(1.0)
    )
    chain = made.kernel.chain
    (rule, latents) = (chain.posterior.adaptation.spike_and_slab, chain.ssgl)
    zero = chain.posterior.structure.select_sparse(chain.state.position) == 0
    assert rule.wide_probability(latents)[zero].max() < 0.5


def test_pruning_leaves_the_rest_of_the_chain_alone():
    """A share of zero is no pruning, bit by bit."""
    none = run_mcmc(None, seed=1)
    assert_same_draws(run_mcmc(aeb.MagnitudePruning(0.0), seed=1).get_samples(), none.get_samples())


def test_chains_prune_each_on_their_own():
    chains = run_mcmc(aeb.MagnitudePruning(0.5, freeze=True), make=make_sequential_mcmc, seed=3)
    assert_same_draws(
        samples_by_chain(chains),
        samples_by_chain(
            run_mcmc(aeb.MagnitudePruning(0.5, freeze=True), make=make_parallel_mcmc, seed=3)
        ),
    )
    masks = chains.get_samples(group_by_chain=True)["w0"] == 0
    assert (masks[0, -1] != masks[1, -1]).any()


def test_whole_rows():
    rows = run_mcmc(aeb.UnitPruning(0.5)).get_samples()["w0"] == 0
    assert (rows.all(2) == rows.any(2)).all() and rows.any()


def test_without_adaptation_the_named_sites_are_pruned():
    made = make_pyro_mcmc(
        make_kernel(dense_regression, adaptation=None, pruning=aeb.MagnitudePruning(0.3, sites="w"))
    )
    made.run(X, Y)
    assert ((made.get_samples()["w"] == 0).sum(1) == 1).all()  # of three
    with raises_with("nothing to prune", "SSGL", "sites"):
        make_pyro_mcmc(
            make_kernel(dense_regression, adaptation=None, pruning=aeb.MagnitudePruning(0.3))
        ).run(X, Y)


def test_a_share_that_cannot_be_reached_is_an_error_at_the_start():
    kernel = make_kernel(sparse_regression, pruning=aeb.MagnitudePruning(1.0))
    make_pyro_mcmc(kernel).run(X, Y)  # all of them can
    with raises_with("asks for", "prunable"):
        run_mcmc(aeb.MagnitudePruning(0.9, sites=["w0"]))


@pytest.mark.parametrize("pruning", [0.9, aeb.MagnitudePruning, "magnitude"], ids=repr)
def test_an_option_that_is_no_pruning(pruning):
    with raises_with("pruning is", "MagnitudePruning(sparsity=...)", error=TypeError):
        make_kernel(pruning=pruning)
