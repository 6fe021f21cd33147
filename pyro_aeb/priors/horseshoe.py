# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The horseshoe prior [1] as a hierarchy of inverse gammas [2].

Its density has no closed form, hence no equation (4) or (5). Every level of the hierarchy is
conjugate to the one below::

    beta_j ~ Normal(0, variance = lambda_j^2 tau^2)
    lambda_j^2 ~ InverseGamma(1/2, 1/nu_j),  nu_j ~ InverseGamma(1/2, 1)
    tau^2 ~ InverseGamma(1/2, 1/xi),         xi ~ InverseGamma(1/2, 1 / scale^2)

The weights are sampled, and :class:`~pyro_aeb.latents.closed_form.ClosedForm` moves each other site
to the mode of its distribution given the rest.

**References**

[1] Carlos Carvalho, Nicholas Polson, James Scott (2010), "The horseshoe estimator for sparse
    signals", Biometrika 97.
[2] Enes Makalic, Daniel Schmidt (2016), "A simple sampler for the horseshoe estimator", IEEE Signal
    Processing Letters 23, arXiv 1508.03884.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_aeb.latents import ClosedForm

LOCAL, LOCAL_RATE, GLOBAL, GLOBAL_RATE = "lambda2", "nu", "tau2", "xi"


def horseshoe(name: str, shape: Sequence[int], scale: float | Tensor = 1.0) -> Tensor:
    """
    Sample weights with a horseshoe prior, and the sites of its hierarchy: ``<name>.lambda2`` and
    ``<name>.nu``, of the weights' shape, ``<name>.tau2`` and ``<name>.xi``, of the scale's::

        def model(x, y):
            beta = priors.horseshoe("beta", [x.shape[1]])
            ...

        adaptation = StochasticApproximation(
            Polynomial(10.0, 1000.0, 0.7), latents=priors.horseshoe_latents("beta")
        )

    :param str name: the site of the weights.
    :param shape: the weights' shape.
    :param scale: the scale of tau's half-Cauchy prior; its dtype and device are those of all sites.
    :returns: the weights.
    """
    like = torch.as_tensor(scale)
    half, one = 0.5 * torch.ones_like(like), torch.ones_like(like)
    shape = torch.Size(shape)
    xi = pyro.sample(f"{name}.{GLOBAL_RATE}", dist.InverseGamma(half, one / like.square()))
    tau2 = pyro.sample(f"{name}.{GLOBAL}", dist.InverseGamma(half, 1.0 / xi))
    rates = dist.InverseGamma(half, one).expand(shape).to_event(len(shape))
    nu = pyro.sample(f"{name}.{LOCAL_RATE}", rates)
    local = dist.InverseGamma(half, 1.0 / nu).to_event(len(shape))
    lambda2 = pyro.sample(f"{name}.{LOCAL}", local)
    scales = (lambda2 * tau2).sqrt()
    weights = dist.Normal(torch.zeros_like(scales), scales).to_event(len(shape))
    return pyro.sample(name, weights)


def horseshoe_latents(name: str) -> dict[str, ClosedForm]:
    """
    Return the updates of the sites of a :func:`horseshoe` hierarchy, for ``latents=`` of
    :class:`~pyro_aeb.adaptation.options.StochasticApproximation`.

    :param str name: the site of the weights.
    """
    above = (GLOBAL_RATE, GLOBAL, LOCAL_RATE, LOCAL)
    return {f"{name}.{latent}": ClosedForm() for latent in above}
