# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
NumPyro's HMC with energy-conserving subsampling on the quickstart's program, all its sites
sampled, the weights' mixture summed out. A trajectory has some leapfrog steps, each with the
gradient of a batch, and two accept steps: of the trajectory, and of a part of the batch.
"""

from __future__ import annotations

from typing import Any

from ..workloads import HALF, Workload
from .base import Peer

LEAPFROG, TRAJECTORIES = 10, 100
"""Steps of a trajectory, and trajectories a call."""


def start(workload: Workload) -> Peer:
    """A leapfrog step counts as a step."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import HMC, HMCECS

    from . import jax_networks

    def model(x: Any, y: Any) -> None:
        n, p = x.shape
        sigma2 = numpyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
        delta = numpyro.sample("delta", dist.Beta(1.0, float(p)))
        sigma = jnp.sqrt(sigma2)
        shares = dist.Categorical(probs=jnp.stack([1.0 - delta, delta]))
        parts = [dist.Laplace(0.0, 0.1 * sigma), dist.Normal(0.0, sigma * 10.0**0.5)]
        with numpyro.plate("features", p):
            beta = numpyro.sample("beta", dist.MixtureGeneral(shares, parts))
        with numpyro.plate("data", n, subsample_size=HALF):
            rows, own = (numpyro.subsample(v, event_dim=v.ndim - 1) for v in (x, y))
            numpyro.sample("y", dist.Normal(rows @ beta, sigma), obs=own)

    inner = HMC(
        model,
        step_size=1e-3,
        num_steps=LEAPFROG,
        trajectory_length=None,
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )
    kernel = HMCECS(inner, num_blocks=10)
    data = jax_networks.data(workload)
    state = kernel.init(jax.random.key(0), 0, None, data, {})

    @jax.jit
    def many(state: Any, data: Any) -> Any:
        body = lambda state, _: (kernel.sample(state, data, {}), None)  # noqa: E731
        return jax.lax.scan(body, state, None, length=TRAJECTORIES)[0]

    def call() -> None:
        nonlocal state
        state = many(state, data)

    steps = LEAPFROG * TRAJECTORIES
    return Peer(call, steps, lambda: jax.block_until_ready(state), torch=False)
