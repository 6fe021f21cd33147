# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Networks of hidden layers with ReLU, whose sparse weights are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.special import softmax
from torch import Tensor, nn

import pyro_aeb as aeb
from pyro_aeb.sklearn.base import Classifier, Estimator, Regressor

STEPS = 20
"""Steps between two draws."""

TARGET_SCALE = 10.0
"""Standard deviation of the targets in the model, at which one step size fits most noise."""


class Network(Estimator):
    """A network with a spike-and-slab prior on the weights of every layer."""

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (50,),
        num_samples: int = 100,
        warmup_steps: int = 60,
        num_chains: int = 3,
        random_state: Any = None,
    ) -> None:
        self.hidden = hidden
        self.num_samples = num_samples
        self.warmup_steps = warmup_steps
        self.num_chains = num_chains
        self.random_state = random_state

    def _make(self, features: int, outputs: int) -> nn.Sequential:
        """Return an ordinary network, whose first weights are those of the seed."""
        seed = self._draw_seed()
        sizes = [features, *self.hidden, outputs]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(sizes)]
        return nn.Sequential(*[part for layer in layers for part in layer][:-1])

    def _sample(self, model: Any, X: Any, y: Tensor, step_size: float) -> dict[str, Any]:
        """Run the chains, and return the draws, those of the weights by layer."""
        kernel = aeb.AEBKernel(
            model,
            aeb.SGHMC(step_size, friction=0.1),
            aeb.StochasticApproximation(aeb.Polynomial(10.0, 1000.0, 0.7)),
            steps_per_draw=STEPS,
            seed=self._seed,
        )
        draws = self._run(kernel, X, y)
        rho = self.inference_data_["adaptation"]["0.weight_rho"]  # by chain, draw, unit and input
        self.inclusion_ = np.asarray(rho).mean((0, 1, 2))
        names = [f"{2 * i}" for i in range(len(self.hidden) + 1)]
        self._layers = [(draws[f"{name}.weight"], draws[f"{name}.bias"]) for name in names]
        return draws

    def _outputs(self, X: Any) -> Any:
        """Return the network's outputs at every draw, shape (draws, n, outputs)."""
        return np.stack([self._forward(X, draw) for draw in range(len(self._layers[0][0]))])

    def _forward(self, X: Any, draw: int) -> Any:
        values = self._scale(X)
        for number, (weight, bias) in enumerate(self._layers):
            if number:
                values = np.maximum(values, 0.0)
            values = values @ weight[draw].T + bias[draw]
        return values


class NetworkRegressor(Regressor, Network):
    """
    Regression by a network, with honest intervals.

    The settings are those of the tutorial ``uci_uncertainty.py``: spikes of width
    :math:`1 / \\sqrt{n}` in units of the noise, which is learned, and steps that fit them.

    :param hidden: units of every hidden layer.
    :param int num_samples: draws of a chain, 20 steps apart.
    :param int warmup_steps: draws before, which are left out.
    :param int num_chains: chains that are run together, from the same first weights.
    :param random_state: a number, a ``numpy.random.RandomState``, or None.

    After ``fit``: ``inclusion_``, of every input the share of its weights that are in the slab;
    ``check_``, the verdict of :func:`pyro_aeb.check` on the run; ``inference_data_``, the draws for
    ArviZ.
    """

    def fit(self, X: Any, y: Any) -> NetworkRegressor:
        """
        Sample the posterior.

        :param X: features, shape (n, p): an array or a data frame of numbers.
        :param y: targets, shape (n,).
        """
        X, y = self._targets(X, y)
        self._middle, self._unit = y.mean(), (y.std() or 1.0) / TARGET_SCALE
        net = aeb.nn.bayesianize(
            self._make(X.shape[1], 1),
            v0=len(X) ** -0.5,
            v1=10.0,
            delta=dist.Beta(2.0, 10.0),
            sigma2=dist.InverseGamma(0.5, 0.5),
            dense_scale=3.0,
        )

        def model(x: Tensor, y: Tensor) -> None:
            mean = net(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, net.sigma2.sqrt()), obs=y)

        target = torch.tensor((y - self._middle) / self._unit, dtype=torch.float32)
        draws = self._sample(model, X, target, min(5e-5, 0.02 / len(X)))
        self._noise = np.sqrt(draws["sigma2"]) * self._unit
        return self

    def _means(self, X: Any) -> Any:
        return self._outputs(X)[..., 0] * self._unit + self._middle


class NetworkClassifier(Classifier, Network):
    """
    Classification by a network, whose probabilities are averages over the draws.

    The parameters and what ``fit`` leaves are those of :class:`NetworkRegressor`, with 1 in the
    place of the noise, and ``classes_``.
    """

    def fit(self, X: Any, y: Any) -> NetworkClassifier:
        """
        Sample the posterior.

        :param X: features, shape (n, p): an array or a data frame of numbers.
        :param y: classes, shape (n,): numbers or words.
        """
        X, codes = self._targets(X, y)
        net = aeb.nn.bayesianize(
            self._make(X.shape[1], len(self.classes_)),
            v0=len(X) ** -0.5,
            v1=10.0,
            delta=dist.Beta(2.0, 10.0),
            sigma2=1.0,
            dense_scale=3.0,
        )

        def model(x: Tensor, y: Tensor) -> None:
            logits = net(x)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Categorical(logits=logits), obs=y)

        self._sample(model, X, torch.tensor(codes, dtype=torch.long), 0.05 / len(X))
        return self

    def _probabilities(self, X: Any) -> Any:
        return softmax(self._outputs(X), axis=-1).mean(0)
