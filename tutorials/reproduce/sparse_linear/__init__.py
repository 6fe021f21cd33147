# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Sparse linear regression with many more features than observations, in parts:

- ``data``: the simulated problem, shared by every method and by the tutorial;
- ``metrics``: what a method hands back (:class:`~metrics.Fit`) and how it is scored;
- ``classical``: least squares, exact ridge, lasso, MCP;
- ``sampling``: the SG-MCMC rows, all through :class:`pyro_aeb.AEBKernel`;
- ``horseshoe``: the horseshoe prior by Pyro's NUTS;
- ``methods``: the table of all methods by name;
- ``report``: tables and the figure.
"""
