# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
R-hat and effective sample size, as by ArviZ, of the sampled sites only: a learned latent is a point
estimate, to which neither applies.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from pyro_aeb.diagnostics.batch_means import FALSE_ALARM
from pyro_aeb.diagnostics.findings import Finding
from pyro_aeb.diagnostics.movement import moving
from pyro_aeb.diagnostics.recorded_run import Run
from pyro_aeb.mcmc.rank_statistics import effective_size, evenly_spaced, r_hat
from pyro_aeb.mcmc.results import LEAST_DRAWS
from pyro_aeb.testing.linear import Array

MAX_R_HAT = 1.05
MIN_ESS = 100.0


def mixing_findings(run: Run, latents_settled: bool) -> list[Finding]:
    """Return findings on the draws of the sampled sites, once the latents have settled."""
    check = "draws: R-hat"
    sites = {name: _thin(values) for name, values in run.sampled.items() if values.size}
    if not sites:
        return [Finding(check, "note", "no sampled site is kept", "", "save=[...]")]
    if not latents_settled:
        return [
            Finding(
                check,
                "note",
                "not computed: the latents still drift, so the draws are of a posterior that "
                "changes, and measures of convergence mean nothing",
                "latents that have settled",
                "see the learned latents above",
            )
        ]
    if run.draws < LEAST_DRAWS:
        found, expected = f"not computed: too few draws, {run.draws}", f"{LEAST_DRAWS} of a chain"
        return [Finding(check, "note", found, expected, "run longer")]
    sites = {name: v[..., moving(v)] for name, v in sites.items() if moving(v).any()}
    if not sites:
        return [Finding(check, "note", "not computed: no coordinate moves")]
    total = run.chains * run.draws
    size = _effective_size(_by_site(effective_size, sites), total)
    if run.chains > 1:
        r_hats = _by_site(r_hat, sites)
        return [_r_hat(r_hats, _r_hat_by_chance(run, r_hats), total), size]
    found = "not computed: there is one chain, whose halves are not independent"
    return [Finding(check, "note", found, "several chains", "num_chains=4"), size]


def _thin(values: Array) -> Array:
    """Return the coordinates that are checked, shape (chains, draws, coordinates)."""
    flat = values.reshape(*values.shape[:2], -1)
    thin: Array = flat[..., evenly_spaced(flat.shape[-1])]
    return thin


def _by_site(function: Callable[[Array], Array], sites: dict[str, Array]) -> dict[str, Array]:
    """Return a function's value of every coordinate, of draws of shape (chains, draws, ...)."""
    ends = np.cumsum([values.shape[-1] for values in sites.values()])
    values = function(np.concatenate([*sites.values()], axis=-1))
    return dict(zip(sites, np.split(values, ends[:-1]), strict=True))


def _r_hat_by_chance(run: Run, r_hats: dict[str, Array]) -> float:
    """Return the R-hat that independent draws, as many as these, exceed by chance."""
    halves, length = 2 * run.chains, run.draws // 2
    tests = sum(values.size for values in r_hats.values())
    ratio = stats.f.isf(FALSE_ALARM / tests, halves - 1, halves * (length - 1))
    return float((1.0 + (ratio - 1.0) / length) ** 0.5)


def _r_hat(r_hats: dict[str, Array], by_chance: float, total: int) -> Finding:
    check = "draws: R-hat"
    largest = {name: float(np.nanmax(r, initial=-np.inf)) for name, r in r_hats.items()}
    worst = max(largest, key=lambda name: largest[name])
    values = np.concatenate([r.ravel() for r in r_hats.values()])
    if not np.isfinite(largest[worst]) and largest[worst] < 0.0:
        return Finding(check, "note", "not computed: no coordinate moves, or draws are too few")
    if largest[worst] <= MAX_R_HAT:
        return Finding(check, "good", f"at most {largest[worst]:.3f} (site {worst!r})")
    if largest[worst] <= by_chance or total < MIN_ESS:
        found = (
            f"{largest[worst]:.2f} at site {worst!r}: the run is short; of independent draws, as "
            f"few as these, up to {by_chance:.2f} is chance"
        )
        return Finding(check, "note", found, f"at most {MAX_R_HAT}", "more draws, to tell")
    return Finding(
        check,
        "warning",
        f"{largest[worst]:.2f} at site {worst!r}, and above {MAX_R_HAT} for "
        f"{100 * float(np.mean(values > MAX_R_HAT)):.0f} % of the coordinates checked: chains have "
        "not mixed",
        f"at most {MAX_R_HAT}",
        "more steps per draw or draws; for a network, whose weights can be permuted without "
        "changing a prediction, compare the chains' predictions instead",
    )


def _effective_size(sizes: dict[str, Array], total: int) -> Finding:
    check = "draws: effective sample size"
    least = {name: float(np.nanmin(size, initial=np.inf)) for name, size in sizes.items()}
    worst = min(least, key=lambda name: least[name])
    size = least[worst]
    if not np.isfinite(size):
        return Finding(check, "note", "not computed: there are too few draws")
    if size >= MIN_ESS:
        return Finding(check, "good", f"at least {size:.0f} of {total} (site {worst!r})")
    found, expected = f"{size:.0f} of {total} draws at site {worst!r}", f"at least {MIN_ESS:.0f}"
    if total < MIN_ESS:
        return Finding(check, "note", f"{found}: the run is short", expected, "more draws")
    # Few draws would all have to be independent, however far apart they are.
    apart = ", or as far apart (steps_per_draw, thinning)" if total >= 2.0 * MIN_ESS else ""
    return Finding(
        check,
        "warning",
        found,
        f"{expected}, for means to two digits of a standard deviation",
        f"{MIN_ESS / max(size, 1.0):.1f} times as many draws{apart}; or a larger step if the "
        "kinetic temperature, or the acceptance rate, allows",
    )
