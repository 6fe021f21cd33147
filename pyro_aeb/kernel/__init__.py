# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Algorithm 1 as a kernel for :class:`pyro.infer.MCMC`."""

from pyro_aeb.kernel.aeb_kernel import AEBKernel

__all__ = ["AEBKernel"]
