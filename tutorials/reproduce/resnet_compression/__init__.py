# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Compressing a ResNet20 on CIFAR-10, in parts:

- ``protocol``: sizes, lengths and schedules, at the paper's scale and at a CPU's;
- ``methods``: the rows of the table, each as a model and a kernel;
- ``training``: data, and one run of a kernel with its scores;
- ``dense``: the dense network that all rows start from, and its checkpoint;
- ``sparse``: one row at one seed;
- ``report``: tables and the figure.
"""
