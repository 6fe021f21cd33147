# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
BlackJAX's SGHMC and SGLD on a log posterior with a Normal prior, and JAX's gradient alone: many
steps in one compiled :func:`jax.lax.scan`, which nothing waits for before the last. On a CPU
convolutions take some ten times as long inside of such a loop, so there a call of C and R makes one
step.

SGHMC is BlackJAX's integrator. Its ``sghmc.step`` is a scan over that, too, but draws the momentum
anew at each batch, so that with a batch a step nothing would be left of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..workloads import FRICTION, Workload
from .base import Peer

STEPS = {"F": 1000, "L": 200, "M": 10}
"""A call, on a CPU; of C and R one."""


def start(workload: Workload, at_once: bool = False, sampler: str | None = None) -> Peer:
    """
    :param bool at_once: whether the rows of a call's batches are drawn before its loop, not one by
        one inside it.
    :param sampler: ``"sgld"`` or ``"sghmc"``; that of the workload if not given.
    """
    import jax
    import jax.numpy as jnp

    from . import jax_networks

    sd = workload.priors.dense_scale
    likelihood = _likelihood(workload)

    def log_posterior(params: jax_networks.Params, batch: jax_networks.Data) -> jax.Array:
        squares = sum(jnp.sum(p * p) for p in params.values())
        return likelihood(params, batch) - 0.5 * squares / sd**2

    sampler = sampler or ("sgld" if workload.friction == 1.0 else "sghmc")
    move = SAMPLERS[sampler](jax.grad(log_posterior), workload.step_size)
    params = jax_networks.parameters(workload)
    state = params if sampler == "sgld" else (params, jax.tree.map(jnp.zeros_like, params))
    rows = None if workload.rows is None else len(workload.rows)
    return _peer(workload, move, state, jax_networks.data(workload), rows, at_once)


def start_gradient(workload: Workload) -> Peer:
    """Forward and backward alone, on a batch that lies ready; the weights follow the gradient."""
    import jax

    from . import jax_networks

    gradient = jax.grad(_likelihood(workload))

    def move(key: Any, params: Any, batch: Any) -> Any:
        slopes = gradient(params, batch)
        return jax.tree.map(lambda p, g: p + workload.step_size * g, params, slopes)

    params, batch = jax_networks.parameters(workload), jax_networks.batch(workload)
    return _peer(workload, move, params, batch)


def _sgld(gradient: Callable[..., Any], step_size: float) -> Callable[..., Any]:
    import blackjax

    sgld = blackjax.sgld(gradient)
    return lambda key, state, batch: sgld.step(key, state, batch, step_size)


def _sghmc(gradient: Callable[..., Any], step_size: float) -> Callable[..., Any]:
    from blackjax.sgmcmc import diffusions

    integrator = diffusions.sghmc(alpha=FRICTION)
    return lambda key, state, batch: integrator(key, *state, gradient(state[0], batch), step_size)


SAMPLERS = {"sgld": _sgld, "sghmc": _sghmc}


def _likelihood(workload: Workload) -> Callable[..., Any]:
    from . import jax_networks

    network, log_likelihood = jax_networks.NETWORKS[workload.name]
    return lambda params, batch: (
        log_likelihood(network(params, batch[0]), batch[1]) * (workload.scale)
    )


def _peer(
    workload: Workload,
    move: Callable[..., Any],
    state: Any,
    data: tuple[Any, Any],
    rows: int | None = None,
    at_once: bool = False,
) -> Peer:
    """
    Many moves a call.

    :param move: of a key, a state and a batch to the next state.
    :param data: to draw batches from, or one.
    :param rows: of a batch; None for all.
    """
    import jax
    from jax import lax

    on_cpu = jax.default_backend() == "cpu"
    length = STEPS.get(workload.name, 1 if on_cpu else 10)

    def draw(key: Any, *shape: int) -> Any:
        return jax.random.randint(key, shape, 0, len(data[1]))

    def step(data: Any, state: Any, inputs: Any) -> tuple[Any, None]:
        key, drawn = inputs
        if rows is not None and not at_once:
            key, own = jax.random.split(key)
            drawn = draw(own, rows)
        batch = data if drawn is None else (data[0][drawn], data[1][drawn])
        return move(key, state, batch), None

    @functools.partial(jax.jit, donate_argnums=1)
    def many(key: Any, state: Any, data: Any) -> tuple[Any, Any]:
        key, own, drawing = jax.random.split(key, 3)
        if length == 1:
            return key, step(data, state, (own, None))[0]
        drawn = draw(drawing, length, rows) if at_once and rows is not None else None
        keys = jax.random.split(own, length)
        return key, lax.scan(functools.partial(step, data), state, (keys, drawn))[0]

    now = jax.random.key(0), state

    def call() -> None:
        nonlocal now
        now = many(*now, data)

    return Peer(call, length, lambda: jax.block_until_ready(now), torch=False)
