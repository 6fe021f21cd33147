# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
R-hat and effective sample size, by ArviZ, of the sampled sites only: a learned latent is a point
estimate, to which neither applies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_aeb.diagnostics.findings import Finding
from pyro_aeb.diagnostics.recorded_run import Run
from pyro_aeb.testing.linear import Array

MAX_COORDINATES = 200
"""Number of coordinates of a site that are checked, evenly spaced: ArviZ takes about 1 ms each."""

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
    if run.draws < 4:
        return [Finding(check, "note", f"not computed: {run.draws} draws are too few")]
    size = _effective_size(sites, compute_by_arviz("ess", sites))
    if run.chains > 1:
        return [_r_hat(compute_by_arviz("rhat", sites)), size]
    found = "not computed: there is one chain, whose halves are not independent"
    return [Finding(check, "note", found, "several chains", "num_chains=4"), size]


def _thin(values: Array) -> Array:
    """Return at most :data:`MAX_COORDINATES` coordinates, shape (chains, draws, coordinates)."""
    flat = values.reshape(*values.shape[:2], -1)
    count = flat.shape[-1]
    if count <= MAX_COORDINATES:
        return flat
    return flat[..., np.linspace(0, count - 1, MAX_COORDINATES).astype(int)]


def compute_by_arviz(function: str, sites: dict[str, Array]) -> dict[str, Array]:
    """
    Compute ``arviz.rhat`` or ``arviz.ess`` of draws of shape (chains, draws, coordinates), for
    every coordinate.
    """
    import arviz  # imported on use: it takes as long as Pyro
    import xarray

    data = xarray.Dataset(
        {f"v{i}": (("chain", "draw", f"d{i}"), draws) for i, draws in enumerate(sites.values())}
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # a coordinate that does not move
        computed: Any = getattr(arviz, function)(data)
    return {name: np.asarray(computed[f"v{i}"]) for i, name in enumerate(sites)}


def _r_hat(r_hats: dict[str, Array]) -> Finding:
    check = "draws: R-hat"
    largest = {name: float(np.nanmax(r, initial=-np.inf)) for name, r in r_hats.items()}
    worst = max(largest, key=lambda name: largest[name])
    share = float(np.mean(np.concatenate([r.ravel() for r in r_hats.values()]) > MAX_R_HAT))
    if largest[worst] <= MAX_R_HAT:
        return Finding(check, "good", f"at most {largest[worst]:.3f} (site {worst!r})")
    return Finding(
        check,
        "warning",
        f"{largest[worst]:.2f} at site {worst!r}, and above {MAX_R_HAT} for {100 * share:.0f} % of "
        "the coordinates checked: chains have not mixed",
        f"at most {MAX_R_HAT}",
        "more steps per draw or draws; for a network, whose weights can be permuted without "
        "changing a prediction, compare the chains' predictions instead",
    )


def _effective_size(sites: dict[str, Array], sizes: dict[str, Array]) -> Finding:
    check = "draws: effective sample size"
    least = {name: float(np.nanmin(size, initial=np.inf)) for name, size in sizes.items()}
    worst = min(least, key=lambda name: least[name])
    size, total = least[worst], int(np.prod(next(iter(sites.values())).shape[:2]))
    if not np.isfinite(size):
        return Finding(check, "note", "no sampled coordinate moves, or there are too few draws")
    if size >= MIN_ESS:
        return Finding(check, "good", f"at least {size:.0f} of {total} (site {worst!r})")
    return Finding(
        check,
        "warning",
        f"{size:.0f} of {total} draws at site {worst!r}",
        f"at least {MIN_ESS:.0f}, for means to two digits of a standard deviation",
        f"draws {total / max(size, 1.0):.0f} times as far apart (steps_per_draw, thinning), or a "
        "larger step if the kinetic temperature allows",
    )
