# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The convergence theorem as an experiment, in parts:

- ``designs``: models whose limit quadrature finds, and those limits;
- ``settings``: what is run;
- ``runs``: one run, from chains to errors and slopes;
- ``report``: tables and figures.
"""
