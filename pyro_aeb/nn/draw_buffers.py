# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Buffers that follow the weights: computed for the weights of a draw, or refused.

A run of the model leaves the buffers of its last state in the modules, which fit no other draw.
Spectral norms are computed by their power method whenever the weights change; running statistics by
:class:`~pyro_aeb.nn.evaluation_mode.BatchNormStatistics`. Any other buffer that follows the weights
and on which predictions depend is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm

from pyro_aeb.errors import ModelError, shorten
from pyro_aeb.model.side_effects import Place, buffer_kind, preserve_random_state
from pyro_aeb.nn.mixture import Mixture

POWER_ITERATIONS = 2000
Values = dict[Place, Tensor]


class ChangedBuffers:
    """
    The buffers that an AEBKernel's run changed, as far as they are known.

    :param kernel: whose last chain is that of the run, if it ran in this process.
    :param report: the diagnostics of a chain, which say which kinds of buffers it changed.
    """

    def __init__(self, kernel: Any, report: Mapping[str, Any] | None) -> None:
        try:
            self._places = set(kernel.chain.structure.changed_buffers)
        except (AttributeError, RuntimeError):  # another kernel, or none that was started here
            self._places = set()
        kinds = {buffer_kind(*place) for place in self._places}
        self._kinds = kinds if report is None else set(report.get("changed_buffers", ()))
        if kinds != self._kinds:  # the kernel's last chain is of another run
            self._places.clear()

    @property
    def has_statistics(self) -> bool:
        """Whether running statistics of normalisation layers are among them."""
        return any("running_" in kind for kind in self._kinds)

    def names(self, module: nn.Module) -> list[str]:
        """Return the names of a module's buffers that the run changed."""
        return [
            name
            for name in module._buffers
            if buffer_kind(module, name) in self._kinds
            and (not self._places or (module, name) in self._places)
        ]


@contextmanager
def compute_spectral_norms(follows: Callable[[nn.Module], bool]) -> Iterator[None]:
    """
    Compute the singular vectors of spectral norms, old and new, at the weights of each call.

    :param follows: whether those of a module follow the weights in a run; others stay.
    """

    def compute(module: nn.Module, inputs: Any) -> None:
        if _spectral_buffers(module) and follows(module):
            _converge(module, inputs)

    handle = register_module_forward_pre_hook(compute)
    try:
        yield
    finally:
        handle.remove()


def fit_spectral_norms(module: nn.Module, follows: Callable[[nn.Module], bool]) -> None:
    """Compute the singular vectors of a module's spectral norms at its weights."""
    with torch.no_grad(), compute_spectral_norms(follows):
        for part in module.modules():
            if _old_spectral_norms(part) and follows(part):
                _converge(part, ())
            if is_parametrized(part):
                for name in part.parametrizations:  # type: ignore[union-attr]
                    getattr(part, name)


def _old_spectral_norms(module: nn.Module) -> list[SpectralNorm]:
    return [h for h in module._forward_pre_hooks.values() if isinstance(h, SpectralNorm)]


def _spectral_buffers(module: nn.Module) -> set[str]:
    """Return the names of the buffers that hold singular vectors."""
    names = {f"{h.name}_{end}" for h in _old_spectral_norms(module) for end in "uv"}
    return names | {"_u", "_v"} if isinstance(module, _SpectralNorm) else names


@torch.no_grad()
def _converge(module: nn.Module, inputs: Any) -> None:
    if isinstance(module, _SpectralNorm):
        if inputs[0].ndim > 1:
            matrix = module._reshape_weight_to_matrix(inputs[0])
            _find_singular_vectors(matrix, module._u, module._v)
        return
    for norm in _old_spectral_norms(module):
        weight, u, v = (getattr(module, f"{norm.name}_{end}") for end in ("orig", "u", "v"))
        _find_singular_vectors(norm.reshape_weight_to_matrix(weight), u, v)


def _find_singular_vectors(matrix: Tensor, u: Tensor, v: Tensor) -> None:
    """Iterate the power method in place until W'u = s v to half the precision of the numbers."""
    tolerance = math.sqrt(torch.finfo(matrix.dtype).eps) / 4
    for i in range(POWER_ITERATIONS):
        product = matrix.mv(v)
        u.copy_(nn.functional.normalize(product, dim=0, eps=1e-12))
        product = matrix.mT.mv(u)
        if i % 10 == 0 and bool(
            (product - product.dot(v) * v).norm() <= tolerance * product.norm()
        ):
            break
        v.copy_(nn.functional.normalize(product, dim=0, eps=1e-12))


def is_computed(module: nn.Module, name: str) -> bool:
    """Whether a buffer is computed for every draw in any case, or is one that counts."""
    buffer = module._buffers[name]
    counts = buffer is not None and buffer.dtype == torch.int64 and not buffer.dim()
    return counts or name in _spectral_buffers(module)


def statistics_of(module: nn.Module) -> list[str]:
    """Return the names of the running statistics that a normalisation layer in training changes."""
    if not (isinstance(module, _NormBase) and module.track_running_stats and module.training):
        return []
    return ["running_mean", "running_var"]


def check_buffers(
    run: Callable[[Mapping[str, Tensor]], Any],
    predict: Callable[[Mapping[str, Tensor]], Mixture],
    draws: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    modes: Mapping[nn.Module, bool],
    computed: Collection[nn.Module],
) -> None:
    """
    Check that predictions depend on no buffer that follows the weights and is not computed.

    :param run: runs the model at a draw.
    :param predict: predicts from a draw, in evaluation mode.
    :param draws: two draws of different weights.
    :param modes: whether each module is in training mode in a run.
    :param computed: modules whose running statistics are computed for every draw.
    :raises ModelError: if they do.
    """
    before = _buffers(modes)
    first, second = (_buffers_after(run, draw, modes, before) for draw in draws)
    following = [
        (module, name)
        for module, name in before
        if name not in _spectral_buffers(module)
        and not (module in computed and isinstance(module, _NormBase))
        and not torch.equal(first[module, name], before[module, name])
        and not torch.equal(first[module, name], second[module, name])
    ]
    if not following:
        return
    means = [
        _predict_with({place: buffers[place] for place in following}, predict, draws[0])
        for buffers in (first, second)
    ]
    if not torch.equal(*means):
        raise buffers_error(following, modes)


def other_draw(draw: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a draw with other weights in the same support, where that is an interval from 0."""
    return {
        name: value * torch.linspace(0.8, 1.0, value.numel()).to(value).view_as(value)
        if value.is_floating_point()
        else value
        for name, value in draw.items()
    }


def buffers_error(places: Collection[Place], modules: Collection[nn.Module]) -> ModelError:
    """Return the error for buffers that no draw has its own of."""
    names: dict[nn.Module, str] = {}
    for root in modules:
        for path, part in root.named_modules():
            if len(path) >= len(names.get(part, "")):
                names[part] = path
    found = sorted(f"{names[part]}.{name}".lstrip(".") for part, name in places)
    if all(isinstance(part, _NormBase) for part, _ in places):
        cure = "give recalibrate=, training data from which they are computed for every draw"
    else:
        cure = (
            "call eval() on these modules before the run, so that they stay as they are, or "
            "compute what they hold from the weights in forward (recalibrate= computes those of "
            "BatchNorm and InstanceNorm only)"
        )
    return ModelError(
        f"the buffers {shorten(found)} follow the weights: they are of the last state and fit "
        f"no other draw, expected buffers of every draw's own; {cure}"
    )


def _buffers(modules: Collection[nn.Module]) -> Values:
    return {
        (module, name): buffer.clone()
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    }


def _insert(values: Mapping[Place, Tensor]) -> None:
    for (module, name), value in values.items():
        module._buffers[name] = value.clone()


def _buffers_after(
    run: Callable[[Mapping[str, Tensor]], Any],
    draw: Mapping[str, Tensor],
    modes: Mapping[nn.Module, bool],
    before: Values,
) -> Values:
    """Return the buffers after a run in the modules' own modes; modes and buffers are restored."""
    current = {module: module.training for module in modes}
    originals = {place: place[0]._buffers[place[1]] for place in before}
    try:
        _insert(before)
        for module, training in modes.items():
            module.training = training
        with preserve_random_state():
            run(draw)
        return {**before, **_buffers(modes)}
    finally:
        for module, training in current.items():
            module.training = training
        for (module, name), buffer in originals.items():
            module._buffers[name] = buffer


def _predict_with(
    values: Values, predict: Callable[[Mapping[str, Tensor]], Mixture], draw: Mapping[str, Tensor]
) -> Tensor:
    """Return a draw's mean prediction with other buffers in the modules."""
    originals = {(module, name): module._buffers[name] for module, name in values}
    try:
        _insert(values)
        with preserve_random_state():
            return predict(draw).mean
    finally:
        for (module, name), buffer in originals.items():
            module._buffers[name] = buffer
