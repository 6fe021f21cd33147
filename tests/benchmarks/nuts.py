# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""NUTS of Pyro and of NumPyro on the models of :mod:`tests.benchmarks.beds`, on all their data."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import pyro.infer
import torch
from torch import Tensor

from .beds import Bed

WARM_UP = 500


def run_pyro(bed: Bed, seed: int, samples: int) -> Tensor:
    """Return draws of the weights; the model is compiled by torch's jit, as is fastest."""
    pyro.set_rng_seed(seed)
    kernel = pyro.infer.NUTS(bed.model, jit_compile=True, ignore_jit_warnings=True)
    mcmc = pyro.infer.MCMC(kernel, samples, WARM_UP, disable_progbar=True)
    mcmc.run(*bed.arguments)
    return bed.draws(mcmc.get_samples())


def run_numpyro(bed: Bed, seed: int, samples: int) -> Tensor:
    """Return draws of the weights, by NumPyro."""
    import jax
    import numpyro.infer

    model = _in_numpyro(bed)
    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(model), num_warmup=WARM_UP, num_samples=samples, progress_bar=False
    )
    mcmc.run(jax.random.PRNGKey(seed), *(np.asarray(value) for value in bed.arguments))
    draws = {name: torch.tensor(np.asarray(v)) for name, v in mcmc.get_samples().items()}
    return bed.draws(draws)


def _in_numpyro(bed: Bed) -> Callable[..., None]:
    """Return the bed's model for NumPyro: its code runs with NumPyro's names in place of Pyro's."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    class Arrays:
        zeros = staticmethod(jnp.zeros)

    code: Any = bed.model
    names: dict[str, Any] = {"pyro": numpyro, "dist": dist, "torch": Arrays, "Tensor": Any}
    return FunctionType(code.__code__, code.__globals__ | names, closure=code.__closure__)
