# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Inspection of a Pyro model, done once before sampling."""
