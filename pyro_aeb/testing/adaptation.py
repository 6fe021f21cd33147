# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""All checks of the adaptation of a model's latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.distributions import StudentT
from torch import Tensor

from pyro_aeb.adaptation.latent_values import AveragedLatents
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule
from pyro_aeb.model.sites import unwrap
from pyro_aeb.model.structure import Residuals
from pyro_aeb.model.tracing import trace_sites
from pyro_aeb.testing.m_steps import check_m_step
from pyro_aeb.testing.objective import Model, component_log_joints
from pyro_aeb.testing.problem import Problem, name_of
from pyro_aeb.testing.reports import Outcome, Report, require
from pyro_aeb.testing.steps import are_equal

WEIGHTS = (1.0, 0.25)
"""Weights omega of the sweeps."""


def check_adaptation(model: Model, *args: Any, **kwargs: Any) -> Report:
    """
    Check that the latents of a model's SSGL sites are updated to the maximum of the model's Q::

        print(pyro_aeb.testing.check_adaptation(model, X, y))

    At random weights and latents, on one minibatch: rho is Bayes' rule by Pyro's densities (4);
    sigma and delta are zeros of the derivative of Q by autograd, (6) and (7), given the averaged
    rho of (5), but for a sigma of a StudentT likelihood, whose update is one of several EM steps;
    each is averaged by (8). A sweep of weight 0 changes nothing, no sweep changes its
    inputs, and every chain of a leading axis gets what it gets alone.

    :param model: a Pyro model with SSGL sites.
    :param args: arguments of the model, preferably in float64 with that as torch's default dtype.
    :param kwargs: keyword arguments of the model.
    :returns: the outcomes of the checks.
    :raises AssertionError: if a check fails.
    :raises ValueError: if the model has no SSGL site.
    :raises ModelError: if the model cannot be sampled.
    """
    problem = Problem(model, args, kwargs, adapt=True)
    structure, rule = problem.structure, problem.posterior.adaptation.spike_and_slab
    if rule is None:
        raise ValueError(
            f"the model's latent sites are {[b.name for b in structure.blocks]}, none of which is "
            "an SSGL site; check_m_step checks any other update"
        )
    indices = {n: torch.arange(size)[-batch:] for n, (size, batch) in structure.plates.items()}
    sweeps = []
    for position, latents in problem.random_points(seed=0):
        assert latents is not None and isinstance(latents.ssgl, AveragedLatents)
        residuals = problem.step_gradient(position, latents, indices).statistics.residuals
        beta = structure.select_sparse(position)
        sweeps.append(_Sweep(problem, rule, indices, position, beta, latents.ssgl, residuals))
    outcomes = [_check_inclusion(sweeps)]
    if structure.latent_sites:
        outcomes.append(_check_m_steps(sweeps))
    outcomes += [_check_purity(sweeps), _check_chains(rule, sweeps)]
    return Report(name_of(model), tuple(outcomes))


@dataclass(frozen=True)
class _Sweep:
    """The inputs of one sweep of the updates on a minibatch."""

    problem: Problem
    rule: SpikeAndSlabRule
    indices: Mapping[str, Tensor]
    position: Tensor
    beta: Tensor
    before: AveragedLatents
    residuals: Mapping[str, Residuals]

    @property
    def variances(self) -> set[str | None]:
        """The sites of sigma squared."""
        return {sigma.site for sigma in self.problem.structure.sigmas if sigma.terms is None}

    def update(self, weight: float) -> AveragedLatents:
        return self.rule.update(self.before, self.beta, self.residuals, weight)

    def values(self, latents: AveragedLatents) -> dict[str, Tensor]:
        """Return the learned sites' values, sigma in place of sigma squared: (8) averages sigma."""
        sites = self.rule.site_values(latents).items()
        return {name: v.sqrt() if name in self.variances else v for name, v in sites}

    def q(self, fixed: Mapping[str, Tensor], rho: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Return Q on the minibatch at ``fixed`` :meth:`values`, some replaced by ``values``."""
        structure = self.problem.structure
        values = {**fixed, **values}
        sites = {n: v.square() if n in self.variances else v for n, v in values.items()}
        sites |= {n: i for n, i in self.indices.items() if len(i) < structure.plates[n][0]}
        return self.problem.objective(self.position, sites, rho)


def _check_inclusion(sweeps: list[_Sweep]) -> Outcome:
    """Check (4) and (8) for rho, at the sigma and delta before the sweep."""
    worst = 0.0
    for sweep in sweeps:
        problem, structure = sweep.problem, sweep.problem.structure
        values = structure.unflatten(sweep.position)
        fixed = {**values, **sweep.rule.site_values(sweep.before)}
        sites = trace_sites(problem.model, *problem.arguments, fixed)
        logits = []
        for name in (block.name for block in structure.sparse):
            spike, slab = component_log_joints(unwrap(sites[name]["fn"]), values[name])
            logits.append((slab - spike).reshape(-1))
        bayes = torch.cat(logits).sigmoid()
        for weight in WEIGHTS:
            expected = (1.0 - weight) * sweep.before.rho + weight * bayes
            error = float((sweep.update(weight).rho - expected).abs().max())
            worst = max(worst, error)
            require(
                error <= 1000 * torch.finfo(structure.dtype).eps,
                f"E-step of rho, weight {weight:g}",
                f"a difference of {error:.2g}",
                "Bayes' rule for gamma by the model's densities, averaged by (8)",
                "look at equation (4): the prior odds, both densities, and the sigma in them",
            )
    count = sweeps[0].rule.size
    return Outcome("E-step", f"rho of {count} weights is Bayes' rule to {worst:.1g}")


def _check_m_steps(sweeps: list[_Sweep]) -> Outcome:
    """Check (5)-(8) for sigma and delta; sigma depends on the averaged rho of (5)."""
    problem, structure = sweeps[0].problem, sweeps[0].problem.structure
    sites = trace_sites(problem.model, *problem.arguments, {})
    em_steps = {
        s.site: None
        for s in structure.sigmas
        if s.site and any(type(unwrap(sites[n]["fn"])) is StudentT for n in s.likelihoods)
    }
    sigmas = [*dict.fromkeys(s.site for s in structure.sigmas if s.site and s.site not in em_steps)]
    deltas = [*dict.fromkeys(d.site for d in structure.deltas if d.site)]
    limits = torch.finfo(structure.dtype)
    bounds = dict.fromkeys(deltas, (limits.tiny, 1.0 - limits.eps))
    for sweep in sweeps:
        old = sweep.values(sweep.before)
        for weight in WEIGHTS:
            after = sweep.update(weight)
            new = sweep.values(after)
            # The value that (8) has averaged: theta~ = (theta' - (1 - omega) theta) / omega.
            implied = {n: (v - (1.0 - weight) * old[n]) / weight for n, v in new.items()}
            for names, rho in ((sigmas, after.slab), (deltas, after.rho)):
                q = partial(sweep.q, implied, rho)
                check_m_step(q, {name: implied[name] for name in names}, bounds)
    left_out = "".join(f"; not {site}, an EM step by its StudentT likelihood" for site in em_steps)
    checked = ", ".join(sigmas + deltas) or "none"
    return Outcome("M-steps", f"{checked} at the maximum of Q, by autograd{left_out}")


def _check_purity(sweeps: list[_Sweep]) -> Outcome:
    """Check that sweeps are pure functions, and that those of weight 0 change nothing."""
    for sweep in sweeps:
        inputs = [*_tensors(sweep.before), sweep.beta]
        copies = [tensor.clone() for tensor in inputs]
        first, again, still = (_tensors(sweep.update(weight)) for weight in (0.5, 0.5, 0.0))
        require(
            are_equal(inputs, copies),
            "inputs of a sweep",
            "latents or weights that have changed",
            "all unchanged",
            "do not use in-place operations on the inputs",
        )
        require(
            are_equal(first, again),
            "the same sweep twice",
            "two different results",
            "the same to the last digit",
            "an update must keep its state in the latents",
        )
        require(
            are_equal(still, _tensors(sweep.before)),
            "a sweep of weight 0",
            "other latents",
            "those before it",
            "equation (8) with omega = 0 freezes the latents",
        )
    return Outcome("sweeps", "pure functions; weight 0 changes nothing")


def _tensors(latents: AveragedLatents) -> list[Tensor]:
    return [torch.as_tensor(value) for value in latents]


def _check_chains(rule: SpikeAndSlabRule, sweeps: list[_Sweep]) -> Outcome:
    """Check a leading axis of chains, one for each sweep."""
    stacked = type(sweeps[0].before)(
        *map(torch.stack, zip(*(_tensors(s.before) for s in sweeps), strict=True))
    )
    before = stacked._replace(excess=sweeps[0].before.excess)  # the same in every chain
    residuals = {
        site: Residuals(
            torch.stack([s.residuals[site].square for s in sweeps]),
            torch.stack([torch.as_tensor(s.residuals[site].data) for s in sweeps]).to(before.rho),
        )
        for site in sweeps[0].residuals
    }
    together = rule.update(before, torch.stack([s.beta for s in sweeps]), residuals, 0.5)
    for c, sweep in enumerate(sweeps):
        alone = sweep.update(0.5)
        for name in ("rho", "slab", "sigma", "delta"):
            expected = getattr(alone, name)
            difference = (getattr(together, name)[c] - expected).abs().max()
            error = float(difference / expected.abs().max())
            require(
                error <= 1000 * torch.finfo(expected.dtype).eps,
                f"leading axis of chains, {name}",
                f"a relative difference of {error:.2g} between chain {c} and that chain alone",
                "no more than rounding",
                "sum over the last axis only, so that chains stay independent",
            )
    return Outcome("chains", "a leading axis gives every chain what it gets alone")
