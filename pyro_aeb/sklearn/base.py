# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of data, scaling, the run, and predictions by its draws, for all estimators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

import pyro_aeb as aeb


class Estimator(BaseEstimator):
    """
    Features of mean 0 and variance 1, and chains that are run together.

    A subclass has the parameters ``num_samples``, ``warmup_steps``, ``num_chains`` and
    ``random_state``.
    """

    num_samples: int
    warmup_steps: int
    num_chains: int
    random_state: Any

    def _fit_scale(self, X: Any) -> Any:
        self._center, width = X.mean(0), X.std(0)
        self._width = np.where(width > 0.0, width, 1.0)
        return self._scale(X)

    def _scale(self, X: Any) -> Any:
        """Return features in the units of the fit."""
        return (X - self._center) / self._width

    def _validate(self, X: Any) -> Any:
        """Return new rows as numbers, after the fit."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False)

    def _draw_seed(self) -> int:
        """Return the seed of the run, which is that of the predictions' noise, too."""
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return self._seed

    def _run(
        self,
        kernel: aeb.AEBKernel,
        X: Any,
        y: Tensor,
        starts: dict[str, Tensor] | None = None,
        **coords: list[str],
    ) -> dict[str, Any]:
        """
        Run the chains, keep the trace and the verdict, and return the draws by site.

        :param starts: first values by site, in unconstrained space, with an axis of chains.
        """
        mcmc = aeb.MCMC(
            kernel,
            self.num_samples,
            self.warmup_steps,
            num_chains=self.num_chains,
            chain_method="vectorized",
            disable_progbar=True,
            initial_params=starts,
        )
        mcmc.run(torch.tensor(X, dtype=torch.float32), y)
        self.inference_data_ = aeb.to_arviz(mcmc, coords=coords)
        self.check_ = aeb.check(mcmc, quiet=True)
        return {name: value.double().numpy() for name, value in mcmc.get_samples().items()}


class Regressor(RegressorMixin, Estimator, ABC):
    """Regression with Normal noise, whose standard deviation at every draw is ``_noise``."""

    _noise: Any

    @abstractmethod
    def _means(self, X: Any) -> Any:
        """Return the mean of the target at every draw, shape (draws, n)."""

    def _targets(self, X: Any, y: Any) -> tuple[Any, Any]:
        X, y = validate_data(self, X, y, y_numeric=True, dtype=np.float64, ensure_min_samples=2)
        return self._fit_scale(X), y

    def predict(self, X: Any) -> Any:
        """Return the posterior mean of the predictions, shape (n,)."""
        return self._means(self._validate(X)).mean(0)

    def predict_interval(self, X: Any, level: float = 0.9) -> Any:
        """
        Return the bounds that hold a new target with a probability, shape (n, 2).

        :param float level: the probability.
        :raises ValueError: if ``level`` is not between 0 and 1.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level is {level!r}, expected a probability between 0 and 1")
        means = self._means(self._validate(X))
        noise = np.random.default_rng(self._seed).standard_normal(means.shape)
        bounds = (1.0 - level) / 2.0, (1.0 + level) / 2.0
        return np.quantile(means + self._noise[:, None] * noise, bounds, axis=0).T


class Classifier(ClassifierMixin, Estimator, ABC):
    """Classification by probabilities that are averaged over the draws."""

    classes_: Any

    @abstractmethod
    def _probabilities(self, X: Any) -> Any:
        """Return the probabilities of the classes, averaged over the draws, shape (n, classes)."""

    def _targets(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Return the features, and the numbers of the classes from 0 on."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, '{self.classes_[0]}', expected two classes or more")
        return self._fit_scale(X), codes

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of every class, averaged over the draws, shape (n, classes)."""
        return self._probabilities(self._validate(X))

    def predict(self, X: Any) -> Any:
        """Return the most probable class of every row, shape (n,)."""
        best = self.predict_proba(X).argmax(-1)
        return self.classes_[best]
