# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The version, and the only place where it is written."""

__version__ = "0.2.0"
