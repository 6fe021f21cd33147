# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Non-finite numbers among a model's arguments, which the model may mask.

The log density and its gradient decide: a number that reaches neither is no error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_aeb.data.finite import count_non_finite
from pyro_aeb.errors import ModelError, first_line
from pyro_aeb.model.perturbation import perturb
from pyro_aeb.model.sites import Site
from pyro_aeb.model.tracing import Tracer


def _find_missing(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return which numbers of the model's arguments are not finite, where any are."""
    missing = {}
    for name, value in tensors.items():
        if not value.is_meta and count_non_finite(value):
            missing[name] = ~torch.isfinite(value)
    return missing


@contextmanager
def explain_missing(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """
    Turn a failure of a model into a ModelError, where non-finite data may be its cause.

    :param tensors: the model's arguments, by the names that the user knows.
    """
    try:
        yield
    except ModelError:
        raise
    except (ValueError, RuntimeError) as error:
        if not (missing := _find_missing(tensors)):
            raise
        raise _error(missing, f"the model fails: {first_line(error).rstrip(' :')}") from error


def check_missing(
    tensors: Mapping[str, Tensor],
    sites: Mapping[str, Site],
    plates: Mapping[str, tuple[int, int]],
    trace: Tracer,
) -> None:
    """
    Check that the model masks the non-finite numbers of its arguments, in every minibatch that may
    hold one.

    :param tensors: the model's arguments, by the names that the user knows.
    :param sites: the sites of a trace at feasible values, without plates and deterministic ones.
    :param plates: size and subsample size of the plates.
    :raises ModelError: if the log density or its gradient is not finite, at feasible values and
        beside them.
    """
    if not (missing := _find_missing(tensors)):
        return
    feasible = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
    beside = perturb(sites, feasible, feasible.keys())
    for indices in _batches(missing, plates):
        of_batch = Tracer(_TakeIndices(indices)(trace.run), (), {})
        found = _find_non_finite(of_batch, beside, sites)
        if found and _find_non_finite(of_batch, feasible, sites):
            raise _error(missing, f"{found} is not finite")


def _error(missing: Mapping[str, Tensor], consequence: str) -> ModelError:
    counts = [
        f"{name!r} has {int(bad.sum())} non-finite of {bad.numel()} numbers"
        for name, bad in missing.items()
    ]
    return ModelError(
        f"{' and '.join(counts)}, and {consequence}; remove or impute them before sampling, or "
        "fill them in the model with any finite number, `y = torch.where(ok, y, 0.0)`, and leave "
        "them out of the density with pyro.poutine.mask(mask=ok)"
    )


def _batches(
    missing: Mapping[str, Tensor], plates: Mapping[str, tuple[int, int]]
) -> Iterator[dict[str, Tensor]]:
    """Yield indices of subsampled plates that together hold all data with missing numbers."""
    yield {}
    device = next(iter(missing.values())).device
    for plate, (size, count) in plates.items():
        if count >= size:
            continue
        has_missing = torch.zeros(size, dtype=torch.bool, device=device)
        for bad in missing.values():
            for axis in (axis for axis in range(bad.dim()) if bad.shape[axis] == size):
                rows = bad.movedim(axis, 0).reshape(size, -1).any(1)
                has_missing |= rows.to(device)
        rest = torch.arange(size, device=device)
        # Data without missing numbers fill the last batch.
        ordered = torch.cat([rest[has_missing], rest[~has_missing]])
        for start in range(0, int(has_missing.sum()), count):
            start = min(start, size - count)
            yield {plate: ordered[start : start + count]}


class _TakeIndices(Messenger):
    """Give subsampled plates their indices."""

    def __init__(self, indices: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._indices = indices

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is None and msg["name"] in self._indices:
            msg["value"] = self._indices[msg["name"]]


def _find_non_finite(
    trace: Tracer, values: Mapping[str, Tensor], names: Mapping[str, Site]
) -> str | None:
    """Return what is not finite at some values of the latents, in words."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    total: Tensor | None = None
    with torch.enable_grad():
        for name, site in trace(leaves, grad=True).items():
            if name not in names:
                continue
            log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            density = scale_and_mask(log_prob, site["scale"], site["mask"]).sum()
            if not bool(torch.isfinite(density)):
                return f"the log density of site {name!r}"
            total = density if total is None else total + density
    if total is None or not total.requires_grad:
        return None
    slopes = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    for name, slope in zip(leaves, slopes, strict=True):
        if slope is not None and not bool(torch.isfinite(slope).all()):
            return f"the gradient of site {name!r}"
    return None
