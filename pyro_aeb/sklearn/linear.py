# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Linear models that say which features matter, drawn with :class:`~pyro_aeb.Gibbs`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.special import softmax
from sklearn.linear_model import RidgeCV
from torch import Tensor

import pyro_aeb as aeb
from pyro_aeb.sklearn.base import Classifier, Estimator, Regressor

EVERY = 10
"""Steps between two scans of gamma, and between two draws."""

WIDTH = 0.05
"""Width of the spike where there are no more features than rows."""

SHARE = 0.05
"""Of the prior of a learned width, :func:`~pyro_aeb.priors.spike_width`."""

STARTS = 0.5, 8.0
"""First learned widths of the first chain and of the last, in medians of the prior."""


class SparseLinear(Estimator):
    """A linear predictor with a spike-and-slab prior on its weights."""

    def __init__(
        self,
        *,
        v0: float | str = "auto",
        v1: float = 4.0,
        expected_features: float = 1.0,
        num_samples: int = 500,
        warmup_steps: int = 100,
        num_chains: int = 2,
        random_state: Any = None,
    ) -> None:
        self.v0 = v0
        self.v1 = v1
        self.expected_features = expected_features
        self.num_samples = num_samples
        self.warmup_steps = warmup_steps
        self.num_chains = num_chains
        self.random_state = random_state

    def _sample(self, model: Callable[..., Any], X: Any, y: Any, variance: float) -> dict[str, Any]:
        """
        Run the chains, and return the draws.

        :param float variance: of the noise, or a guess, for the step size.
        """
        features, starts = X.shape[1], None
        curvature = float(np.linalg.norm(X, 2)) ** 2 / variance
        width = self._fixed_width(X)
        if width is None:  # steps are in units of the spikes, which are as wide as the noise allows
            step_size = 0.05 / max(curvature / features, 1.0)
            starts = {"v0": self._first_widths(features).log()}
        else:
            step_size = 0.05 * min(variance * width**2, 1.0 / max(curvature, 1.0))
        kernel = aeb.AEBKernel(
            model,
            aeb.SGHMC(step_size),
            aeb.Gibbs(every=EVERY),
            steps_per_draw=EVERY,
            seed=self._draw_seed(),
        )
        names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(features)])
        draws = self._run(kernel, X, y, starts, features=list(names))
        self.inclusion_ = aeb.inclusion(self.inference_data_)["beta"].probability
        return draws

    def _fixed_width(self, X: Any) -> float | None:
        """Return the width of the spike, None where it is learned."""
        if isinstance(self.v0, str) and self.v0 != "auto":
            raise ValueError(f"v0 is {self.v0!r}, expected a number above 0, or 'auto'")
        if self.v0 != "auto":
            return float(self.v0)
        rows, features = X.shape
        return None if features > rows else WIDTH

    def _first_widths(self, features: int) -> Tensor:
        """Return a first width of every chain, apart, so that chains that agree have mixed."""
        widths = torch.tensor(np.geomspace(*STARTS, self.num_chains), dtype=torch.float32)
        widths = widths * (SHARE / features) ** 0.5
        return widths if self.num_chains > 1 else widths[0]

    def _weights(self, X: Tensor, sigma: Tensor | float, *outputs: int) -> Tensor:
        features, width = X.shape[1], self._fixed_width(X)
        delta = pyro.sample("delta", dist.Beta(1.0 + self.expected_features, float(features)))
        v0 = aeb.priors.spike_width("v0", features, share=SHARE) if width is None else width
        prior = aeb.SSGL(v0=v0, v1=self.v1, delta=delta, sigma=sigma)
        classes = pyro.plate("classes", outputs[0], dim=-1) if outputs else nullcontext()
        with classes, pyro.plate("features", features, dim=-1 - len(outputs)):
            return pyro.sample("beta", prior)


class SparseRegressor(Regressor, SparseLinear):
    """
    Linear regression that says which features matter.

    :param v0: width of the spike, in units of the noise, at unit variance of the features; "auto"
        is 0.05 or, where there are more features than rows, a width that is learned
        (:func:`~pyro_aeb.priors.spike_width`), by chains whose first widths are apart.
    :param float v1: variance of the slab, in units of the noise's.
    :param float expected_features: how many features would not surprise.
    :param int num_samples: draws of a chain.
    :param int warmup_steps: draws before, which are left out.
    :param int num_chains: chains that are run together.
    :param random_state: a number, a ``numpy.random.RandomState``, or None.

    After ``fit``: ``coef_`` and ``intercept_``, means over the draws in the units of the data;
    ``inclusion_``, the probability of every feature; ``check_``, the verdict of
    :func:`pyro_aeb.check` on the run; ``inference_data_``, the draws for ArviZ, of scaled features.
    """

    def fit(self, X: Any, y: Any) -> SparseRegressor:
        """
        Sample the posterior.

        :param X: features, shape (n, p): an array or a data frame of numbers.
        :param y: targets, shape (n,).
        """
        X, y = self._targets(X, y)
        center, width = y.mean(), y.std() or 1.0
        z = (y - center) / width
        ridge = RidgeCV(np.logspace(-3, 4, 15), fit_intercept=False, store_cv_results=True)
        variance = max(float(ridge.fit(X, z).cv_results_.mean(0).min()), 1.0 / len(z))
        target = torch.tensor(z, dtype=torch.float32)
        draws = self._sample(self._model, X, target, min(variance, 1.0))
        self._coef = draws["beta"] * width / self._width
        self._intercept = center - self._coef @ self._center
        self._noise = np.sqrt(draws["sigma2"]) * width
        self.coef_, self.intercept_ = self._coef.mean(0), self._intercept.mean()
        return self

    def _model(self, X: Tensor, y: Tensor) -> None:
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
        beta = self._weights(X, sigma2.sqrt())
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(X @ beta, sigma2.sqrt()), obs=y)

    def _means(self, X: Any) -> Any:
        return self._coef @ X.T + self._intercept[:, None]


class SparseClassifier(Classifier, SparseLinear):
    """
    Logistic regression on two or more classes that says which features matter.

    The parameters and what ``fit`` leaves are those of :class:`SparseRegressor`, with 1 in the
    place of the noise, and ``classes_``. Of more than two classes every class has its own weights,
    and ``inclusion_`` and ``coef_`` have shape (p, classes).
    """

    def fit(self, X: Any, y: Any) -> SparseClassifier:
        """
        Sample the posterior.

        :param X: features, shape (n, p): an array or a data frame of numbers.
        :param y: classes, shape (n,): numbers or words.
        """
        X, codes = self._targets(X, y)
        kind = torch.float32 if len(self.classes_) == 2 else torch.long
        draws = self._sample(self._model, X, torch.tensor(codes, dtype=kind), 1.0)
        beta = draws["beta"].reshape(len(draws["beta"]), X.shape[1], -1)
        self._coef = beta / self._width[:, None]
        intercept = draws["intercept"].reshape(len(beta), -1)
        self._intercept = intercept - np.einsum("spk,p->sk", self._coef, self._center)
        self.coef_, self.intercept_ = self._coef.mean(0), self._intercept.mean(0)
        return self

    def _model(self, X: Tensor, y: Tensor) -> None:
        outputs = () if y.is_floating_point() else (len(self.classes_),)
        beta = self._weights(X, 1.0, *outputs)
        prior = dist.Normal(0.0, 5.0).expand(outputs).to_event(len(outputs))
        logits = pyro.sample("intercept", prior) + X @ beta
        with pyro.plate("data", len(X)):
            law = dist.Categorical(logits=logits) if outputs else dist.Bernoulli(logits=logits)
            pyro.sample("y", law, obs=y)

    def _probabilities(self, X: Any) -> Any:
        logits = np.einsum("np,spk->snk", X, self._coef) + self._intercept[:, None]
        if logits.shape[-1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], -1)
        return softmax(logits, axis=-1).mean(0)
