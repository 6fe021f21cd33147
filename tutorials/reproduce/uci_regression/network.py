# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A network with one hidden layer as a Pyro model, and what its draws predict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_aeb as aeb

HIDDEN = 50

#: Standard deviation of the output bias's prior: the target may lie anywhere.
OUTPUT_BIAS_SCALE = 100.0


@dataclass(frozen=True)
class Prior:
    """
    The numbers of the model.

    :param float v0: scale of the Laplace component, in units of sigma.
    :param float v1: variance of the Gaussian component, in units of sigma squared.
    :param float a: first parameter of each delta's Beta prior.
    :param float b: its second parameter.
    :param float nu: degrees of freedom of sigma squared's prior, InverseGamma(nu/2, nu lambda/2).
    :param float lam: lambda.
    :param float bias_scale: standard deviation of the hidden biases' Normal prior.
    :param noise_variance: of the observations; None for sigma squared, which is then both the
        noise's variance and the unit of the weights' prior.
    """

    v0: float
    v1: float = 10.0
    a: float = 1.0
    b: float = 10.0
    nu: float = 1.0
    lam: float = 1.0
    bias_scale: float = 100.0
    noise_variance: float | None = 0.5


class Network:
    """
    y = w2 · relu(W1 x + b1) + b2 + noise, as a Pyro model. Both weight matrices have SSGL priors,
    each with a delta of its own; the biases are Normal. Distributions that never change are made
    once, which spares a fifth of a step.

    :param Prior prior: its numbers.
    :param int features: d.
    :param int hidden: units.
    """

    def __init__(self, prior: Prior, features: int, hidden: int = HIDDEN) -> None:
        self.prior = prior
        self.shape = (hidden, features)
        self._sigma2 = dist.InverseGamma(prior.nu / 2, prior.nu * prior.lam / 2)
        self._delta = dist.Beta(prior.a, prior.b)
        self._b1 = dist.Normal(torch.zeros(hidden), prior.bias_scale).to_event(1)
        self._b2 = dist.Normal(torch.tensor(0.0), OUTPUT_BIAS_SCALE)
        fixed = prior.noise_variance
        self._noise = None if fixed is None else torch.tensor(math.sqrt(fixed))

    def __call__(self, X: Tensor, y: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """
        The model.

        :param X: inputs, shape (n, d).
        :param y: targets, shape (n,); None to predict them.
        :param batch_size: rows in a minibatch, None for all.
        """
        hidden, features = self.shape
        v0, v1 = self.prior.v0, self.prior.v1
        sigma = pyro.sample("sigma2", self._sigma2).sqrt()
        delta1 = pyro.sample("delta1", self._delta)
        delta2 = pyro.sample("delta2", self._delta)
        W1 = pyro.sample(
            "W1", aeb.SSGL(v0, v1, delta1, sigma).expand([hidden, features]).to_event(2)
        )
        b1 = pyro.sample("b1", self._b1)
        w2 = pyro.sample("w2", aeb.SSGL(v0, v1, delta2, sigma).expand([hidden]).to_event(1))
        b2 = pyro.sample("b2", self._b2)
        with pyro.plate("data", len(X), subsample_size=batch_size) as i:
            activations = torch.relu(torch.addmm(b1, X[i], W1.t()))
            mean = torch.addmv(b2, activations, w2)
            noise = dist.Normal(mean, sigma if self._noise is None else self._noise)
            return pyro.sample("y", noise, obs=None if y is None else y[i])

    def first_values(self, sigma: float, delta: float, seed: int) -> dict[str, Tensor]:
        """
        Return the first values of a chain: weights and biases as torch's own layers start.

        :param float sigma: first value of sigma.
        :param float delta: first value of every delta.
        :param int seed: of the weights.
        """
        hidden, features = self.shape
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            first = torch.nn.Linear(features, hidden)
            second = torch.nn.Linear(hidden, 1)
        return {
            "W1": first.weight.detach(),
            "b1": first.bias.detach(),
            "w2": second.weight.detach()[0],
            "b2": second.bias.detach()[0],
            "sigma2": torch.tensor(sigma**2),
            "delta1": torch.tensor(delta),
            "delta2": torch.tensor(delta),
        }


def predictions(samples: Mapping[str, Tensor], X: Tensor) -> Tensor:
    """
    Every draw's mean of the target.

    :param samples: draws by site name, the first axis over draws.
    :param X: inputs, shape (rows, d).
    :returns: shape (draws, rows).
    """
    activations = torch.relu(X @ samples["W1"].mT + samples["b1"].unsqueeze(-2))
    return (activations @ samples["w2"].unsqueeze(-1)).squeeze(-1) + samples["b2"].unsqueeze(-1)


def log_density(means: Tensor, scales: Tensor, y: Tensor) -> Tensor:
    """
    Log density of observations under an equal mixture of normals, one for each draw.

    :param means: shape (draws, rows).
    :param scales: standard deviations, shape (draws, 1).
    :param y: observations, shape (rows,).
    :returns: shape (rows,).
    """
    each = dist.Normal(means, scales).log_prob(y)
    return torch.logsumexp(each, 0) - math.log(len(means))


def covered(means: Tensor, scales: Tensor, y: Tensor, level: float) -> Tensor:
    """
    Whether the central interval of the mixture holds each observation: its cdf there is neither in
    the lower nor in the upper (1 - level) / 2. Arguments as in :func:`log_density`.
    """
    probability = dist.Normal(means, scales).cdf(y).mean(0)
    return (probability - 0.5).abs() <= level / 2
