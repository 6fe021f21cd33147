# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Check the weights that ``poutine.scale`` gives the data of a site, one for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.data.finite import count_non_finite
from pyro_aeb.errors import ModelError
from pyro_aeb.model.perturbation import is_close, perturb
from pyro_aeb.model.sites import Site
from pyro_aeb.model.structure import has_weights
from pyro_aeb.model.tracing import Tracer


def check_weights(sites: Mapping[str, Site], trace: Tracer) -> None:
    """
    Check that the weights of data are fixed, finite, and of the data's shape.

    :param sites: the sites of a trace at feasible values, without plates and deterministic ones.
    :raises ModelError: if they are not.
    """
    weighted = {name: site for name, site in sites.items() if has_weights(site["scale"])}
    for name, site in weighted.items():
        _check_weights_of(name, site["scale"], site["fn"].batch_shape)
    if not weighted:
        return
    values = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
    perturbed = trace(perturb(sites, values, values.keys()))
    for name, site in weighted.items():
        other: Any = perturbed[name]["scale"] if name in perturbed else site["scale"]
        if not (has_weights(other) and is_close(site["scale"], other)):
            raise ModelError(
                f"site {name!r} is weighted by poutine.scale with numbers that depend on a latent "
                "site, expected fixed weights: they are no density of the data; write what is "
                "meant with pyro.factor"
            )


def _check_weights_of(name: str, weights: Tensor, shape: torch.Size) -> None:
    sizes = list(zip(reversed(weights.shape), reversed(shape), strict=False))
    if weights.dim() > len(shape) or any(size not in (1, length) for size, length in sizes):
        raise ModelError(
            f"site {name!r} is weighted by poutine.scale with a tensor of shape "
            f"{tuple(weights.shape)}, expected one weight for each datum, shape {tuple(shape)}; "
            "index the weights with the plate's indices, `with pyro.plate(..., subsample_size=n) "
            "as i, pyro.poutine.scale(scale=w[i]):`, and do not put data of one event in a plate"
        )
    if bad := count_non_finite(weights):  # Pyro finds those that are not positive
        raise ModelError(
            f"site {name!r} is weighted by poutine.scale, and {bad} of {weights.numel()} weights "
            "are not finite, expected numbers greater than 0"
        )
