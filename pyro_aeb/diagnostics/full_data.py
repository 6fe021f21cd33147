# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Scores on all data: the gradient of tau Q with nothing subsampled and the latents held still."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pyro_aeb.arguments import Batch, tensors_of
from pyro_aeb.diagnostics.frozen import Frozen
from pyro_aeb.posterior import Posterior
from pyro_aeb.start import flatten
from pyro_aeb.testing.objective import whole_plates


def positions(frozen: Frozen, draws: Mapping[str, Tensor]) -> Tensor:
    """
    Draws as flat positions, shape (n, D).

    :param Frozen frozen: of the model.
    :param draws: constrained values of all sampled sites, each with a leading axis of length n.
    """
    count = len(next(iter(draws.values())))
    rows = [{name: value[i] for name, value in draws.items()} for i in range(count)]
    return torch.stack([flatten(frozen.structure, row) for row in rows])


def scores(frozen: Frozen, points: Tensor) -> Tensor:
    """
    The gradient of tau Q on all data, shape (n, D).

    :param Frozen frozen: says what the latents, tau and the data are.
    :param Tensor points: positions, shape (n, D).
    """
    tau, latents = frozen.numbers.inverse_temperature, frozen.latents
    plates = {name: (size, size) for name, (size, _) in frozen.structure.plates.items()}
    posterior = Posterior(frozen.kernel.model, replace(frozen.structure, plates=plates))
    total, weight = torch.zeros_like(points), 0
    with whole_plates():
        for batch, data in _all_data(frozen, plates):
            rows = [posterior.gradient(point, latents, batch).gradient for point in points]
            total += data * torch.stack(rows)
            weight += data
    return total * (tau / weight)


def _all_data(frozen: Frozen, plates: Mapping[str, tuple[int, int]]) -> Iterator[tuple[Batch, int]]:
    """Batches that hold all data once, and how many data each holds."""
    source, device = frozen.chain.source, frozen.structure.device
    indices = {name: torch.arange(size, device=device) for name, (size, _) in plates.items()}
    if source.sizes is None:
        yield frozen.next_batch()._replace(indices=indices), 1
        return
    if not source.sizes:
        raise RuntimeError(
            "how many data the DataLoader holds is not known, expected a dataset with a length"
        )
    source.close()  # so that the next batch is the first of an epoch
    seen, size = 0, min(source.sizes)
    while seen < size:
        batch = frozen.next_batch()._replace(indices=indices)
        data = max(len(tensor) for _, tensor in tensors_of(batch) if tensor.dim())
        seen += data
        yield batch, data
