# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The parts of ``tutorials/state_space.py``: models, exact answers and figures."""
