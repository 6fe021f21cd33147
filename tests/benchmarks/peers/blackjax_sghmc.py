# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
BlackJAX's sghmc, compiled by JAX, on a log posterior with a Normal prior. It is compared with JAX's
own compiled forward and backward pass.

A step is the gradient and BlackJAX's integrator, compiled together. ``blackjax.sghmc`` itself makes
several such steps in a loop of XLA's, in which convolutions take ten times as long on a CPU, and
draws the momentum anew before each loop.
"""

from __future__ import annotations

from ..workloads import Workload
from .base import FRICTION, Peer


def start(workload: Workload) -> Peer:
    """One step a call, waited for."""
    import jax
    import jax.numpy as jnp
    from blackjax.sgmcmc import diffusions
    from jax import Array

    from . import jax_networks

    network, log_likelihood = jax_networks.NETWORKS[workload.name]
    params, data = jax_networks.parameters(workload), jax_networks.data(workload)
    eta, sd = workload.step_size, workload.priors.dense_scale
    integrator = diffusions.sghmc(alpha=FRICTION)
    State = tuple[Array, jax_networks.Params, jax_networks.Params]

    def likelihood(params: jax_networks.Params, data: jax_networks.Data) -> Array:
        x, y = jax_networks.batch(data)
        return log_likelihood(network(params, x), y) * workload.scale

    def log_posterior(params: jax_networks.Params, data: jax_networks.Data) -> Array:
        squares = sum(jnp.sum(p * p) for p in params.values())
        return likelihood(params, data) - 0.5 * squares / sd**2

    @jax.jit
    def compiled(state: State, data: jax_networks.Data) -> State:
        key, position, momentum = state
        key, own = jax.random.split(key)
        gradient = jax.grad(log_posterior)(position, data)
        return key, *integrator(own, position, momentum, gradient, eta)

    alone = jax.jit(jax.grad(likelihood))
    state = jax.random.key(0), params, jax.tree.map(jnp.zeros_like, params)

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state, data))

    return Peer(step, lambda: jax.block_until_ready(alone(params, data)), torch=False)
