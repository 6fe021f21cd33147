# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Helpers of the tutorial on kernels:

- ``problem``: a regression with a known posterior, and the bias of SGLD on it;
- ``figure``: its figure.
"""
