# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""All checks that apply to the adaptation of a model's latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabLatents, SpikeAndSlabRule
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.model.structure import Residuals, Structure
from pyro_aeb.model.tracing import trace_sites, unwrap
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.testing.m_steps import check_m_step
from pyro_aeb.testing.objective import Model, by_site, component_log_joints, objective_at
from pyro_aeb.testing.points import gradient_at, points
from pyro_aeb.testing.reports import Outcome, Report, require

WEIGHTS = (1.0, 0.25)
"""Weights omega of the sweeps."""


def check_adaptation(model: Model, *args: Any, **kwargs: Any) -> Report:
    """
    Whether the latents of a model's SSGL sites are updated to the maximum of the model's own Q::

        print(pyro_aeb.testing.check_adaptation(model, X, y))

    At random weights and latents, on one minibatch: rho is Bayes' rule by Pyro's densities (4);
    sigma and delta are where autograd finds the derivative of Q to be zero, (6) and (7), given the
    averaged rho of (5); each is averaged by (8). A sweep of weight 0 changes nothing, no sweep
    changes its inputs, and every chain of a leading axis gets what it gets alone.

    :param model: a Pyro model with SSGL sites.
    :param args: its arguments, best in float64 with that as torch's default.
    :param kwargs: its keyword arguments.
    :returns: what was found.
    :raises AssertionError: if a check fails.
    :raises ValueError: if the model has no SSGL site.
    :raises ModelError: if the model cannot be sampled.
    """
    structure = inspect_model(model, args, kwargs, adapt=True)
    posterior = Posterior(model, structure)
    if posterior.adaptation.spike_and_slab is None:
        raise ValueError(
            f"the model's latent sites are {[b.name for b in structure.blocks]}, none of which is "
            "an SSGL site; check_m_step checks any other update"
        )
    indices = {n: torch.arange(size)[-batch:] for n, (size, batch) in structure.plates.items()}
    case = _Case(model, args, kwargs, posterior, posterior.adaptation.spike_and_slab, indices)
    sweeps = [case.sweep(position, before) for position, before in points(posterior, seed=0)]
    outcomes = [_check_inclusion(case, sweeps)]
    if structure.latent_sites:
        outcomes.append(_check_m_steps(case, sweeps))
    outcomes += [_check_purity(sweeps), _check_chains(case.rule, sweeps)]
    return Report(getattr(model, "__name__", type(model).__name__), tuple(outcomes))


@dataclass(frozen=True)
class _Case:
    """A model, and one minibatch."""

    model: Model
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    posterior: Posterior
    rule: SpikeAndSlabRule
    indices: dict[str, Tensor]

    @property
    def structure(self) -> Structure:
        return self.posterior.structure

    def sweep(self, position: Tensor, latents: Latents | None) -> _Sweep:
        assert latents is not None and latents.ssgl is not None
        before = latents.ssgl
        batch = Batch(Arguments(self.args, self.kwargs), self.indices)
        residuals = gradient_at(self.posterior, position, latents, batch).statistics.residuals
        return _Sweep(
            self.rule, position, self.structure.select_sparse(position), before, residuals
        )

    def values(self, latents: SpikeAndSlabLatents) -> dict[str, Tensor]:
        """The learned sites' values, sigma in place of sigma squared: (8) averages sigma."""
        sigmas = {sigma.site for sigma in self.structure.sigmas}
        found = self.rule.site_values(latents)
        return {name: v.sqrt() if name in sigmas else v for name, v in found.items()}

    def q(self, position: Tensor, values: Mapping[str, Tensor], rho: Tensor) -> Tensor:
        """Q on the minibatch, of :meth:`values` and of rho of every sparse weight."""
        sigmas = {sigma.site for sigma in self.structure.sigmas}
        given = {name: v.square() if name in sigmas else v for name, v in values.items()}
        plates = self.structure.plates
        given |= {n: i for n, i in self.indices.items() if len(i) < plates[n][0]}
        slab = by_site(self.structure, rho)
        return objective_at(
            self.model, self.args, self.kwargs, self.posterior, position, given, slab
        )


@dataclass(frozen=True)
class _Sweep:
    """What a sweep of the updates starts from."""

    rule: SpikeAndSlabRule
    position: Tensor
    beta: Tensor
    before: SpikeAndSlabLatents
    residuals: Mapping[str, Residuals]

    def update(self, weight: float) -> SpikeAndSlabLatents:
        return self.rule.update(self.before, self.beta, self.residuals, weight)


def _check_inclusion(case: _Case, sweeps: list[_Sweep]) -> Outcome:
    """Equations (4) and (8) for rho, at the sigma and delta before the sweep."""
    worst = 0.0
    for sweep in sweeps:
        values = case.structure.unflatten(sweep.position)
        given = {**values, **case.rule.site_values(sweep.before)}
        sites = trace_sites(case.model, case.args, case.kwargs, given)
        logits = []
        for name in (block.name for block in case.structure.sparse):
            spike, slab = component_log_joints(unwrap(sites[name]["fn"]), values[name])
            logits.append((slab - spike).reshape(-1))
        bayes = torch.cat(logits).sigmoid()
        for weight in WEIGHTS:
            expected = (1.0 - weight) * sweep.before.rho + weight * bayes
            error = float((sweep.update(weight).rho - expected).abs().max())
            worst = max(worst, error)
            require(
                error <= 1000 * torch.finfo(case.structure.dtype).eps,
                f"E-step of rho, weight {weight:g}",
                f"a difference of {error:.2g}",
                "Bayes' rule for gamma by the model's densities, averaged by (8)",
                "look at equation (4): the prior odds, both densities, and the sigma in them",
            )
    return Outcome("E-step", f"rho of {case.rule.size} weights is Bayes' rule to {worst:.1g}")


def _check_m_steps(case: _Case, sweeps: list[_Sweep]) -> Outcome:
    """Equations (5)-(8) for sigma and delta: the former sees the averaged rho of (5)."""
    sigmas = [s.site for s in case.structure.sigmas if s.site is not None]
    deltas = [d.site for d in case.structure.deltas if d.site is not None]
    limits = torch.finfo(case.structure.dtype)
    bounds = dict.fromkeys(deltas, (limits.tiny, 1.0 - limits.eps))
    for sweep in sweeps:
        old = case.values(sweep.before)
        for weight in WEIGHTS:
            after = sweep.update(weight)
            new = case.values(after)
            # What (8) has averaged in: theta~ = (theta' - (1 - omega) theta) / omega.
            implied = {n: (v - (1.0 - weight) * old[n]) / weight for n, v in new.items()}
            for names, rho in ((sigmas, after.slab), (deltas, after.rho)):
                q = _Of(case, sweep.position, implied, rho)
                check_m_step(q, {name: implied[name] for name in names}, bounds)
    return Outcome("M-steps", f"{', '.join(sigmas + deltas)} at the maximum of Q, by autograd")


@dataclass(frozen=True)
class _Of:
    """Q as a function of some of the latents, the others held."""

    case: _Case
    position: Tensor
    held: Mapping[str, Tensor]
    rho: Tensor

    def __call__(self, values: dict[str, Tensor]) -> Tensor:
        return self.case.q(self.position, {**self.held, **values}, self.rho)


def _check_purity(sweeps: list[_Sweep]) -> Outcome:
    for sweep in sweeps:
        inputs = [*_tensors(sweep.before), sweep.beta]
        copies = [tensor.clone() for tensor in inputs]
        first, again, still = sweep.update(0.5), sweep.update(0.5), sweep.update(0.0)
        require(
            _equal(inputs, copies),
            "inputs of a sweep",
            "latents or weights that have changed",
            "all as they were",
            "use operations that are not in place on what comes in",
        )
        require(
            _equal(_tensors(first), _tensors(again)),
            "the same sweep twice",
            "two different results",
            "the same to the last digit",
            "whatever an update remembers belongs into the latents",
        )
        require(
            _equal(_tensors(still), _tensors(sweep.before)),
            "a sweep of weight 0",
            "other latents",
            "those before it",
            "equation (8) with omega = 0 freezes the latents",
        )
    return Outcome("sweeps", "pure functions; weight 0 changes nothing")


def _tensors(latents: SpikeAndSlabLatents) -> list[Tensor]:
    return [torch.as_tensor(value) for value in latents]


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _check_chains(rule: SpikeAndSlabRule, sweeps: list[_Sweep]) -> Outcome:
    """A leading axis of chains, one a sweep."""
    stacked = SpikeAndSlabLatents(
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
            own = getattr(alone, name)
            error = float((getattr(together, name)[c] - own).abs().max() / own.abs().max())
            require(
                error <= 1000 * torch.finfo(own.dtype).eps,
                f"leading axis of chains, {name}",
                f"a relative difference of {error:.2g} between chain {c} and that chain alone",
                "no more than rounding",
                "sum over the last axis only, so that chains know nothing of each other",
            )
    return Outcome("chains", "a leading axis gives every chain what it gets alone")
