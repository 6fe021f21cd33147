# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Where draws go and what outlives a run: stores, traces, checkpoints, ArviZ."""
