# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The contract of an update: from what a step has seen, the value that a latent should move to.

An update returns :math:`\tilde\theta`, in the space of the site's own values; the kernel moves the
latent there by the weight :math:`\omega_k`, equation (8), keeps it in traces and checkpoints, and
gives it to the model at the next step. An update of the kind :class:`AveragedStatistics` returns
statistics, which are averaged in place of values. An update knows no chain: with several chains at
once it is run through :func:`torch.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_aeb.errors import ModelError


class Seen(NamedTuple):
    """
    What a step has seen, at the weights that its gradient was taken at.

    :param Tensor value: of the latent before the step.
    :param dict values: of all latent sites, in constrained space, by name.
    :param dict statistics: values that the model has recorded with ``pyro.deterministic``, by name,
        each times the scale of the plates around it: a sum over the batch, recorded inside the
        plate of the data, comes as an estimate of the sum over the whole data set.
    :param Tensor gradient: of the log joint density with respect to the latent, as far as it
        depends on it: its prior, and all sites below it, observed or not; of the whole data set,
        estimated from the batch. None unless the update asks for derivatives.
    :param Tensor curvature: the gradient's own derivative. Of a vector that sums to 1, the
        derivative of all others with respect to its first number; of all else, of each number with
        respect to itself. None unless the update asks for two derivatives.
    """

    value: Tensor
    values: dict[str, Tensor]
    statistics: dict[str, Tensor]
    gradient: Tensor | None = None
    curvature: Tensor | None = None

    def derivatives(self) -> tuple[Tensor, Tensor]:
        """Gradient and curvature, of an update that asked for both."""
        assert self.gradient is not None and self.curvature is not None
        return self.gradient, self.curvature


def missing(update: object, method: str, what: str) -> str:
    """The message of an error about a method that a kind of update lacks."""
    return (
        f"{type(update).__name__} has no {method} of its own, expected a method that returns "
        f"{what}; write it, or give latents= a function of what a step has seen"
    )


class LatentUpdate:
    """
    How a latent site is learned: the base of all updates. A kind of its own overrides
    :meth:`update`, and what else it needs.
    """

    derivatives: int = 0
    """How many derivatives of the log joint density it reads: 0, 1 or 2."""

    def of(self, prior: Any) -> LatentUpdate:
        """
        The update for a site.

        :param prior: the site's distribution, without ``to_event``.
        :raises ValueError: if it cannot learn a site with this prior.
        """
        return self

    def init(self, value: Tensor) -> Tensor:
        """
        The latent before the first step.

        :param Tensor value: what the kernel's ``init_strategy`` gives the site.
        """
        return value

    def update(self, seen: Seen) -> Tensor:
        r""":math:`\tilde\theta`, of the shape of ``seen.value``."""
        raise NotImplementedError(missing(self, "update(seen)", "the value to move to"))


class AveragedStatistics(LatentUpdate):
    r"""
    An update that averages statistics in place of values: equation (8) moves them,
    :math:`s \leftarrow (1 - \omega) s + \omega \tilde s`, and the latent is the maximiser given s.
    Stochastic approximation EM, [1]. It comes to a fixed point of EM whatever the maximiser is,
    where an average over maximisers does so only if these are linear in the statistics: the average
    of a ratio is not the ratio of averages.

    A kind of its own overrides :meth:`statistics` and :meth:`maximiser`.

    **References**

    [1] Bernard Delyon, Marc Lavielle, Eric Moulines (1999), "Convergence of a stochastic
        approximation version of the EM algorithm", Annals of Statistics 27.
    """

    def statistics(self, seen: Seen) -> Tensor:
        r""":math:`\tilde s`, a tensor of any shape, the same at every step."""
        raise NotImplementedError(missing(self, "statistics(seen)", "what is averaged"))

    def maximiser(self, statistics: Tensor) -> Tensor:
        """The latent's value given statistics."""
        raise NotImplementedError(missing(self, "maximiser(statistics)", "the latent's value"))

    def first(self, statistics: Tensor, value: Tensor) -> Tensor:
        """
        The statistics before the first step. By default those of the first step, and the first
        value of the latent has no weight.

        :param Tensor statistics: those of the first step.
        :param Tensor value: the latent before it.
        """
        return statistics

    def update(self, seen: Seen) -> Tensor:
        """The maximiser given the statistics of one step."""
        return self.maximiser(self.statistics(seen))


class Function(LatentUpdate):
    """
    A user's own function of what a step has seen.

    :param function: from :class:`Seen` to a value of the site.
    """

    def __init__(self, function: Callable[[Seen], Tensor]) -> None:
        self._function = function

    def __repr__(self) -> str:
        return getattr(self._function, "__name__", repr(self._function))

    def update(self, seen: Seen) -> Tensor:
        """What the function returns."""
        return self._function(seen)


def as_update(name: str, update: Any) -> LatentUpdate:
    """
    :raises TypeError: if ``update`` is neither an update nor a function.
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
    :raises ModelError: if an update has not returned a value of its site's shape.
    """
    if isinstance(value, Tensor) and value.shape == shape:
        return value.detach()
    found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise ModelError(
        f"the update of latent {name!r} returned {found}, expected a tensor of shape "
        f"{tuple(shape)}, that of the site's value"
    )


def check_statistics(name: str, statistics: Any, shape: torch.Size | None = None) -> Tensor:
    """
    :param shape: of the step before, None at the first step.
    :raises ModelError: if an update has not returned statistics, or those of another shape.
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
