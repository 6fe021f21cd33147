# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Predictions by the posterior average, from a finished run or along with one.

:class:`PosteriorPredictive` runs the model for every batch and draw. A draw's prediction is read
off the likelihood's site (:mod:`pyro_aeb.nn.likelihood_site`), predictions are averaged as they
come (:mod:`pyro_aeb.nn.mixture`), and scored at the end (:mod:`pyro_aeb.nn.evaluation`). Meanwhile
modules are in evaluation mode, with BatchNorm statistics of the draw's own if asked
(:mod:`pyro_aeb.nn.evaluation_mode`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import MCMC
from pyro.infer.mcmc.api import StreamingMCMC
from torch import Tensor
from tqdm.auto import tqdm

from pyro_aeb.errors import ModelError
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.kernel.seeds import worker_chain
from pyro_aeb.model.side_effects import preserve_buffers, preserve_random_state
from pyro_aeb.nn.batches import Batches, given
from pyro_aeb.nn.evaluation import Evaluation, evaluated
from pyro_aeb.nn.evaluation_mode import BatchNormStatistics, evaluation_mode
from pyro_aeb.nn.likelihood_site import REMEDY, LikelihoodSite
from pyro_aeb.nn.mixture import Mixture, averaged, concatenated

Draw = Mapping[str, Tensor]
"""Latent site name to constrained value."""


class Moments(NamedTuple):
    """
    What is predicted where the likelihood is not of classes.

    :param Tensor mean: of the posterior predictive distribution, of the site's shape.
    :param Tensor sd: its standard deviation: the noise's and the draws' together.
    """

    mean: Tensor
    sd: Tensor


class PosteriorPredictive:
    """
    The posterior predictive distribution of a Pyro model, in batches.

    From the draws that a finished run keeps::

        predict = PosteriorPredictive(model, mcmc)
        predict.evaluate(test_loader)          # or evaluate(X_test, y_test): scores
        predict(X_test)                        # probabilities, or mean and standard deviation

    Along with a run whose draws are too many to keep: nothing of a draw stays but its part in the
    averages, of the size of the test data times the classes::

        predict = PosteriorPredictive(model, data=test_loader)
        mcmc = MCMC(kernel, num_samples=1000, warmup_steps=200, hook_fn=predict.hook)
        mcmc.run(train_loader)
        predict.evaluate()                     # so far, at any time, after Ctrl-C as well

    The model is run as it is, once for every batch and draw, without gradients. A DataLoader's
    batches become its arguments as in ``mcmc.run``: tuples and lists positional ones, mappings
    keyword arguments, anything else the only one; their leading axis is that of the data. Tensors
    are moved to the draws' device. Meanwhile modules are in evaluation mode; training flags,
    buffers, and random number generators are put back afterwards, on an error too.

    All draws share the buffers that the modules hold, and BatchNorm's running averages fit none of
    them: give ``recalibrate``.

    :param model: the model that was sampled.
    :param MCMC mcmc: a finished run, with any kernel and number of chains.
    :param str site: which observed site to predict, where there are several.
    :param recalibrate: training data, a DataLoader or the model's arguments as a tuple (some
        thousand data will do). For every draw, the BatchNorm statistics are first estimated anew
        from them, as by :func:`torch.optim.swa_utils.update_bn` except that dropout stays off. One
        pass over them serves all draws of ``mcmc``; the hook needs one a draw. Without BatchNorm in
        the model it costs one run of the model.
    :param data: in place of ``mcmc``, what :meth:`hook` predicts: a DataLoader that does not
        shuffle, or the model's arguments as a tuple.
    :raises TypeError: if an argument is of the wrong kind, or not exactly one of ``mcmc`` and
        ``data`` is given.
    :raises RuntimeError: if ``mcmc`` has not been run.
    :raises ModelError: if the draws of ``mcmc`` hold no sites at all.
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
                "predict along with a run, PosteriorPredictive(model, data=loader)"
            )
        self._draws = [] if mcmc is None else _draws(mcmc)
        self._likelihoods = _observed_sites(mcmc)
        alone = len(self._likelihoods) == 1
        self._site = self._likelihoods[0] if site is None and alone else site
        self._model = model
        self._recalibrate = None if recalibrate is None else given(recalibrate, "recalibrate")
        self._data = None if data is None else given(data, "data")
        if self._data is not None and self._data.shuffles:
            raise ValueError(
                "the DataLoader given as data= shuffles, expected the same order at every pass, by "
                "which a draw's predictions are added to the earlier ones; use shuffle=False"
            )
        self._streamed: tuple[Mixture, Mixture] | None = None
        self._seen = torch.zeros(0)  # the fingerprint of the last pass over the data

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | Moments:
        """
        Predicts new data, averaged over all draws.

        :param args: the model's arguments, without the data to predict (with them is as good); or a
            DataLoader of such.
        :param kwargs: keyword arguments for every run of the model.
        :returns: of a Categorical or OneHotCategorical the probabilities, shape (..., C); of a
            Bernoulli the probability of 1; of all others :class:`Moments`. Without arguments, of
            ``data`` as the hook has it so far.
        :raises ModelError: if the draws and the model do not fit.
        """
        average, _ = self._average_of(args, kwargs)
        return average.mean if average.variance is None else _moments(average)

    def evaluate(self, *args: Any, **kwargs: Any) -> Evaluation:
        """
        Scores predictions of data that are known.

        :param args: the model's arguments with the data, or a DataLoader of such; none for
            ``data`` as the hook has it so far.
        :param kwargs: keyword arguments for every run of the model.
        :raises ModelError: if the draws and the model do not fit.
        :raises ValueError: if the data are not among the arguments.
        """
        average, last = self._average_of(args, kwargs)
        return evaluated(average, last)

    def hook(self, kernel: Any, samples: Any, stage: str, i: int) -> None:
        """
        Adds the draw at which an :class:`~pyro_aeb.AEBKernel` stands to the averages; pass it to
        ``MCMC(..., hook_fn=predict.hook)``. Draws of warm-up do not count; the first of them tries
        out one batch, so that what does not fit is found at once. Chains that follow one another in
        this process are averaged together. A new run starts afresh.

        :raises RuntimeError: in a chain in a process of its own, whose averages would be lost.
        :raises ValueError: if the data come in another order than at the draw before.
        """
        data = _check_hook(kernel, self._data)
        draws = kernel.chain.values_by_chain()
        if stage.startswith("Warmup"):
            if i == 0:
                self._predict(data, draws[:1], progress=False, limit=1)
            return
        if i == 0 and stage in ("Sample", "Sample [0]"):
            self._streamed = None
        draw, last = self._predict(data, draws, progress=False)
        before = None if self._streamed is None else self._streamed[0]
        seen, self._seen = self._seen, data.fingerprint()
        if before is not None and not torch.equal(seen, self._seen):
            raise ValueError(
                "the data came in another order, or were others, than at the draw before: the "
                "DataLoader given as data= must give the same batches at every pass, without "
                "shuffling"
            )
        self._streamed = averaged(before, draw), last

    def _average_of(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Mixture, Mixture]:
        """The mixture of all draws and the last draw alone."""
        if self._data is None:
            return self._predict(Batches(args, kwargs, "the data"), self._draws, progress=True)
        if args or kwargs:
            raise TypeError(
                "this PosteriorPredictive keeps no draws to predict other data with, only averages "
                "for data=; call it without arguments, or use PosteriorPredictive(model, mcmc)"
            )
        if self._streamed is None:
            raise RuntimeError(
                "no draws yet: run MCMC(..., hook_fn=predict.hook) past its warm-up first"
            )
        return self._streamed

    def _predict(
        self, batches: Batches, draws: Sequence[Draw], progress: bool, limit: int | None = None
    ) -> tuple[Mixture, Mixture]:
        """Batches outside, draws inside: one pass over the data, at most ``limit`` batches."""
        device = next((value.device for value in draws[0].values()), torch.device("cpu"))
        site = LikelihoodSite(self._model, self._site, self._likelihoods)
        averages, lasts = [], []
        with _predicting(), _bar(progress, batches, draws) as bar:
            statistics = self._statistics(site, draws, device, limit)
            for arguments in batches.on(device, limit):
                average: Mixture | None = None
                for draw, own in zip(draws, statistics, strict=True):
                    with own.used():
                        last = site.predict(draw, arguments)
                    average = averaged(average, last)
                    bar.update()
                assert average is not None
                averages.append(average)
                lasts.append(last)
        return concatenated(averages), concatenated(lasts)

    def _statistics(
        self,
        site: LikelihoodSite,
        draws: Sequence[Draw],
        device: torch.device,
        limit: int | None,
    ) -> list[BatchNormStatistics]:
        """Every draw's own BatchNorm statistics; empty ones where they are not asked for."""
        statistics = [BatchNormStatistics() for _ in draws]
        if self._recalibrate is None:
            return statistics
        for arguments in self._recalibrate.on(device, limit):
            for draw, own in zip(draws, statistics, strict=True):
                with own.estimated():
                    site.run(draw, arguments)
                if not own:  # there is no BatchNorm in the model
                    return statistics
        return statistics


@contextmanager
def _predicting() -> Iterator[None]:
    """The state that models predict in; all of it is put back."""
    with (
        preserve_buffers(),
        evaluation_mode(),
        preserve_random_state(),
        torch.no_grad(),
        pyro.validation_enabled(False),
    ):
        yield


def _bar(progress: bool, batches: Batches, draws: Sequence[Draw]) -> Any:
    """A progress bar where it takes longer than a moment and somebody watches."""
    total = len(batches) * len(draws) or None
    disable = None if progress else True
    return tqdm(desc="Predict", total=total, delay=2.0, leave=False, disable=disable)


def _moments(mixture: Mixture) -> Moments:
    assert mixture.variance is not None
    return Moments(mixture.mean, mixture.variance.sqrt())


def _draws(mcmc: Any) -> list[Draw]:
    """Every draw of every chain, chain after chain."""
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
    """The sites that an AEBKernel's run observed."""
    chain: Any = None if mcmc is None else mcmc._diagnostics[0]
    roles = (chain or {}).get("roles", {})
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
            f"chain {chain} runs in a process of its own, whose averages would end with it; run "
            "one chain, or keep the draws and use PosteriorPredictive(model, mcmc)"
        )
    return data
