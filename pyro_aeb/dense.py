# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The closed-form prior of the weights that are not sparse: equation (1), last line."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_aeb.structure import Structure


class NormalPrior:
    r"""
    Independent priors :math:`\beta \sim N(\mu_0, \sigma_0^2)` of the dense weights, M numbers.

    :param Structure structure: the model's structure.
    """

    def __init__(self, structure: Structure) -> None:
        blocks = structure.normal
        self.size = sum(block.size for block in blocks)
        empty = [torch.zeros(0, dtype=structure.dtype, device=structure.device)]
        self._loc = torch.cat([block.loc.reshape(-1) for block in blocks] or empty)
        scale = torch.cat([block.scale.reshape(-1) for block in blocks] or empty)
        self._precision = scale**-2

    def add_gradient(self, gradient: Tensor, beta: Tensor) -> None:
        r"""Adds :math:`(\mu_0 - \beta) / \sigma_0^2` to ``gradient``, shape (..., M), in place."""
        gradient.addcmul_(self._loc - beta, self._precision)

    def potential(self, beta: Tensor) -> Tensor:
        r""":math:`\sum (\beta - \mu_0)^2 / 2 \sigma_0^2`, shape (...)."""
        return 0.5 * ((beta - self._loc).square() * self._precision).sum(-1)
