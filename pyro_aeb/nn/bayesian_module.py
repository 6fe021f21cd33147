# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Bayesian modules made from torch modules.

:func:`bayesianize` reads the module's layers (:mod:`pyro_aeb.nn.layers`) and checks the priors
(:mod:`pyro_aeb.nn.priors`). It returns a :class:`BayesianModule`, which samples every parameter by
``pyro.sample`` and calls a copy of the module with the values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.provenance import (
    ProvenanceTensor,
    detach_provenance,
    get_provenance,
    track_provenance,
)
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_map_only

from pyro_aeb.errors import ModelError
from pyro_aeb.model.value_writes import RefuseWrites, written_error
from pyro_aeb.nn.calls import sample_once
from pyro_aeb.nn.copying import copy_module, keeps_results
from pyro_aeb.nn.layers import Sparse, Weight, check_module, find_weights, layer_of, table
from pyro_aeb.nn.priors import (
    Kind,
    Priors,
    delta_prior,
    hyperprior,
    independent,
    normal,
    pretrained_normal,
    scalar,
    select_priors,
    sigma2_prior,
)
from pyro_aeb.priors import SSGL, Group
from pyro_aeb.validation import choice, flag, positive

SIGMA2 = "sigma2"
"""The site of sigma squared."""


def bayesianize(
    module: nn.Module,
    sparse: Sparse | None = None,
    *,
    v0: float = 0.1,
    v1: float = 10.0,
    delta: float | dist.Beta,
    sigma2: float | dist.InverseGamma,
    dense_scale: float = 1.0,
    by_unit: bool = False,
    priors: Mapping[str, Any] | None = None,
    means: Literal["pretrained"] | None = None,
    name: str = "",
) -> BayesianModule:
    r"""
    Give every parameter of a module a prior: SSGL in the sparse layers, Normal elsewhere::

        net = bayesianize(
            resnet20(),
            sparse="*.conv*",
            delta=dist.Beta(2.0, 2.0),
            sigma2=dist.InverseGamma(1.0, 1.0),
        )

        def model(x, y=None):
            logits = net(x)
            with pyro.plate("data", 50_000, subsample=x):
                return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    A *layer* is a submodule that owns parameters itself, such as ``layer1.0.conv1``; the module's
    own parameters belong to a layer with the empty name. In a sparse layer, parameters of two
    dimensions or more have the prior ``SSGL(v0, v1, delta=<the layer's>, sigma=sigma2.sqrt())``.
    All other parameters have the prior ``Normal(0, dense_scale)``. Parameters that do not require a
    gradient are not sampled.

    The module itself does not change. Chains start at its weights.

    :param torch.nn.Module module: any module. A parameter with several names in it is one site
        under the first, and sparse if any of the layers that own it is.
    :param sparse: the sparse layers: a pattern of :mod:`fnmatch` for their names, a list of names
        and patterns, or a function of a layer's name and module that returns a bool. Each must
        match a layer with a parameter of two dimensions or more; other layers that it matches, such
        as a batch norm, stay dense. By default all layers with such a parameter are sparse
        (embeddings and position codes included); with an empty list none is.
    :param float v0: scale of the Laplace component in units of sigma, positive.
    :param float v1: variance of the Gaussian component in units of sigma squared, positive.
    :param delta: probability of the Gaussian component, one for each sparse layer: their Beta
        prior, or a number in [0, 1] that fixes them.
    :param sigma2: sigma squared, one for all sparse layers: its InverseGamma prior, or a positive
        number that fixes it.
    :param float dense_scale: standard deviation of the Normal priors, positive.
    :param bool by_unit: whether the weights of a unit share a gamma: of a row of a matrix, a filter
        of a convolution, a slice of a parameter along its first axis. They are then a
        :class:`~pyro_aeb.priors.group.Group`, and delta is the share of units in the Gaussian
        component.
    :param priors: other priors by layer: a pattern for names of layers or parameters to options,
        ``{"layer4.*": {"v0": 0.01, "delta": 0.1}, "fc": {"dense_scale": 0.05}}``, of ``v0``,
        ``v1``, ``delta`` and ``dense_scale``; or to the distribution of one real number,
        ``{"*.bias": dist.Laplace(0.0, 1.0)}``, which all dense weights that match have in place of
        the Normal. Of several patterns that match, the last one counts.
    :param str means: ``"pretrained"`` centres the Normal priors at the module's weights. Sparse
        weights keep priors around zero, without which none would be near zero.
    :param str name: prefix of the sites' names, ``<name>.``; for a model of several networks.
    :raises TypeError: if an argument is of the wrong kind.
    :raises ValueError: if a number is out of range.
    :raises ModelError: if the module cannot be sampled, ``sparse`` or a pattern of ``priors``
        matches nothing, or a parameter has the name of another site.
    """
    check_module(module)
    if any(isinstance(part, BayesianModule) for part in module.modules()):
        raise ModelError(
            f"{type(module).__name__} is or holds a BayesianModule, expected a module with plain "
            "parameters; one that is Bayesian already goes into the model as it is"
        )
    weights = find_weights(module, sparse)
    default = Priors(
        v0=positive("v0", v0),
        v1=positive("v1", v1),
        delta=delta_prior(delta),
        sigma2=sigma2_prior(sigma2),
        dense_scale=positive("dense_scale", dense_scale),
        by_unit=flag("by_unit", by_unit),
        pretrained=choice("means", means, Literal["pretrained"], optional=True) is not None,
    )
    by_weight = select_priors(default, priors or {}, weights)
    prefix = f"{name}." if name else ""
    return BayesianModule(copy_module(module), weights, default, by_weight, prefix)


class BayesianModule(nn.Module):
    """
    A module whose parameters are sites, made by :func:`bayesianize`.

    A call samples every parameter under its name in the module, ``layer1.0.conv1.weight``; before a
    layer's first sparse one the layer's delta, ``layer1.0.conv1.delta``; before all sparse ones
    ``sigma2``. Fixed values are not sites. The call then runs :attr:`module` with these values. It
    belongs outside of plates: the weights are not data. Buffers, such as a batch norm's running
    averages, change as in any call of the module. Later calls in the same run of a model have the
    values of the first.

    ``to()``, ``train()``, ``eval()`` and ``state_dict()`` apply to :attr:`module`; its weights are
    those at which chains start.

    :param torch.nn.Module module: holds the initial weights.
    :param weights: the parameters that are sampled, in order.
    :param Priors priors: those of all layers, sigma squared's among them.
    :param by_weight: the priors of every parameter.
    :param str prefix: of the sites' names, before the parameters' names.
    """

    prefix: str
    """The prefix of the sites' names, before the parameters' names."""
    module: nn.Module
    """The plain module: the initial values, the fixed parameters and the buffers."""
    sparse_sites: tuple[str, ...]
    """The sites with an SSGL prior."""
    dense_sites: tuple[str, ...]
    """The sites with a Normal prior."""
    latent_sites: tuple[str, ...]
    """``sigma2`` and the layers' deltas, where they are sites."""

    def __init__(
        self,
        module: nn.Module,
        weights: Sequence[Weight],
        priors: Priors,
        by_weight: Mapping[str, Priors],
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.module = module
        self.training = module.training
        self._weights = tuple(weights)
        self._priors = priors
        self._by_weight = dict(by_weight)
        self._pretrained: dict[str, tuple[Any, Any, Any]] = {}
        self.prefix = prefix
        self._slots: list[tuple[Weight, nn.Module, str]] = []
        self._checked: set[bool] = set()
        self._sigma2: Tensor | None = None
        self.sparse_sites = tuple(prefix + w.name for w in weights if w.sparse)
        self.dense_sites = tuple(prefix + w.name for w in weights if not w.sparse)
        self.latent_sites = self._latent_sites()
        self._sites = (*self.latent_sites, *(prefix + w.name for w in weights))
        if clash := {*self.sparse_sites, *self.dense_sites} & {*self.latent_sites}:
            raise ModelError(
                f"the module has parameters named {sorted(clash)}, expected no parameter called "
                "like the sites of sigma squared or of a layer's delta, "
                f"{list(self.latent_sites)}; rename the parameter, or fix the latent with a number"
            )

    @property
    def sigma2(self) -> Tensor:
        """
        Sigma squared in the latest call, shape (). In regression it may also be the variance of the
        noise, and is then learned from both::

            mean = net(x).squeeze(-1)
            ... dist.Normal(mean, net.sigma2.sqrt())

        :raises RuntimeError: before the first call, and if no layer is sparse.
        """
        if self._sigma2 is None:
            raise RuntimeError(
                "sigma2 has no value yet, expected a call of the network before, in the same run "
                "of the model: mean = net(x), then net.sigma2"
                if self.sparse_sites
                else "the network has no sparse layer, so no sigma2; give the noise its own site"
            )
        return self._sigma2

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """
        Sample the sites and call the module with their values.

        :raises ModelError: if a value is not of its parameter's shape.
        """
        values = sample_once(self, self._sites, self._sample)
        if any(type(value) is ProvenanceTensor for value in values.values()):
            return self._call_tracked(values, args, kwargs)
        return self._call(values, args, kwargs)

    def _call_tracked(self, values: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        """Pass provenance around the module: not all of torch runs on tensors that have it."""
        inputs = (values, args, kwargs)
        tracked = [x for x in tree_flatten(inputs)[0] if isinstance(x, ProvenanceTensor)]
        values, args, kwargs = tree_map_only(ProvenanceTensor, detach_provenance, inputs)
        track = partial(track_provenance, provenance=get_provenance(tracked))
        return tree_map_only(Tensor, track, self._call(values, args, kwargs))

    def _call(self, values: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        for weight in self._weights:
            value = values[weight.name]
            if value.shape != weight.shape:
                raise _shape_error(weight.name, value, weight.shape)
            for other in weight.names[1:]:
                values[other] = value
        if self.module.training not in self._checked:
            return self._call_first(values, args, kwargs)
        # Tied parameters have their values, so torch need not search for them.
        return functional_call(self.module, values, args, kwargs, tie_weights=False)

    def _call_first(self, values: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        """
        Call the module for the first time in training or in evaluation mode.

        :raises ModelError: if it changes its weights.
        """
        self._checked.add(self.module.training)
        if torch._C._functorch.maybe_current_level() is not None:
            return functional_call(self.module, values, args, kwargs, tie_weights=False)
        replaced: list[str] = []

        def compare(*_: Any) -> None:
            for weight, owner, attribute in self._slots:
                if owner._parameters.get(attribute) is not values[weight.name]:
                    replaced.append(self.prefix + weight.name)

        writes = RefuseWrites()
        for weight in self._weights:
            writes.add(self.prefix + weight.name, values[weight.name])
        try:
            with writes, self.module.register_forward_hook(compare):
                result = functional_call(self.module, values, args, kwargs, tie_weights=False)
            writes.check()
            if replaced:
                raise written_error(replaced[0])
        except BaseException:
            self._checked.discard(self.module.training)
            raise
        return result

    def _sample(self) -> dict[str, Tensor]:
        """
        Sample every site; return the weights. It runs in every step of a chain, so what does not
        depend on sampled values is made once (:mod:`pyro_aeb.nn.priors`).
        """
        if not self._slots:
            owners = [(w, self.module.get_submodule(w.layer)) for w in self._weights]
            self._slots = [(w, owner, w.name.rpartition(".")[2]) for w, owner in owners]
        values: dict[str, Tensor] = {}
        sigma: Tensor | None = None
        layers: dict[str, SSGL] = {}
        for weight, owner, attribute in self._slots:
            start = owner._parameters[attribute]
            assert start is not None
            kind = (start.dtype, start.device)
            prior: Any
            if weight.sparse:
                layer = weight.layer
                if sigma is None:
                    sigma = self._sample_sigma(kind)
                if layer not in layers:
                    layers[layer] = self._sample_ssgl(weight, sigma, kind)
                prior = layers[layer].expand(weight.shape)
                if self._priors.by_unit:
                    prior = Group(prior, len(weight.shape) - 1)
                prior = prior.to_event(len(prior.batch_shape))
            else:
                prior = self._dense_prior(weight, start)
            infer: Any = {"init_value": start}
            values[weight.name] = pyro.sample(self.prefix + weight.name, prior, infer=infer)
        return values

    def _latent_sites(self) -> tuple[str, ...]:
        sparse = [weight for weight in self._weights if weight.sparse]
        names = [SIGMA2] if sparse and isinstance(self._priors.sigma2, tuple) else []
        deltas = {weight.layer: self._by_weight[weight.name].delta for weight in sparse}
        names += [_delta_site(layer) for layer, d in deltas.items() if isinstance(d, tuple)]
        return tuple(self.prefix + name for name in names)

    def _sample_sigma(self, kind: Kind) -> Tensor:
        sigma2 = self._priors.sigma2
        if not isinstance(sigma2, tuple):
            self._sigma2 = scalar(sigma2, *kind)
            return scalar(math.sqrt(sigma2), *kind)
        prior = hyperprior(dist.InverseGamma, *sigma2, *kind)
        self._sigma2 = _sample_scalar(self.prefix + SIGMA2, prior)
        return self._sigma2.sqrt()

    def _dense_prior(self, weight: Weight, start: Tensor) -> Any:
        priors, kind = self._by_weight[weight.name], (start.dtype, start.device)
        if priors.dense is not None:
            return independent(priors.dense, weight.shape, *kind)
        if not priors.pretrained:
            return normal(priors.dense_scale, weight.shape, *kind)
        of, key, prior = self._pretrained.get(weight.name, (None, None, None))
        if of is not start or key != (start._version, *kind):
            key, prior = (start._version, *kind), pretrained_normal(start, priors.dense_scale)
            self._pretrained[weight.name] = start, key, prior
        return prior

    def _sample_ssgl(self, weight: Weight, sigma: Tensor, kind: Kind) -> SSGL:
        """Sample a layer's delta; return the prior of each of its sparse weights."""
        layer, priors = weight.layer, self._by_weight[weight.name]
        delta: Any = priors.delta
        if isinstance(delta, tuple):
            prior = hyperprior(dist.Beta, *delta, *kind)
            delta = _sample_scalar(self.prefix + _delta_site(layer), prior)
        # v0 and v1 were checked once, delta and sigma come from priors with the right support.
        return SSGL(priors.v0, priors.v1, delta=delta, sigma=sigma, validate_args=False)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_slots": [], "_checked": set(), "_sigma2": None}
        state["_pretrained"] = {}
        if keeps_results(self.module):
            state["_modules"] = {"module": copy_module(self.module)}
        return state

    def __repr__(self) -> str:
        sizes: dict[str, list[int]] = {}
        sampled = {weight.name: weight for weight in self._weights}
        for name, parameter in self.module.named_parameters():
            weight = sampled.get(name)
            column = 2 if weight is None else 1 - int(weight.sparse)
            sizes.setdefault(layer_of(name), [0, 0, 0])[column] += parameter.numel()
        totals = [sum(column) for column in zip(*sizes.values(), strict=True)]
        rows = [(name, *(f"{n:,}" for n in row)) for name, row in {**sizes, "all": totals}.items()]
        lines = table(("layer", "sparse", "dense", "fixed"), rows).splitlines()
        others = {*self._by_weight.values()} - {self._priors}
        by_layer = f", {len(others)} other priors by layer" if others else ""
        head = f"BayesianModule({type(self.module).__name__}, {self._priors}{by_layer})"
        return "\n  ".join([head, *lines])


def _sample_scalar(site: str, prior: Any) -> Tensor:
    value = pyro.sample(site, prior)
    if value.dim():
        raise _shape_error(site, value, torch.Size())
    return value


def _shape_error(site: str, value: Tensor, expected: torch.Size) -> ModelError:
    return ModelError(
        f"site {site!r} has a value of shape {tuple(value.shape)}, expected {tuple(expected)}: "
        "call the network outside of plates, and on one draw at a time (parallel=False)"
    )


def _delta_site(layer: str) -> str:
    return f"{layer}.delta" if layer else "delta"
