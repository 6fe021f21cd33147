# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Q, what the weights are sampled from, and its gradient."""
