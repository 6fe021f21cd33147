# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The interface of an update, a map from what a step has seen to the value that a latent should move
to.

An update returns :math:`\tilde\theta`, in the constrained space of the site. The kernel moves the
latent towards it by the weight :math:`\omega_k`, equation (8), records and saves it, and passes it
to the model at the next step. An :class:`AveragedStatistics` returns statistics, which are averaged
in place of values. An update is written for one chain; for chains that step together it is
vectorised by :func:`torch.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_aeb.errors import ModelError


class Seen(NamedTuple):
    """
    The inputs of an update, at the weights of the step's gradient.

    :param Tensor value: the latent's value before the step.
    :param dict values: values of all latent sites, in constrained space, by name.
    :param dict statistics: values that the model records with ``pyro.deterministic``, by name, each
        multiplied by the scale of the plates around it: a sum over the batch, recorded inside the
        plate of the data, becomes an estimate of the sum over the whole data set.
    :param Tensor gradient: gradient with respect to the latent of the log joint density of the
        whole data set, estimated from the batch: of its prior and of all sites that depend on it,
        observed or not. None unless the update asks for derivatives.
    :param Tensor curvature: elementwise derivative of the gradient; of a vector that sums to 1, the
        derivative of the gradient's first number with respect to every number. None unless the
        update asks for two derivatives.
    """

    value: Tensor
    values: dict[str, Tensor]
    statistics: dict[str, Tensor]
    gradient: Tensor | None = None
    curvature: Tensor | None = None

    def derivatives(self) -> tuple[Tensor, Tensor]:
        """Return gradient and curvature, for an update that asks for both."""
        assert self.gradient is not None and self.curvature is not None
        return self.gradient, self.curvature


def _lacks(update: object, method: str, result: str) -> NotImplementedError:
    return NotImplementedError(
        f"{type(update).__name__} has no {method} of its own, expected a method that returns "
        f"{result}; write it, or give latents= a function of what a step has seen"
    )


class LatentUpdate:
    """
    Base class of updates. A custom one overrides :meth:`update`, and whatever else it needs.
    """

    derivatives: int = 0
    """Number of derivatives of the log joint density that it reads: 0, 1 or 2."""

    def of(self, prior: Any) -> LatentUpdate:
        """
        Return the update for a site.

        :param prior: the site's distribution, without ``to_event``.
        :raises ValueError: if it cannot learn a site with this prior.
        """
        return self

    def init(self, value: Tensor) -> Tensor:
        """
        Return the latent's value before the first step.

        :param Tensor value: the value of the kernel's ``init_strategy``.
        """
        return value

    def update(self, seen: Seen) -> Tensor:
        r"""Return :math:`\tilde\theta`, of the shape of ``seen.value``."""
        raise _lacks(self, "update(seen)", "the value to move to")


class AveragedStatistics(LatentUpdate):
    r"""
    Base class of updates that average statistics in place of values.

    Equation (8) moves the statistics, :math:`s \leftarrow (1 - \omega) s + \omega \tilde s`, and
    the latent is the maximiser given s: stochastic approximation EM [1]. Its limit is a fixed point
    of EM for any maximiser. That of averaged values is one only if the maximiser is linear in the
    statistics: the average of a ratio is not the ratio of averages.

    A custom update overrides :meth:`statistics` and :meth:`maximiser`.

    **References**

    [1] Bernard Delyon, Marc Lavielle, Eric Moulines (1999), "Convergence of a stochastic
        approximation version of the EM algorithm", Annals of Statistics 27.
    """

    def statistics(self, seen: Seen) -> Tensor:
        r"""Return :math:`\tilde s`, a tensor of any shape, the same at every step."""
        raise _lacks(self, "statistics(seen)", "what is averaged")

    def maximiser(self, statistics: Tensor) -> Tensor:
        """Return the latent's value given statistics."""
        raise _lacks(self, "maximiser(statistics)", "the latent's value")

    def first(self, statistics: Tensor, value: Tensor) -> Tensor:
        """
        Return the statistics before the first step. By default they are those of the first step, so
        that the latent's initial value has no weight.

        :param Tensor statistics: of the first step.
        :param Tensor value: the latent's initial value.
        """
        return statistics

    def update(self, seen: Seen) -> Tensor:
        """Return the maximiser given the statistics of one step."""
        return self.maximiser(self.statistics(seen))


class Function(LatentUpdate):
    """
    An update by a user's function.

    :param function: from :class:`Seen` to a value of the site.
    """

    def __init__(self, function: Callable[[Seen], Tensor]) -> None:
        self._function = function

    def __repr__(self) -> str:
        return getattr(self._function, "__name__", repr(self._function))

    def update(self, seen: Seen) -> Tensor:
        """Return the function's result."""
        return self._function(seen)


def as_update(name: str, update: Any) -> LatentUpdate:
    """
    Return an update as it is, and a function as a :class:`Function`.

    :param str name: the site.
    :raises TypeError: if ``update`` is neither.
    """
    if isinstance(update, type):
        raise TypeError(
            f"latents[{name!r}] is the class {update.__name__}, expected an instance of it, "
            f"{update.__name__}(...)"
        )
    if isinstance(update, LatentUpdate):
        return update
    if callable(update):
        return Function(update)
    raise TypeError(
        f"latents[{name!r}] is {update!r}, expected latents.ClosedForm(), "
        "latents.GradientStep(...), a function of what a step has seen, or a latents.LatentUpdate "
        "of your own"
    )


def check_value(name: str, value: Any, shape: torch.Size) -> Tensor:
    """
    Return the value of an update, detached.

    :raises ModelError: if it is not a tensor of the site's shape.
    """
    if isinstance(value, Tensor) and value.shape == shape:
        return value.detach()
    result = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise ModelError(
        f"the update of latent {name!r} returned {result}, expected a tensor of shape "
        f"{tuple(shape)}, that of the site's value"
    )


def check_statistics(name: str, statistics: Any, shape: torch.Size | None = None) -> Tensor:
    """
    Return the statistics of an update, detached.

    :param shape: of the step before, None at the first step.
    :raises ModelError: if they are not a tensor, or of another shape.
    """
    if not isinstance(statistics, Tensor):
        raise ModelError(
            f"the statistics of latent {name!r} are {statistics!r}, expected a tensor; put several "
            "into one with torch.cat or torch.stack"
        )
    if shape is not None and statistics.shape != shape:
        raise ModelError(
            f"the statistics of latent {name!r} were of shape {tuple(statistics.shape)} and are of "
            f"shape {tuple(shape)} now, expected one shape at every step, which does not depend on "
            "the batch"
        )
    return statistics.detach()
