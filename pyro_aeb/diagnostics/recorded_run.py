# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The arrays that a run, or a saved trace of it, has kept, as the diagnostics read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from pyro.infer import MCMC

from pyro_aeb.diagnostics.saved_trace import find_posterior, kinds, values, variables
from pyro_aeb.model.structure import rho_name
from pyro_aeb.storage.inference_data import chain_reports, steps_of_run
from pyro_aeb.storage.xarray_variables import as_array
from pyro_aeb.testing.linear import Array


class Run:
    """
    Draws and statistics of a run, as arrays with the leading axes (chains, draws).

    :ivar str transition: its ``repr``.
    :ivar pruning: the schedule of pruning; None where there is none, or for a trace.
    :ivar prunes_every: the steps between prunings; None without pruning.
    :raises TypeError: if ``mcmc`` keeps no draws, or is not a run of an AEBKernel.
    :raises RuntimeError: if the run has no draws.
    """

    def __init__(self, mcmc: MCMC, caller: str) -> None:
        self._reports = chain_reports(mcmc, caller)
        self._samples: Mapping[str, Any] = {
            n: as_array(x) for n, x in mcmc.get_samples(group_by_chain=True).items()
        }
        self.transition, self.pruning = repr(mcmc.kernel.transition), mcmc.kernel.pruning
        self.prunes_every: int | None = None if self.pruning is None else self.pruning.every
        self.roles: Mapping[str, str] = self._reports[0]["roles"]
        self._first, self.steps = steps_of_run(mcmc, self._reports[0])
        self._count()

    def _count(self) -> None:
        self.chains, self.draws = next(iter(self.stats.values())).shape[:2]

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
        for name in self._summaries:  # chain by chain: they may be large
            paths[f"mean of {name}"] = np.concatenate(
                [_mean(own[None]) for own in self._by_chain(name)]
            )
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
        return "sa_residual_rho" in self.stats

    @property
    def collapsed(self) -> list[str]:
        """The delta sites that have collapsed in some chain."""
        return sorted({site for report in self._reports for site in report.get("collapsed", [])})

    def rho(self, site: str) -> Array:
        """Return a site's inclusion probabilities, shape (chains, draws, ...), which are kept."""
        return np.stack(list(self._by_chain(rho_name(site))))

    @property
    def sparse_sites(self) -> list[str]:
        """The sites whose inclusion probabilities are kept."""
        return [site for site in self.roles if rho_name(site) in self._summaries]

    def _with_role(self, role: str) -> dict[str, Array]:
        return {
            name: values
            for name, values in self._samples.items()
            if self.roles.get(name, "draw") == role
        }

    @property
    def _summaries(self) -> list[str]:
        """The names of the kept inclusion probabilities."""
        return list(self._reports[0].get("adaptation", {}))

    def _by_chain(self, name: str) -> Iterator[Array]:
        return (as_array(report["adaptation"][name]) for report in self._reports)

    def _stack(self, group: str, name: str) -> Array:
        return np.stack([as_array(report[group][name]) for report in self._reports])


class TraceRun(Run):
    """
    The same of a saved trace.

    :raises TypeError: if it is no trace of such a run.
    :raises ValueError: if it does not say how many steps draws are apart.
    """

    def __init__(self, trace: Any, caller: str) -> None:
        self._trace, settings = trace, find_posterior(trace, caller).attrs
        if not {"weights", "steps_between_draws"} <= settings.keys():
            raise ValueError(
                f"{caller} reads traces that say how many steps draws are apart, and this one does "
                "not: it is of an older version, or was written while settings were chosen in "
                "warm-up; pass the run itself, or to_arviz(mcmc)"
            )
        self._settings = settings
        self._samples = values(trace, "posterior")
        self.transition, self.pruning = str(settings.get("transition")), None
        every = re.search(r"every=(\d+), sites=", str(settings.get("pruning")))
        self.prunes_every = int(every[1]) if every else None
        sparse = [n.removesuffix(rho_name("")) for n in self._summaries if n.endswith(rho_name(""))]
        self.roles = kinds(trace, "posterior") | dict.fromkeys(sparse, "draw")  # kept or not
        self._first = int(settings["warmup_steps"])
        self.steps = int(settings["steps_between_draws"])
        self._count()

    @cached_property
    def stats(self) -> dict[str, Array]:
        return values(self._trace, "sample_stats")

    @property
    def tuning(self) -> list[str] | None:
        return json.loads(self._settings["tuning"]) if "tuning" in self._settings else None

    @property
    def weights(self) -> int:
        return int(self._settings["weights"])

    @property
    def collapsed(self) -> list[str]:
        bounds = json.loads(self._settings.get("collapse", "{}"))
        last = {site: self._samples[site][:, -1] for site in bounds if site in self._samples}
        return sorted(
            site
            for site, (low, high) in bounds.items()
            if site in last and (last[site].min() < low or last[site].max() > high)
        )

    @property
    def _summaries(self) -> list[str]:
        return list(variables(self._trace, "adaptation"))

    def _by_chain(self, name: str) -> Iterator[Array]:
        return iter(variables(self._trace, "adaptation")[name].values)


def read_run(run: Any, caller: str) -> Run:
    """
    Return the records of a run of an AEBKernel, or of a saved trace.

    :param str caller: for error messages.
    """
    is_trace = run is not None and hasattr(getattr(run, "posterior", None), "data_vars")
    return TraceRun(run, caller) if is_trace else Run(run, caller)


def _mean(values: Array) -> Array:
    """Return the mean over all axes but chains and draws, in double precision."""
    return values.reshape(*values.shape[:2], -1).mean(-1, dtype=np.float64)
