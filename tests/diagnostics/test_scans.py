# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The finding on flips that are rejected."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import pyro_aeb as aeb
from pyro_aeb import transitions
from pyro_aeb.diagnostics.scans import scans_finding

RNG = np.random.default_rng(11)
X = RNG.standard_normal((100, 2))
Y = torch.from_numpy(RNG.poisson(np.exp(X @ [1.3, 0.18]))).float()
X = torch.from_numpy(X).float()


def counts(X, y=None):
    """A strong effect, where the curvature is ten times that at zero, and one in doubt."""
    beta = pyro.sample("beta", aeb.SSGL(0.002, 4.0, 0.5, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Poisson((X @ beta).exp()), obs=y)


def check_run(warmup):
    transition = transitions.HMC(2e-5, leapfrogs=2)
    kernel = aeb.AEBKernel(counts, transition, aeb.Gibbs(every=2), seed=3, steps_per_draw=2)
    mcmc = aeb.MCMC(
        kernel, 100, warmup, num_chains=2, chain_method="vectorized", disable_progbar=True
    )
    mcmc.run(X, Y)
    return aeb.check(mcmc, quiet=True)["latents: drawn in scans"]


def test_flips_that_are_all_rejected_and_the_cure():
    """Without warm-up the curvature stays that at zero; with it, that where the chain is."""
    stuck = check_run(0)
    assert stuck.severity == "warning"
    assert "in chain 0, 1 nearly all flips are rejected" in stuck.found
    assert "twice the warm-up" in stuck.cure and "Gibbs(flips=False)" in stuck.cure
    assert check_run(20).severity == "good"


class Counted:
    """A run with flips and sigmas that are counted: one chain is stuck, with a few or many."""

    def __init__(self, proposed, accepted):
        paths = {"flips_proposed": proposed, "flips_accepted": accepted}
        ends = {name: np.array([[5.0, 5.0 + a], [3.0, 53.0]]) for name, a in paths.items()}
        self.stats = {**ends, "sigmas_proposed": 0 * ends["flips_proposed"]}
        self.stats["sigmas_accepted"] = self.stats["sigmas_proposed"]


def test_one_chain_that_is_stuck_among_others_and_after_warm_up_alone():
    assert scans_finding(Counted(9, 0)).severity == "good"  # too few to tell
    found = scans_finding(Counted(40, 4))
    assert found.severity == "warning" and "54 of 90 flips" in found.found
    assert "in chain 0 nearly all" in found.found
    assert scans_finding(Counted(40, 30)).severity == "good"
