# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Chains against exact answers, and the tables of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import pyro_aeb as aeb

from ..common.tables import markdown_table

Array = Any


class Agreement(NamedTuple):
    """
    One number as the chains have it.

    :param str name: of the number.
    :param float exact: the exact answer.
    :param float mean: over the chains.
    :param float error: its standard error, from the chains, which are independent.
    :param float own: where the chains should come to with steps of their size, if that is known.
    """

    name: str
    exact: float
    mean: float
    error: float
    own: float

    @property
    def z(self) -> float:
        """How many standard errors the mean is away from where it should be."""
        return (self.mean - self.own) / self.error


def agreement(name: str, chains: Array, exact: float, own: float | None = None) -> Agreement:
    """
    :param chains: one number of every chain.
    :param exact: the exact answer.
    :param own: where steps of this size lead, if not there.
    """
    mean, error = aeb.testing.replicates(chains)
    return Agreement(name, exact, float(mean), float(error), exact if own is None else own)


def agreement_table(rows: Sequence[Agreement]) -> str:
    """A Markdown table."""
    header = ["", "exact", "exact, for these steps", "chains", "standard error", "z"]
    lines = [
        [
            row.name,
            f"{row.exact:.5f}",
            f"{row.own:.5f}",
            f"{row.mean:.5f}",
            f"{row.error:.5f}",
            f"{row.z:+.1f}",
        ]
        for row in rows
    ]
    return markdown_table(header, lines)


def spread_of_z(chains: Array, exact: Array) -> str:
    """
    In words, how many standard errors many numbers are off.

    :param chains: shape (chains, numbers).
    :param exact: shape (numbers,).
    """
    mean, error = aeb.testing.replicates(chains)
    z = (mean - exact) / error
    degrees = len(chains) - 1  # of Student's t, whose mean square is degrees / (degrees - 2)
    expected = np.sqrt(degrees / (degrees - 2)) if degrees > 2 else np.nan
    return (
        f"{len(z)} numbers, root mean square of z {np.sqrt(np.mean(z**2)):.2f} "
        f"(expected {expected:.2f}), largest |z| {np.abs(z).max():.1f}"
    )
