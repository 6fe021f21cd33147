# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Register the package under Pyro's names.

Importing this module sets ``pyro.distributions.SSGL`` and registers the `pyroapi
<https://github.com/pyro-ppl/pyro-api>`_ backend ``"aeb"``: all of Pyro, with ``distributions.SSGL``
and ``infer.AEBKernel`` beside it::

    from pyroapi import distributions as dist, infer, pyro, pyro_backend

    with pyro_backend("aeb"):
        kernel = infer.AEBKernel(model, ...)
"""

import pyro.distributions
import pyroapi

from pyro_aeb.priors import SSGL

pyro.distributions.SSGL = SSGL  # type: ignore[attr-defined]

pyroapi.register_backend(
    "aeb",
    {
        "distributions": "pyro_aeb.backend.distributions",
        "handlers": "pyro.poutine",
        "infer": "pyro_aeb.backend.infer",
        "ops": "torch",
        "optim": "pyro.optim",
        "pyro": "pyro",
    },
)
