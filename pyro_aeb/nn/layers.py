# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The layers and parameters of a module: which are sampled, under which names, and which are sparse.

A *layer* is a submodule that owns parameters itself. A *wide* parameter has two dimensions or more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from pyro.nn.module import PyroModule
from torch import nn
from torch.nn.parameter import is_lazy

from pyro_aeb.data.finite import count_non_finite
from pyro_aeb.errors import ModelError, shorten

Sparse = str | Sequence[str] | Callable[[str, nn.Module], bool]
"""The sparse layers: a pattern, several, or a function of a layer's name and module."""


@dataclass(frozen=True)
class Weight:
    """
    One parameter that is sampled.

    :param names: its name in every submodule that owns it (several if tied); the first is the
        site's.
    :param torch.Size shape: its shape.
    """

    names: tuple[str, ...]
    shape: torch.Size
    sparse: bool

    @property
    def name(self) -> str:
        """The name of its site."""
        return self.names[0]

    @property
    def layer(self) -> str:
        """The layer that owns it; the empty name is the module itself."""
        return layer_of(self.name)


def layer_of(parameter: str) -> str:
    """Return the name of the layer that owns a parameter."""
    return parameter.rpartition(".")[0]


def is_sampled(parameter: nn.Parameter) -> bool:
    """Whether a parameter requires a gradient and has numbers."""
    return parameter.requires_grad and (is_lazy(parameter) or parameter.numel() > 0)


def check_module(module: object) -> None:
    """
    Check that a module's parameters can be sampled.

    :raises TypeError: if it is no module.
    :raises ModelError: if it is Bayesian already, uninitialised, or has nothing to sample.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is {module!r}, expected a torch.nn.Module")
    for name, part in module.named_modules():
        if isinstance(part, PyroModule) and part._pyro_samples:
            raise ModelError(
                f"{_part(name)} ~ {type(part).__name__} has PyroSample attributes "
                f"{sorted(part._pyro_samples)}, expected a module with plain parameters; a module "
                "that is Bayesian already goes into the model as it is"
            )
    parameters = dict(module.named_parameters())
    tensors = {**parameters, **dict(module.named_buffers())}
    if lazy := [name for name, tensor in tensors.items() if is_lazy(tensor)]:
        raise ModelError(
            f"{lazy[0]!r} of {type(module).__name__} has no shape yet, expected a module whose "
            "lazy layers are initialised; call the module on one batch first, and take off a layer "
            "that it never calls"
        )
    free = {name: p for name, p in parameters.items() if is_sampled(p)}
    if not free:
        raise ModelError(
            f"{type(module).__name__} has {len(parameters)} parameters and none of them requires a "
            "gradient, expected at least one that does; there is nothing to sample (for fixed "
            "parameters call requires_grad_() first)"
        )
    for name, parameter in free.items():
        _check_parameter(name, parameter)
    kinds = {(p.dtype, p.device): name for name, p in free.items()}
    if len(kinds) > 1:
        examples = ", ".join(f"{name!r} is {dtype} on {d}" for (dtype, d), name in kinds.items())
        raise ModelError(
            f"the parameters are not of one kind ({examples}), expected one dtype on one device; "
            "call module.to(...)"
        )
    _check_layer_types(module)


def _check_parameter(name: str, parameter: nn.Parameter) -> None:
    if not parameter.is_floating_point():
        raise ModelError(
            f"parameter {name!r} has dtype {parameter.dtype}, expected a real floating point "
            "type; write it as two real parameters, or fix it with requires_grad_(False)"
        )
    if parameter.dtype not in (torch.float32, torch.float64):
        raise ModelError(
            f"parameter {name!r} has dtype {parameter.dtype}, expected float32 or float64, in "
            "which noise and latents can be computed; call module.float(), and run it in lower "
            "precision by torch.autocast inside the model"
        )
    if bad := count_non_finite(parameter.detach()):
        raise ModelError(
            f"parameter {name!r} has {bad} non-finite of {parameter.numel()} numbers, expected "
            "finite ones, at which the chain can start"
        )


def _check_layer_types(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule) or hasattr(part, "_orig_mod"):
            raise ModelError(
                f"{_part(name)} is compiled ({type(part).__name__}), expected a plain module, "
                "whose parameters can be exchanged; give the module that it was compiled from"
            )
        if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.weight.requires_grad:
            if part.max_norm is not None or part.sparse:
                raise ModelError(
                    f"{_part(name)} is an embedding with max_norm or sparse=True, which change the "
                    "weights or give sparse gradients; make it without them"
                )


def find_weights(module: nn.Module, sparse: Sparse | None) -> tuple[Weight, ...]:
    """
    Return the parameters to sample, in the module's order.

    :raises TypeError: if ``sparse`` is of the wrong kind.
    :raises ModelError: if ``sparse`` matches no layer with a wide parameter.
    """
    chosen = _choose_layers(module, sparse)
    layers = dict(module.named_modules(remove_duplicate=False))
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if is_sampled(parameter):
            names.setdefault(parameter, []).append(name)
    weights = []
    for parameter, aliases in names.items():
        # A submodule that has two names itself owns the parameter once.
        places = [(layers[layer_of(name)], name.rpartition(".")[2]) for name in aliases]
        unique = tuple(name for i, name in enumerate(aliases) if places[i] not in places[:i])
        is_sparse = parameter.dim() >= 2 and any(layer_of(name) in chosen for name in aliases)
        weights.append(Weight(unique, parameter.shape, is_sparse))
    return tuple(weights)


def _choose_layers(module: nn.Module, sparse: Sparse | None) -> set[str]:
    # A shared submodule counts under each of its names.
    layers = dict(module.named_modules(remove_duplicate=False))
    sampled = {name: _sampled_parameters(layer) for name, layer in layers.items()}
    layers = {name: layer for name, layer in layers.items() if sampled[name]}
    wide = {name for name in layers if any(p.dim() >= 2 for p in sampled[name])}
    if sparse is None:
        return wide
    if isinstance(sparse, type) or not (callable(sparse) or _is_names(sparse)):
        raise TypeError(
            f"sparse is {sparse!r}, expected a pattern such as '*.conv*', a list of names and "
            "patterns, or a function of a layer's name and module: "
            "lambda name, layer: isinstance(layer, torch.nn.Linear)"
        )
    if callable(sparse):
        matches = {name for name, layer in layers.items() if sparse(name, layer)}
        return _select_wide(matches, wide, "sparse, a function,")
    chosen: set[str] = set()
    for pattern in [sparse] if isinstance(sparse, str) else sparse:
        matches = {name for name in layers if fnmatchcase(name, pattern)}
        chosen |= _select_wide(matches, wide, f"sparse pattern {pattern!r}")
    return chosen


def _sampled_parameters(layer: nn.Module) -> list[nn.Parameter]:
    return [p for p in layer.parameters(recurse=False) if is_sampled(p)]


def _is_names(sparse: object) -> bool:
    return isinstance(sparse, str) or (
        isinstance(sparse, Iterable) and all(isinstance(name, str) for name in sparse)
    )


def _select_wide(matches: set[str], wide: set[str], option: str) -> set[str]:
    """Return the matches that have a wide parameter; raise an error if there are none."""
    if matches & wide:
        return matches & wide
    others = f"only {shorten(sorted(matches))}, without one" if matches else "none"
    raise ModelError(
        f"{option} finds {others}, expected a layer with a parameter of two dimensions or more "
        f"that requires a gradient; there are {shorten(sorted(wide))}; with sparse=[] no layer is "
        "sparse"
    )


def _part(name: str) -> str:
    return f"submodule {name!r}" if name else "the module"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format rows as lines of text, the first column left-aligned, the others right-aligned."""
    lines = [header, *rows]
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join([line[0].ljust(first), *map(str.rjust, line[1:], rest)]) for line in lines
    )
