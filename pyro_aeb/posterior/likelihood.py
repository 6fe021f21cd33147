# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The log density of the data at a flat position, and its gradient, by one forward and one backward
pass.

No trace is built. One handler substitutes the values of latent sites and the indices of subsampled
plates, and sums the log densities of the observed sites and of latent sites without a closed-form
prior gradient. Spike-and-slab and normal priors are not evaluated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.distribution import COERCIONS
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_aeb.adaptation.sweep import SufficientStatistics
from pyro_aeb.data.arguments import Batch, vmap_axes
from pyro_aeb.errors import ModelError
from pyro_aeb.latents.contract import Seen
from pyro_aeb.model.learned_sites import differentiate
from pyro_aeb.model.side_effects import Buffers
from pyro_aeb.model.sites import as_numbers
from pyro_aeb.model.structure import Residuals, Structure, has_weights
from pyro_aeb.posterior.second_derivatives import minus_second_derivatives
from pyro_aeb.posterior.several_sigmas import SeveralSigmas

CONSTANTS = 100
"""The most distributions of fixed parameters that are kept from step to step."""

_NUMBERS = (int, float, bool, type(None))


class Evaluation(NamedTuple):
    """
    The likelihood at a position, evaluated on one minibatch.

    :param Tensor log_density: of the whole data set, estimated from the batch, plus the log priors
        that have no closed-form gradient, without terms that the weights do not enter; shape (...).
    :param Tensor gradient: of it with respect to the position, shape (..., D).
    """

    log_density: Tensor
    gradient: Tensor
    statistics: SufficientStatistics

    def health(self) -> Tensor:
        """Return one number that is finite where log density and gradient are."""
        log_density = self.log_density
        if log_density.dim():
            log_density = log_density.sum()
        return self.gradient.sum().add_(log_density)


class Likelihood:
    """
    The log density of the data as a function of the flat position.

    :param Buffers buffers: those that the model changes, where several chains step together.
    """

    def __init__(
        self, model: Callable[..., Any], structure: Structure, buffers: Buffers | None = None
    ) -> None:
        self._model = model
        self._structure = structure
        self._scorer = _Scorer(structure)
        self._buffers = buffers

    def evaluate(self, position: Tensor, latents: Mapping[str, Tensor], batch: Batch) -> Evaluation:
        r"""
        Evaluate the log density and its gradient, the likelihood's part of equation (2),
        :math:`(N/n) \sum_{i \in \mathrm{batch}} \nabla_\beta \log \pi(d_i \mid \beta)`. The
        factor N/n is the scale that the model's plates give.

        :param Tensor position: shape (D,), or (C, D) of C chains.
        :param latents: values of the learned sites, by name, with the same leading axis.
        :param Batch batch: the model's arguments and its subsampled plates' indices.
        """
        position = position.detach().requires_grad_()
        latents = {**latents, **self._leaves(latents)}
        run = self._of_chains if position.dim() > 1 else self._of_chain
        with torch.enable_grad():
            unconstrained = self._structure.unflatten(position)
            log_density, residuals, recorded = run(unconstrained, latents, batch)
            total = log_density.sum() if log_density.dim() else log_density
            seen = self._seen(total, unconstrained, latents, recorded)
        gradient = None
        if log_density.requires_grad:
            (gradient,) = torch.autograd.grad(total, position, allow_unused=True)
        if gradient is None:  # nothing observed depends on the weights
            gradient = torch.zeros_like(position)
        statistics = SufficientStatistics(residuals, seen)
        return Evaluation(log_density.detach(), gradient.contiguous(), statistics)

    def curvature(
        self,
        position: Tensor,
        latents: Mapping[str, Tensor],
        batch: Batch,
        columns: Sequence[Tensor],
    ) -> Tensor:
        """
        Return some of minus the second derivatives of the log density, shape (..., n).

        :param columns: of the first rows, those of every row, shape (rows, m) each.
        """
        position = position.detach().requires_grad_()
        run = self._of_chains if position.dim() > 1 else self._of_chain
        with torch.enable_grad():
            log_density, _, _ = run(self._structure.unflatten(position), latents, batch)
            total = log_density.sum() + 0.0 * position.sum()  # which they may not enter
            (gradient,) = torch.autograd.grad(total, position, create_graph=True)
        return minus_second_derivatives(gradient, position, columns)

    @property
    def scored_scales(self) -> frozenset[str]:
        """Sites that have a learned sigma as scale, and whose log density is not that of (6)."""
        return frozenset(self._scorer.scored_scales)

    def _leaves(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the learned sites that need derivatives, as leaves of the graph."""
        sites = [site.name for site in self._structure.learned if site.update.derivatives]
        return {name: latents[name].detach().requires_grad_() for name in sites}

    def _seen(
        self,
        total: Tensor,
        unconstrained: Mapping[str, Tensor],
        latents: Mapping[str, Tensor],
        recorded: dict[str, Tensor],
    ) -> dict[str, Seen]:
        """Return the arguments of the learned sites' updates."""
        if not self._structure.learned:
            return {}
        values = {**self._structure.constrain(unconstrained), **latents}
        values = {name: value.detach() for name, value in values.items()}
        seen = {}
        for site in self._structure.learned:
            slopes: tuple[Tensor | None, Tensor | None] = (None, None)
            if site.update.derivatives:
                slopes = differentiate(total, latents[site.name], site)
            seen[site.name] = Seen(values[site.name], values, recorded, *slopes)
        return seen

    def _of_chain(
        self, unconstrained: Mapping[str, Tensor], latents: Mapping[str, Tensor], batch: Batch
    ) -> Scored:
        scorer = self._scorer
        values = {**self._structure.constrain(unconstrained), **latents}
        scorer.start(values, unconstrained, batch.indices)
        with scorer:
            self._model(*batch.arguments.args, **batch.arguments.kwargs)
        return scorer.finish()

    def _of_chains(
        self, unconstrained: Mapping[str, Tensor], latents: Mapping[str, Tensor], batch: Batch
    ) -> Scored:
        """
        Run the model for all chains at once by :func:`torch.vmap`. The forward pass is vectorised
        and its sum differentiated, which is faster than vectorised gradients.
        """
        buffers = self._buffers or Buffers((), None)

        def run_one(
            unconstrained: Any, latents: Any, indices: Any, arguments: Any, own_buffers: Any
        ) -> Any:
            results: list[Scored] = []

            def run() -> None:
                log_density, residuals, recorded = self._of_chain(
                    unconstrained, latents, Batch(arguments, indices)
                )
                for name, residual in residuals.items():
                    if not isinstance(residual.data, Tensor):  # vmap returns tensors only
                        count = residual.square.new_full((), residual.data)
                        residuals[name] = residual._replace(data=count)
                results.append((log_density, residuals, recorded))

            after = buffers.run(own_buffers, run)
            return results[0], after

        indices = {n: 0 if i.dim() > 1 else None for n, i in batch.indices.items()}
        arguments, before = batch.arguments, buffers.values()
        in_dims = vmap_axes(arguments) if batch.per_chain else None
        try:
            with pyro.validation_enabled(False):  # checks of values are branches on them
                scored, after = torch.vmap(
                    run_one, in_dims=(0, 0, indices, in_dims, 0), randomness="different"
                )(dict(unconstrained), dict(latents), dict(batch.indices), arguments, before)
        except RuntimeError as error:
            if "vmap" not in str(error) and "atching rule" not in str(error):
                raise
            raise ModelError(
                "the model cannot run for several chains at once, as torch.vmap finds: "
                f'{str(error).splitlines()[0]} Use chain_method="sequential" or "parallel", or '
                "write the step that fails without .item(), branches on values, or changes in place"
            ) from error
        buffers.store(after)
        return scored


Scored = tuple[Tensor, dict[str, Residuals], dict[str, Tensor]]
"""The log density of a run of the model, residuals, and deterministic sites."""


class _Scorer(Messenger):
    """Substitutes the values of sites and sums log densities, of one run a :meth:`start`."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self._general = {block.name: block.transform for block in structure.general}
        self._shapes = {
            b.name: b.shape if b.transform is None else b.transform.forward_shape(b.shape)
            for b in structure.blocks
        }
        self._plates = structure.plates
        self._learned = {s.name: s.shape for s in structure.learned}
        self._shapes |= self._learned
        self._sigma_of = {
            name: (s.site, s.terms is None, s.index if s.shape.numel() > 1 else None)
            for s in structure.sigmas
            if s.site
            for name in s.likelihoods
        }
        self._several = {
            name: SeveralSigmas(index, [s.index for s in structure.sigmas])
            for name, index in structure.sigmas_of_data.items()
        }
        self.scored_scales: set[str] = set()
        self._are_labels: dict[str, bool] = {}  # whole numbers that become floating-point ones
        self._zero = torch.zeros((), dtype=structure.dtype, device=structure.device)
        self._constants: dict[Any, tuple[dict[str, Any], list[tuple[Tensor, int]]]] = {}

    def __enter__(self) -> Any:
        COERCIONS.append(self._reuse)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        COERCIONS.remove(self._reuse)
        super().__exit__(*error)

    def _reuse(self, kind: type, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """
        Return a distribution of Pyro whose parameters are numbers, as an earlier step has made it:
        to make and validate it anew takes a tenth of a small model's step. None for any other.
        """
        for value in (*arguments, *options.values()):
            if type(value) not in _NUMBERS:
                return None
        if not kind.__module__.startswith(("pyro.distributions.", "pyro.poutine.")):
            return None
        if len(COERCIONS) > 1 or _tensors_are_special():
            return None
        types = (*map(type, arguments), *map(type, options.values()))  # 1 is 1.0 in a key
        validates = torch.distributions.Distribution._validate_args
        key = kind, arguments, *options.items(), types, validates, torch.get_default_dtype()
        fields, versions = self._constants.get(key, ({}, []))
        if fields and all(tensor._version == version for tensor, version in versions):
            again: Any = object.__new__(kind)  # of its own, in case the model sets an attribute
            vars(again).update(fields)
            return again
        if not fields and len(self._constants) == CONSTANTS:
            return None
        made = type.__call__(kind, *arguments, **options)
        versions = [(tensor, tensor._version) for tensor in _tensors_of(made)]
        self._constants[key] = {**vars(made)}, versions
        return made

    def start(
        self,
        values: Mapping[str, Tensor],
        unconstrained: Mapping[str, Tensor],
        indices: Mapping[str, Tensor],
    ) -> None:
        self._values = values
        self._unconstrained = unconstrained
        self._indices = indices
        self._terms: list[Tensor] = []
        self._substituted = 0
        self.residuals: dict[str, Residuals] = {}
        self._recorded: dict[str, Tensor] = {}
        self.networks: dict[Any, Any] = {}
        self.last_site = ""

    def finish(self) -> Scored:
        """Return the scores of this run and drop references to the position."""
        scored = self._log_density(), self.residuals, self._recorded
        self._values, self._unconstrained, self._terms = {}, {}, []
        self.residuals, self._recorded, self.networks = {}, {}, {}
        return scored

    def _log_density(self) -> Tensor:
        if self._substituted != len(self._values):
            raise ModelError(
                f"of the sites {sorted(self._values)} only {self._substituted} were there in this "
                "step, expected the same sites at every step; a site under a condition that "
                "changes cannot be sampled"
            )
        return sum(self._terms[1:], start=self._terms[0]) if self._terms else self._zero

    def _pyro_sample(self, msg: Any) -> None:
        self.last_site = name = msg["name"]
        value = self._values.get(name)
        if value is not None:
            self._substitute(msg, name, value)
        elif site_is_subsample(msg):
            self._substitute_indices(msg, name)
        elif not msg["is_observed"]:
            raise ModelError(
                f"latent site {name!r} was not there when the model was inspected, expected the "
                f"same sites at every step: {sorted(self._values)}; a site under a condition that "
                "changes cannot be sampled"
            )
        elif name in self._sigma_of:
            self._score_residuals(msg, name)
        elif not msg["infer"].get("_deterministic", False):
            value = msg["value"]
            if name not in self._are_labels:
                self._are_labels[name] = as_numbers(msg["fn"], value) is not value
            if self._are_labels[name]:
                value = value.to(self._zero.dtype)
            self._score(msg, value)
        elif self._learned:
            value = torch.as_tensor(msg["value"]).detach()
            self._recorded[name] = value * _per_number(msg["scale"], msg["fn"].event_dim)

    def _substitute(self, msg: Any, name: str, value: Tensor) -> None:
        msg["value"] = value
        msg["done"] = True
        msg["stop"] = True
        self._substituted += 1
        if name in self._shapes and msg["fn"].shape() != self._shapes[name]:
            raise ModelError(
                f"site {name!r} has shape {tuple(msg['fn'].shape())}, expected "
                f"{tuple(self._shapes[name])}, its shape when the model was inspected; a site "
                "must keep its shape from step to step"
            )
        if name in self._learned:
            self._score(msg, value)
        if name in self._general:
            self._score(msg, value)
            transform = self._general[name]
            if transform is not None:
                jacobian = transform.log_abs_det_jacobian(self._unconstrained[name], value)
                self._terms.append(jacobian.sum())

    def _substitute_indices(self, msg: Any, name: str) -> None:
        if msg["value"] is not None:  # indices of the model's own
            return
        fn = msg["fn"]
        sizes = (fn.size, fn.size if fn.subsample_size is None else fn.subsample_size)
        if name not in self._plates:
            raise ModelError(
                f"plate {name!r} was not there when the model was inspected, expected the same "
                f"plates at every step: {sorted(self._plates)}"
            )
        if sizes != self._plates[name]:
            raise ModelError(
                f"plate {name!r} takes {sizes[1]} of {sizes[0]} data, expected "
                f"{self._plates[name][1]} of {self._plates[name][0]} as when the model was "
                "inspected; a batch must keep its size from step to step"
            )
        msg["value"] = self._indices[name]

    def _score(self, msg: Any, value: Tensor) -> None:
        log_prob = msg["fn"].log_prob(value, *msg["args"], **msg["kwargs"])
        if msg["mask"] is not None:
            log_prob = torch.where(torch.as_tensor(msg["mask"]), log_prob, 0.0)
        scale = msg["scale"]
        if has_weights(scale):
            self._terms.append((log_prob * scale).sum())
            return
        total = log_prob.sum()
        self._terms.append(total if scale == 1.0 else total * scale)

    def _score_residuals(self, msg: Any, name: str) -> None:
        """
        Score Normal(loc, c sigma) where it depends on the weights, or a StudentT, and record (6)'s
        I.
        """
        scale, weights = msg["scale"], None
        fn, mask = _base_and_mask(msg["fn"], msg["mask"])
        z = (msg["value"] - fn.loc) / fn.scale
        is_normal = type(fn) is pyro.distributions.Normal
        if not is_normal:
            self.scored_scales.add(name)
            self._score(msg, msg["value"])
            z = weigh_tails(z, fn.df).detach()
        if has_weights(scale):
            weights, scale = _per_number(scale, msg["fn"].event_dim).expand(z.shape), 1.0
        data, counts = z.numel() * scale if weights is None else weights.sum(), weights
        if mask is not None:
            mask = mask.expand(z.shape)
            counts = mask if weights is None else torch.where(mask, weights, 0.0)
            z, data = torch.where(mask, z, 0.0), counts.sum() * scale
        several = self._several.get(name)
        if weights is not None or several is not None:
            squares = z.square() if weights is None else z.square() * weights
            total = squares.sum()
        else:
            total = torch.dot(z, z) if z.dim() == 1 else z.square().sum()
        if is_normal:
            self._terms.append(total * (-0.5 * scale))
        if is_normal and fn.scale.requires_grad:  # c depends on the weights
            self.scored_scales.add(name)
            log_scale = fn.scale.log() if mask is None else torch.where(mask, fn.scale.log(), 0.0)
            log_scale = log_scale if weights is None else log_scale * weights
            self._terms.append(-log_scale.sum() * scale)
        site, is_variance, index = self._sigma_of[name]
        sigma2 = self._values[site] if is_variance else self._values[site].square()
        if several is None:
            sigma2 = sigma2.reshape(()) if index is None else sigma2.reshape(-1)[index]
            self.residuals[name] = Residuals(total.detach() * sigma2 * scale, data)
        else:
            self.residuals[name] = several.residuals(squares.detach(), counts, scale, sigma2)


def _tensors_of(distribution: Any) -> Iterator[Tensor]:
    """Yield the parameters of a distribution, and of those that it is made from."""
    for value in vars(distribution).values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, torch.distributions.Distribution):
            yield from _tensors_of(value)


def _tensors_are_special() -> bool:
    """Whether tensors made now are not to be used later: they are traced, or of one transform."""
    return (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _per_number(factor: Any, event_dim: int) -> Any:
    """Return a scale or mask of data, with axes added for the numbers of a datum."""
    if not isinstance(factor, Tensor) or not event_dim:
        return factor
    return factor.reshape(factor.shape + (1,) * event_dim)


def weigh_tails(z: Tensor, df: Tensor) -> Tensor:
    r"""
    Return residuals z of a StudentT, in units of its scale, each times the root of
    :math:`(\nu + 1) / (\nu + z^2)`: the expected precision, given z, of the Normal that a StudentT
    is a mixture of. The E-step for its scale.
    """
    return z * ((df + 1.0) / (df + z.square())).sqrt()


def _base_and_mask(fn: Any, mask: Any) -> tuple[Any, Tensor | None]:
    """
    Return the distribution inside ``to_event`` and ``mask``, and the mask of its numbers.

    :param mask: of the site, by ``poutine.mask``.
    """
    if mask is not None:
        mask = _per_number(torch.as_tensor(mask), fn.event_dim)
    while isinstance(fn, (pyro.distributions.Independent, pyro.distributions.MaskedDistribution)):
        if isinstance(fn, pyro.distributions.MaskedDistribution):
            own = _per_number(torch.as_tensor(fn._mask), fn.event_dim)
            mask = own if mask is None else mask & own
        fn = fn.base_dist
    return fn, mask
