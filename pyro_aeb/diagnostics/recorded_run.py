# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A finished or interrupted run as the diagnostics read it: what it kept, chain by chain."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from pyro.infer import MCMC

from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.model.structure import rho_name
from pyro_aeb.storage.inference_data import chain_reports
from pyro_aeb.storage.xarray_variables import as_array

Array = np.ndarray[Any, np.dtype[Any]]


class Run:
    """
    What a run kept, as arrays with the leading axes (chains, draws).

    :param MCMC mcmc: :class:`pyro.infer.MCMC` or :class:`pyro_aeb.MCMC`, after its ``run()``.
    :param str reader: who asks, for errors.
    :raises TypeError: if it keeps no draws, or is no run of an AEBKernel.
    :raises RuntimeError: if there are no draws.
    """

    def __init__(self, mcmc: MCMC, reader: str) -> None:
        self._reports = chain_reports(mcmc, reader)
        self._samples = mcmc.get_samples(group_by_chain=True)
        self.kernel: AEBKernel = mcmc.kernel
        self.roles: dict[str, str] = self._reports[0]["roles"]
        self.chains = len(self._reports)
        self.draws = next(iter(self.stats.values())).shape[1]
        self._warmup: int = mcmc.warmup_steps
        self.steps = self.kernel.steps_per_draw * getattr(mcmc, "thinning", 1)

    def __str__(self) -> str:
        chains = "1 chain" if self.chains == 1 else f"{self.chains} chains"
        return f"{chains} of {self.draws} draws, {self.steps} step(s) apart"

    @property
    def steps_of_draws(self) -> Array:
        """The step after which every draw was taken, shape (draws,)."""
        first = self.kernel.steps_per_draw * self._warmup
        return first + self.steps * np.arange(1, self.draws + 1)

    @cached_property
    def stats(self) -> dict[str, Array]:
        """The statistics of every draw, name to array of shape (chains, draws)."""
        names = self._reports[0]["sample_stats"]
        return {name: self._stacked("sample_stats", name) for name in names}

    @cached_property
    def sampled(self) -> dict[str, Array]:
        """Draws of the sites that the chain samples."""
        return self._of_role("draw")

    @cached_property
    def learned(self) -> dict[str, Array]:
        """
        The paths of the learned latents, of shape (chains, draws): every delta and sigma squared
        that is kept, and the mean over its weights of every site's rho that is.
        """
        learned = self._of_role("stochastic approximation")
        paths = {name: _mean(values) for name, values in learned.items()}
        for name in self._reports[0].get("adaptation", {}):  # chain by chain: they may be large
            own = [_mean(as_array(report["adaptation"][name])[None]) for report in self._reports]
            paths[f"mean of {name}"] = np.concatenate(own)
        return paths

    @property
    def weights(self) -> int:
        """How many weights the chain samples."""
        return int(self._reports[0]["weights"])

    @property
    def omega(self) -> Array:
        """The weight of the stochastic approximation at every draw, shape (chains, draws)."""
        return self.stats["sa_weight"]

    @property
    def learns(self) -> bool:
        """Whether there are latents that are learned, kept or not."""
        return "sa_residual_rho" in self._reports[0]["sample_stats"]

    @property
    def collapsed(self) -> list[str]:
        """Delta sites that have collapsed in some chain."""
        return sorted({site for own in self._reports for site in own.get("collapsed", [])})

    def rho(self, site: str) -> Array | None:
        """A site's inclusion probabilities, shape (chains, draws, ...); None if not kept."""
        return self._stacked("adaptation", rho_name(site)) if site in self.sparse_sites else None

    @property
    def sparse_sites(self) -> list[str]:
        """The sites whose inclusion probabilities are kept."""
        kept = self._reports[0].get("adaptation", {})
        return [site for site in self.roles if rho_name(site) in kept]

    def _of_role(self, role: str) -> dict[str, Array]:
        return {
            name: as_array(values)
            for name, values in self._samples.items()
            if self.roles.get(name, "draw") == role
        }

    def _stacked(self, group: str, name: str) -> Array:
        return np.stack([as_array(own[group][name]) for own in self._reports])


def _mean(values: Array) -> Array:
    """Over all axes but chains and draws, in double precision."""
    return values.reshape(*values.shape[:2], -1).mean(-1, dtype=np.float64)
