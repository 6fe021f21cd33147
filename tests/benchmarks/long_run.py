# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
30,000 steps of a small model, by a process that has done nothing else before: its peak of memory
is that of the steps.

    python -m tests.benchmarks.long_run

It prints the steps, and by how many bytes the peak has grown in the last nine tenths of them.
"""

from __future__ import annotations

import resource
import sys

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_aeb as aeb

from . import timing

STEPS, STEPS_PER_DRAW = 30_000, 1000
DRAWS = STEPS // STEPS_PER_DRAW
WARM = DRAWS // 10


def model(x: Tensor, y: Tensor) -> None:
    """A small model, in batches, with a learned sigma."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(2.0, 2.0))
    prior = aeb.SSGL(0.1, 10.0, delta=0.5, sigma=sigma2.sqrt())
    beta = pyro.sample("beta", prior.expand([2]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=5) as i:
        pyro.sample("y", dist.Normal(x[i] @ beta, sigma2.sqrt()), obs=y[i])


def peak() -> int:
    """The most bytes of memory that this process has had."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def main() -> None:
    torch.manual_seed(0)
    kernel = aeb.AEBKernel(
        model,
        aeb.SGHMC(1e-4),
        aeb.StochasticApproximation(aeb.Polynomial(10.0, 1000.0, 0.7)),
        steps_per_draw=STEPS_PER_DRAW,
    )
    kernel.setup(0, torch.randn(10, 2), torch.randn(10))
    params, before = kernel.initial_params, 0
    for draw in range(DRAWS):
        if draw == WARM:
            before = peak()
        params = kernel.sample(params)
    print(kernel.chain.step, peak() - before)


if __name__ == "__main__":
    with timing.as_in_mcmc():
        main()
