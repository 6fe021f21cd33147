# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Image data, batched augmentation, networks and training that the image experiments share."""
