# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What is timed in each workload: forward and backward alone, our kernel, and others."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyro_aeb as aeb

from .peers import alone, authors, jax_peers, numpyro_hmcecs, ours, posteriors_sgmcmc, sgd, traced
from .peers.base import Peer
from .workloads import Workload


@dataclass(frozen=True)
class Row:
    """
    :param str title: as the table has it.
    :param start: makes the peer of a workload.
    :param package: which it needs.
    :param str workloads: in which it is timed.
    :param bool compiled: whether torch's compiler takes seconds for it.
    """

    title: str
    start: Callable[[Workload], Peer]
    package: str | None = None
    workloads: str = "FLMCR"
    compiled: bool = False

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


PRUNED = {"pruning": aeb.MagnitudePruning(0.9)}
THREE_POINT = {"noise": "three-point"}

ROWS: dict[str, Row] = {
    "alone": Row("forward + backward, torch", alone.start),
    "alone-compiled": Row("… compiled", alone.start_compiled, compiled=True),
    "jax": Row("forward + backward, JAX", jax_peers.start_gradient, "jax", workloads="FLMC"),
    "ours": Row("AEBKernel, as written", ours.start),
    "ours-three-point": Row(
        "… three-point noise", partial(ours.start, **THREE_POINT), workloads="FLMC"
    ),
    "ours-pruned": Row("… 90 % pruned at every step", partial(ours.start, **PRUNED)),
    "ours-traced": Row("… traced, without a compiler", ours.start_traced, workloads="FL"),
    "ours-compiled": Row("AEBKernel, compiled", partial(ours.start, compile=True), compiled=True),
    "ours-run": Row("… with a draw every 100 steps", ours.start_run, workloads="F", compiled=True),
    "ours-compiled-three-point": Row(
        "… three-point noise",
        partial(ours.start, compile=True, **THREE_POINT),
        workloads="MC",
        compiled=True,
    ),
    "ours-compiled-pruned": Row(
        "… 90 % pruned at every step",
        partial(ours.start, compile=True, **PRUNED),
        workloads="LM",
        compiled=True,
    ),
    "blackjax": Row("BlackJAX", jax_peers.start, "blackjax"),
    "blackjax-at-once": Row(
        "… rows of all batches drawn at once",
        partial(jax_peers.start, at_once=True),
        "blackjax",
        workloads="FM",
    ),
    "blackjax-sghmc": Row(
        "… SGHMC", partial(jax_peers.start, sampler="sghmc"), "blackjax", workloads="F"
    ),
    "numpyro": Row(
        "NumPyro, HMCECS, a leapfrog step", numpyro_hmcecs.start, "numpyro", workloads="F"
    ),
    "posteriors": Row("posteriors", posteriors_sgmcmc.start, "posteriors"),
    "posteriors-compiled": Row(
        "… compiled",
        partial(posteriors_sgmcmc.start, compiled=True),
        "posteriors",
        workloads="FLMC",
        compiled=True,
    ),
    "sgd": Row("torch.optim.SGD", sgd.start),
    "traced": Row("a trace a step in Pyro, priors by autograd", traced.start, workloads="FLMC"),
    "authors": Row("the authors' manner", authors.start),
    "authors-pruned": Row(
        "… 90 % pruned at every step", partial(authors.start, prune=0.9), workloads="LMCR"
    ),
}
