# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""SSGL among Pyro's distributions, and the pyroapi backend ``"aeb"``."""

from __future__ import annotations

import subprocess
import sys

import pyro.distributions
import pyro.infer
import pyroapi
import pytest
import torch
from pyroapi import distributions, handlers, infer, ops, optim, pyro_backend

import pyro_aeb.backend  # noqa: F401
from pyro_aeb.priors import SSGL


def test_ssgl_is_a_distribution_of_pyro() -> None:
    assert pyro.distributions.SSGL is SSGL


def test_backend_adds_ssgl() -> None:
    with pyro_backend("aeb"):
        assert distributions.SSGL is SSGL


def test_backend_adds_the_kernel() -> None:
    from pyro_aeb.kernel.aeb_kernel import AEBKernel

    with pyro_backend("aeb"):
        assert infer.AEBKernel is AEBKernel


def test_backend_has_everything_of_pyro() -> None:
    with pyro_backend("aeb"):
        for name in pyro.distributions.__all__:
            assert getattr(distributions, name) is getattr(pyro.distributions, name)
        for name in pyro.infer.__all__:
            assert getattr(infer, name) is getattr(pyro.infer, name)
        assert distributions.constraints is pyro.distributions.constraints
        assert infer.autoguide is pyro.infer.autoguide
        assert ops.tensor is torch.tensor
        assert optim.Adam is pyro.optim.Adam
        assert handlers.trace is pyro.poutine.trace
        assert pyroapi.pyro.sample is pyro.sample


def test_backend_lacks_what_pyro_lacks() -> None:
    with pyro_backend("aeb"):
        with pytest.raises(NotImplementedError, match="distributions.SSGLL"):
            distributions.SSGLL  # noqa: B018
        with pytest.raises(NotImplementedError, match="infer.AEBKernels"):
            infer.AEBKernels  # noqa: B018


def test_model_in_the_backend() -> None:
    def model() -> torch.Tensor:
        delta = pyroapi.pyro.sample("delta", distributions.Beta(2.0, 2.0))
        with pyroapi.pyro.plate("features", 3):
            return pyroapi.pyro.sample("beta", distributions.SSGL(0.1, 10.0, delta))

    with pyro_backend("aeb"):
        trace = handlers.trace(model).get_trace()
    assert isinstance(trace.nodes["beta"]["fn"], SSGL)
    assert trace.nodes["beta"]["value"].shape == (3,)


def test_import_of_the_package_registers() -> None:
    code = (
        "import pyro_aeb, pyro.distributions, pyroapi\n"
        "with pyroapi.pyro_backend('aeb'):\n"
        "    assert pyroapi.distributions.SSGL is pyro.distributions.SSGL is pyro_aeb.SSGL"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
