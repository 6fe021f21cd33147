# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Conversion of a finished run to ArviZ, with the groups for which the model runs again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_aeb.data.iterables import IterableArguments, as_iterable
from pyro_aeb.errors import ModelError
from pyro_aeb.model.tracing import find_failure
from pyro_aeb.nn.batches import Batches, as_batches, in_order
from pyro_aeb.nn.pointwise import Gather, PartBatches, PlateParts, record
from pyro_aeb.nn.predictive import (
    PosteriorPredictive,
    changed_buffers,
    draws_of,
    prediction_mode,
)
from pyro_aeb.storage import inference_data
from pyro_aeb.storage.xarray_variables import Variable, as_array

GROUPS = {
    "observed": "observed_data",
    "log_likelihood": "log_likelihood",
    "replicated": "posterior_predictive",
}


def to_arviz(
    mcmc: MCMC,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    *,
    log_likelihood: bool = False,
    posterior_predictive: bool | Mapping[str, Tensor] = False,
    data: Any = None,
) -> Any:
    """
    Convert a finished run of :class:`~pyro_aeb.AEBKernel` for ArviZ. The groups are:

    - ``posterior``: all that ``mcmc.get_samples()`` holds;
    - ``sample_stats``, one number a draw: ``diverging`` (always False: a run that diverges stops),
      ``potential`` (-Q by the minibatch of the last step, at the weights before that step, up to
      terms that do not depend on the weights), ``step_size``, ``inverse_temperature``,
      ``sa_weight``, ``sparsity`` (with pruning the share of all weights that are zero, without it
      the share of sparse weights that rather belong to the narrower component),
      ``kinetic_temperature`` and other statistics of the transition; ``sa_residual_rho`` and, where
      they are learned, ``sa_residual_sigma`` and ``sa_residual_delta``, the residuals of their
      equations (a Euclidean norm; NaN where omega is 0); with pruning ``pruning_flips``, the number
      of weights that have become zero or nonzero since the draw before;
    - ``adaptation``: rho, such as ``beta_rho`` of the site ``beta``; with :class:`~pyro_aeb.Gibbs`
      it is the probability that gamma was drawn with, and ``beta_gamma`` has the draws;
    - ``moments``: of sites and inclusion probabilities that draws do not hold, the mean and
      standard deviation over the draws, ``<name>_mean`` and ``<name>_sd``, without the dimension
      ``draw``; ``<site>_norm`` in ``sample_stats`` is their Euclidean norm in every draw;
    - ``observed_data``: the data, if all of them are in the arguments of every step;
    - ``log_likelihood``, if asked for: the log density of every datum at every draw, the model's
      own without the scale N/n (of masked data 0), for ``az.loo`` and ``az.compare``;
    - ``posterior_predictive``, if asked for: data drawn at every draw, for ``az.plot_ppc`` of ArviZ
      0.x and ``az.plot_ppc_dist`` of 1.x. With either, ``observed_data`` has a loader's data too.

    Data are sites whose values come from the model's arguments: soft constraints and sites computed
    from latent ones are none. Latents that ``poutine.reparam`` has replaced are in the posterior,
    computed from every draw, if the data of the run are in this process.

    Log densities and data take 4 bytes for every draw and number of the data each: 1000 draws for
    60,000 data are 240 MB. Beside them there is one batch at a time, of the size of a step's: the
    part that the model's plate takes, or a batch of the loader, whose data come in the order of the
    data set. Modules run in evaluation mode. Where their running averages follow the weights, those
    of every draw are estimated from the data of the run.

    All but moments and data have the leading dimensions ``(chain, draw)``. The other dimensions are
    named after the model's plates, or ``beta_dim_0`` and so on where there is none, or where
    another variable has another length under the same plate, as in a subsample.

    The attribute ``kind`` of a variable is ``"draw"``, or ``"stochastic approximation"`` for the
    path of a point estimate, ``"probability"`` for that of a draw of gamma, or ``"deterministic"``
    for what is computed from draws; attributes of the group ``posterior`` list the first two. Draws
    keep their dtype.

    Example::

        mcmc = MCMC(kernel, num_samples=1000, warmup_steps=200)
        mcmc.run(X, y, batch_size=50)
        idata = to_arviz(mcmc, coords={"features": column_names})
        az.summary(idata, var_names=["beta"])
        idata.to_netcdf("trace.nc")

    :param mcmc: a :class:`pyro.infer.MCMC` object after its ``run()``, with any number of chains.
    :param coords: labels for some dimensions; the others are numbered from 0.
    :param dims: dimension names for some sites, one for every axis after ``(chain, draw)``, in
        place of those of the plates; None leaves an axis its name.
    :param bool log_likelihood: whether to add that group.
    :param posterior_predictive: True to add that group; or samples of
        :class:`pyro.infer.Predictive` by site, their first axis that of all draws, to put there.
    :param data: for the two groups: a DataLoader or another iterable of batches, such as a list of
        tuples or a generator function, or the model's arguments as a tuple or mapping;
        by default the run's own.
    :return: ``arviz.InferenceData`` with ArviZ 0.x, :class:`xarray.DataTree` with ArviZ 1.x.
    :raises TypeError: if ``mcmc`` keeps no draws, or its kernel is not an ``AEBKernel``.
    :raises RuntimeError: if ``mcmc`` has not been run.
    :raises ValueError: if ``coords`` or ``dims`` do not fit the draws, or the arguments hold no
        data.
    :raises ModelError: if the draws lack sites that the model needs, or the data of the run are not
        in this process.
    """
    chains = inference_data.chain_reports(mcmc, "to_arviz()")
    roles: Mapping[str, str] = chains[0]["roles"]
    more: dict[str, Any] = {}
    if isinstance(posterior_predictive, Mapping):
        given = posterior_predictive.items()
        more["posterior_predictive"] = [_given_samples(mcmc, name, x) for name, x in given]
    replicate = posterior_predictive is True
    sites = [name for name, role in roles.items() if role == "observed"]
    if log_likelihood or replicate:
        _check_sites(sites)
        values = _run_model(mcmc, sites, data, bool(log_likelihood), replicate)
        more |= _by_group(mcmc, values)
    computed = [name for name, role in roles.items() if role == "deterministic"]
    if computed and (batches := _run_batches(mcmc)) is not None:
        more["posterior"] = _compute(mcmc, computed, batches)
    return inference_data.to_arviz(mcmc, coords, dims, more)


def _run_batches(mcmc: Any) -> Batches | None:
    """Return the data of a run, None where they were in other processes only."""
    chain = getattr(mcmc.kernel, "_chain", None)
    source = None if chain is None else chain.data.arguments
    given = getattr(mcmc, "_arguments", None) or getattr(source, "given", None)
    if given is None:
        return None
    batches = Batches(given.args, given.kwargs, "the data of the run")
    if isinstance(source, IterableArguments):
        batches._loader = as_iterable(given.args[0])
    return batches


def _batches(mcmc: Any, data: Any) -> Batches:
    failure = partial(find_failure, mcmc.kernel.model)
    batches = _run_batches(mcmc) if data is None else as_batches(data, "data", failure)
    if batches is None:
        raise ModelError(
            "the data of this run were given in other processes and are not at hand, expected data "
            "for log_likelihood= and posterior_predictive=; give them, to_arviz(mcmc, ..., "
            "data=(X, y))"
        )
    return in_order(batches)


def _check_sites(sites: Sequence[str]) -> None:
    if not sites:
        raise ModelError(
            "the model has no observed site that is data, expected one for log_likelihood= and "
            "posterior_predictive=; a pyro.factor has no density of a datum: write data as "
            "pyro.sample(..., obs=data)"
        )


def _run_model(
    mcmc: Any, sites: Sequence[str], data: Any, log_likelihood: bool, replicate: bool
) -> dict[str, dict[str, np.ndarray]]:
    """Return the values of the data's sites, by site and kind."""
    batches, model = _batches(mcmc, data), PlateParts(mcmc.kernel.model)
    recalibrate = None
    if changed_buffers(mcmc).has_statistics:
        own = _run_batches(mcmc)
        recalibrate = PartBatches(model, batches if own is None else own)
    predict = PosteriorPredictive(model, mcmc, site=sites[0], recalibrate=recalibrate)
    gather = Gather(model, sites, _count(mcmc), len(batches), log_likelihood, replicate)
    predict.visit(gather, PartBatches(model, batches))
    values = gather.results()
    lacking = [name for name in sites if "observed" not in values.get(name, {})]
    if log_likelihood and lacking:
        raise ValueError(
            f"the arguments hold no data of the sites {lacking}, expected them for "
            "log_likelihood=; give them, data=(X, y)"
        )
    return values


def _by_group(mcmc: Any, values: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    groups: dict[str, list[Variable]] = {}
    for name, kinds in values.items():
        for kind, array in kinds.items():
            if kind == "observed":
                variable = Variable(name, array, "observed", ())
            else:
                variable = Variable(name, _split_chains(mcmc, array), None)
            groups.setdefault(GROUPS[kind], []).append(variable)
    return groups


def _split_chains(mcmc: Any, values: np.ndarray) -> np.ndarray:
    chains, draws = next(iter(mcmc._samples.values())).shape[:2]
    return values.reshape(chains, draws, *values.shape[1:])


def _count(mcmc: Any) -> int:
    """Return the number of draws of all chains."""
    chains, draws = next(iter(mcmc._samples.values())).shape[:2]
    return int(chains * draws)


def _given_samples(mcmc: Any, name: str, samples: Tensor) -> Variable:
    values, count = as_array(torch.as_tensor(samples)), _count(mcmc)
    if not values.ndim or len(values) != count:
        raise ValueError(
            f"posterior_predictive has samples of {name!r} of shape {values.shape}, expected a "
            f"first axis of {count}, one sample for every draw of every chain"
        )
    return Variable(name, _split_chains(mcmc, values), None)


def _compute(mcmc: Any, sites: Sequence[str], batches: Batches) -> list[Variable]:
    """Return the values of sites that are computed from latent ones, at every draw."""
    rows: list[dict[str, np.ndarray]] = []
    model, draws = PlateParts(mcmc.kernel.model), draws_of(mcmc)
    device = next(iter(draws[0].values())).device
    with prediction_mode(changed_buffers(mcmc)):
        for batch in model.iterate(batches, device, limit=1):
            try:
                found = [record(model, draw, batch, sites)[0] for draw in draws]
            except ModelError:  # the draws do not hold all latent sites
                return []
            rows += [{n: as_array(site["value"]) for n, site in row.items()} for row in found]
    return [
        Variable(name, _split_chains(mcmc, np.stack([row[name] for row in rows])), "deterministic")
        for name in sites
    ]
