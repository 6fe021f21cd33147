# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""All checks that apply to a model."""

from __future__ import annotations

from typing import Any

import torch

from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.model.links import is_sparse
from pyro_aeb.model.tracing import trace_sites
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.testing.enumeration import check_unbiased_gradient, whole_gradient
from pyro_aeb.testing.objective import Model, whole_plates
from pyro_aeb.testing.points import gradient_at, points
from pyro_aeb.testing.reports import Outcome, Report, require


def check_model(model: Model, *args: Any, **kwargs: Any) -> Report:
    """
    Whether the gradient that a step sees is an unbiased estimate of that of the model's posterior::

        print(pyro_aeb.testing.check_model(model, X[:6], y[:6], batch_size=2))

    At random points the gradient (2) on all data, priors in closed form, is compared with autograd
    through Pyro's own densities; and, where plates subsample, the mean over all minibatches with
    it. A model with SSGL sites is checked with its latents learned, and under its own prior.

    :param model: a Pyro model.
    :param args: its arguments: a tiny data set, best in float64 with that as torch's default.
    :param kwargs: its keyword arguments.
    :returns: what was found.
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
    return Report(getattr(model, "__name__", type(model).__name__), tuple(outcomes))


def check_gradient(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], adapt: bool, seed: int = 0
) -> Outcome:
    """
    The gradient (2) on all data, with the closed forms of priors, is autograd's.

    :param model: a Pyro model.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :param bool adapt: whether latents of SSGL sites are learned.
    :param int seed: of the points at which gradients are compared.
    :raises AssertionError: if they differ by more than rounding.
    """
    with whole_plates():
        structure = inspect_model(model, args, kwargs, adapt)
        posterior = Posterior(model, structure)
        whole = {name: torch.arange(size) for name, (size, _) in structure.plates.items()}
    worst = 0.0
    for position, latents in points(posterior, seed):
        with whole_plates():
            batch = Batch(Arguments(args, kwargs), whole)
            found = gradient_at(posterior, position, latents, batch).gradient
        expected = whole_gradient(model, args, kwargs, posterior, position, latents)
        for block, own, by_autograd in zip(
            structure.blocks,
            found.split([b.size for b in structure.blocks]),
            expected.split([b.size for b in structure.blocks]),
            strict=True,
        ):
            scale = max(1.0, float(expected.abs().max()))
            error = float((own - by_autograd).abs().max()) / scale
            worst = max(worst, error)
            require(
                error <= 1000 * torch.finfo(structure.dtype).eps,
                f"gradient of site {block.name!r}",
                own.tolist(),
                by_autograd.tolist(),
                "the gradient is not that of the log density that Pyro gives; does the model draw "
                "random numbers of its own?",
            )
    learned = "latents learned" if adapt else "own prior"
    return Outcome(
        "gradient" if adapt else "gradient, own prior",
        f"of {structure.size} numbers, {learned}: autograd's to {worst:.1g} in {structure.dtype}",
    )
