# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What the tutorial on kernels needs beside them:

- ``problem``: a regression with a known posterior, and the bias of SGLD on it;
- ``figure``: its figure.
"""
