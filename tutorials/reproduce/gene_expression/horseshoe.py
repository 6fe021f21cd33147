# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The regularised horseshoe of Piironen and Vehtari (2017), linear and logistic, by NumPyro's NUTS.

    beta_j ~ Normal(0, V_j),  V_j = c^2 s_j^2 / (c^2 + s_j^2),  s_j = tau l_j
    l_j ~ HalfCauchy(1),  tau ~ HalfCauchy(tau_0),  c^2 ~ InverseGamma(2, 2 s^2)

tau_0 = p_0 / (p - p_0) sigma / sqrt(n), with sigma = 2 in logistic regression, and s is 1 for a
target of variance 1 and 2 for classes, as there. p_0 is 4, the prior mean of the number of genes
in the model of spikes and slabs. The coefficients are sampled in units of their scales.

**References**

[1] Juho Piironen, Aki Vehtari (2017), "Sparsity information and regularization in the horseshoe and
    other shrinkage priors", Electronic Journal of Statistics 11(2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparse_linear.data import Array

EXPECTED = 4.0


def model(x: Any, y: Any, is_linear: bool) -> None:
    """Linear regression of a target of variance 1, or logistic regression."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    n, p = x.shape
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0 if is_linear else 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0)) if is_linear else 2.0
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0)) * EXPECTED / (p - EXPECTED) * sigma / n**0.5
    c2 = numpyro.sample("c2", dist.InverseGamma(2.0, 2.0 if is_linear else 8.0))
    with numpyro.plate("features", p):
        scale2 = (tau * numpyro.sample("local", dist.HalfCauchy(1.0))) ** 2
        unit = numpyro.sample("unit", dist.Normal(0.0, 1.0))
    beta = numpyro.deterministic("beta", unit * jnp.sqrt(c2 * scale2 / (c2 + scale2)))
    mean = intercept + x @ beta
    law = dist.Normal(mean, sigma) if is_linear else dist.Bernoulli(logits=mean)
    numpyro.sample("y", law, obs=y)


def sample(x: Array, y: Array, is_linear: bool, draws: int, seed: int) -> dict[str, Array]:
    """
    Draws of ``beta``, ``intercept`` and ``sigma`` by one chain, after as many of warm-up.

    :param y: numbers of variance 1, or classes 0 and 1.
    """
    import jax
    import numpyro

    numpyro.enable_x64()
    kernel = numpyro.infer.NUTS(model, target_accept_prob=0.9)
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=draws, num_samples=draws, progress_bar=False)
    mcmc.run(jax.random.key(seed), x, y, is_linear)
    return {name: np.asarray(values) for name, values in mcmc.get_samples().items()}
