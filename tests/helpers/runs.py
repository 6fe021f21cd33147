# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Short runs of ``aeb.MCMC``, and hooks that stop them."""

from __future__ import annotations

import os
import signal
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from models import P, linear_data, sparse_regression
from pyro.nn import PyroModule, PyroSample
from pyro_runs import ADAPTATION
from torch import nn

import pyro_aeb as aeb

X, Y = linear_data()
DATA = {"batch_size": 5}
METHODS = ("sequential", "vectorized", "parallel")


def make_kernel(model=sparse_regression, transition=aeb.SGHMC, step_size=1e-3, **options):
    options = {"adaptation": ADAPTATION, "seed": 7, "steps_per_draw": 2, **options}
    return aeb.AEBKernel(model, transition(step_size), **options)


def make_mcmc(kernel=None, draws=8, warmup=3, number=2, method="sequential", **options) -> aeb.MCMC:
    options = {"num_chains": number, "chain_method": method, "mp_context": "fork", **options}
    return aeb.MCMC(kernel or make_kernel(), draws, warmup, disable_progbar=True, **options)


def resume_mcmc(path, model=sparse_regression, **options) -> aeb.MCMC:
    options = {"disable_progbar": True, "mp_context": "fork", **options}
    return aeb.MCMC.resume(path, model, **options)


def copy_records(run: aeb.MCMC) -> dict[str, torch.Tensor]:
    """Return copies of all records of a run, which continues to write to the originals."""
    records = {f"posterior: {n}": v for n, v in run.get_samples(group_by_chain=True).items()}
    for chain, facts in enumerate(run._diagnostics):
        for group in ("sample_stats", "adaptation"):
            records |= {f"{group}: {n} of {chain}": v for n, v in facts[group].items()}
        for moment, values in facts["moments"].items():
            records |= {f"{moment}: {n} of {chain}": v for n, v in values.items()}
    return {name: value.clone() for name, value in records.items()}


def assert_same_records(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Require equality bit for bit. NaN, the residual of fixed latents, equals NaN."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


class Stop(Exception):
    """Raised by a hook to stop a run."""


class StopAt:
    """A hook that stops a run after one draw of one stage."""

    def __init__(self, stage: str, number: int) -> None:
        self.where = (stage, number)

    def __call__(self, kernel, draw, stage, number) -> None:
        if (stage, number) == self.where:
            raise Stop


class CtrlCAt(StopAt):
    """A hook that interrupts this process as Ctrl-C does, after one draw of one stage."""

    def __call__(self, kernel, draw, stage, number) -> None:
        if (stage, number) == self.where:
            os.kill(os.getpid(), signal.SIGINT)


class Network(PyroModule):
    """A network with side effects in train mode: on buffers and random numbers."""

    def __init__(self, inputs: int = P, width: int = 4) -> None:
        super().__init__()
        self.first = PyroModule[nn.Linear](inputs, width, bias=False)
        self.first.weight = PyroSample(dist.Normal(0.0, 1.0).expand([width, inputs]).to_event(2))
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.drop = nn.Dropout(0.3)

    def forward(self, x, y=None) -> Any:
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        mean = self.drop(self.norm(self.first(x))).sum(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, scale), obs=y)


def copy_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}
