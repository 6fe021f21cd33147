# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step is compared with. Every module has ``start(workload)``, which gives a
:class:`~benchmarks.peers.base.Peer`; it imports its package only there.
"""
