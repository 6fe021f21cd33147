# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The arrays that a finished or interrupted run has kept, as the diagnostics read them."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from pyro.infer import MCMC

from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.model.structure import rho_name
from pyro_aeb.storage.inference_data import chain_reports
from pyro_aeb.storage.xarray_variables import as_array
from pyro_aeb.testing.linear import Array


class Run:
    """
    Draws and statistics of a run, as arrays with the leading axes (chains, draws).

    :raises TypeError: if ``mcmc`` keeps no draws, or is not a run of an AEBKernel.
    :raises RuntimeError: if the run has no draws.
    """

    def __init__(self, mcmc: MCMC, caller: str) -> None:
        self._reports = chain_reports(mcmc, caller)
        self._samples = mcmc.get_samples(group_by_chain=True)
        self.kernel: AEBKernel = mcmc.kernel
        self.roles: dict[str, str] = self._reports[0]["roles"]
        self.chains = len(self._reports)
        self.draws = next(iter(self.stats.values())).shape[1]
        # Of a run that was tuned, they are those of its first chain.
        report, given = self._reports[0], self.kernel.steps_per_draw
        spacing: int = report["steps_per_draw"] if isinstance(given, str) else given
        self._first: int = report.get("warmup_steps", spacing * mcmc.warmup_steps)
        self.steps = spacing * getattr(mcmc, "thinning", 1)

    def __str__(self) -> str:
        chains = "1 chain" if self.chains == 1 else f"{self.chains} chains"
        return f"{chains} of {self.draws} draws, {self.steps} step(s) apart"

    @property
    def steps_of_draws(self) -> Array:
        """The number of the step of every draw, shape (draws,)."""
        return self._first + self.steps * np.arange(1, self.draws + 1)

    @cached_property
    def stats(self) -> dict[str, Array]:
        """The statistics of every draw, name to array of shape (chains, draws)."""
        names = self._reports[0]["sample_stats"]
        return {name: self._stack("sample_stats", name) for name in names}

    @cached_property
    def sampled(self) -> dict[str, Array]:
        """Draws of the sampled sites."""
        return self._with_role("draw")

    @cached_property
    def learned(self) -> dict[str, Array]:
        """
        The paths of the learned latents, shape (chains, draws): every delta and sigma squared that
        is kept, and the mean of every site's rho that is kept.
        """
        learned = self._with_role("stochastic approximation")
        paths = {name: _mean(values) for name, values in learned.items()}
        for name in self._reports[0].get("adaptation", {}):  # chain by chain: they may be large
            means = [_mean(as_array(report["adaptation"][name])[None]) for report in self._reports]
            paths[f"mean of {name}"] = np.concatenate(means)
        return paths

    @property
    def tuning(self) -> list[str] | None:
        """The warnings of tuning, in all chains; None where nothing was tuned."""
        if "tuning" not in self._reports[0]:
            return None
        return list(dict.fromkeys(m for report in self._reports for m in report["tuning"]))

    @property
    def weights(self) -> int:
        """The number of sampled weights."""
        return int(self._reports[0]["weights"])

    @property
    def omega(self) -> Array:
        """Omega at every draw, shape (chains, draws)."""
        return self.stats["sa_weight"]

    @property
    def omega_sums(self) -> Array:
        """The sum of omega over the steps of every draw, shape (chains, draws)."""
        return self.steps * self.omega.astype(np.float64)

    @property
    def learns(self) -> bool:
        """Whether latents are learned, kept or not."""
        return "sa_residual_rho" in self._reports[0]["sample_stats"]

    @property
    def collapsed(self) -> list[str]:
        """The delta sites that have collapsed in some chain."""
        return sorted({site for report in self._reports for site in report.get("collapsed", [])})

    def rho(self, site: str) -> Array:
        """Return a site's inclusion probabilities, shape (chains, draws, ...), which are kept."""
        return self._stack("adaptation", rho_name(site))

    @property
    def sparse_sites(self) -> list[str]:
        """The sites whose inclusion probabilities are kept."""
        kept = self._reports[0].get("adaptation", {})
        return [site for site in self.roles if rho_name(site) in kept]

    def _with_role(self, role: str) -> dict[str, Array]:
        return {
            name: as_array(values)
            for name, values in self._samples.items()
            if self.roles.get(name, "draw") == role
        }

    def _stack(self, group: str, name: str) -> Array:
        return np.stack([as_array(report[group][name]) for report in self._reports])


def _mean(values: Array) -> Array:
    """Return the mean over all axes but chains and draws, in double precision."""
    return values.reshape(*values.shape[:2], -1).mean(-1, dtype=np.float64)
