# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What the kernel reads off a Pyro model, once, before it samples."""
