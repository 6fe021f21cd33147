# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Plots of a run, in matplotlib: paths of the learned latents, inclusion probabilities by layer, and
sparsity over time. ArviZ adds densities to the paths that it plots, which a point estimate does not
have; draws of the sampled sites are for ``arviz.plot_trace`` of :func:`~pyro_aeb.to_arviz`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pyro.infer import MCMC

from pyro_aeb.diagnostics.inclusion_probabilities import SiteInclusion, inclusion
from pyro_aeb.diagnostics.recorded_run import read_run
from pyro_aeb.diagnostics.saved_trace import kinds
from pyro_aeb.testing.linear import Array

COLUMNS = 3


def plot_latents(mcmc: Any, names: Sequence[str] | None = None) -> Any:
    """
    Plot the path of every learned delta and sigma squared, and of the mean of every site's
    inclusion probabilities, one line per chain. The shaded second half is what
    :func:`~pyro_aeb.diagnostics.settling.sa_residual` tests.

    :param mcmc: a run of an AEBKernel, finished or interrupted, or its trace.
    :param names: names of the latents to plot, by default all.
    :returns: ``matplotlib.figure.Figure``.
    :raises ImportError: if matplotlib is missing.
    :raises ValueError: if there are no latents to plot.
    """
    run = read_run(mcmc, "plot_latents()")
    paths = {n: v for n, v in run.learned.items() if names is None or n in names}
    if not paths:
        raise ValueError(f"no learned latents to show, expected some of {sorted(run.learned)}")
    figure, panels = _panels(len(paths))
    for axes, (name, path) in zip(panels, paths.items(), strict=True):
        axes.axvspan(run.draws // 2, run.draws - 1, color="0.93", zorder=0)
        _plot_lines(axes, path)
        axes.set(title=name, xlabel="draw")
    if run.chains > 1:
        panels[0].legend(fontsize="small")
    return figure


def plot_inclusion(mcmc: Any, sites: Sequence[str] | None = None) -> Any:
    """
    Plot the inclusion probabilities of every SSGL site, by
    :func:`~pyro_aeb.diagnostics.inclusion`: of a vector with two Monte Carlo errors on either side,
    and a dot for every chain. A matrix is a heat map, outputs by inputs as in torch; a convolution
    is a map of filters by input channels, averaged over its kernel.

    Of a run by :class:`~pyro_aeb.StochasticApproximation`, which has none, its rho is shown, under
    that name, averaged over chains and the second half of the draws.

    :param mcmc: a run of an AEBKernel, its trace, or what
        :func:`~pyro_aeb.diagnostics.inclusion` returned.
    :param sites: names of the sites to plot, by default all.
    :returns: ``matplotlib.figure.Figure``.
    :raises ImportError: if matplotlib is missing.
    :raises TypeError: if ``mcmc`` is none of these.
    :raises ValueError: if no inclusion probabilities of these sites are kept.
    """
    found = _find_inclusion(mcmc)
    chosen = {n: own for n, own in found.items() if sites is None or n in sites}
    if not chosen:
        raise ValueError(
            f"no inclusion probabilities are kept of {sites or 'any site'}, expected some of "
            f"{list(found)}; name <site>_rho in save="
        )
    figure, panels = _panels(len(chosen))
    image = None
    for axes, (site, own) in zip(panels, chosen.items(), strict=True):
        if isinstance(own, SiteInclusion):
            axes.set_title(f"{site}: P(in)")
            if own.probability.ndim < 2:
                _plot_errors(axes, own)
                continue
            own = own.probability
        else:
            axes.set_title(f"{site}: rho")
        image = _plot_map(axes, own) or image
    if image is not None:
        figure.colorbar(image, ax=panels)
    return figure


def _find_inclusion(mcmc: Any) -> Mapping[str, SiteInclusion | Array]:
    """Return the inclusion probabilities of every site, or rho where there are none."""
    is_run = isinstance(mcmc, MCMC)
    if not is_run and "stochastic approximation" not in kinds(mcmc, "adaptation").values():
        return inclusion(mcmc)
    run = read_run(mcmc, "plot_inclusion()")
    if not run.learns and run.sparse_sites:
        return inclusion(mcmc)
    half = run.draws // 2
    return {site: run.rho(site)[:, half:].mean((0, 1)) for site in run.sparse_sites}


def plot_sparsity(mcmc: Any) -> Any:
    """
    Plot the sparsity of every draw, one line per chain. With pruning, its schedule is added, which
    a trace does not hold, and below it how many weights became zero or nonzero from draw to draw.

    :param mcmc: a run of an AEBKernel, finished or interrupted, or its trace.
    :returns: ``matplotlib.figure.Figure``.
    :raises ImportError: if matplotlib is missing.
    :raises ValueError: if the run has no sparse weights.
    """
    run = read_run(mcmc, "plot_sparsity()")
    if "sparsity" not in run.stats:
        raise ValueError("the run has no sparsity, expected SSGL sites that adapt, or pruning")
    flips = run.stats.get("pruning_flips")
    figure, panels = _panels(2 if flips is not None else 1, columns=1)
    _plot_lines(panels[0], run.stats["sparsity"])
    title = "share of sparse weights in the narrower component"
    if run.prunes_every is not None:
        title = "share of weights that are zero"
    if run.pruning is not None:
        target = [float(run.pruning.sparsity(int(k))) for k in run.steps_of_draws]
        panels[0].plot(target, color="black", linestyle="--", label="schedule")
    panels[0].set(title=title)
    panels[0].legend(fontsize="small")
    if flips is not None:
        _plot_lines(panels[1], flips)
        panels[1].set(title="weights that became zero or nonzero since the previous draw")
    panels[-1].set(xlabel="draw")
    return figure


def _panels(count: int, columns: int = COLUMNS) -> tuple[Any, list[Any]]:
    """Return a new figure and its panels."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib, which is not installed: pip install pyro_aeb[plots]"
        ) from error
    width = min(count, columns)
    height = -(-count // width)
    figure = Figure(figsize=(4.2 * width if columns > 1 else 7.0, 3.0 * height))
    figure.set_layout_engine("constrained")
    panels = list(np.ravel(figure.subplots(height, width)))
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _plot_lines(axes: Any, paths: Array) -> None:
    for chain, path in enumerate(paths):
        axes.plot(path, linewidth=0.9, label=f"chain {chain}")


def _plot_errors(axes: Any, own: SiteInclusion) -> None:
    """Plot one site's probabilities, shape (n,) or (), with errors and every chain's estimate."""
    p = own.probability.reshape(-1)
    places, error = np.arange(p.size), 2.0 * np.nan_to_num(own.error.reshape(-1))
    ends = np.minimum(error, p), np.minimum(error, 1.0 - p)
    axes.errorbar(places, p, yerr=np.stack(ends), fmt="o", markersize=4, capsize=2)
    for chain in own.by_chain.reshape(-1, p.size):
        axes.plot(places, chain, linestyle="", marker=".", markersize=3, color="0.6", zorder=0)
    axes.axhline(0.5, color="0.85", linewidth=0.9, zorder=0)
    axes.set(xlabel="weight", ylim=(-0.05, 1.05))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _plot_map(axes: Any, rho: Array) -> Any:
    """Plot one site's probabilities, and return the image for a colour bar, None for stems."""
    if rho.ndim < 2:
        axes.vlines(np.arange(rho.size), 0.0, np.atleast_1d(rho))
        axes.set(xlabel="weight", ylim=(0.0, 1.05))
        return None
    if rho.ndim > 2:
        rho = rho.reshape(*rho.shape[:2], -1).mean(-1)
        axes.set(xlabel="input channel", ylabel="filter")
    else:
        axes.set(xlabel="second axis (input)", ylabel="first axis (output)")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return axes.imshow(rho, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
