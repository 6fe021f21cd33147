# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The data of a step: arguments of the model, loaders, minibatches, ranks."""
