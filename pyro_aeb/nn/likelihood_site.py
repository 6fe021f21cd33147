# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
One draw's prediction, by one run of the model.

No trace is built. One handler gives latent sites the draw's values and records the distributions of
all remaining sites, one of which is the likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_aeb.data.arguments import Arguments
from pyro_aeb.errors import ModelError, shorten
from pyro_aeb.model.observed_sites import (
    TrackIndices,
    choose_data,
    comes_from,
    track_arguments,
)
from pyro_aeb.model.sites import is_enumerable, unwrap
from pyro_aeb.nn.mixture import Mixture, predict_from

REMEDY = (
    "name all latent sites in the kernel's save=[...] (or MCMC's save_params), or average while "
    "sampling: predict = PosteriorPredictive(model, data=loader), MCMC(..., hook_fn=predict.hook), "
    "then predict.evaluate()"
)


class RecordedSite(NamedTuple):
    """A site that is not in the draws; ``value`` is None unless it is observed."""

    fn: Any
    value: Tensor | None
    mask: Any = None
    in_plate: bool = False


class LikelihoodSite:
    """
    The observed site of a model whose distribution is the prediction.

    :param str site: its name; None if there is only one.
    :param likelihoods: names of sites that are known to be data, even if the arguments hold none
        for them. By default data are told from soft constraints, and from values that are computed
        from latent sites, by what the observed values depend on.
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
        self._data: frozenset[str] | None = None  # of the observed sites, once it is needed

    def read(self, values: Mapping[str, Tensor], arguments: Arguments) -> RecordedSite:
        """
        Return the site at one draw.

        :param values: latent site name to constrained value.
        :param arguments: the model's, with or without the data.
        :raises ModelError: if a latent site has no value, or several sites can be meant.
        """
        sites = self.run(values, arguments)
        if not sites:
            raise ModelError(
                "the model has no observed site with a distribution, and pyro.factor has none, so "
                "nothing can be predicted; write the likelihood as pyro.sample(..., obs=y), with "
                "weights of data in pyro.poutine.scale(scale=w) around it"
            )
        return sites[self._choose(sites, values, arguments)]

    def predict(self, values: Mapping[str, Tensor], arguments: Arguments) -> Mixture:
        """Predict from one draw; see :meth:`read`."""
        site = self.read(values, arguments)
        return predict_from(site.fn, site.value, site.mask)

    def run(self, values: Mapping[str, Tensor], arguments: Arguments) -> dict[str, RecordedSite]:
        """Run the model at a draw's values; return the sites that are not in it."""
        with _Substitute(values) as handler:
            self._model(*arguments.args, **arguments.kwargs)
        return handler.sites

    def _find_data(
        self, observed: Mapping[str, RecordedSite], values: Mapping[str, Tensor], data: Arguments
    ) -> frozenset[str]:
        """Return the observed sites that are data, by further runs of the model."""
        if self._data is None:
            leaves = {n: x.clone().requires_grad_(x.is_floating_point()) for n, x in values.items()}
            with torch.enable_grad():
                run = self.run(leaves, data)
            computed = {n for n, s in run.items() if getattr(s.value, "requires_grad", False)}
            try:
                with TrackIndices():
                    run = self.run(values, track_arguments(data))
                from_arguments = {n for n, s in run.items() if comes_from(s.value)}
            except Exception:  # a part of the model does not support tensor subclasses
                from_arguments = set()
            given = {n: (s.value, s.in_plate) for n, s in observed.items() if n not in computed}
            self._data = choose_data(given, from_arguments - computed)
        return self._data

    def _choose(
        self,
        sites: Mapping[str, RecordedSite],
        values: Mapping[str, Tensor],
        arguments: Arguments,
    ) -> str:
        observed = {name: site for name, site in sites.items() if site.value is not None}
        name = self._site
        if name is None:
            known = [name for name in sites if name in self._likelihoods]
            candidates = known or list(observed) or list(sites)
            if not known and len(observed) > 1:
                data = self._find_data(observed, values, arguments)
                candidates = sorted(data) or [name for name in sites if name not in observed]
            if not known and not observed and len(sites) > 1:
                raise ModelError(
                    f"sites {shorten(sorted(sites))} have no values in the draws, which hold "
                    f"{shorten(sorted(values))}. If one of them is to be predicted and the draws "
                    f"lack the others: {REMEDY}. If the model predicts several: choose one with "
                    "site="
                )
            if len(candidates) != 1:
                raise ModelError(
                    f"the model has {len(candidates)} observed sites {sorted(candidates)}, "
                    "expected one; choose with PosteriorPredictive(..., site=name)"
                )
            name = candidates[0]
        if name not in sites:
            raise ModelError(
                f"site {name!r} is not one that the model observes, expected one of "
                f"{sorted(sites)}; choose with PosteriorPredictive(..., site=name)"
            )
        unknown = sorted(sites.keys() - {name, *observed, *self._likelihoods})
        if discrete := [n for n in unknown if is_enumerable({"fn": sites[n].fn, "infer": {}})]:
            raise ModelError(
                f"the latent sites {shorten(discrete)} are discrete and summed out, so the draws "
                f"do not hold them and {name!r} has no one distribution at a draw; draw both anew, "
                f"pyro.infer.Predictive(model, mcmc.get_samples())(...)[{name!r}], find the "
                "discrete sites of given data by pyro.infer.infer_discrete, or write the sum as a "
                "distribution, such as dist.MixtureSameFamily"
            )
        if unknown:
            raise ModelError(
                f"the draws hold {shorten(sorted(values))} but not the latent sites "
                f"{shorten(unknown)}, which the model needs to predict {name!r}: {REMEDY}. If one "
                "of these is what is to be predicted, choose it with site="
            )
        return name


class _Substitute(Messenger):
    """Give latent sites their values and record the other sites."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values
        self.sites: dict[str, RecordedSite] = {}
        self.networks: dict[Any, Any] = {}
        self.last_site = ""

    def _pyro_sample(self, msg: Any) -> None:
        name, observed, fn = msg["name"], msg["is_observed"], msg["fn"]
        self.last_site = name
        if site_is_subsample(msg):
            _check_whole(msg)
        elif not observed and name in self._values:
            msg["value"] = self._values[name].clone()  # a model may write into it
            msg["done"] = True
            msg["stop"] = True
        elif not msg["infer"].get("_deterministic") and not isinstance(unwrap(fn), dist.Unit):
            value, in_plate = msg["value"] if observed else None, bool(msg["cond_indep_stack"])
            self.sites[name] = RecordedSite(fn, value, msg["mask"], in_plate)


def _check_whole(plate: Any) -> None:
    size, batch = plate["fn"].size, plate["fn"].subsample_size
    if plate["value"] is None and batch is not None and batch < size:
        raise ModelError(
            f"plate {plate['name']!r} would take {batch} of {size} data at random, expected all "
            "that the model is given; leave out the batch size, or use a DataLoader to go over "
            "the data in batches"
        )
