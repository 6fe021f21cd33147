# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
One draw's prediction, by one run of the model.

No trace is built. One handler gives latent sites the draw's values and takes down the distributions
of all sites that are left; one of these is the likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_aeb.data.arguments import Arguments
from pyro_aeb.errors import ModelError, listed
from pyro_aeb.model.tracing import unwrap
from pyro_aeb.nn.mixture import Mixture, predicted

REMEDY = (
    "name all latent sites in the kernel's save=[...] (or MCMC's save_params), or average while "
    "sampling: predict = PosteriorPredictive(model, data=loader), MCMC(..., hook_fn=predict.hook), "
    "then predict.evaluate()"
)


class LikelihoodSite:
    """
    The observed site of a model whose distribution is the prediction.

    :param model: a Pyro model.
    :param str site: its name; None for the only one there is.
    :param likelihoods: names of sites that are known to be observed, also where the arguments hold
        no data for them.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        site: str | None,
        likelihoods: Collection[str] = frozenset(),
    ) -> None:
        self._model = model
        self._site = site
        self._likelihoods = frozenset(likelihoods)

    def predict(self, values: Mapping[str, Tensor], arguments: Arguments) -> Mixture:
        """
        :param values: latent site name to constrained value.
        :param arguments: the model's, with or without the data.
        :raises ModelError: if a latent site has no value, or it is not clear which site is meant.
        """
        found = self.run(values, arguments)
        name = self._choose(found, values)
        site = found[name]
        if site.masked:
            raise ModelError(
                f"site {name!r} has a mask, which prediction does not support: leave the masked "
                "data out of the arguments, so that nothing need be masked"
            )
        return predicted(site.fn, site.value)

    def run(self, values: Mapping[str, Tensor], arguments: Arguments) -> dict[str, Found]:
        """Runs the model at a draw's values; the sites without a value in it."""
        with _Given(values) as given:
            self._model(*arguments.args, **arguments.kwargs)
        return given.found

    def _choose(self, found: Mapping[str, Found], values: Mapping[str, Tensor]) -> str:
        observed = [name for name, site in found.items() if site.value is not None]
        name = self._site
        if name is None:
            candidates = observed or list(found)
            if not observed and len(found) > 1:
                raise ModelError(
                    f"sites {listed(sorted(found))} have no values in the draws, which hold "
                    f"{listed(sorted(values))}. If one of them is to be predicted and the draws "
                    f"lack the others: {REMEDY}. If the model predicts several: choose one with "
                    "site="
                )
            if len(candidates) != 1:
                raise ModelError(
                    f"the model has {len(candidates)} observed sites {sorted(candidates)}, "
                    "expected one; choose with PosteriorPredictive(..., site=name)"
                )
            name = candidates[0]
        if name not in found:
            raise ModelError(
                f"site {name!r} is not one that the model observes, expected one of "
                f"{sorted(found)}; choose with PosteriorPredictive(..., site=name)"
            )
        known = {name, *observed, *self._likelihoods}
        unknown = sorted(found.keys() - known)
        if unknown:
            raise ModelError(
                f"the draws hold {listed(sorted(values))} but not the latent sites "
                f"{listed(unknown)}, which the model needs to predict {name!r}: {REMEDY}"
            )
        return name


class Found(NamedTuple):
    """A site without a value in the draws; ``value`` is None unless it is observed."""

    fn: Any
    value: Tensor | None
    masked: bool


class _Given(Messenger):
    """Gives latent sites their values and takes down the others."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values
        self.found: dict[str, Found] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name, observed = msg["name"], msg["is_observed"]
        if site_is_subsample(msg):
            self._check_whole(msg)
        elif not observed and name in self._values:
            msg["value"] = self._values[name]
            msg["done"] = True
            msg["stop"] = True
        elif not _is_a_term(msg):
            fn = msg["fn"]
            masked = msg["mask"] is not None or isinstance(unwrap(fn), dist.MaskedDistribution)
            self.found[name] = Found(fn, msg["value"] if observed else None, masked)

    @staticmethod
    def _check_whole(msg: Any) -> None:
        size, batch = msg["fn"].size, msg["fn"].subsample_size
        if msg["value"] is None and batch is not None and batch < size:
            raise ModelError(
                f"plate {msg['name']!r} would take {batch} of {size} data at random, expected all "
                "that the model is given; leave out the batch size, or use a DataLoader to go over "
                "the data in batches"
            )


def _is_a_term(msg: Any) -> bool:
    """Whether the site is of pyro.deterministic or pyro.factor, which observe nothing."""
    return bool(msg["infer"].get("_deterministic")) or isinstance(unwrap(msg["fn"]), dist.Unit)
