# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""One row at one seed: from the dense network to a sparse one, and its figures."""

from __future__ import annotations

import pyro_aeb as aeb

from . import dense, training
from .methods import METHODS, build, parse_task
from .protocol import WIDTHS, Clock, Protocol
from .training import Length, Run

FIGURES = [
    *training.FIGURES,
    *("drop_last", "drop_average", "zeros", "sparsity", "sigma", "delta", "seconds"),
]


def settings_of(name: str, protocol: Protocol, score: str) -> str:
    """
    Return the settings of a row other than the seed, as text.

    :raises KeyError: if there is no such row.
    """
    method, percent = parse_task(name)
    changes = str(protocol.changes) if METHODS[method].learns else ""
    row = f"{METHODS[method]}, widths={WIDTHS[percent]}, {protocol}"
    return f"{row}, scored on {score} images{changes}"


def run_one(name: str, seed: int, run: Run) -> dict[str, float]:
    """
    The figures of a row: scores of the last draw and of the posterior average, the drops in
    accuracy from the dense network in points, number and share of zeros among the network's
    parameters, and where sigma and the mean of the deltas ended. There are no drops on validation
    images.

    :param str name: of the task, method and target sparsity.
    :param int seed: of noise, batches and augmentation.
    :param Run run: whose data and protocol.
    """
    protocol = run.protocol
    module, dense_figures = dense.dense_network_of(run)
    data = len(run.data()[0].labels)
    length = Length(
        protocol.sparse_epochs,
        data,
        protocol.sparse_batch,
        protocol.draws_per_epoch,
        protocol.averaged_draws,
    )
    clock = Clock(length.steps, data)
    net, kernel = build(name, module, protocol, clock, length.steps_per_draw, seed)
    settings = settings_of(name, protocol, run.score)
    state, figures = training.sample(
        net, kernel, length, run, seed, run.folder(name, seed, settings)
    )
    for which in ("last", "average") if run.score == "test" else ():
        drop = dense_figures["accuracy_last"] - figures[f"accuracy_{which}"]
        figures[f"drop_{which}"] = 100.0 * drop
    network = run.network()
    network.load_state_dict(state)
    counts = aeb.nn.parameter_counts(network)
    figures["zeros"] = float(counts.total - counts.nonzero)
    figures["sparsity"] = 1.0 - counts.nonzero / counts.total
    return figures
