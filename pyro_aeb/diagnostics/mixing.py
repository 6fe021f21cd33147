# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
R-hat and effective sample sizes, by ArviZ, of the sites that are sampled, and of no others: a
learned latent is a point estimate on its way, of which they say nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_aeb.diagnostics.findings import Finding
from pyro_aeb.diagnostics.recorded_run import Array, Run

MOST = 200
"""How many coordinates of a site are looked at, evenly spaced: ArviZ takes about 1 ms for each."""

R_HAT = 1.05
ESS = 100.0


def mixing(run: Run, latents_settled: bool) -> list[Finding]:
    """
    Findings on the draws of the sampled sites.

    :param Run run: the run.
    :param bool latents_settled: whether what the weights are sampled given stands still; else
        neither figure is of one posterior.
    """
    sites = {name: _some(values) for name, values in run.sampled.items() if values.size}
    if not sites:
        return [Finding("draws: R-hat", "note", "no sampled site is kept", "", "save=[...]")]
    if not latents_settled:
        return [
            Finding(
                "draws: R-hat",
                "note",
                "not computed: the latents still drift, so the draws are of a posterior that "
                "moves, and no figure of convergence means anything",
                "latents that have settled",
                "see the learned latents above",
            )
        ]
    if run.draws < 4:
        return [Finding("draws: R-hat", "note", f"cannot be told from {run.draws} draws")]
    findings = [_effective_size(sites, _by_arviz("ess", sites))]
    if run.chains > 1:
        return [_r_hat(_by_arviz("rhat", sites)), *findings]
    one = "cannot be told from one chain; halves of it are no independent chains"
    return [Finding("draws: R-hat", "note", one, "several chains", "num_chains=4"), *findings]


def _some(values: Array) -> Array:
    """At most :data:`MOST` coordinates, shape (chains, draws, coordinates)."""
    flat = values.reshape(*values.shape[:2], -1)
    count = flat.shape[-1]
    if count <= MOST:
        return flat
    return flat[..., np.linspace(0, count - 1, MOST).astype(int)]


def _by_arviz(function: str, sites: dict[str, Array]) -> dict[str, Array]:
    """``arviz.rhat`` or ``arviz.ess`` of every coordinate."""
    import arviz  # imported on use: it takes as long as Pyro
    import xarray

    data = xarray.Dataset(
        {f"v{i}": (("chain", "draw", f"d{i}"), own) for i, own in enumerate(sites.values())}
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # a coordinate that does not move
        found: Any = getattr(arviz, function)(data)
    return {name: np.asarray(found[f"v{i}"]) for i, name in enumerate(sites)}


def _r_hat(found: dict[str, Array]) -> Finding:
    check = "draws: R-hat"
    worst = max(found, key=lambda name: _largest(found[name]))
    largest = _largest(found[worst])
    share = float(np.mean(np.concatenate([own.ravel() for own in found.values()]) > R_HAT))
    if largest <= R_HAT:
        return Finding(check, "good", f"at most {largest:.3f} (site {worst!r})")
    return Finding(
        check,
        "warning",
        f"{largest:.2f} at site {worst!r}, and above {R_HAT} for {100 * share:.0f} % of the "
        "coordinates looked at: chains have not mixed",
        f"at most {R_HAT}",
        "more steps per draw or draws; for a network, whose weights can be permuted without "
        "changing a prediction, compare the chains' predictions instead",
    )


def _effective_size(sites: dict[str, Array], found: dict[str, Array]) -> Finding:
    check = "draws: effective sample size"
    worst = min(found, key=lambda name: float(np.nanmin(found[name], initial=np.inf)))
    least = float(np.nanmin(found[worst], initial=np.inf))
    total = int(np.prod(next(iter(sites.values())).shape[:2]))
    if not np.isfinite(least):
        return Finding(check, "note", "no sampled coordinate moves, or there are too few draws")
    if least >= ESS:
        return Finding(check, "good", f"at least {least:.0f} of {total} (site {worst!r})")
    return Finding(
        check,
        "warning",
        f"{least:.0f} of {total} draws at site {worst!r}",
        f"at least {ESS:.0f}, for means to two digits of a standard deviation",
        f"draws {total / max(least, 1.0):.0f} times as far apart (steps_per_draw, thinning), or "
        "a larger step if the kinetic temperature allows",
    )


def _largest(values: Array) -> float:
    return float(np.nanmax(values, initial=-np.inf))
