# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Compiled steps, for proofs of what they sample."""

from __future__ import annotations

import warnings

import pytest

from pyro_aeb.errors import CompileWarning
from pyro_aeb.posterior import compiled_code


@pytest.fixture(params=[False, True], ids=["as written", "compiled"])
def compile(request, monkeypatch):
    """
    Whether steps are compiled. The operations that the compiler gets run as they are, without
    machine code, which takes seconds to make; nothing that is to be compiled may run as written.
    """
    monkeypatch.setattr(compiled_code, "compile_graph", lambda graph, inputs: graph)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        yield request.param
