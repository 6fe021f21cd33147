# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Regression on small tables from the UCI repository, in parts:

- ``data``: the tables, their splits, and a made-up table for smoke runs;
- ``network``: the Pyro model of a network with one hidden layer, and its predictions;
- ``methods``: the rows of the paper's table and ours, and how one fit is made and scored;
- ``report``: tables and the figure.
"""
