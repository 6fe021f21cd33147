# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Scans over the gammas of draws by stochastic approximation, after the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_aeb.adaptation.draws import Random
from pyro_aeb.adaptation.gibbs import Gibbs
from pyro_aeb.adaptation.gibbs_sweep import GibbsAdaptation
from pyro_aeb.adaptation.latent_values import DrawnLatents
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.diagnostics.frozen_chain import FrozenChain, freeze
from pyro_aeb.diagnostics.gamma_draws import GammaDraws, SiteGammas
from pyro_aeb.mcmc.api import MCMC as AEBMCMC
from pyro_aeb.posterior.whole_data import WholeData
from pyro_aeb.storage.xarray_variables import as_array
from pyro_aeb.testing.linear import Array
from pyro_aeb.validation import count


def scan_draws(mcmc: Any, scans: int, draws: int) -> GammaDraws:
    """
    Scan the gammas of kept draws, at the sigma and delta of each.

    :param mcmc: a run by stochastic approximation, with a chain in this process.
    :param int scans: the number of scans from every draw; what the last one leaves is returned.
    :param int draws: the most draws of a chain to begin from, evenly spaced.
    :raises TypeError: if it is no run of an AEBKernel.
    :raises ValueError: if its draws are of another law, or lack sites.
    :raises RuntimeError: if no chain is in this process.
    """
    count("scans", scans, "the scans from every draw")
    count("draws", draws, "the most draws of a chain that scans begin from")
    if not isinstance(mcmc, MCMC):
        raise TypeError(
            f"inclusion(scans={scans}) runs the model and takes a run, pyro.infer.MCMC or aeb.MCMC "
            f"with an AEBKernel, found {type(mcmc).__name__}"
        )
    number = 0 if isinstance(mcmc, AEBMCMC) else mcmc.num_chains - 1
    with freeze(mcmc, number, "inclusion()") as frozen, torch.no_grad():
        _check(frozen)
        samples = mcmc.get_samples(group_by_chain=True)
        _check_sites(frozen, samples)
        kept = next(iter(samples.values())).shape[1]
        places = np.unique(np.linspace(0, kept - 1, min(draws, kept)).astype(int))
        chosen = {name: values[:, places] for name, values in samples.items()}
        return _scan(frozen, chosen, scans)


def _scan(frozen: FrozenChain, samples: Mapping[str, Tensor], scans: int) -> GammaDraws:
    structure, chain = frozen.structure, frozen.chain
    adaptation = GibbsAdaptation(structure, Gibbs())
    data = chain.data
    assert data.fixed is not None and data.cover is not None
    whole = WholeData(chain.posterior, data.fixed, data.cover, chain.buffers)
    generator = torch.Generator(structure.device).manual_seed(frozen.kernel.seed or 0)
    random = Random([generator], torch.Size(), structure.device)
    shape = next(iter(samples.values())).shape[:2]
    values = [
        {name: own[chain, draw] for name, own in samples.items()}
        for chain in range(shape[0])
        for draw in range(shape[1])
    ]
    positions = [structure.flatten(own) for own in values]
    latents = [_ssgl(adaptation.init(own)) for own in values]
    centre = latents[0]._replace(sigma=torch.stack([own.sigma for own in latents]).mean(0))
    curvature = adaptation.take_curvature(torch.stack(positions).mean(0), centre, whole)
    ends = []
    for position, own in zip(positions, latents, strict=True):
        end = own._replace(curvature=curvature)
        for _ in range(scans):
            position, end = adaptation.flip(position, end, whole, random)
        ends.append((structure.select_sparse(position), end.slab, end.rho, end.counts))
    weights, gamma, probability, counts = (
        as_array(torch.stack(parts)).reshape(*shape, -1) for parts in zip(*ends, strict=True)
    )
    proposed, accepted, *_ = counts.sum((0, 1))
    return GammaDraws(
        _split(frozen, gamma > 0.5, probability, weights),
        float(accepted / proposed) if proposed else 1.0,
        True,
        f"{scans} scan{'s' if scans > 1 else ''} each, at their sigma and delta",
    )


def _ssgl(latents: Latents | None) -> DrawnLatents:
    assert latents is not None and isinstance(latents.ssgl, DrawnLatents)
    return latents.ssgl


def _split(
    frozen: FrozenChain, gamma: Array, probability: Array, weights: Array
) -> tuple[SiteGammas, ...]:
    """Split values of all sparse weights, shape (chains, draws, P), by site."""
    sites, start = [], 0
    for block in frozen.structure.sparse:
        place = slice(start, start + block.size)
        of_unit = slice(start, start + block.size, block.group)
        start += block.size
        sites.append(
            SiteGammas(
                block.name,
                tuple(block.shape),
                block.group,
                gamma[..., of_unit],
                probability[..., of_unit],
                tuple(range(n) for n in block.shape),
                weights[..., place],
            )
        )
    return tuple(sites)


def _check(frozen: FrozenChain) -> None:
    """Check that scans leave the law of the draws as it is."""
    chain, structure = frozen.chain, frozen.structure
    tau = float(frozen.numbers.inverse_temperature)
    reason = None
    if chain.ssgl is None:
        reason = "no latents of a spike-and-slab prior are learned"
    elif chain.posterior.adaptation.is_sampled:
        reason = "gammas are drawn in the run itself: take inclusion() without scans"
    elif tau != 1.0:
        reason = f"the draws are at the inverse temperature {tau:g}, not of the posterior"
    elif chain.pruner is not None:
        reason = "pruned weights are no draws"
    elif structure.learned:
        reason = f"latents of your own are learned, {[site.name for site in structure.learned]}"
    elif chain.data.cover is None:
        reason = "data come from a DataLoader, which gives batches only: pass them as tensors"
    if reason is not None:
        raise ValueError(
            f"scans draw gamma given all data, from draws of the posterior at an inverse "
            f"temperature of 1 by StochasticApproximation; found that {reason}"
        )


def _check_sites(frozen: FrozenChain, samples: Mapping[str, Tensor]) -> None:
    structure = frozen.structure
    needed = [*(block.name for block in structure.blocks), *structure.latent_sites]
    if missing := [name for name in needed if name not in samples]:
        raise ValueError(
            f"scans take all sites of a draw, and the run has kept no {', '.join(missing)}; name "
            "them in save="
        )
