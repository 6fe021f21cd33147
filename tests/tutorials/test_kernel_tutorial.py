# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The tutorial on kernels: its SGLD kernel has the gradient of Pyro's own potential, minibatches and
transforms included; its transition is right; the script runs at smoke size.
"""

from __future__ import annotations

import importlib
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from tutorial_runs import TUTORIALS, require_packages, run_script

import pyro_aeb as aeb

require_packages("h5netcdf", "matplotlib", "scipy")
sys.path.insert(0, str(TUTORIALS))
tutorial = importlib.import_module("custom_kernel")
problem = importlib.import_module("reproduce.conjugate_regression.problem")

PARAMS = {"beta": torch.tensor([0.9, -0.2, 0.1, 0.3]), "sigma2": torch.tensor(-0.4)}


def gradient_at(kernel: Any, params: dict[str, Tensor]) -> Tensor:
    """The kernel's gradient, flat, in the order of the params."""
    return torch.cat([g.reshape(-1) for g in kernel._gradient(params)])


def test_the_kernels_gradient_is_that_of_pyros_potential() -> None:
    X, y = problem.simulate(0)
    kernel = tutorial.SGLDKernel(tutorial.model, step_size=1e-3)
    kernel.setup(0, X, y)
    _, potential, _, _ = initialize_model(tutorial.model, model_args=(X, y))
    leaves = {name: value.clone().requires_grad_() for name, value in PARAMS.items()}
    expected = torch.autograd.grad(potential(leaves), list(leaves.values()))
    found = gradient_at(kernel, PARAMS)
    torch.testing.assert_close(found, torch.cat([g.reshape(-1) for g in expected]))


def test_the_mean_over_all_minibatches_is_the_gradient_of_all_rows() -> None:
    X, y = problem.simulate(0)
    X, y = X[:5], y[:5]
    kernel = tutorial.SGLDKernel(tutorial.model, step_size=1e-3)
    kernel.setup(0, X, y)
    expected = gradient_at(kernel, PARAMS)
    gradients = []
    for chosen in combinations(range(5), 2):
        batch = torch.tensor(chosen)
        conditioned = pyro.poutine.condition(tutorial.model, data={"data": batch})
        kernel = tutorial.SGLDKernel(conditioned, step_size=1e-3)
        kernel.setup(0, X, y, batch_size=2)
        gradients.append(gradient_at(kernel, PARAMS))
    torch.testing.assert_close(torch.stack(gradients).mean(0), expected)
    assert torch.stack(gradients).std(0).min() > 0.0


def test_chains_start_afresh_or_where_the_user_says() -> None:
    X, y = problem.simulate(0)
    kernel = tutorial.SGLDKernel(tutorial.model, step_size=1e-3)
    kernel.setup(0, X, y)
    first = kernel.initial_params
    kernel.setup(0, X, y)
    assert not torch.equal(kernel.initial_params["beta"], first["beta"])
    kernel.initial_params = PARAMS
    kernel.setup(0, X, y)
    assert kernel.initial_params is PARAMS


def test_draws_are_in_the_sites_support() -> None:
    X, y = problem.simulate(0)
    mcmc = tutorial.run_own(X, y, step_size=1e-3, batch_size=20, draws=10)
    draws = mcmc.get_samples()
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "beta": (10, problem.FEATURES),
        "sigma2": (10,),
    }
    assert (draws["sigma2"] > 0.0).all()


def test_a_discrete_site_is_refused() -> None:
    def discrete() -> None:
        pyro.sample("coin", dist.Bernoulli(0.5))

    mcmc = MCMC(tutorial.SGLDKernel(discrete, 0.1), num_samples=1, disable_progbar=True)
    with pytest.raises(ValueError, match="'coin' is discrete"):
        mcmc.run()


def test_the_exact_posterior_is_proportional_to_the_models_density() -> None:
    X, y = problem.simulate(0)
    X, y = X.double(), y.double()
    exact = problem.Exact.of(X, y)
    precision = X.T @ X + torch.eye(problem.FEATURES) / problem.PRIOR_SD**2
    generator = torch.Generator().manual_seed(0)
    differences = []
    for sigma2 in torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64):
        noise = torch.randn(problem.FEATURES, generator=generator, dtype=torch.float64)
        beta = torch.from_numpy(exact.mean) + 0.1 * noise
        values = {"beta": beta, "sigma2": sigma2}
        conditioned = pyro.poutine.condition(tutorial.model, data=values)
        joint = pyro.poutine.trace(conditioned).get_trace(X, y).log_prob_sum()
        given = dist.MultivariateNormal(torch.from_numpy(exact.mean), sigma2 * precision.inverse())
        marginal = dist.InverseGamma(*torch.tensor([exact.shape, exact.scale]).double())
        differences.append(joint - given.log_prob(beta) - marginal.log_prob(sigma2))
    torch.testing.assert_close(torch.stack(differences), differences[0].expand(4))
    # The variance of beta is the mean of its variance given sigma squared.
    variance = exact.sigma2.mean() * precision.inverse().diagonal()
    torch.testing.assert_close(torch.from_numpy(exact.beta.var()), variance)


def test_the_formula_for_the_excess_is_that_of_the_linear_scheme() -> None:
    curvature, relative = 7.0, 0.3
    step_size = relative / curvature
    noise = (problem.ROWS / problem.BATCH - 1.0) * curvature
    scheme = aeb.testing.linear_scheme(
        aeb.SGLD(1.0),
        curvature * torch.eye(1, dtype=torch.float64).numpy(),
        torch.zeros(1, dtype=torch.float64).numpy(),
        aeb.transitions.StepNumbers(step_size, 1.0),
    )
    for batch_size, variance in ((None, 0.0), (problem.BATCH, noise)):
        expected = curvature * scheme.position_covariance(variance)[0, 0]
        assert problem.excess(relative, batch_size) == pytest.approx(expected)


def test_the_transition_passes_and_is_exact_on_gaussians() -> None:
    report = aeb.testing.check_transition(
        tutorial.LeimkuhlerMatthews(aeb.Constant(1e-3)),
    )
    assert "exact at any step size" in str(report)


@pytest.mark.slow
@pytest.mark.tutorial
def test_the_tutorial_runs_at_smoke_size(tmp_path: Path) -> None:
    printed = run_script("custom_kernel.py", "--smoke", cwd=tmp_path)
    for line in ("exact: mean (sd)", "64 chains", "temperature", "the same", "x1", "checks passed"):
        assert line in printed
    picture = tmp_path / "custom_kernel_output" / "custom_kernel.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
