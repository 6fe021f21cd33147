# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
How many files a reader of one step has to open: those of the package that run code during one
iteration of Algorithm 1, SGLD with an SSGL prior, as in the quickstart's program.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger

import pyro_aeb as aeb

MOST = 14
PACKAGE = Path(aeb.__file__).parent


def model(X, y, batch_size):
    n, p = X.shape
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
    delta = pyro.sample("delta", dist.Beta(1.0, float(p)))
    with pyro.plate("features", p):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt()))
    with pyro.plate("data", n, subsample_size=batch_size) as i:
        return pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=y[i])


def is_called_by_the_model(frame: FrameType) -> bool:
    """
    Whether the model's own lines run it, or Pyro for them, such as the constructor of SSGL and its
    ``expand``; not what runs in a handler of the package.
    """
    caller: FrameType | None = frame
    while caller is not None and caller.f_code is not model.__code__:
        is_ours = Path(caller.f_code.co_filename).is_relative_to(PACKAGE)
        if is_ours and isinstance(caller.f_locals.get("self"), Messenger):
            return False
        caller = caller.f_back
    return caller is not None


def functions_of_a_step() -> list[tuple[str, str, bool]]:
    """
    The package's functions that one step calls, in order, each as its file, its name, and whether
    the model's own lines call it.
    """
    kernel = aeb.AEBKernel(
        model,
        aeb.SGLD(step_size=aeb.Polynomial(scale=1e-3, offset=0.0, power=1 / 3)),
        adaptation=aeb.StochasticApproximation(aeb.Polynomial(10.0, 1000.0, 0.7)),
    )
    X = torch.randn(100, 20)
    kernel.setup(0, X, X[:, :3].sum(-1) + torch.randn(100), batch_size=50)
    functions = []

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            name = str(path.relative_to(PACKAGE))
            functions.append((name, frame.f_code.co_name, is_called_by_the_model(frame)))

    steps = 0

    def between() -> None:
        """Traces the third of four steps, which draws nothing and warms nothing up."""
        nonlocal steps
        steps += 1
        sys.settrace(trace if steps == 3 else before)

    before = sys.gettrace()
    try:
        kernel.advance(4, between)
    finally:
        sys.settrace(before)
    return functions


def test_a_step_runs_through_few_files():
    functions: dict[str, dict[str, None]] = {}
    for file, name, by_model in functions_of_a_step():
        functions.setdefault(file, {})[f"{name} (by the model)" if by_model else name] = None
    lines = [f"{file}: {', '.join(names)}" for file, names in functions.items()]
    assert len(functions) <= MOST, f"{len(lines)} files run:\n" + "\n".join(lines)
