# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Classifiers of MNIST and Fashion-MNIST by four methods, and their adversaries, in parts:

- ``protocol``: what a row is, and the lengths and constants of the presets;
- ``training``: trains one row, by Adam or by AEBKernel, and stores its draws;
- ``report``: tables and the figure of ``mnist.py``;
- ``attack``: adversarial images from stored draws;
- ``attack_report``: tables and the figure of ``adversarial.py``.
"""
