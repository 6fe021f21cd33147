# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Runs whose checkpoints version 0.1 has written, and what they record.

``tests/tools/make_old_checkpoints.py`` made ``tests/mcmc/checkpoints_of_0_1`` from them under 0.1,
and ``tests/mcmc/test_old_checkpoints.py`` resumes those under the present code. So only public
names stand in here, data are exact on any machine, and a model or an option never changes: for
another one, add a run.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb import transitions

N, P = 20, 6


def table(*shape: int) -> Tensor:
    """Multiples of 1/32 between -2 and 2 that follow no simple pattern."""
    k = torch.arange(math.prod(shape))
    return ((k * k * 45 + k * 17) % 127 - 63).float().div(32).view(shape)


X = table(N, P)
Y = 2.0 * X[:, 0] - X[:, 1] + 0.25 * table(N)
LABELS = (Y > 0).long() + (Y > 2).long()


def sparse_weights() -> tuple[Tensor, Tensor]:
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    with pyro.plate("features", P):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt()))
    return sigma2, beta


def regression(X, y, batch_size=None):
    sigma2, beta = sparse_weights()
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=y[i])


def precise_regression(X, y):
    """With an intercept and a precision of the noise, which ClosedForm learns."""
    _, beta = sparse_weights()
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ beta + intercept, precision.rsqrt()), obs=y)


class Network:
    """A classifier whose batch norm changes buffers and whose dropout draws random numbers."""

    def __init__(self) -> None:
        layers = [nn.Linear(P, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 3)]
        module = nn.Sequential(*layers)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.5 * table(*parameter.shape))
        self.net = aeb.nn.bayesianize(
            module, v0=0.1, v1=1.0, delta=dist.Beta(2.0, 3.0), sigma2=dist.InverseGamma(2.0, 2.0)
        )

    def __call__(self, x, y):
        logits = self.net(x)
        with pyro.plate("data", N, subsample=x):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)


class OldRun(NamedTuple):
    """
    :param model: makes the model.
    :param args: makes the arguments of ``MCMC.run``.
    :param kwargs: its keyword arguments.
    :param transition: of the kernel.
    :param options: of the kernel, the rest.
    :param run: options of ``MCMC``.
    :param stop: the stage and the draw after which the run was interrupted.
    """

    model: Callable[[], Any]
    args: Callable[[], tuple[Any, ...]]
    kwargs: dict[str, Any]
    transition: Any
    options: dict[str, Any]
    run: dict[str, Any]
    stop: tuple[str, int]


WEIGHT = aeb.Polynomial(5.0, 20.0, 0.7)
TENSORS = lambda: (X, Y)  # noqa: E731

RUNS = {
    "sequential": OldRun(
        model=lambda: regression,
        args=TENSORS,
        kwargs={"batch_size": 6},
        transition=aeb.SGHMC(aeb.Polynomial(1e-3, 1.0, 0.3), friction=0.2),
        options={
            "adaptation": aeb.StochasticApproximation(WEIGHT),
            "pruning": aeb.MagnitudePruning(aeb.PruningSchedule(0.5, 0.4, 5), freeze=True),
            "steps_per_draw": 2,
            "seed": 7,
        },
        run={"num_chains": 2, "chain_method": "sequential"},
        stop=("Sample [1]", 2),
    ),
    "vectorized": OldRun(
        model=lambda: regression,
        args=TENSORS,
        kwargs={"batch_size": 5},
        transition=transitions.CyclicalSGMCMC(aeb.SGLD(aeb.Cyclical(2e-3, period=5))),
        options={
            "adaptation": aeb.StochasticApproximation(WEIGHT, initial_inclusion=0.3),
            "pruning": aeb.ProbabilityPruning(0.4, every=3),
            "minibatches": "replacement",
            "noise": "three-point",
            "steps_per_draw": 2,
            "seed": 3,
        },
        run={"num_chains": 2, "chain_method": "vectorized", "thinning": 2},
        stop=("Sample", 3),
    ),
    "replicas": OldRun(
        model=lambda: precise_regression,
        args=TENSORS,
        kwargs={},
        transition=transitions.ReplicaExchange(aeb.SGHMC(5e-4), swap_every=3),
        options={
            "adaptation": aeb.StochasticApproximation(
                WEIGHT, latents={"precision": aeb.latents.ClosedForm()}
            ),
            "inverse_temperature": aeb.Geometric(1.0, 1.01),
            "save": ("intercept", "precision"),
            "steps_per_draw": 3,
            "seed": 5,
        },
        run={"num_chains": 2, "chain_method": "vectorized"},
        stop=("Sample", 3),
    ),
    "trace": OldRun(
        model=lambda: regression,
        args=TENSORS,
        kwargs={},
        transition=aeb.SGLD(1e-3),
        options={"adaptation": aeb.StochasticApproximation(WEIGHT), "seed": 2},
        run={"num_chains": 2, "chain_method": "sequential", "trace": "draws.zarr"},
        stop=("Sample [1]", 1),
    ),
    "loader": OldRun(
        model=Network,
        args=lambda: (DataLoader(TensorDataset(X, LABELS), batch_size=6, shuffle=True),),
        kwargs={},
        transition=aeb.SGHMC(1e-3),
        options={"adaptation": aeb.StochasticApproximation(0.3), "steps_per_draw": 3},
        run={"num_chains": 1, "chain_method": "sequential"},
        stop=("Sample", 2),
    ),
}
"""
The last one has no seed: its random numbers are those of the process. The path of the one with a
trace is relative to the working directory.
"""


def new_run(name: str, **options: Any) -> tuple[aeb.MCMC, Any]:
    """A run from its beginning, and its model."""
    old = RUNS[name]
    model = old.model()
    kernel = aeb.AEBKernel(model, old.transition, **old.options)
    options = {"every": 4, "disable_progbar": True, **old.run, **options}
    return aeb.MCMC(kernel, 6, 3, **options), model


def resumed_run(name: str, folder: Any) -> tuple[aeb.MCMC, Any]:
    """The run in a checkpoint, and its model."""
    model = RUNS[name].model()
    return aeb.MCMC.resume(folder, model, disable_progbar=True), model


def run(name: str, mcmc: aeb.MCMC) -> None:
    """Runs it to its end."""
    mcmc.run(*RUNS[name].args(), **RUNS[name].kwargs)


def records(mcmc: aeb.MCMC, model: Any) -> dict[str, Tensor]:
    """Draws, sampler statistics, latents and moments of all chains, and the model's buffers."""
    values = {f"posterior: {n}": v for n, v in mcmc.get_samples(group_by_chain=True).items()}
    known = mcmc.diagnostics()
    for group in ("sample_stats", "adaptation"):
        for chain, rows in known[group].items():
            values |= {f"{group}: {n}, {chain}": v for n, v in rows.items()}
    for chain, moments in known["moments"].items():
        for moment, rows in moments.items():
            values |= {f"{moment}: {n}, {chain}": v for n, v in rows.items()}
    if isinstance(model, Network):
        values |= {f"buffer: {n}": v for n, v in model.net.named_buffers()}
    return {name: value.clone() for name, value in values.items()}


def arithmetic() -> list[str]:
    """
    Versions, and a checksum of what a run computes with: matrix products, elementary functions,
    reductions, random numbers. Machines on which they agree compute runs to the same bits.
    """
    generator = torch.Generator().manual_seed(1)
    normal = partial(torch.randn, generator=generator)
    positive = X.abs() + 0.5
    values = [
        *(X @ X[0], X[:6] @ X[1], X.T @ Y, X @ X[:P] @ X.T),
        *(torch.einsum("cnp,cp->cn", X[None], X[:1]), torch.special.log_ndtr(X), X.erf()),
        *(X.exp(), X.sigmoid(), X.tanh(), positive.log(), positive.sqrt(), positive.lgamma()),
        *(X.sum(0), X.sum(), X.square().mean(-1), X.logsumexp(-1), X.log_softmax(-1), X.std(0)),
        *(normal(2), normal(6), normal(40), torch.randperm(N, generator=generator)),
        nn.functional.batch_norm(X, None, None, training=True),
    ]
    checksum = 0
    for value in values:
        checksum = zlib.crc32(value.contiguous().numpy().tobytes(), checksum)
    return [str(torch.__version__), torch.backends.cpu.get_cpu_capability(), f"{checksum:08x}"]


# One object or more of every class that a checkpoint names by its module.
OPTIONS: list[tuple[str, Any]] = [
    ("transition", aeb.SGLD(aeb.Constant(1e-3))),
    ("transition", aeb.SGLD(aeb.Geometric(0.1, 0.9, every=7))),
    ("transition", aeb.SGHMC(aeb.Piecewise(1e-3, {10: 1e-4, 20: 1e-5}), 0.2, gradient_noise=0.01)),
    ("transition", transitions.PSGLD(1e-3, decay=0.9, correction=True, adapt_until=50)),
    ("transition", transitions.BAOAB(1e-3, friction=0.2)),
    ("transition", transitions.SGNHT(1e-3, friction=0.2, coupling=0.1)),
    ("transition", transitions.HMC(1e-3, leapfrogs=5, jitter=0.0)),  # 0.1 knew no jitter
    ("transition", transitions.SVRG(aeb.SGHMC(1e-3), every=20)),
    ("transition", transitions.ContourSGLD(1e-3, (0.0, 100.0), bins=10, zeta=0.5)),
    ("transition", transitions.CyclicalSGMCMC(aeb.SGLD(aeb.Cyclical(1e-3, 9)), exploration=0.7)),
    ("transition", transitions.ReplicaExchange(aeb.SGLD(1e-3), 3.0, 2.0, energies="batch")),
    (
        "adaptation",
        aeb.StochasticApproximation(
            aeb.Polynomial(10.0, 1000.0, 0.7),
            initial_inclusion=0.3,
            initial_penalty=2.0,
            latents={"a": aeb.latents.ClosedForm(), "b": aeb.latents.GradientStep(0.1)},
        ),
    ),
    ("pruning", aeb.MagnitudePruning(aeb.PruningSchedule(0.9, 0.95, 10), every=3, sites="beta")),
    ("pruning", aeb.ProbabilityPruning(0.5, scope="global", freeze=True)),
    ("pruning", aeb.UnitPruning(0.2)),
]
