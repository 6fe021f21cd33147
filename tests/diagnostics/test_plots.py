# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Plots of runs show the numbers of the runs."""

import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from small_runs import X, Y, gaussian, make_kernel, run_mcmc

import pyro_aeb as aeb
from pyro_aeb.diagnostics import plot_inclusion, plot_latents, plot_sparsity


def layers(X, y):
    """A vector, a matrix and the weights of a convolution with SSGL priors, and two deltas."""
    for name, shape in {"bias": (3,), "linear": (2, 5), "conv": (4, 3, 2, 2)}.items():
        delta = pyro.sample(f"{name}.delta", dist.Beta(2.0, 2.0)) if name != "bias" else 0.5
        prior = aeb.SSGL(0.1, 10.0, delta)
        pyro.sample(name, prior.expand(shape).to_event(len(shape)))


@pytest.fixture(scope="module")
def network() -> aeb.MCMC:
    pruning = aeb.MagnitudePruning(aeb.PruningSchedule(0.5, 0.9, 10))
    return run_mcmc(make_kernel(layers, aeb.SGLD(1e-3), pruning=pruning), draws=20, warmup=4)


def test_latents(network):
    figure = plot_latents(network)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "linear.delta",
        "conv.delta",
        *(f"mean of {name}_rho" for name in ("bias", "linear", "conv")),
    ]
    paths = network.get_samples(group_by_chain=True)["conv.delta"]
    for line, path in zip(figure.axes[1].lines, paths, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), path)
    assert len(plot_latents(network, names=["conv.delta"]).axes) == 1
    with pytest.raises(ValueError, match="no learned latents to show, expected some of"):
        plot_latents(network, names=["beta"])


def test_inclusion(network):
    figure = plot_inclusion(network)
    own = [d["adaptation"] for d in network._diagnostics]
    rho = {
        n: torch.stack([o[f"{n}_rho"] for o in own])[:, 10:].mean((0, 1))
        for n in ("linear", "conv")
    }
    linear, conv = (axes.images[0].get_array() for axes in figure.axes[1:3])
    np.testing.assert_allclose(linear, rho["linear"], rtol=1e-5)
    np.testing.assert_allclose(conv, rho["conv"].mean((2, 3)), rtol=1e-5)
    assert figure.axes[2].get_ylabel() == "filter"
    assert len(figure.axes[0].collections) == 1  # stems
    with pytest.raises(ValueError, match="name <site>_rho in save="):
        plot_inclusion(network, sites=["conv2"])


def test_sparsity_against_the_schedule(network):
    figure = plot_sparsity(network)
    *chains, schedule = figure.axes[0].lines
    steps = 5 * (4 + np.arange(1, 21))
    expected = [network.kernel.pruning.sparsity(k) for k in steps]
    np.testing.assert_allclose(schedule.get_ydata(), expected)
    for line in chains:  # exact to one of 61 weights
        np.testing.assert_allclose(line.get_ydata(), expected, atol=0.5 / 61 + 1e-6)
    flips = aeb.diagnostics.pruning_flips(network)
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_ydata(), flips[1])


def test_sparsity_without_pruning():
    mcmc = run_mcmc(draws=5, warmup=0)
    (axes,) = plot_sparsity(mcmc).axes
    assert "narrower component" in axes.get_title()
    assert aeb.diagnostics.pruning_flips(mcmc) is None
    dense = run_mcmc(make_kernel(gaussian, aeb.SGLD(0.01), adaptation=None), draws=5, args=())
    with pytest.raises(ValueError, match="has no sparsity"):
        plot_sparsity(dense)


def test_without_matplotlib(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install pyro_aeb\[plots\]"):
        plot_latents(network)


def test_it_comes_when_asked_for():
    import subprocess

    program = "import sys, pyro_aeb; print({'matplotlib', 'scipy.stats'} & set(sys.modules))"
    command = [sys.executable, "-W", "ignore", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"
    assert X.shape[0] == len(Y)
