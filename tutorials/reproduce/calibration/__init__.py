# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Whether intervals mean what they say, in parts:

- ``exact``: the posterior of the spike-and-slab prior by Gibbs sampling;
- ``models``: the same prior as Pyro models, and data;
- ``ranks``: simulation-based calibration; ``ranks_report``: its table and figure;
- ``fits``: the exact posterior and the kernel on the same data; ``fits_report``: coverage, and one
  against the other.
"""
