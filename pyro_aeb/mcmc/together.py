# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A cheap check of whether the chains of a run can step together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_aeb.data.arguments import Arguments
from pyro_aeb.data.contents import is_plain
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.model.side_effects import preserve_random_state

MOST_WEIGHTS = 100_000
"""The most weights of chains that step together unasked: with more, a step is no quicker so."""


def can_step_together(
    kernel: AEBKernel,
    chains: int,
    arguments: Arguments,
    initial_params: Mapping[str, Tensor] | None,
) -> bool:
    """
    Whether a model runs vectorized, by the gradient at the first step. Random numbers and the
    kernel are left as they were.

    :param arguments: of the model. Those that are no tensors, numbers and the like may be a
        loader's batches, and are not tried.
    """
    values = [*arguments.args, *arguments.kwargs.values()]
    if not all(torch.is_tensor(value) or is_plain(value) for value in values):
        return False
    before = kernel.take_up(None)
    given = kernel.initial_params
    with preserve_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kernel.initial_params = initial_params or given
            kernel.start(1, range(chains), *arguments)
            chain = kernel.chain
            small = chain.structure.size <= MOST_WEIGHTS
            if small:
                chain.target(chain.data.next()).batch(chain.state.position)
            chain.data.close()
            return small
        except Exception:  # whatever it is, the run says it, of chains that run apart
            return False
        finally:
            kernel.initial_params = given
            kernel.take_up(before)
