# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The data of every step: arguments of the model, loaders, minibatches, ranks."""
