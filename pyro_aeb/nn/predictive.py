# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Predictions by the posterior average, from a finished run or during one.

:class:`PosteriorPredictive` runs the model for every batch and draw. It reads a draw's prediction
off the likelihood's site (:mod:`pyro_aeb.nn.likelihood_site`), averages predictions draw by draw
(:mod:`pyro_aeb.nn.mixture`), and scores the result (:mod:`pyro_aeb.nn.evaluation`), with modules in
evaluation mode (:mod:`pyro_aeb.nn.evaluation_mode`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.mcmc.api import StreamingMCMC
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_aeb.data.arguments import Arguments
from pyro_aeb.errors import ModelError, shorten
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.kernel.seeds import worker_chain
from pyro_aeb.model.initial_values import first_value
from pyro_aeb.model.side_effects import preserve_buffers, preserve_random_state
from pyro_aeb.model.sites import as_numbers
from pyro_aeb.nn.batches import Batches, as_batches
from pyro_aeb.nn.by_draw import DrawPredictions
from pyro_aeb.nn.draw_buffers import (
    ChangedBuffers,
    check_buffers,
    compute_spectral_norms,
    other_draw,
)
from pyro_aeb.nn.evaluation import Evaluation, score
from pyro_aeb.nn.evaluation_mode import BatchNormStatistics, evaluation_mode
from pyro_aeb.nn.likelihood_site import REMEDY, LikelihoodSite
from pyro_aeb.nn.mixture import Mixture, concatenate, merge, predict_from

Draw = Mapping[str, Tensor]
"""Latent site name to constrained value."""

_NO_DRAWS = (
    "this PosteriorPredictive keeps no draws to predict other data with, only averages for data=; "
    "call it without arguments, or use PosteriorPredictive(model, mcmc)"
)


class Moments(NamedTuple):
    """
    The prediction of a likelihood that is not of classes.

    :param Tensor mean: of the posterior predictive distribution, of the site's shape.
    :param Tensor sd: its standard deviation, from the noise and the spread of the draws together.
    """

    mean: Tensor
    sd: Tensor


class PosteriorPredictive:
    """
    The posterior predictive distribution of a Pyro model, in batches.

    From the draws of a finished run::

        predict = PosteriorPredictive(model, mcmc)
        predict.evaluate(test_loader)          # or evaluate(X_test, y_test): scores
        predict(X_test)                        # probabilities, or mean and standard deviation
        predict.by_draw(X_test).uncertainty()  # noise, and what the weights leave open

    During a run whose draws are too large to keep. The averages take the memory of the test data
    times the classes::

        predict = PosteriorPredictive(model, data=test_loader)
        mcmc = MCMC(kernel, num_samples=1000, warmup_steps=200, hook_fn=predict.hook)
        mcmc.run(train_loader)
        predict.evaluate()                     # so far, at any time, after Ctrl-C as well

    The model runs once for every batch and draw, without gradients. A DataLoader's batches become
    its arguments as in ``mcmc.run``: tuples and lists positional ones, mappings keyword arguments,
    anything else the only one; their leading axis is that of the data. Tensors are moved to the
    draws' device. Modules run in evaluation mode; training flags, buffers and random number
    generators are restored afterwards, also after an error.

    Buffers that follow the weights are computed for every draw: spectral norms always, the running
    averages of BatchNorm and InstanceNorm with ``recalibrate``. Others, on which predictions
    depend, are an error. In :meth:`hook` all buffers are those of the chain's current state.

    :param model: the model that was sampled.
    :param MCMC mcmc: a finished run, with any kernel and number of chains.
    :param str site: the observed site to predict, if there are several. Soft constraints and sites
        that are computed from latent sites, as by ``poutine.reparam``, are none.
    :param recalibrate: training data: a DataLoader or another iterable of batches (a list of
        tuples, a generator function), or the model's arguments as a tuple; some thousand data are
        enough. For every draw, the statistics of BatchNorm and InstanceNorm are
        first estimated from them, as by :func:`torch.optim.swa_utils.update_bn` except that dropout
        stays off. One pass over them serves all draws of ``mcmc``; the hook needs one a draw. For a
        model without such statistics this costs one run of the model.
    :param data: instead of ``mcmc``, the data that :meth:`hook` predicts: batches that do not
        shuffle, of any kind that ``recalibrate`` may be, or the model's arguments as a tuple.
    :raises TypeError: if an argument is of the wrong kind, or not exactly one of ``mcmc`` and
        ``data`` is given.
    :raises RuntimeError: if ``mcmc`` has not been run.
    :raises ModelError: if the draws of ``mcmc`` hold no sites.
    :raises ValueError: if ``data`` shuffles.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        mcmc: MCMC | None = None,
        *,
        site: str | None = None,
        recalibrate: Any = None,
        data: Any = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model is {model!r}, expected a Pyro model (a callable)")
        if (mcmc is None) == (data is None):
            raise TypeError(
                "expected either a finished run, PosteriorPredictive(model, mcmc), or the data to "
                "predict during a run, PosteriorPredictive(model, data=loader)"
            )
        self._draws = [] if mcmc is None else draws_of(mcmc)
        self._likelihoods = _observed_sites(mcmc)
        only_one = len(self._likelihoods) == 1
        self._site = self._likelihoods[0] if site is None and only_one else site
        self._model = model
        self._changed = changed_buffers(mcmc)
        self._recalibrate, self._data = (
            None if value is None else as_batches(value, name, self._find_failure)
            for name, value in (("recalibrate", recalibrate), ("data", data))
        )
        if self._data is not None and self._data.shuffles:
            raise ValueError(
                "the DataLoader given as data= shuffles, expected the same order at every pass, by "
                "which a draw's predictions are added to the earlier ones; use shuffle=False"
            )
        self._is_checked = False
        self._streamed: tuple[Mixture, Mixture] | None = None
        self._fingerprint = torch.zeros(0)  # of the last pass over the data

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | Moments:
        """
        Predict data, averaged over all draws.

        :param args: the model's arguments, with or without the data to predict; or a DataLoader of
            such. None for the hook's averages so far.
        :param kwargs: keyword arguments for every run of the model.
        :returns: for a Categorical or OneHotCategorical the probabilities, shape (..., C); for a
            Bernoulli the probability of 1, shape (...); for all others :class:`Moments`.
        :raises ModelError: if the draws do not fit the model.
        """
        average, _ = self._average(args, kwargs)
        if average.variance is None:
            return average.mean
        return Moments(average.mean, average.variance.sqrt())

    def evaluate(self, *args: Any, **kwargs: Any) -> Evaluation:
        """
        Score predictions of observed data.

        :param args: the model's arguments with the data, or a DataLoader of such; none for the
            hook's averages so far.
        :param kwargs: keyword arguments for every run of the model.
        :raises ModelError: if the draws do not fit the model.
        :raises ValueError: if the data are not among the arguments.
        """
        return score(*self._average(args, kwargs))

    def by_draw(self, *args: Any, **kwargs: Any) -> DrawPredictions:
        """
        Predict data by every draw apart::

            predictions = predict.by_draw(X_test)
            predictions.mean                         # (draws, ..., C): probabilities, or means
            predictions.uncertainty().epistemic      # what more data would remove
            predictions.quantiles([0.05, 0.95])

        It takes memory for all draws; draws of several chains follow one another.

        :param args: the model's arguments, with or without the data to predict; or a DataLoader of
            such.
        :param kwargs: keyword arguments for every run of the model.
        :raises TypeError: if no draws are kept.
        :raises ModelError: if the draws do not fit the model.
        """
        if self._data is not None:
            raise TypeError(_NO_DRAWS)
        parts: list[list[Mixture]] = [[] for _ in self._draws]
        likelihoods: list[list[Any]] = [[] for _ in self._draws]

        def add(draw: int, prediction: Mixture, fn: Any) -> None:
            parts[draw].append(prediction)
            likelihoods[draw].append(fn)

        self._predict_each(Batches(args, kwargs, "the data"), self._draws, add, progress=True)
        return DrawPredictions(parts, likelihoods)

    def hook(self, kernel: Any, samples: Any, stage: str, i: int) -> None:
        """
        Add the current draw of an :class:`~pyro_aeb.AEBKernel` to the averages: for
        ``MCMC(..., hook_fn=predict.hook)``. Draws of warm-up do not count, but one batch is
        predicted at the first, to raise errors early. Sequential chains in this process are
        averaged together. A new run starts new averages.

        :raises RuntimeError: in a worker process, whose averages would be lost.
        :raises ValueError: if the data differ from those at the previous draw, or their order does.
        """
        data = _check_hook(kernel, self._data)
        self._likelihoods = list(kernel.chain.structure.observed)
        if stage.startswith("Warmup"):
            if i == 0:
                self._predict_state(kernel.chain, data, limit=1)
            return
        if i == 0 and stage in ("Sample", "Sample [0]"):
            self._streamed = None
        draw, last = self._predict_state(kernel.chain, data)
        before = None if self._streamed is None else self._streamed[0]
        expected, self._fingerprint = self._fingerprint, data.fingerprint()
        if before is not None and not torch.equal(expected, self._fingerprint):
            raise ValueError(
                "the data came in another order, or were others, than at the draw before: the "
                "DataLoader given as data= must give the same batches at every pass, without "
                "shuffling"
            )
        self._streamed = merge(before, draw), last

    def _average(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Mixture, Mixture]:
        """Return the predictions of all draws and of the last draw alone."""
        if self._data is None:
            batches = Batches(args, kwargs, "the data", self._find_failure)
            return self._predict(batches, self._draws, progress=True)
        if args or kwargs:
            raise TypeError(_NO_DRAWS)
        if self._streamed is None:
            raise RuntimeError(
                "no draws yet: run MCMC(..., hook_fn=predict.hook) past its warm-up first"
            )
        return self._streamed

    def _find_failure(self, arguments: Arguments) -> Exception | None:
        """
        Return the exception that the model raises at the first draw, or at first values where there
        is none; None if it runs.
        """
        site = LikelihoodSite(self._model, self._site, self._likelihoods)
        draw = self._draws[0] if self._draws else {}
        try:
            with prediction_mode(self._changed), InitMessenger(first_value):
                for recorded in site.run(draw, arguments).values():
                    value: Any = recorded.value
                    if isinstance(value, Tensor):
                        recorded.fn.log_prob(as_numbers(recorded.fn, value))
                    elif value is not None:
                        return TypeError("an observed value is no tensor")
        except Exception as error:  # of whatever kind
            return error
        return None

    def _predict_state(
        self, chain: Any, data: Batches, limit: int | None = None
    ) -> tuple[Mixture, Mixture]:
        """Predict from the current state of every chain, whose buffers are the chain's own."""
        self._is_checked = True
        draws = chain.values_by_chain()
        if not chain.buffers.places:
            return self._predict(data, draws, progress=False, limit=limit)
        parts: list[tuple[Mixture, Mixture]] = []

        def predict(i: int) -> None:
            parts.append(self._predict(data, [draws[i]], progress=False, limit=limit))

        chain.buffers.run_by_chain(predict, len(draws))
        averages, lasts = zip(*parts, strict=True)
        return reduce(merge, averages), lasts[-1]

    def _predict(
        self, batches: Batches, draws: Sequence[Draw], progress: bool, limit: int | None = None
    ) -> tuple[Mixture, Mixture]:
        """Return the predictions of all draws and of the last draw alone."""
        averages: list[Mixture] = []
        lasts: list[Mixture] = []

        def add(draw: int, prediction: Mixture, fn: Any) -> None:
            if draw == 0:
                averages.append(prediction)
                lasts.append(prediction)
            else:
                averages[-1], lasts[-1] = merge(averages[-1], prediction), prediction

        self._predict_each(batches, draws, add, progress, limit)
        return concatenate(averages), concatenate(lasts)

    def _predict_each(
        self,
        batches: Batches,
        draws: Sequence[Draw],
        add: Callable[[int, Mixture, Any], None],
        progress: bool,
        limit: int | None = None,
    ) -> None:
        """
        Predict in one pass over the data, at most ``limit`` batches, all draws at each.

        :param add: gets the number of a draw, its prediction of a batch, and its distribution.
        """
        site = LikelihoodSite(self._model, self._site, self._likelihoods)

        def predict(i: int, draw: Draw, arguments: Arguments) -> None:
            recorded = site.read(draw, arguments)
            add(i, predict_from(recorded.fn, recorded.value, recorded.mask), recorded.fn)

        self.visit(predict, batches, draws, progress, limit)

    def visit(
        self,
        function: Callable[[int, Draw, Arguments], None],
        batches: Any,
        draws: Sequence[Draw] | None = None,
        progress: bool = True,
        limit: int | None = None,
    ) -> None:
        """
        Call a function for every draw of every batch, with modules as in predictions.

        :param function: of the number of the draw, the draw, and the model's arguments.
        :param Batches batches: the data.
        :param draws: by default those of the run.
        :param int limit: the largest number of batches, None for all.
        """
        draws = self._draws if draws is None else draws
        device = next((value.device for value in draws[0].values()), torch.device("cpu"))
        site = LikelihoodSite(self._model, self._site, self._likelihoods)
        total, disable = len(batches) * len(draws) or None, None if progress else True
        with (
            prediction_mode(self._changed) as modes,
            tqdm(desc="Predict", total=total, delay=2.0, leave=False, disable=disable) as bar,
        ):
            statistics = self._estimate_statistics(site, draws, device, limit)
            for arguments in batches.iterate(device, limit):
                for i, (draw, batch_norm) in enumerate(zip(draws, statistics, strict=True)):
                    with batch_norm.apply():
                        function(i, draw, arguments)
                    if not self._is_checked:
                        self._check_buffers(site, draws, arguments, modes, batch_norm)
                    bar.update()

    def _check_buffers(
        self,
        site: LikelihoodSite,
        draws: Sequence[Draw],
        arguments: Arguments,
        modes: Mapping[nn.Module, bool],
        statistics: BatchNormStatistics,
    ) -> None:
        """Check once that the modules' buffers fit every draw."""
        modes = {part: mode or bool(self._changed.names(part)) for part, mode in modes.items()}
        if not any(mode and part._buffers for part, mode in modes.items()):
            return
        pair = draws[0], draws[-1] if len(draws) > 1 else other_draw(draws[0])
        check_buffers(
            lambda draw: site.run(draw, arguments),
            lambda draw: site.predict(draw, arguments),
            pair,
            modes,
            statistics.buffers,
        )
        self._is_checked = True

    def _estimate_statistics(
        self, site: LikelihoodSite, draws: Sequence[Draw], device: torch.device, limit: int | None
    ) -> list[BatchNormStatistics]:
        """Return BatchNorm statistics for every draw, empty without ``recalibrate``."""
        statistics = [BatchNormStatistics() for _ in draws]
        if self._recalibrate is None:
            return statistics
        for arguments in self._recalibrate.iterate(device, limit):
            for draw, batch_norm in zip(draws, statistics, strict=True):
                with batch_norm.estimate():
                    site.run(draw, arguments)
                if not batch_norm:  # the model has no BatchNorm
                    return statistics
        return statistics


@contextmanager
def prediction_mode(changed: ChangedBuffers) -> Iterator[dict[nn.Module, bool]]:
    """
    Run models in evaluation mode, without side effects, gradients and validation, spectral norms
    with the singular vectors of each draw.

    :param changed: buffers that the run changed, in whatever mode their modules are now.
    :returns: whether each module that was called was in training mode; filled as they are.
    """
    with (
        preserve_buffers(),
        evaluation_mode() as modes,
        compute_spectral_norms(lambda part: modes.get(part, False) or bool(changed.names(part))),
        preserve_random_state(),
        torch.no_grad(),
        pyro.validation_enabled(False),
    ):
        yield modes


def estimate_statistics(
    mcmc: Any, draw: Draw, batches: Batches, needless: Collection[str]
) -> Mapping[nn.Module, Mapping[str, Tensor | None]]:
    """
    Return the running statistics of a draw, by module.

    :param batches: of training data, the model's arguments.
    :param needless: latent sites that the buffers do not depend on.
    :raises ModelError: if the draw lacks other latent sites.
    """
    site, statistics = LikelihoodSite(mcmc.kernel.model, None), BatchNormStatistics()
    device = next((value.device for value in draw.values()), torch.device("cpu"))
    with prediction_mode(changed_buffers(mcmc)):
        for arguments in batches.iterate(device):
            with statistics.estimate():
                sites = site.run(draw, arguments)
            without = {name for name, recorded in sites.items() if recorded.value is None}
            if missing := without.difference(_observed_sites(mcmc), needless):
                raise ModelError(
                    f"the draws do not hold {shorten(sorted(missing))}, expected all latent sites "
                    "for recalibrate=; name them in AEBKernel(..., save=[...]), and give "
                    "recalibrate= the data of observed sites too"
                )
    return statistics.buffers


def changed_buffers(mcmc: Any) -> ChangedBuffers:
    """Return the buffers that a run changed."""
    report = (getattr(mcmc, "_diagnostics", None) or [None])[-1]
    return ChangedBuffers(
        getattr(mcmc, "kernel", None), report if isinstance(report, dict) else None
    )


def draws_of(mcmc: Any) -> list[Draw]:
    """Return every draw of every chain, chain after chain."""
    if isinstance(mcmc, StreamingMCMC):
        raise TypeError(
            "StreamingMCMC keeps no draws to predict with: use pyro.infer.MCMC, or average while "
            "sampling with PosteriorPredictive(model, data=loader) and hook_fn=predict.hook"
        )
    if not isinstance(mcmc, MCMC):
        raise TypeError(f"mcmc is {mcmc!r}, expected a pyro.infer.MCMC object after its run()")
    samples: dict[str, Tensor] | None = mcmc._samples
    if samples is None or not mcmc.num_samples:
        raise RuntimeError(
            "this MCMC object holds no draws: call its run() first, with num_samples of at least 1"
        )
    if not samples:
        raise ModelError(f"the draws of this run hold no sites: {REMEDY}")
    chains, count = next(iter(samples.values())).shape[:2]
    return [
        {name: values[chain, draw] for name, values in samples.items()}
        for chain in range(chains)
        for draw in range(count)
    ]


def _observed_sites(mcmc: MCMC | None) -> list[str]:
    """Return the observed sites of an AEBKernel's run; empty for other kernels."""
    report: Any = (getattr(mcmc, "_diagnostics", None) or [None])[0]
    roles = (report or {}).get("roles", {})
    return [name for name, role in roles.items() if role == "observed"]


def _check_hook(kernel: Any, data: Batches | None) -> Batches:
    if data is None:
        raise TypeError(
            "the hook has no data to predict: make it with PosteriorPredictive(model, data=loader)"
        )
    if not isinstance(kernel, AEBKernel):
        raise TypeError(
            f"the hook was called for a {type(kernel).__name__}, expected an AEBKernel; with other "
            "kernels keep the draws, and use PosteriorPredictive(model, mcmc)"
        )
    if (chain := worker_chain()) is not None:
        raise RuntimeError(
            f"chain {chain} runs in a worker process, whose averages would be lost; run one "
            "chain, or keep the draws and use PosteriorPredictive(model, mcmc)"
        )
    return data
