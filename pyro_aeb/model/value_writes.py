# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Refuse code that changes the values of latent sites in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_aeb.errors import ModelError


class RefuseWrites(TorchDispatchMode):
    """
    Refuse operations that write into values, even where they change no number, as a clamp of small
    weights. Not for use inside functorch transforms.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler for the mode, which takes two seconds."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self._sites: dict[int, str] = {}  # by storage
        self._values: list[tuple[str, Tensor, int, Tensor]] = []

    def add(self, site: str, value: Tensor) -> None:
        """
        Watch a value.

        :param str site: the name of its site, for the message.
        """
        if value.is_meta or not value.numel():
            return
        with torch.utils._python_dispatch._disable_current_modes():
            copy = value.detach().clone()
        self._sites.setdefault(_storage(value), site)
        self._values.append((site, value, value.data_ptr(), copy))

    def check(self) -> None:
        """
        :raises ModelError: if a value has got other data by ``value.data = ...`` or by NumPy.
        """
        for site, value, pointer, copy in self._values:
            same = value.data_ptr() == pointer
            if not same or not torch.allclose(value, copy, rtol=0.0, atol=0.0, equal_nan=True):
                raise written_error(site)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for i, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    given = args[i] if i < len(args) else kwargs.get(argument.name)
                    for tensor in given if isinstance(given, (tuple, list)) else (given,):
                        if isinstance(tensor, Tensor) and _storage(tensor) in self._sites:
                            raise written_error(self._sites[_storage(tensor)])
        return func(*args, **kwargs)


def written_error(site: str) -> ModelError:
    """Return the error for a site whose value the model changes."""
    return ModelError(
        f"the model changes the value of site {site!r} while it runs, in place or by assigning it "
        "anew (a max-norm, a clamp or a mask of the weights in forward, say), which its prior and "
        "the sampler never see; expected values that stay as they are. Compute with a changed copy "
        "instead, `w = self.weight.clamp(-1, 1)`, or write it as a parametrization, "
        "torch.nn.utils.parametrize.register_parametrization(module, 'weight', ...)"
    )


def _storage(value: Tensor) -> int:
    try:
        return value.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # sparse, or a subclass without storage
        return id(value)
