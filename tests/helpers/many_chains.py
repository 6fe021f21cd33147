# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Draws of many chains that step together, for what takes one chain long to show."""

from __future__ import annotations

import torch
from pyro.infer import MCMC

import pyro_aeb as aeb

CHAINS = 10


def run_together(
    model, transition, draws: int, warmup: int, *args, **options
) -> dict[str, torch.Tensor]:
    """
    Return the draws of 10 chains, ``draws`` in all, in about a tenth of one chain's time. The first
    of them must begin as it does alone, under Pyro's MCMC.

    :param args: the model's.
    :param options: the kernel's.
    """

    def run(mcmc, draws, warmup, **method):
        kernel = aeb.AEBKernel(model, transition, **{"seed": 0, **options})
        run = mcmc(kernel, draws, warmup, disable_progbar=True, **method)
        run.run(*args)
        return run.get_samples()

    together = {"num_chains": CHAINS, "chain_method": "vectorized"}
    first = run(aeb.MCMC, 3, 0, **together)
    for name, alone in run(MCMC, 3, 0).items():
        torch.testing.assert_close(first[name][:3], alone, rtol=1e-3, atol=1e-4)
    return run(aeb.MCMC, draws // CHAINS, warmup, **together)
