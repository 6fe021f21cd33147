# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step is compared with. Functions ``start(workload)`` give a
:class:`~benchmarks.peers.base.Peer`, and import a peer's package only there.
"""
