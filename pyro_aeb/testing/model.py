# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""All checks of a model."""

from __future__ import annotations

from typing import Any

import torch

from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.model.links import is_sparse
from pyro_aeb.model.tracing import trace_sites
from pyro_aeb.testing.enumeration import check_unbiased_gradient
from pyro_aeb.testing.objective import Model, whole_plates
from pyro_aeb.testing.problem import Problem, name_of
from pyro_aeb.testing.reports import Outcome, Report, require


def check_model(model: Model, *args: Any, **kwargs: Any) -> Report:
    """
    Check that the gradient of a step is an unbiased estimate of the gradient of the model's log
    posterior density::

        print(pyro_aeb.testing.check_model(model, X[:6], y[:6], batch_size=2))

    At random points the gradient (2) on all data, with priors in closed form, is compared with
    autograd of Pyro's own densities; if plates subsample, so is its mean over all minibatches. A
    model with SSGL sites is checked with learned latents, and under its own prior.

    :param model: a Pyro model.
    :param args: arguments of the model: a tiny data set, preferably in float64 with that as torch's
        default dtype.
    :param kwargs: keyword arguments of the model.
    :returns: the outcomes of the checks.
    :raises AssertionError: if a check fails.
    :raises ModelError: if the model cannot be sampled.
    """
    outcomes: list[Outcome] = []
    sites = trace_sites(model, args, kwargs, {}).values()
    sparse = any(is_sparse(site) for site in sites if not site["is_observed"])
    for adapt in (True, False) if sparse else (False,):
        outcomes.append(check_gradient(model, args, kwargs, adapt))
        plates = inspect_model(model, args, kwargs, adapt).plates
        if any(batch < size for size, batch in plates.values()):
            outcomes.append(check_unbiased_gradient(model, args, kwargs, adapt))
    return Report(name_of(model), tuple(outcomes))


def check_gradient(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], adapt: bool, seed: int = 0
) -> Outcome:
    """
    Check that the gradient (2) on all data, with priors in closed form, is that of autograd.

    :param model: a Pyro model.
    :param args: arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param bool adapt: whether latents of SSGL sites are learned.
    :param int seed: seed of the points at which gradients are compared.
    :raises AssertionError: if the gradients differ by more than rounding.
    """
    with whole_plates():
        problem = Problem(model, args, kwargs, adapt)
    structure = problem.structure
    indices = {name: torch.arange(size) for name, (size, _) in structure.plates.items()}
    sizes = [block.size for block in structure.blocks]
    worst = 0.0
    for position, latents in problem.random_points(seed):
        with whole_plates():
            found = problem.step_gradient(position, latents, indices).gradient.split(sizes)
        expected = problem.full_gradient(position, latents)
        scale = max(1.0, float(expected.abs().max()))
        for block, a, b in zip(structure.blocks, found, expected.split(sizes), strict=True):
            error = float((a - b).abs().max()) / scale
            worst = max(worst, error)
            require(
                error <= 1000 * torch.finfo(structure.dtype).eps,
                f"gradient of site {block.name!r}",
                a.tolist(),
                b.tolist(),
                "the gradient is not that of the log density that Pyro computes; does the model "
                "draw random numbers of its own?",
            )
    learned = "latents learned" if adapt else "own prior"
    return Outcome(
        "gradient" if adapt else "gradient, own prior",
        f"of {structure.size} numbers, {learned}: autograd's to {worst:.1g} in {structure.dtype}",
    )
