# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""One setting changed at a time, for ``choosing.py``."""
