# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The verdicts and pictures of docs/diagnostics.md. Some minutes; needs scikit-learn and matplotlib::

    python docs/diagnostics/pictures.py

Writes ``verdicts.txt`` and the pictures beside this file.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import init_to_uniform
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb

HERE = Path(__file__).parent
FEATURES, ROWS = 20, 100
OMEGA = aeb.Polynomial(10.0, 1000.0, 0.7)


def regression(X: Tensor, y: Tensor | None = None, batch_size: int | None = None) -> Any:
    """Sparse regression with learned delta and sigma squared, as in the quickstart."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
    delta = pyro.sample("delta", dist.Beta(1.0, float(X.shape[1])))
    with pyro.plate("features", X.shape[1]):
        prior = aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt())
        beta = pyro.sample("beta", prior)
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        return pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=y[i])


def simulated(signal: float = 1.0) -> tuple[Tensor, Tensor]:
    """20 features of which three matter, 100 rows, noise of standard deviation 1."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(ROWS, FEATURES, generator=generator)
    y = signal * X[:, :3] @ torch.tensor([3.0, 2.0, 1.0])
    return X, y + torch.randn(ROWS, generator=generator)


def run(
    transition: Any,
    weight: Any = OMEGA,
    draws: int = 150,
    warmup: int = 100,
    signal: float = 1.0,
    batch_size: int | None = None,
) -> aeb.MCMC:
    """Four chains together, a draw every 10 steps."""
    kernel = aeb.AEBKernel(
        regression,
        transition,
        adaptation=aeb.StochasticApproximation(weight),
        steps_per_draw=10,
        init_strategy=init_to_uniform,
        seed=1,
    )
    mcmc = aeb.MCMC(
        kernel, draws, warmup, num_chains=4, chain_method="vectorized", disable_progbar=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", aeb.CollapseWarning)  # the verdict tells of it
        mcmc.run(*simulated(signal), batch_size=batch_size)
    return mcmc


def digits() -> aeb.MCMC:
    """A small convolutional network on 8 x 8 digits, pruned to half of its weights."""
    data = load_digits()
    X = torch.tensor(data.images[:1000] / 16.0, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(data.target[:1000])
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip
    beta = dist.Beta(2.0, 2.0)
    net = aeb.nn.bayesianize(module, v0=0.02, v1=0.25, delta=beta, sigma2=1.0)

    def model(x: Tensor, y: Tensor) -> Any:
        logits = net(x)
        with pyro.plate("data", len(X), subsample=x):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    kernel = aeb.AEBKernel(
        model,
        aeb.SGHMC(1e-5, friction=0.1),
        adaptation=aeb.StochasticApproximation(OMEGA),
        pruning=aeb.MagnitudePruning(aeb.PruningSchedule(0.5, damping=0.9, period=50)),
        steps_per_draw=20,
        seed=1,
    )
    mcmc = aeb.MCMC(kernel, 80, 0, disable_progbar=True)
    mcmc.run(DataLoader(TensorDataset(X, y), batch_size=100, shuffle=True))
    return mcmc


def main() -> None:
    torch.set_num_threads(1)  # models this small are no faster with more
    good, small = aeb.SGHMC(5e-4, friction=0.1), aeb.Polynomial(0.3, 1000.0, 0.7)
    unsettled = run(good, weight=small, draws=60, warmup=0)
    settled, noisy, network = run(good), run(good, batch_size=5), digits()
    runs = {
        "a good run": settled,
        "minibatches of 5 at the same step size": noisy,
        "too large a step": run(aeb.SGHMC(1e-2, friction=0.1)),
        "too few steps, and a small omega": unsettled,
        "no effect in the data, and Beta(1, p)": run(good, signal=0.0),
        "noise taken off that is not there": run(
            aeb.SGHMC(5e-4, friction=0.1, gradient_noise=0.08)
        ),
        "a network pruned without a mask": network,
    }
    lines = [f"# {name}\n{aeb.check(mcmc, quiet=True)}\n" for name, mcmc in runs.items()]
    (HERE / "verdicts.txt").write_text("\n".join(lines), encoding="utf-8")
    pictures = {
        "settled": aeb.diagnostics.plot_latents(settled),
        "drifting": aeb.diagnostics.plot_latents(unsettled),
        "inclusion": aeb.diagnostics.plot_inclusion(network),
        "sparsity": aeb.diagnostics.plot_sparsity(network),
    }
    for name, figure in pictures.items():
        figure.savefig(HERE / f"{name}.png", dpi=100)
    print(*aeb.diagnostics.noise_ratio(noisy), sep="\n")
    print(*aeb.diagnostics.step_halving(settled, steps=1000), sep="\n")
    print(aeb.diagnostics.ksd(settled, draws=100))


if __name__ == "__main__":
    main()
