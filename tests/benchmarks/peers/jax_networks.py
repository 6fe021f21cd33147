# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The workloads' networks in JAX, on the parameters of the torch networks by their torch names. Images
and kernels have their channels last, as XLA likes them on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from torch import Tensor

from ..workloads import Workload

Params = dict[str, Array]
Data = tuple[Array, Array]


def parameters(workload: Workload) -> Params:
    """The network's parameters, convolutions' kernels as (height, width, in, out)."""
    named = workload.network.named_parameters()
    return {n: to_jax(p.permute(2, 3, 1, 0) if p.ndim == 4 else p) for n, p in named}


def to_jax(value: Tensor) -> Array:
    """A copy, int64 as int32."""
    array = value.detach().cpu().numpy()
    if array.dtype == np.int64:
        array = array.astype(np.int32)
    return jnp.array(array)


def data(workload: Workload) -> Data:
    """All data, images as (n, height, width, channels)."""
    return _images(workload.x), to_jax(workload.y)


def batch(workload: Workload) -> Data:
    """The batch that lies ready."""
    x, y = workload.batch
    return _images(x), to_jax(y)


def _images(x: Tensor) -> Array:
    return to_jax(x.permute(0, 2, 3, 1) if x.ndim == 4 else x)


def gaussian(mean: Array, y: Array) -> Array:
    """The log likelihood with noise of variance 1, without its constant."""
    return -0.5 * jnp.sum((y - mean) ** 2)


def categorical(logits: Array, y: Array) -> Array:
    """The log likelihood of classes."""
    return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))


def linear(params: Params, x: Array) -> Array:
    """The network of F and L."""
    return x @ params["beta"]


def mlp(params: Params, x: Array) -> Array:
    """The network of M."""
    for i in (0, 2):
        x = jax.nn.relu(_dense(params, str(i), x))
    return _dense(params, "4", x)


def net1(params: Params, x: Array) -> Array:
    """The network of C."""
    for name in ("conv1", "conv2"):
        x = _conv(x, params[f"{name}.weight"]) + params[f"{name}.bias"]
        x = jax.nn.relu(
            lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        )
    x = jax.nn.relu(_dense(params, "fc1", x.reshape(len(x), -1)))
    return _dense(params, "fc2", x)


def resnet20(params: Params, x: Array) -> Array:
    """The network of R, batch normalisation by the batch's own moments."""
    x = jax.nn.relu(_norm(params, "bn1", _conv(x, params["conv1.weight"])))
    for stage in (1, 2, 3):
        for block in range(3):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            x = _block(params, name, x, stride)
    return _dense(params, "fc", x.mean((1, 2)))


def _block(params: Params, name: str, x: Array, stride: int) -> Array:
    y = _conv(x, params[f"{name}.conv1.weight"], stride)
    y = jax.nn.relu(_norm(params, f"{name}.bn1", y))
    y = _norm(params, f"{name}.bn2", _conv(y, params[f"{name}.conv2.weight"]))
    if f"{name}.shortcut.0.weight" in params:
        x = _conv(x, params[f"{name}.shortcut.0.weight"], stride)
        x = _norm(params, f"{name}.shortcut.1", x)
    return jax.nn.relu(x + y)


def _conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _norm(params: Params, name: str, x: Array) -> Array:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    scale = params[f"{name}.weight"] * lax.rsqrt(variance + 1e-5)
    return (x - mean) * scale + params[f"{name}.bias"]


def _dense(params: Params, name: str, x: Array) -> Array:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


NETWORKS: dict[str, tuple[Callable[[Params, Array], Array], Callable[[Array, Array], Array]]] = {
    "F": (linear, gaussian),
    "L": (linear, gaussian),
    "M": (mlp, categorical),
    "C": (net1, categorical),
    "R": (resnet20, categorical),
}
"""Network and log likelihood."""
