# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Algorithm 1 as a kernel for :class:`pyro.infer.MCMC`."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_aeb.adaptation.latent_values import AnyLatents
from pyro_aeb.data.iterables import open_arguments
from pyro_aeb.errors import CollapseWarning, inform
from pyro_aeb.kernel import algorithm
from pyro_aeb.kernel.algorithm import sa_weight, step_numbers
from pyro_aeb.kernel.chain import Chain
from pyro_aeb.kernel.draws import dims_of, group_sizes, kinds_of_summaries
from pyro_aeb.kernel.html_table import html_table
from pyro_aeb.kernel.initialization import start_chain
from pyro_aeb.kernel.non_finite import divergence_error, non_finite_chains
from pyro_aeb.kernel.options import KernelOptions, option_rows
from pyro_aeb.kernel.seeds import chain_number, loader_seed
from pyro_aeb.kernel.tuned_steps import advance_while_tuning, warn_of_tuning
from pyro_aeb.model.side_effects import buffer_kind
from pyro_aeb.model.tracing import find_failure
from pyro_aeb.posterior.data_parallel import ranks_of_data
from pyro_aeb.storage.recorder import History, Recorder
from pyro_aeb.tuning import Tuning
from pyro_aeb.validation import names


class AEBKernel(KernelOptions, MCMCKernel):
    r"""
    Sample the weights of a Pyro model by stochastic-gradient MCMC, while stochastic approximation
    learns the latents of its spike-and-slab priors: adaptive empirical Bayes, Algorithm 1 of [1].

    Use it with :class:`pyro.infer.MCMC` or ``StreamingMCMC``, as any kernel of Pyro's::

        kernel = AEBKernel(
            model,
            SGLD(step_size=1e-5),
            adaptation=StochasticApproximation(Polynomial(10.0, 1000.0, 0.7)),
            steps_per_draw=100,
        )
        mcmc = MCMC(kernel, num_samples=1000, warmup_steps=200)
        mcmc.run(X, y, batch_size=50)

    The model says what each site is. Sites with a spike-and-slab prior, SSGL or another of
    :mod:`pyro_aeb.priors`, are sparse weights. A Beta site that is the ``delta`` of such a prior,
    and an InverseGamma site whose square root is its ``sigma``, are latents that adaptation learns:
    their "draws" are the trajectory of a point estimate. All other continuous latents are sampled,
    in unconstrained space, under their own prior. A number in place of a site fixes it. Random
    number generators and module buffers are unchanged by the inspection of the model.

    The data are the model's arguments, of which a plate may take a subsample:
    ``mcmc.run(X, y, batch_size=50)``. Or they come from a :class:`torch.utils.data.DataLoader`,
    given alone, one batch a step, epoch after epoch: ``mcmc.run(loader)``. The model then scales
    the batch by ``pyro.plate("data", N, subsample=x)``.

    :param model: a Pyro model. Data may be subsampled with ``pyro.plate(..., subsample_size=n)``,
        or come from a DataLoader.
    :param transition: how the weights move: :class:`~pyro_aeb.transitions.sgld.SGLD`,
        :class:`~pyro_aeb.transitions.sghmc.SGHMC`, or another of :mod:`pyro_aeb.transitions`. By
        default ``"auto"``: :class:`~pyro_aeb.transitions.tuned.TunedBAOAB`, whose settings are
        chosen in warm-up; see :mod:`pyro_aeb.tuning`.
    :param adaptation: how the latents are learned: by
        :class:`~pyro_aeb.StochasticApproximation`, whose weight 1 is the "-EM" variant and 0
        freezes them; or drawn from their posterior, by :class:`~pyro_aeb.Gibbs`. None samples every
        continuous site under the model's own prior (an SSGL site then scores with its own
        ``log_prob``).
    :param inverse_temperature: tau, a number or a schedule; the target is proportional to
        exp(tau Q). Rising schedules give the annealed "A-" variants.
    :param int steps_per_draw: steps between draws, at least 1 (thinning). Warm-up is counted in
        draws too. ``"auto"``, the default with a tuned transition, chooses them in warm-up; with
        another the default is 1.
    :param init_strategy: where a chain starts, one of Pyro's ``init_to_*``; by default
        ``pyro_aeb.model.initial_values.init_to_default``; by Gibbs, spike-and-slab weights start as
        narrow as their spikes.
    :param pruning: sets weights to zero after every step, by
        :class:`~pyro_aeb.pruning.base.MagnitudePruning` or another of :mod:`pyro_aeb.pruning`.
    :param save: names of the sites and summaries that a draw holds, by default all: every latent
        site, and ``"<site>_rho"``, the inclusion probabilities of every SSGL site, with
        ``"<site>_gamma"`` where gammas are drawn. If that takes over 4 MiB a draw, sites of more
        than 1024 numbers are left out by default, with a warning. Of sites left out the run keeps
        norms and running moments.
    :param links: SSGL site to ``{"delta": Beta site, "sigma": InverseGamma site}``, where the model
        itself does not show the link (``float(x)`` loses it).
    :param bool freeze_after_warmup: whether the latents stay fixed once warm-up ends. False, as in
        Algorithm 1.
    :param str minibatches: ``"permutation"``, every datum at most once an epoch, or
        ``"replacement"``, independent draws. The N mod n data left over by a permutation wait for
        the next one.
    :param str noise: ``"normal"``, or ``"three-point"``, numbers of the same moments up to the
        fifth that cost less; see ``pyro_aeb.kernel.noise``.
    :param compile: True compiles a step as one piece of code, from the batch to the latents, which
        takes a small model's step to a tenth of its time. The numbers are the same up to rounding,
        except that the normal noise of 32,768 weights and more on a CPU comes from other random
        bits. Compiling takes seconds at the start of every chain, up to a minute for a deep
        network. Then the model's Python runs at steps 1, 2, 32, 512, ... of every kind of batch
        (shapes, dtypes, other arguments), where it must do the same. Python values read then, such
        as ``module.training``, are baked in; buffers, fixed weights and torch's random numbers are
        not. What cannot be compiled (a model with ``.item()`` or branches on values, Python that
        changes from step to step) runs as written, and a warning says why. ``"auto"`` compiles
        where warm-up has 20,000 steps, otherwise after as many. False compiles nothing.
    :param int seed: for first values, minibatches and noise; chain i uses seed + i, counted over
        all sequential runs of this kernel object (a second run goes on with the next seed). Chains
        in processes count from 0 in every run. By default torch's global generator is used.
    :param bool data_parallel: whether the processes that ``torchrun`` has started run one chain
        together, each with n data of every minibatch; see
        ``pyro_aeb.posterior.data_parallel``. Needs a seed.
    :raises ModelError: at the start of a run, if the model or the data cannot be sampled.
    :raises NonFiniteError: during a run, if a chain diverges; it has the draws finished before.

    **References**

    [1] Wei Deng, Xiao Zhang, Faming Liang, Guang Lin (2019), "An adaptive empirical Bayesian method
        for sparse deep learning", NeurIPS, arXiv 1910.10791.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.transforms: dict[str, Any] = {}  # draws are in constrained space already
        self._initial_params: Mapping[str, Tensor] | None = None
        self._chain: Chain | None = None
        self._chains_started = 0

    def __repr__(self) -> str:
        model = getattr(self.model, "__name__", type(self.model).__name__)
        return (
            f"AEBKernel({model}, {self.transition!r}, adaptation={self.adaptation!r}, "
            f"inverse_temperature={self.inverse_temperature!r}, pruning={self.pruning!r}, "
            f"steps_per_draw={self.steps_per_draw})"
        )

    def _repr_html_(self) -> str:
        """Return a table of the options, for notebooks."""
        return html_table(type(self).__name__, option_rows(self))

    def __getstate__(self) -> dict[str, Any]:
        """Return the options, without the current chain, for spawned processes."""
        return {**self.__dict__, "_chain": None}

    # -- Algorithm 1 ---------------------------------------------------------------------------

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        Return the next draw, ``steps_per_draw`` steps after ``params``.

        :param dict params: the last draw, or other constrained values to continue from; those of
            learned sites (delta, sigma squared) are ignored, and the momentum is kept.
        :returns: site name to constrained value.
        """
        chain = self.chain
        if params is not chain.last_draw:
            chain.move_to(params)
        try:
            return self.advance(self.given_steps)
        except BaseException as error:  # MCMC calls no cleanup() then
            chain.data.close()
            if isinstance(error, KeyboardInterrupt):
                inform(
                    "Interrupted: the draws so far are in mcmc.kernel.recover(). aeb.MCMC in the "
                    "place of Pyro's keeps them, and goes on when run() is called again."
                )
            raise

    def advance(
        self, steps: int, between: Callable[[], object] | None = None, thinning: int = 1
    ) -> dict[str, Tensor]:
        """
        Advance the chain by some steps, and return the draw after them.

        :param int steps: how many, at least 1. Those of a chain that is tuned follow from tuning.
        :param between: called before every step, or every few steps of a small compiled model; if
            it raises, the chain stops between two steps and can be resumed.
        :param int thinning: draws of a tuned chain, after warm-up, for every one that is made.
        """
        chain, left = self.chain, steps
        if chain.tuner is not None:
            left = advance_while_tuning(self, chain, chain.tuner, thinning, between)
        while left > 0:
            if between is not None:
                between()
            if left > 1:
                left -= algorithm.steps(self, chain, left - 1)
            else:
                left = 0
                algorithm.step(self, chain, measure=True)
        if chain.tuner is not None:
            chain.tuner.draw(chain.draws, chain.step)
        return self._draw(chain)

    def _draw(self, chain: Chain) -> dict[str, Tensor]:
        k, values = chain.step, chain.values()
        draw = chain.recording.select(values)
        numbers = step_numbers(self, k)
        site = chain.first_non_finite(draw)
        if site or not chain.finite.settle():
            what = f"site {site!r}" if site else "the potential"
            chains = non_finite_chains(chain.shape, chain.state.position)
            draws = chain.recording.recorder.read("posterior")
            size, fastest = chain.given_step_size(numbers.step_size), chain.fastest_site()
            raise divergence_error(k, site, what, chains, size, draws, fastest)
        stats = chain.statistics()
        for name, number in numbers._asdict().items():
            stats.setdefault(name, number)
        stats["sa_weight"] = sa_weight(self, chain, k)
        self._warn_of_collapse(chain)
        return chain.record(draw, values, stats)

    def _warn_of_collapse(self, chain: Chain) -> None:
        for site in chain.newly_collapsed():
            warnings.warn(
                f"step {chain.step}: delta site {site!r} has collapsed: next to no weight (or next "
                "to every weight) of its SSGL sites is expected in the Gaussian component, and "
                "equation (7) cannot leave 0 or 1. Use a Beta prior with a > 1 (b > 1 at the other "
                "end), a smaller stochastic-approximation weight, or a larger v0 / smaller v1, so "
                "that the components overlap more",
                CollapseWarning,
                stacklevel=4,
            )

    # -- the contract of pyro.infer.MCMC -------------------------------------------------------

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """
        Start a chain; called by MCMC.

        :param int warmup_steps: draws of warm-up.
        """
        self.start(warmup_steps, chain_number(self._chains_started), args, kwargs)
        self._chains_started += 1

    def start(
        self,
        warmup_steps: int,
        chains: int | Sequence[int],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        recorder: Recorder | None = None,
    ) -> None:
        """
        Start a chain, or several that step together.

        :param int warmup_steps: draws of warm-up.
        :param chains: the chain's number, from which its seed follows; or the numbers of chains
            that step together, whose draws, states and latents then have a leading axis.
        :param args: the model's arguments, or a DataLoader.
        :param kwargs: its keyword arguments.
        :param Recorder recorder: receives the draws; by default a :class:`History`.
        """
        self._chain = None
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "mcmc.run was called inside torch.inference_mode(), in which no gradient is "
                "computed; call it outside"
            )
        vectorized = not isinstance(chains, int)
        numbers = (chains,) if isinstance(chains, int) else tuple(chains)
        given, self._initial_params = self._initial_params, None
        rank = ranks_of_data(self.data_parallel).rank
        seeds = [loader_seed(self.seed, n, rank) for n in numbers]
        source = open_arguments(args, kwargs, seeds, rank, partial(find_failure, self.model))
        recorder = History() if recorder is None else recorder
        try:
            self._chain = start_chain(
                self, source, numbers, vectorized, warmup_steps, given, recorder
            )
        except BaseException:
            source.close()
            raise

    def take_up(self, chain: Chain | None) -> Chain | None:
        """
        Continue with a chain of a kernel with the same options.

        :returns: the chain before.
        """
        before, self._chain = self._chain, chain
        return before

    @property
    def chain(self) -> Chain:
        """The current chain, or the last one."""
        if self._chain is None:
            raise RuntimeError("the kernel has not started; pass it to MCMC(...) and call run(...)")
        return self._chain

    @property
    def latents(self) -> AnyLatents | None:
        """The current latents of spike-and-slab sites, None where none are learned."""
        return self.chain.ssgl

    @property
    def tuning(self) -> Tuning | None:
        """The settings that warm-up has chosen so far; None where all of them are given."""
        tuner = self.chain.tuner
        return None if tuner is None else tuner.report()

    @property
    def initial_params(self) -> Mapping[str, Tensor] | None:
        """
        The chain's last draw, site name to constrained value. Set it before a run to start there,
        in unconstrained space, as by MCMC's ``initial_params``; sites left out start by
        ``init_strategy``.
        """
        return self._initial_params if self._chain is None else self._chain.last_draw

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor] | None) -> None:
        self._initial_params = params
        self._chain = None

    @property
    def save_params(self) -> list[str]:
        """The sites of a draw, sorted: MCMC unpacks them in that order."""
        return sorted(self.chain.last_draw)

    @save_params.setter
    def save_params(self, value: Sequence[str] | None) -> None:
        self.save = names("save_params", value)

    def logging(self) -> OrderedDict[str, str]:
        """Return figures for the progress bar."""
        return self.chain.progress()

    def diagnostics(self) -> dict[str, Any]:
        """
        Return the records beside the draws: ``sample_stats``, the learned latents as
        ``adaptation``, and :meth:`metadata`.
        """
        recorder = self.chain.recording.recorder
        recorded = {group: recorder.read(group) for group in ("sample_stats", "adaptation")}
        return {**self.metadata(), **recorded}

    def metadata(self) -> dict[str, Any]:
        """Return the names, settings, data and moments that :func:`~pyro_aeb.to_arviz` needs."""
        chain = self.chain
        structure, moments = chain.structure, chain.recording.moments
        learned = structure.latent_sites
        roles = dict.fromkeys(structure.observed, "observed")
        roles |= dict.fromkeys(structure.reparametrised, "deterministic")
        roles |= {block.name: "draw" for block in structure.blocks}
        is_sampled = chain.posterior.adaptation.is_sampled
        roles |= dict.fromkeys(learned, "draw" if is_sampled else "stochastic approximation")
        return {
            "divergences": [],
            "run": chain.name,
            "collapsed": chain.collapsed_now(),
            "weights": structure.size,
            "moments": {"mean": moments.mean(), "sd": moments.sd()},
            "dims": dims_of(structure),
            "roles": roles,
            "summaries": kinds_of_summaries(structure, is_sampled),
            "changed_buffers": sorted({buffer_kind(*p) for p in structure.changed_buffers}),
            "observed_data": dict(structure.observations),
            **chain.tuned_steps(),
            "settings": {
                "transition": repr(self.transition),
                "adaptation": repr(self.adaptation),
                "inverse_temperature": repr(self.inverse_temperature),
                "pruning": repr(self.pruning),
                "steps_per_draw": str(self.steps_per_draw),
                "minibatches": self.minibatches,
                "seed": str(self.seed),
                "weights": str(structure.size),
                "collapse": json.dumps(chain.posterior.adaptation.collapse_bounds()),
                **group_sizes(structure),
            },
        }

    def warn_of_draws(self) -> None:
        """Warn, once a site, of what the draws show of settings that warm-up has chosen."""
        if self.chain.tuner is not None:
            warn_of_tuning(self.chain.tuner.new_warnings_of_draws())

    def recover(self) -> dict[str, Tensor]:
        """
        Return the draws of a run that was interrupted (by an error or Ctrl-C), site name to tensor
        of shape (draws, ...); at most the latest 256 MiB. Empty once a run has finished. Closes a
        DataLoader's workers, which an error outside of the kernel (in a ``hook_fn``) leaves open.
        """
        if self._chain is None:
            return {}
        self._chain.data.suspend()
        return self._chain.recording.recorder.read("posterior")

    def cleanup(self) -> None:
        """Drop the draws, which MCMC has now, and stop a DataLoader's workers."""
        if self._chain is not None:
            self.warn_of_draws()
            self._chain.recording.recorder.forget_draws()
            self._chain.data.close()
            self._chain.finished = True
