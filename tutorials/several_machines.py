# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Chains on several processes, and one chain on several processes.

    torchrun --nproc_per_node 2 tutorials/several_machines.py
    python tutorials/several_machines.py                          # the same program on one

On two machines, with a folder that both see:

    torchrun --nnodes 2 --nproc_per_node 2 --rdzv_backend c10d --rdzv_endpoint HOST:29500 \
        --max-restarts 3 tutorials/several_machines.py --out /shared/folder

Every process runs this file from top to bottom. A run that was killed is gone on with from its last
checkpoint, by `--max-restarts` or by the same command; one that had ended gets as many draws again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from torch import Tensor

import pyro_aeb as aeb


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # a process
    join_the_others()
    X, y = make_data()
    out = arguments.out
    draws = 20 if arguments.smoke else 1000

    # Chains spread over the processes, which all have the draws of all chains at the end.
    chains = go_on_or_begin(
        out / "chains",
        lambda path: aeb.MCMC(
            kernel(),
            num_samples=draws,
            warmup_steps=draws // 2,
            num_chains=4,
            chain_method="distributed",
            checkpoint=path,
        ),
    )
    chains.run(X, y, batch_size=50)
    idata = aeb.to_arviz(chains)
    show(f"four chains on {torch.distributed.get_world_size()} processes")
    show(az.summary(idata, var_names=["sigma2", "beta"]).head(5).to_string())

    # One chain, every step of it on minibatches of all processes.
    chain = go_on_or_begin(
        out / "one_chain",
        lambda path: aeb.MCMC(
            kernel(data_parallel=True),
            num_samples=draws,
            warmup_steps=draws // 2,
            checkpoint=path,
        ),
    )
    chain.run(X, y, batch_size=50)
    show("one chain on all of them")
    table = az.summary(aeb.to_arviz(chain), var_names=["sigma2", "beta"], kind="stats")
    show(table.head(5).to_string())
    torch.distributed.destroy_process_group()


def join_the_others() -> None:
    """Joins the processes that torchrun has started; without it, this one is alone."""
    if torch.distributed.is_torchelastic_launched():
        torch.distributed.init_process_group("gloo")  # "nccl" on GPUs, after torch.cuda.set_device
    else:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


def make_data(rows: int = 400, features: int = 40) -> tuple[Tensor, Tensor]:
    """Return data of which two features matter, the same on every process by the seed."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(rows, features, generator=generator)
    noise = torch.randn(rows, generator=generator)
    return X, 3.0 * X[:, 0] - 2.0 * X[:, 1] + 0.5 * noise


def model(X: Tensor, y: Tensor, batch_size: int) -> None:
    rows, features = X.shape
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.0, 1.0))
    delta = pyro.sample("delta", dist.Beta(2.0, float(features)))
    with pyro.plate("features", features):
        prior = aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt())
        beta = pyro.sample("beta", prior)
    with pyro.plate("data", rows, subsample_size=batch_size) as i:
        pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=y[i])


def kernel(**options: Any) -> aeb.AEBKernel:
    return aeb.AEBKernel(
        model,
        aeb.SGLD(1e-4),
        adaptation=aeb.StochasticApproximation(aeb.Polynomial(10.0, 1000.0, 0.7)),
        steps_per_draw=10,
        seed=1,  # chain i has seed 1 + i, on whichever process it runs
        **options,
    )


def go_on_or_begin(path: Path, begin: Callable[[Path], aeb.MCMC]) -> aeb.MCMC:
    """The run in the folder, or a new one where there is none."""
    exists = (path / "run.pt").exists()
    torch.distributed.barrier()  # until every process has looked
    return aeb.MCMC.resume(path, model) if exists else begin(path)


def show(text: str) -> None:
    """Prints it once."""
    if torch.distributed.get_rank() == 0:
        print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Chains on several processes.")
    parser.add_argument("--out", type=Path, default=Path("several_machines_output"))
    parser.add_argument("--smoke", action="store_true", help="tiny, to see that everything runs")
    main(parser.parse_args())
