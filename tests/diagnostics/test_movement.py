# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``aeb.check`` of chains that do not move, only change sides, refuse steps, or are short."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_runs import gaussian, make_kernel, run_mcmc

import pyro_aeb as aeb
from pyro_aeb.diagnostics.movement import _stuck_chains
from pyro_aeb.transitions import HMC

STUCK, R_HAT, ESS = "draws: movement", "draws: R-hat", "draws: effective sample size"
ALTERNATION, ACCEPTANCE = "draws: alternation", "acceptance"
CHECKS_OF_MOVEMENT = {STUCK, ALTERNATION}


def check_run(model, transition, **options):
    kernel = make_kernel(model, transition, adaptation=None, steps_per_draw=1)
    options = {"args": (), "draws": 120, "warmup": 20, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return aeb.check(run_mcmc(kernel, **options), quiet=True)


def logistic():
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    y = (x @ torch.tensor([1.0, 2.0, 3.0]) > 0.0).float()
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", 2000):
        pyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


@pytest.mark.parametrize("chains", [1, 4])
def test_a_step_too_large_for_any_to_be_accepted(chains):
    verdict = check_run(logistic, HMC(0.1, 10), chains=chains)
    assert not verdict.ok
    stuck, acceptance = verdict[STUCK], verdict[ACCEPTANCE]
    assert stuck.severity == acceptance.severity == "warning"
    assert stuck.found.startswith("no draw differs from the first in 3 of 3 coordinates of site")
    assert ("in chains 0, 1, 2, 3" in stuck.found) == (chains == 4)
    assert "smaller step_size" in stuck.cure and "smaller step_size" in acceptance.cure
    assert verdict[R_HAT].found == "not computed: no coordinate moves"
    assert "inf" not in repr(verdict) and "larger step" not in repr(verdict)
    with pytest.raises(KeyError):
        verdict[ESS]


def test_steps_lost_in_rounding():
    def far():
        pyro.sample("w", dist.Normal(1e6, 1.0))

    start = {"w": torch.tensor(1e6)}
    finding = check_run(far, aeb.SGLD(1e-8), chains=1, initial_params=start)[STUCK]
    assert finding.severity == "warning" and "float64" in finding.cure


@pytest.mark.parametrize(
    "eta, severity", [(1e-4, "note"), (0.3, "good"), (3.7 / 4, "warning")], ids=str
)
def test_acceptance(eta, severity):
    # Twenty weights of curvature 4, so eta is stable below 1.
    finding = check_run(lambda: gaussian(20), HMC(eta, 3))[ACCEPTANCE]
    assert finding.severity == severity, finding
    assert ("smaller step_size" in finding.cure) == (severity == "warning")


def test_draws_that_change_sides():
    class HalfTurn(aeb.SGLD):
        """The weights go to the other side of the mean, and hardly move beside."""

        def step(self, state, gradient, noise, numbers):
            return state._replace(position=state.position + gradient / 2.0 + 0.05 * noise)

    verdict = check_run(lambda: gaussian(1), HalfTurn(0.1), chains=1)
    assert verdict[ALTERNATION].severity == "warning"
    assert "autocorrelation -" in verdict[ALTERNATION].found
    assert verdict[ESS].severity == "good"  # of means, which is why it does not tell


def test_constants_of_a_support_and_pruned_weights_are_not_stuck():
    def correlated():
        pyro.sample("L", dist.LKJCholesky(3, 2.0))

    verdict = check_run(correlated, HMC(0.05, 5))
    assert not CHECKS_OF_MOVEMENT & {finding.check for finding in verdict}
    pruning = aeb.MagnitudePruning(0.5, freeze=True, sites="w")
    kernel = make_kernel(lambda: gaussian(20), aeb.SGLD(0.01), adaptation=None, pruning=pruning)
    verdict = aeb.check(run_mcmc(kernel, draws=60, args=()), quiet=True)
    assert not CHECKS_OF_MOVEMENT & {finding.check for finding in verdict}


def test_one_chain_of_several_that_is_stuck():
    draws = torch.randn(3, 20, 2).numpy()
    draws[1] = 1.0
    assert _stuck_chains(draws, False).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    draws[:, :, 1] = 1.0  # the same in every chain while the other moves: of the support
    assert _stuck_chains(draws, False).tolist() == [[False] * 2, [True, False], [False] * 2]
    draws[:, :, :] = 1.0
    assert _stuck_chains(draws, False).all()
    draws[:, :, :] = 0.0
    assert _stuck_chains(draws, False).all() and not _stuck_chains(draws, True).any()


@pytest.mark.parametrize("draws, chains", [(5, 1), (8, 2), (20, 2), (20, 4)])
def test_a_short_run_is_called_short(draws, chains):
    eta = (math.pi / 2 / 0.5**-1 / 5) ** 2  # a quarter of the period
    verdict = check_run(lambda: gaussian(200), HMC(eta, 5), draws=draws, chains=chains)
    assert verdict.ok, verdict
    if draws * chains < 100:
        assert "the run is short" in verdict[ESS].found and verdict[ESS].cure == "more draws"
    if draws < 10:
        assert "too few" in verdict[ACCEPTANCE].found
