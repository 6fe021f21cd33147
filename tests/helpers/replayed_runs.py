# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of Pyro's MCMC with given draws, whose predictions are known."""

from __future__ import annotations

import warnings

import pytest
from pyro.infer import MCMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor


class Replay(MCMCKernel):
    """A kernel with given draws: site name to tensor of shape (all draws, ...)."""

    model = None
    transforms: dict = {}

    def __init__(self, draws: dict[str, Tensor]) -> None:
        self._draws = draws
        self._next = 0

    def setup(self, warmup_steps, *args, **kwargs) -> None:
        self.initial_params = {name: values[0] for name, values in self._draws.items()}

    def sample(self, params):
        self._next += 1
        return {name: values[self._next - 1] for name, values in self._draws.items()}

    @property
    def initial_params(self):
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params) -> None:
        self._initial_params = params


def replay_draws(chains: int = 1, **draws: Tensor) -> MCMC:
    """Return a finished run with draws of shape (chains * draws, ...), chain after chain."""
    count = len(next(iter(draws.values())))
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.filterwarnings("ignore", message="num_chains")
        patch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 2)  # sequential chains
        mcmc = MCMC(Replay(draws), count // chains, 0, num_chains=chains, disable_progbar=True)
    mcmc.run()
    return mcmc
