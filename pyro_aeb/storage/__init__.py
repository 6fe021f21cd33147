# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Stores of draws, traces, checkpoints, and the conversion to ArviZ."""
