# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What ``tutorials/state_space.py`` is made of: models, exact answers and figures."""
