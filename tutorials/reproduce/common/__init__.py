# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The code that the reproduction scripts share, in parts:

- ``harness``: runs (seed, name) tasks in parallel and survives interruption;
- ``experiment``: a whole run, from tasks to tables and exit status;
- ``options``: the command line options that every script has;
- ``tables``: means with standard errors, as data frames and as Markdown.

A script builds its tasks and hands them to :func:`experiment.run_experiment`, with a function that
makes one of them and one that turns all finished rows into tables and a figure.
"""
