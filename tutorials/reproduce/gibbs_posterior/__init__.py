# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
How near the latents of a run are to the exact posterior, by Gibbs and by stochastic approximation:

- ``reference``: exact Gibbs sampling for logistic regression; ``calibration`` has it for linear;
- ``problems``: the runs, each beside its exact posterior; ``report``: their table.
"""
