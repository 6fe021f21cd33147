# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The method as the paper's authors wrote it: a loop over the layers for everything.

After their released code (github.com/WayneDW/Bayesian-Sparse-Deep-Learning: ``sgmcmc.py`` and
``posterior_cnn.py``), written anew. The penalties stand in the loss, where autograd finds their
gradients; every parameter has an update of its own, every layer its own rho, kappa0, kappa1 and
delta, whose sums go through Python numbers; sigma is one Python number. Pruning finds each layer's
threshold by bisection, and counts the zeros of every parameter.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Laplace, Normal

from ..workloads import Workload
from .base import Peer

OMEGA = 10.0 / 1000.0**0.7
TOLERANCE = 1e-3
"""Of a layer's share of zeros, theirs."""


class Latents:
    """
    The latents of a network's sparse layers, by name.

    :param workload: the model.
    :param network: whose parameters are stepped.
    :param float prune: the share of all weights that is set to zero at every step; 0 for none.
    """

    def __init__(self, workload: Workload, network: nn.Module, prune: float) -> None:
        self.priors, self.scale = workload.priors, workload.scale
        self.log_likelihood = workload.log_likelihood
        self.network = network
        sparse = {n: p for n, p in network.named_parameters() if n in workload.sparse}
        self.rho = {name: torch.full_like(p.data, 0.5) for name, p in sparse.items()}
        self.kappa0 = {name: torch.full_like(p.data, 5e-4) for name, p in sparse.items()}
        self.kappa1 = {name: torch.full_like(p.data, 5e-4) for name, p in sparse.items()}
        self.delta = dict.fromkeys(sparse, 0.5)
        self.sigma = 1.0
        self.total = sum(p.numel() for p in network.parameters())
        self.size = sum(p.numel() for p in sparse.values())
        self.target = prune * self.total / self.size

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """-Q: the priors as penalties in the loss."""
        loss = -self.log_likelihood(self.network(x), y) * self.scale
        for name, param in self.network.named_parameters():
            if name in self.rho:
                ridge = torch.sum(param.pow(2) * self.kappa1[name]) / self.sigma**2 / 2
                loss = loss + ridge + torch.sum(param.abs() * self.kappa0[name]) / self.sigma
            else:
                loss = loss + 0.5 / self.priors.dense_scale**2 * param.norm(2) ** 2
        return loss

    def update(self) -> None:
        """Equations (4) to (8), layer by layer; prunes."""
        own, omega = self.priors, OMEGA
        zeros, lasso, ridge = 0, 0.0, 0.0
        for name, param in self.network.named_parameters():
            beta = param.data
            if name not in self.rho:
                zeros += (beta == 0).sum().item()
                continue
            zero = torch.tensor([0.0], device=beta.device)
            gauss = Normal(zero, np.sqrt(own.v1)).log_prob(beta).exp()
            laplace = Laplace(zero, own.v0).log_prob(beta).exp()
            gauss, laplace = gauss * self.delta[name], laplace * (1 - self.delta[name])
            rho = (1 - omega) * self.rho[name] + omega * gauss / (gauss + laplace)
            self.rho[name] = rho
            self.kappa0[name] = (1 - omega) * self.kappa0[name] + omega * ((1 - rho) / own.v0)
            self.kappa1[name] = (1 - omega) * self.kappa1[name] + omega * (rho / own.v1)
            count = own.a + own.b + beta.numel() - 2
            self.delta[name] = (1 - omega) * self.delta[name] + omega * (
                (rho.sum() + own.a - 1) / count
            ).item()
            if self.target:
                beta[beta.abs() < self.threshold(beta)] = 0
                zeros += (beta == 0).sum().item()
            lasso += (beta.abs() * self.kappa0[name]).sum().item()
            ridge += (beta**2 * self.kappa1[name]).sum().item()
        self.zeros = zeros / self.total
        a = self.size + own.nu + 2
        sigma = (lasso + np.sqrt(lasso**2 + 4 * a * (ridge + own.nu_lambda))) / a / 2
        self.sigma = float(np.sqrt((1 - omega) * self.sigma**2 + omega * sigma**2))

    def threshold(self, beta: Tensor) -> float:
        """Below which a layer's weights are set to zero, by bisection."""
        low, high, size = 0.0, 1e2, beta.numel()
        while low < high:
            middle = (low + high) / 2
            share = (beta.abs() < middle).sum().item() / size
            # Theirs has no end of precision, and can go on for ever where weights tie.
            if abs(share - self.target) < TOLERANCE or high - low < 1e-12:
                return middle
            low, high = (low, middle) if share > self.target else (middle, high)
        return middle


def start(workload: Workload, prune: float = 0.0) -> Peer:
    """:param float prune: the share of all weights that is set to zero at every step."""
    network = copy.deepcopy(workload.network)
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.01 * torch.randn_like(param))  # L starts at zero, where all weights tie
    latents = Latents(workload, network, prune)
    velocity = [torch.zeros_like(param.data) for param in network.parameters()]
    eta, friction = workload.step_size, workload.friction
    scale = np.sqrt(2.0 * eta * (friction - 0.5 * eta))

    def step() -> None:
        network.zero_grad()
        latents.loss(*workload.next_batch()).backward()
        for v, (_, param) in zip(velocity, network.named_parameters(), strict=True):
            noise = torch.empty_like(param.data).normal_().mul(scale)
            v.mul_(1 - friction).add_(param.grad.data, alpha=-eta).add_(noise)
            param.data.add_(v)
        latents.update()

    return Peer(step)
