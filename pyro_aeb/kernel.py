# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Algorithm 1 as a kernel for :class:`pyro.infer.MCMC`."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_aeb.adaptation import StochasticApproximation
from pyro_aeb.arguments import Batch, Source, open_arguments, tensors_of
from pyro_aeb.chain import Chain
from pyro_aeb.errors import CollapseWarning, NonFiniteError
from pyro_aeb.links import HandLinks
from pyro_aeb.look import device_of_latents, init_to_default
from pyro_aeb.minibatches import Minibatches, Order, check_order
from pyro_aeb.model import inspect_model
from pyro_aeb.options import check_numbers, check_options
from pyro_aeb.posterior import Posterior
from pyro_aeb.pruning import Pruner, Pruning
from pyro_aeb.schedules import Schedule, as_schedule
from pyro_aeb.ssgl_rule import SSGLLatents
from pyro_aeb.start import chain_number, find_start, first_values, generator_of, loader_seed
from pyro_aeb.storage import names_to_save
from pyro_aeb.transitions import StepNumbers, Transition


class AEBKernel(MCMCKernel):
    r"""
    Adaptive empirical Bayes: samples the weights of a Pyro model by stochastic-gradient MCMC while
    stochastic approximation learns the latents of its SSGL priors. Algorithm 1 of [1].

    Use it with :class:`pyro.infer.MCMC` or ``StreamingMCMC``, as any kernel of Pyro's::

        kernel = AEBKernel(
            model,
            SGLD(step_size=1e-5),
            adaptation=StochasticApproximation(Polynomial(10.0, 1000.0, 0.7)),
            steps_per_draw=100,
        )
        mcmc = MCMC(kernel, num_samples=1000, warmup_steps=200)
        mcmc.run(X, y, batch_size=50)

    What each site is follows from the model. SSGL sites are sparse weights. A Beta site that is an
    SSGL's ``delta`` and an InverseGamma site whose square root is an SSGL's ``sigma`` are latents,
    which adaptation learns: their "draws" are the trajectory of a point estimate. All other
    continuous latents are sampled, in unconstrained space, under their own prior. A number in place
    of a site fixes it. Random number generators and module buffers are unchanged by the look at
    the model.

    The data are the model's arguments, of which a plate may take a subsample,
    ``mcmc.run(X, y, batch_size=50)``; or a :class:`torch.utils.data.DataLoader`, alone, whose next
    batch every step gets, ``mcmc.run(loader)``, epoch after epoch. The model then scales the batch
    by ``pyro.plate("data", N, subsample=x)``.

    :param model: a Pyro model. Data may be subsampled with ``pyro.plate(..., subsample_size=n)``,
        or come from a DataLoader.
    :param transition: how the weights move: :class:`~pyro_aeb.transitions.sgld.SGLD`,
        :class:`~pyro_aeb.transitions.sghmc.SGHMC`.
    :param StochasticApproximation adaptation: how the latents are learned; its weight 1 is the
        "-EM" variant and 0 freezes them. None samples every continuous site under the model's own
        prior (an SSGL site then scores with its own ``log_prob``).
    :param inverse_temperature: tau, a number or a schedule; the target is proportional to
        exp(tau Q). Rising schedules give the annealed "A-" variants.
    :param int steps_per_draw: steps between draws, at least 1 (thinning). Warm-up is counted in
        draws too.
    :param init_strategy: where a chain starts, one of Pyro's ``init_to_*``; by default
        :func:`~pyro_aeb.look.init_to_default`.
    :param pruning: sets weights to zero after every step, by
        :class:`~pyro_aeb.pruning.base.MagnitudePruning` or another of :mod:`pyro_aeb.pruning`.
    :param save: names of the sites and summaries that a draw holds, by default all: every latent
        site, and ``"<site>_rho"``, the inclusion probabilities of every SSGL site. If that takes
        over 4 MiB a draw, sites of more than 1024 numbers are left out by default, with a warning;
        of what is left out the run keeps norms and running moments.
    :param links: by hand, SSGL site to ``{"delta": Beta site, "sigma": InverseGamma site}``, where
        the model itself does not tell (``float(x)`` loses the link).
    :param bool freeze_after_warmup: whether the latents stay fixed once warm-up ends. False, as in
        Algorithm 1.
    :param str minibatches: ``"permutation"``, every datum at most once an epoch, or
        ``"replacement"``, independent draws. The N mod n data left over by a permutation wait for
        the next one.
    :param int seed: for first values, minibatches and noise; chain i uses seed + i, counted over
        all sequential runs of this kernel object (a second run goes on with the next seed). Chains
        in processes count from 0 in every run. By default torch's global generator serves.
    :raises ModelError: at the start of a run, if the model or the data cannot be sampled.
    :raises NonFiniteError: during a run, if it blows up; it carries the draws finished before.

    **References**

    [1] Wei Deng, Xiao Zhang, Faming Liang, Guang Lin (2019), "An adaptive empirical Bayesian method
        for sparse deep learning", NeurIPS, arXiv 1910.10791.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        transition: Transition,
        adaptation: StochasticApproximation | None = None,
        inverse_temperature: Schedule | float = 1.0,
        steps_per_draw: int = 1,
        *,
        pruning: Pruning | None = None,
        init_strategy: Callable[..., Any] = init_to_default,
        save: Sequence[str] | None = None,
        links: HandLinks | None = None,
        freeze_after_warmup: bool = False,
        minibatches: Order = "permutation",
        seed: int | None = None,
    ) -> None:
        check_options(model, transition, adaptation, init_strategy, pruning)
        check_numbers(steps_per_draw, save, seed)
        check_order(minibatches)
        self.model = model
        self.transition = transition
        self.adaptation = adaptation
        self.inverse_temperature = as_schedule(inverse_temperature, "inverse_temperature")
        self.steps_per_draw = int(steps_per_draw)
        self.pruning = pruning
        self.init_strategy = init_strategy
        self.save = None if save is None else tuple(save)
        self.links = links
        self.freeze_after_warmup = freeze_after_warmup
        self.minibatches = minibatches
        self.seed = None if seed is None else int(seed)
        self.transforms: dict[str, Any] = {}  # draws are in constrained space already
        self._save_params: tuple[str, ...] | None = None
        self._initial_params: Mapping[str, Tensor] | None = None
        self._chain: Chain | None = None
        self._chains_started = 0
        super().__init__()

    def __repr__(self) -> str:
        model = getattr(self.model, "__name__", type(self.model).__name__)
        return (
            f"AEBKernel({model}, {self.transition!r}, adaptation={self.adaptation!r}, "
            f"inverse_temperature={self.inverse_temperature!r}, pruning={self.pruning!r}, "
            f"steps_per_draw={self.steps_per_draw})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Spawned chains get the options, not a chain under way."""
        return {**self.__dict__, "_chain": None}

    # -- Algorithm 1 ---------------------------------------------------------------------------

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        The next draw, ``steps_per_draw`` steps after ``params``.

        :param dict params: the last draw, or other constrained values to go on from; those of
            learned sites (delta, sigma squared) are not read, and the momentum is kept.
        :returns: site name to constrained value.
        """
        chain = self.chain
        if params is not chain.last_draw:
            chain.move_to(params)
        try:
            for left in reversed(range(self.steps_per_draw)):
                self._step(chain, measure=left == 0)
            return self._draw(chain)
        except BaseException:  # MCMC calls no cleanup() then
            chain.source.close()
            raise

    def _step(self, chain: Chain, measure: bool = False) -> None:
        """One iteration of Algorithm 1: batch, gradient, weights, latents, pruning."""
        k = chain.step + 1
        numbers = self._numbers(k)
        weight = self._weight(chain, k)
        batch = chain.next_batch()
        log_density, gradient, residuals = chain.posterior.gradient(
            chain.state.position, chain.latents, batch
        )
        if not chain.health.watch(log_density, gradient):
            self._check_batch(k, batch)
            site = chain.first_non_finite(chain.structure.unflatten(gradient))
            self._blown_up(k, site, f"the gradient of site {site!r}" if site else "the potential")
        if measure:
            chain.measure_potential(log_density)
        chain.state = self.transition.step(chain.state, gradient, chain.noise(), numbers)
        if weight > 0.0:
            chain.update_latents(residuals, weight)
        chain.prune(k)
        chain.step = k

    def _numbers(self, k: int) -> StepNumbers:
        numbers = StepNumbers(self.transition.step_size(k), self.inverse_temperature(k))
        if 0.0 < numbers.step_size < math.inf and 0.0 < numbers.inverse_temperature < math.inf:
            return numbers
        bad = {n: v for n, v in numbers._asdict().items() if not 0.0 < v < math.inf}
        name, value = bad.popitem()
        schedule = getattr(self.transition, name, None) or getattr(self, name)
        raise ValueError(
            f"{name} is {value} at step {k}, expected a finite number > 0; it comes from "
            f"{schedule!r}"
        )

    def _weight(self, chain: Chain, k: int) -> float:
        frozen = self.freeze_after_warmup and not chain.warming_up
        if self.adaptation is None or chain.latents is None or frozen:
            return 0.0
        return self.adaptation.weight_at(k)

    def _draw(self, chain: Chain) -> dict[str, Tensor]:
        k = chain.step
        draw = chain.draw()
        weights = chain.structure.unflatten(chain.state.position)  # all, not only those saved
        site = chain.first_non_finite({**weights, **draw})
        if site or not chain.health.settle():
            self._blown_up(k, site, f"site {site!r}" if site else "the potential")
        stats = {**chain.statistics(), **self._numbers(k)._asdict()}
        stats["sa_weight"] = self._weight(chain, k)
        self._warn_of_collapse(chain)
        return chain.record(draw, stats)

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

    def _blown_up(self, k: int, site: str | None, what: str) -> NoReturn:
        size = self.transition.step_size(k)
        raise NonFiniteError(
            f"step {k}: {what} is not finite, so the run stops here. The usual cause is a step "
            f"size that is too large for the curvature: it is {size:.3g}, try {size / 10:.1g}. "
            "Else look at the data's scale and the starting point. The draws finished before are "
            "in this error's `draws` and in kernel.recover()",
            step=k,
            site=site,
            draws=self.recover(),
        )

    def _check_batch(self, k: int, batch: Batch) -> None:
        """Where the gradient is not finite because the data are not, says so."""
        for name, value in tensors_of(batch):
            if value.is_floating_point():
                if bad := int((~torch.isfinite(value)).sum()):
                    raise NonFiniteError(
                        f"step {k}: argument {name} of this batch has {bad} non-finite of "
                        f"{value.numel()} numbers, so the run stops here; remove or impute them in "
                        "the data set. The draws finished before are in this error's `draws` and "
                        "in kernel.recover()",
                        step=k,
                        site=None,
                        draws=self.recover(),
                    )

    # -- the contract of pyro.infer.MCMC -------------------------------------------------------

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """
        Starts a chain; called by MCMC.

        :param int warmup_steps: draws of warm-up.
        """
        self._chain = None
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "mcmc.run was called inside torch.inference_mode(), in which no gradient is "
                "computed; call it outside"
            )
        chain = chain_number(self._chains_started)
        source = open_arguments(args, kwargs, loader_seed(self.seed, chain))
        try:
            self._chain = self._start(source, chain, warmup_steps)
        except BaseException:
            source.close()
            raise
        self._chains_started += 1

    def _start(self, source: Source, chain: int, warmup: int) -> Chain:
        """Looks at the model and starts a chain; see :meth:`setup`."""
        if source.from_loader and (device := device_of_latents(self.model, *source.peek())):
            source.move_to(device)
        args, kwargs = source.peek()
        structure = inspect_model(
            self.model,
            args,
            kwargs,
            adapt=self.adaptation is not None,
            links=self.links,
            loader_sizes=source.sizes if source.from_loader else None,
        )
        if self.adaptation is not None and not structure.sparse:
            warnings.warn(
                "adaptation is given but the model has no SSGL site, so nothing is learned; give "
                "weights an SSGL prior, or use adaptation=None",
                stacklevel=3,
            )
        wanted = self.save if self._save_params is None else self._save_params
        saved = names_to_save(structure, wanted)
        generator = generator_of(self.seed, chain, structure.device)
        minibatches = Minibatches(structure.plates, self.minibatches, structure.device, generator)
        posterior = Posterior(self.model, structure)
        given, self._initial_params = self._initial_params, None
        position, latents = find_start(
            posterior,
            self.adaptation,
            Batch(args, kwargs, minibatches.first()),
            lambda: first_values(
                self.model, args, kwargs, structure, self.init_strategy, given, generator
            ),
        )
        return Chain(
            structure=structure,
            posterior=posterior,
            source=source,
            minibatches=minibatches,
            generator=generator,
            state=self.transition.init(position),
            latents=latents,
            warmup=warmup,
            saved=saved,
            pruner=None if self.pruning is None else Pruner(self.pruning, structure),
        )

    @property
    def chain(self) -> Chain:
        """The chain under way, or the last one."""
        if self._chain is None:
            raise RuntimeError("the kernel has not started; pass it to MCMC(...) and call run(...)")
        return self._chain

    @property
    def latents(self) -> SSGLLatents | None:
        """The learned latents as they stand, None where nothing is learned."""
        return self.chain.latents

    @property
    def initial_params(self) -> Mapping[str, Tensor] | None:
        """
        Where the chain stands, site name to constrained value. Setting it before a run says where
        to start, in unconstrained space, as MCMC's ``initial_params`` does; sites left out start by
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
        return sorted(self.chain.saved_sites)

    @save_params.setter
    def save_params(self, names: Sequence[str] | None) -> None:
        self._save_params = None if names is None else tuple(names)

    def logging(self) -> OrderedDict[str, str]:
        """Figures for the progress bar."""
        return self.chain.progress()

    def diagnostics(self) -> dict[str, Any]:
        """
        What the chain recorded beside its draws: ``sample_stats``, the learned latents as
        ``adaptation``, and the names that :func:`~pyro_aeb.inference_data.to_arviz` needs.
        """
        chain = self.chain
        structure = chain.structure
        learned = structure.latent_sites
        roles = {name: "observed" for name in structure.observed}
        roles |= {block.name: "draw" for block in structure.blocks}
        roles |= {name: "stochastic approximation" for name in learned}
        return {
            "divergences": [],
            "run": chain.name,
            "sample_stats": chain.history.stats(),
            "adaptation": chain.history.latents(),
            "moments": {"mean": chain.moments.mean(), "sd": chain.moments.sd()},
            "dims": {name: list(dims) for name, dims in chain.dims().items()},
            "roles": roles,
            "observed_data": dict(structure.observations),
            "settings": {
                "transition": repr(self.transition),
                "adaptation": repr(self.adaptation),
                "inverse_temperature": repr(self.inverse_temperature),
                "pruning": repr(self.pruning),
                "steps_per_draw": str(self.steps_per_draw),
                "minibatches": self.minibatches,
                "seed": str(self.seed),
            },
        }

    def recover(self) -> dict[str, Tensor]:
        """
        The draws of a run that was cut short (an error, Ctrl-C), site name to tensor of shape
        (draws, ...); at most the latest 256 MiB. Empty once a run has ended well. Closes a
        DataLoader's workers, which an error outside of the kernel (in a ``hook_fn``) leaves open.
        """
        if self._chain is None:
            return {}
        self._chain.source.close()
        return self._chain.history.draws()

    def cleanup(self) -> None:
        """Lets go of the draws, which MCMC holds now, and of a DataLoader's workers."""
        if self._chain is not None:
            self._chain.history.forget_draws()
            self._chain.source.close()
            self._chain.finished = True
