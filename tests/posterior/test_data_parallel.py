# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""One chain on several processes, each with a part of every minibatch."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed
from models import DenseNetwork, N, linear_data
from pyro_runs import ADAPTATION, assert_same_draws, samples_by_chain
from rank_runs import run_on_ranks
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

import pyro_aeb as aeb
from pyro_aeb.data.minibatches import Minibatches
from pyro_aeb.data.ranks import Ranks

X, Y = linear_data(dtype=torch.float64)
DATA = TensorDataset(X, Y)
WORLD = 2


def regression(X, y, batch_size=None):
    """Sparse regression in double precision; a batch of a loader says by itself how large it is."""
    one = torch.ones((), dtype=torch.float64)
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5 * one, 2.0 * one))
    delta = pyro.sample("delta", dist.Beta(2.0 * one, 3.0 * one))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt()))
    size, subsample = (N, X) if len(X) < N else (len(X), None)
    with pyro.plate("data", size, subsample_size=batch_size, subsample=subsample) as i:
        rows = slice(None) if subsample is not None else i
        pyro.sample("y", dist.Normal(X[rows] @ beta, sigma2.sqrt()), obs=y[rows])


def make_kernel(**options) -> aeb.AEBKernel:
    return aeb.AEBKernel(
        options.pop("model", regression),
        aeb.SGHMC(1e-3),
        **{"adaptation": ADAPTATION, "seed": 7, "steps_per_draw": 2, **options},
    )


def make_mcmc(data_parallel=False, kernel=None, **options) -> aeb.MCMC:
    own = make_kernel(data_parallel=data_parallel, **(kernel or {}))
    options = {"chain_method": "sequential", "disable_progbar": True, **options}
    return aeb.MCMC(own, 6, 3, **options)


def run_and_copy_draws(run: aeb.MCMC, *args: Any, **kwargs: Any) -> dict:
    run.run(*args, **kwargs)
    return {name: values.clone() for name, values in samples_by_chain(run).items()}


def assert_close(found: dict, expected: dict) -> None:
    """But for rounding."""
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


# -- shares of a minibatch


@pytest.mark.parametrize("order", ["permutation", "replacement"])
def test_shares_together_are_the_minibatch_of_one_process(order):
    def indices(batch: int, ranks: Ranks) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        own = Minibatches({"data": (N, batch)}, order, torch.device("cpu"), generator, ranks)
        return [own.next()["data"].clone() for _ in range(7)]

    together = indices(6, Ranks(0, 1))
    shares = zip(*(indices(2, Ranks(rank, 3)) for rank in range(3)), strict=True)
    for whole, parts in zip(together, shares, strict=True):
        assert torch.equal(whole, torch.cat(parts))


# -- two ranks


class Network(DenseNetwork):
    """With a batch norm, whose running averages every step changes; takes a loader's batches."""

    def forward(self, X, y):
        X = X.float()
        mean = self.last(torch.tanh(self.norm(self.first(X)))).squeeze(-1)
        with pyro.plate("data", N, subsample=X):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y.float())


def run_network(rank: int) -> tuple[dict, torch.Tensor]:
    pyro.set_rng_seed(0)
    model = Network()
    loader = DataLoader(DATA, batch_size=5, sampler=DistributedSampler(DATA, seed=3))
    run = make_mcmc(True, {"model": model, "adaptation": None})
    return run_and_copy_draws(run, loader), model.norm.running_mean.clone()


def first_gradient(kernel: aeb.AEBKernel, batch: int | None) -> Any:
    kernel.start(0, 0, (X, Y), {"batch_size": batch})
    chain = kernel.chain
    return chain.posterior.evaluate(chain.state.position, chain.latents, chain.data.next())


def run_all(rank: int, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["plate"] = run_and_copy_draws(make_mcmc(True), X, Y, batch_size=3)
    found["gradient"] = first_gradient(make_kernel(data_parallel=True), N // WORLD)
    chains = make_mcmc(True, num_chains=2, chain_method="vectorized")
    found["vectorized"] = run_and_copy_draws(chains, X, Y, batch_size=3)
    loader = DataLoader(DATA, batch_size=3, sampler=DistributedSampler(DATA, seed=3))
    longer = make_mcmc(True, checkpoint=f"{folder}/loader")
    found["loader"] = run_and_copy_draws(longer, loader)
    torch.distributed.barrier()  # until rank 0 has written it
    second = aeb.MCMC.resume(f"{folder}/loader", regression, disable_progbar=True)
    found["loader, resumed"] = run_and_copy_draws(second, loader)
    found["loader, went on"] = run_and_copy_draws(longer, loader)
    found["network"] = run_network(rank)

    saved = make_mcmc(True, checkpoint=f"{folder}/run", every=4, hook_fn=Interrupt(rank))
    with pytest.raises(KeyboardInterrupt):
        saved.run(X, Y, batch_size=3)
    found["interrupted"] = len(saved.get_samples()["beta"])
    torch.distributed.barrier()  # until rank 0 has written it
    again = aeb.MCMC.resume(f"{folder}/run", regression, disable_progbar=True)
    found["resumed"] = run_and_copy_draws(again, X, Y, batch_size=3)
    found["went on"] = run_and_copy_draws(saved, X, Y, batch_size=3)

    with pytest.raises(aeb.ModelError, match="use a subsample size of at most 10"):
        make_mcmc(True).run(X, Y, batch_size=11)
    with pytest.raises(ValueError, match="the same on all"):
        make_mcmc(True).run(X + rank, Y, batch_size=3)
    with pytest.raises(aeb.RankError, match="not at the same step, weights"):
        make_mcmc(True, hook_fn=Drift(rank)).run(X, Y, batch_size=3)
    return found


class Interrupt:
    """A hook: Ctrl-C on one rank, after the second draw that is kept."""

    def __init__(self, rank: int) -> None:
        self.due = rank == 1

    def __call__(self, kernel, draw, stage, i):
        if self.due and (stage, i) == ("Sample", 1):
            self.due = False
            os.kill(os.getpid(), signal.SIGINT)


class Drift:
    """A hook: the smallest change of a weight on one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, kernel, draw, stage, i):
        first = kernel.chain.state.position[0]
        first.copy_(torch.nextafter(first, first + self.rank))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of the runs' checkpoints."""
    return tmp_path_factory.mktemp("ran")


@pytest.fixture(scope="module")
def rank_results(folder) -> list[dict[str, Any]]:
    found = run_on_ranks(run_all, folder, str(folder), world=WORLD)
    for result in found:
        assert not isinstance(result, BaseException), result
    return found


@pytest.mark.parametrize("run", ["plate", "vectorized", "loader"])
def test_ranks_agree_bit_for_bit(rank_results, run):
    assert_same_draws(rank_results[0][run], rank_results[1][run])


def test_shares_of_all_data_give_the_full_gradient(rank_results):
    expected = first_gradient(make_kernel(), None)
    for own in (found["gradient"] for found in rank_results):
        torch.testing.assert_close(own.gradient, expected.gradient)
        torch.testing.assert_close(own.log_density, expected.log_density)
        found, whole = own.statistics.residuals["y"], expected.statistics.residuals["y"]
        assert_close(found._asdict(), whole._asdict())


def test_a_step_is_one_on_all_ranks_data(rank_results):
    """The same permutation and noise, so the draws of one process with the larger minibatch."""
    assert_close(
        rank_results[0]["plate"], run_and_copy_draws(make_mcmc(), X, Y, batch_size=3 * WORLD)
    )


def test_chains_that_step_together(rank_results):
    run = make_mcmc(num_chains=2, chain_method="vectorized")
    assert_close(rank_results[0]["vectorized"], run_and_copy_draws(run, X, Y, batch_size=3 * WORLD))


def test_loaders_with_distributed_samplers(rank_results):
    """Epoch after epoch in another order; every step on the batches of both loaders."""
    steps, epochs = [], range(8)
    for epoch in epochs:
        orders = []
        for rank in range(WORLD):
            sampler = DistributedSampler(DATA, WORLD, rank, seed=3)
            sampler.set_epoch(epoch)
            orders.append(list(BatchSampler(sampler, 3, drop_last=False)))
        steps += [sum(batches, []) for batches in zip(*orders, strict=True)]
    both = DataLoader(DATA, batch_sampler=steps)
    assert len(steps) > 18  # of the run
    assert_close(rank_results[0]["loader"], run_and_copy_draws(make_mcmc(), both))


def test_running_averages_are_the_same_on_all_ranks(rank_results):
    (draws, mean), (others, other) = (found["network"] for found in rank_results)
    assert_same_draws(draws, others)
    assert torch.equal(mean, other) and (mean != 0).all()


def test_ctrl_c_on_one_rank_stops_all_after_the_next_draw(rank_results):
    assert [found["interrupted"] for found in rank_results] == [3, 3]


@pytest.mark.parametrize("how", ["went on", "resumed"])
def test_a_run_goes_on_bit_for_bit(rank_results, how):
    for found in rank_results:
        assert_same_draws(found[how], found["plate"])


def test_a_loader_goes_on_bit_for_bit(rank_results):
    for found in rank_results:
        assert_same_draws(found["loader, resumed"], rank_results[0]["loader, went on"])


# -- one rank, and none


@pytest.mark.parametrize("shared", [True, False])
def test_a_run_does_not_go_on_on_another_number_of_ranks(rank_results, folder, tmp_path, shared):
    """A minibatch, which all ranks' data make, would be of another size."""
    run = aeb.MCMC.resume(f"{folder}/run", regression, data_parallel=shared, disable_progbar=True)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    try:
        with pytest.raises(ValueError) as info:
            run.run(X, Y, batch_size=3)
    finally:
        torch.distributed.destroy_process_group()
    assert "among 1 ranks, and the run began with 2" in str(info.value)
    assert "resume with data_parallel=True and 2 processes" in str(info.value)


def test_on_one_rank_it_is_the_plain_kernel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    try:
        alone = run_and_copy_draws(make_mcmc(True), X, Y, batch_size=3)
    finally:
        torch.distributed.destroy_process_group()
    assert_same_draws(alone, run_and_copy_draws(make_mcmc(), X, Y, batch_size=3))


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="torchrun --nproc_per_node 2 program.py"):
        make_mcmc(True).run(X, Y, batch_size=3)


def test_options_that_make_no_sense(tmp_path):
    with pytest.raises(ValueError, match="without a seed"):
        make_kernel(data_parallel=True, seed=None)
    with pytest.raises(TypeError, match="expected True or False"):
        make_kernel(data_parallel=2)
    for method in ("parallel", "distributed"):
        with pytest.raises(ValueError, match="use one of the two"):
            make_mcmc(True, chain_method=method)
    with pytest.raises(ValueError, match="written by one process only"):
        make_mcmc(True, trace=tmp_path / "run.zarr")
