# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What the reproduction scripts share, in parts:

- ``harness``: runs (seed, name) tasks in parallel and survives interruption;
- ``options``: the command line options that every script has;
- ``tables``: means with standard errors, as data frames and as Markdown.

A script builds its tasks, hands them to :func:`harness.run_all` with a function that makes one of
them, and turns :attr:`harness.Replicates.rows` into tables and a figure.
"""
