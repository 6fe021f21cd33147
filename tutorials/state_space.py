# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
State-space models: paths sampled, parameters learned
=====================================================

A series is noise on top of a state that nobody sees, and the state moves by a law with unknown
parameters. Here the states (or what is left once they are summed out) are sampled by a stochastic
gradient kernel, and the parameters are *latents* that stochastic approximation learns on the way.
Three models: one that the Kalman filter solves, one that forward-backward solves, so that both can
be held against the exact answer, and one that nothing solves, whose law of motion is a network.

    python tutorials/state_space.py

It takes up to ten minutes and leaves three figures and a table in ``state_space_output/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import init_to_value
from reproduce.common.tables import markdown_table
from reproduce.state_space import baum_welch, figures, kalman
from reproduce.state_space.agreement import agreement, agreement_table, spread_of_z
from reproduce.state_space.forecast import (
    FORECAST_HEADER,
    forecast,
    forecast_row,
    score,
    simulate,
)
from reproduce.state_space.hidden_markov import HiddenMarkov
from reproduce.state_space.path import Path as StatePath
from torch import Tensor

import pyro_aeb as aeb

CLOSED = aeb.latents.ClosedForm()
OMEGA = aeb.Polynomial(5.0, 50.0, 0.75)


def run(
    model: Callable[..., Any],
    transition: aeb.SGHMC,
    adaptation: aeb.StochasticApproximation,
    first: Mapping[str, Any],
    args: tuple[Any, ...],
    chains: int,
    draws: int,
    warmup: int,
    seed: int = 0,
) -> aeb.MCMC:
    """
    Chains that step together; a draw is kept every 20 steps.

    :param first: where sites start.
    """
    kernel = aeb.AEBKernel(
        model,
        transition,
        adaptation,
        steps_per_draw=20,
        init_strategy=init_to_value(values={n: torch.as_tensor(v) for n, v in first.items()}),
        seed=seed,
    )
    mcmc = aeb.MCMC(
        kernel, draws, warmup_steps=warmup, num_chains=chains, chain_method="vectorized"
    )
    mcmc.run(*args)
    return mcmc


def by_chain(mcmc: aeb.MCMC) -> dict[str, Any]:
    """Draws as arrays of shape (chains, draws, ...)."""
    return {name: value.numpy() for name, value in mcmc.get_samples(group_by_chain=True).items()}


# 1. Linear and Gaussian: the Kalman filter knows the answer
# ----------------------------------------------------------
# x_t = a x_{t-1} + noise of variance q, and y_t = x_t + noise of variance r. `StatePath` is the law
# of the whole path as one distribution, so the path is one site. It is what the kernel samples.
#
# a, q and r are ordinary sites as well. `latents=` asks for them to be learned. Their priors are
# conjugate to what depends on them, which the kernel makes sure of, so ClosedForm() is enough: it
# moves a latent to the maximiser of the log joint density, averaged over draws of the path. That is
# EM whose E-step is the sampler.

LINEAR = kalman.Parameters(a=0.9, q=0.5, r=0.5)
LINEAR_PRIORS = kalman.Priors(shape=2.0, rate=1.0)


def linear(y: Tensor) -> None:
    """
    AR(1) plus noise.

    :param y: the series, shape (T,).
    """
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    q = pyro.sample("q", dist.InverseGamma(*LINEAR_PRIORS))
    r = pyro.sample("r", dist.InverseGamma(*LINEAR_PRIORS))
    x = pyro.sample("x", StatePath(lambda x: a * x, q.sqrt(), len(y)))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(x, r.sqrt()), obs=y)


# Chains with steps of finite size have draws a little too wide, and EM passes that on. For a
# Gaussian path both are known: the fixed point of EM with the exact E-step, and with the E-step of
# steps of this size. Chains should come to the second, and the first should be near.


def section_linear(args: argparse.Namespace) -> str:
    """Learned parameters and smoothed path against Kalman smoother and EM."""
    steps = 30 if args.smoke else 200
    chains, draws = (3, 6) if args.smoke else (16, 200)
    sampler = aeb.SGHMC(step_size=0.002, friction=0.2)
    x, y = kalman.simulate(steps, LINEAR, np.random.default_rng(0))
    start = kalman.Parameters(a=0.0, q=1.0, r=1.0)
    exact = kalman.em(y, start, LINEAR_PRIORS)

    def variance_of(curvature: float) -> float:
        return float(aeb.testing.sghmc_covariance(0.002, 1.0, curvature, 0.2)[1, 1])

    def of_steps(y: Any, parameters: kalman.Parameters) -> kalman.Moments:
        return kalman.sampled_moments(y, parameters, variance_of)

    own = kalman.em(y, start, LINEAR_PRIORS, of_steps)

    series = (torch.from_numpy(y),)
    learn = aeb.StochasticApproximation(OMEGA, latents={"a": CLOSED, "q": CLOSED, "r": CLOSED})
    first = {**start._asdict(), "x": np.zeros(steps)}
    learned = by_chain(run(linear, sampler, learn, first, series, chains, draws, draws // 2))
    rows = [
        agreement(name, learned[name].mean(1), getattr(exact, name), getattr(own, name))
        for name in exact._fields
    ]

    # A second run, in which the parameters stay where the first has led (weight 0): its paths are
    # draws from the path's law given them, which the smoother has in closed form.
    found = kalman.Parameters(*(row.mean for row in rows))
    hold = aeb.StochasticApproximation(0.0, latents=learn.latents)
    first = {**found._asdict(), "x": learned["x"][0, -1]}
    paths = by_chain(run(linear, sampler, hold, first, series, chains, draws, 10))["x"]
    smooth, with_steps = kalman.smoother(y, found), of_steps(y, found)
    spread = ((paths - smooth.mean) ** 2).mean(1)
    ratio = agreement(
        "ratio",
        (spread / smooth.variance).mean(1),
        1.0,
        np.mean(with_steps.variance / smooth.variance),
    )
    report = "\n\n".join(
        [
            "## Linear and Gaussian",
            agreement_table(rows),
            f"Smoothed means: {spread_of_z(paths.mean(1), smooth.mean)}.",
            f"Smoothed variances: {spread_of_z(spread, with_steps.variance)}.\nOn average over "
            f"time they are {ratio.mean:.4f} ± {ratio.error:.4f} times the Kalman smoother's; "
            f"steps of this size\nmake it {ratio.own:.4f}, in closed form.",
        ]
    )
    picture = figures.linear(x, y, learned, exact, paths, smooth)
    picture.savefig(args.out / "linear.png", dpi=110)
    return report


# 2. A hidden Markov model: an update of your own
# -----------------------------------------------
# Many short sequences, minibatches of them, and discrete states, which have no gradient: they are
# summed out by the forward algorithm, inside `HiddenMarkov`. The means of the two states are
# sampled; transition matrix and variance are learned. With the states summed out nothing is
# conjugate (ClosedForm() refuses, and says so), so here are two updates of our own.
#
# An update sees the gradient of the log joint density, of the whole data set, estimated from the
# minibatch. A number of the transition matrix times its gradient is the expected number of such
# transitions (plus the prior's): forward-backward, by autograd. Dividing by row sums is Baum and
# Welch's M-step. `AveragedStatistics` averages the counts and not the rows, for the average of a
# ratio is not the ratio of averages.


class Transitions(aeb.latents.AveragedStatistics):
    """Rows of a transition matrix, by Baum and Welch."""

    derivatives = 1

    def statistics(self, seen: aeb.latents.Seen) -> Tensor:
        """Expected numbers of transitions, shape (K, K)."""
        return seen.value * seen.gradient

    def maximiser(self, statistics: Tensor) -> Tensor:
        """Rows that sum to 1."""
        return statistics / statistics.sum(-1, keepdim=True)


class Variance(aeb.latents.AveragedStatistics):
    """
    The variance v of N observations: the log joint density is -A log v - B / v, with
    A = shape + 1 + N/2 known, and its derivative tells B.
    """

    derivatives = 1

    def __init__(self, a: float) -> None:
        self.a = a

    def statistics(self, seen: aeb.latents.Seen) -> Tensor:
        """B, half of the expected squared distance and the prior's rate."""
        return seen.value.square() * seen.gradient + self.a * seen.value

    def maximiser(self, statistics: Tensor) -> Tensor:
        """B / A."""
        return statistics / self.a


HMM = baum_welch.Parameters(transition=np.array([[0.9, 0.1], [0.2, 0.8]]), variance=0.5)
HMM_PRIORS = baum_welch.Priors(np.array([-1.0, 1.0]), concentration=2.0, shape=2.0, rate=1.0)


def hidden_markov(y: Tensor, batch_size: int | None = None) -> None:
    """
    Sequences of two hidden states.

    :param y: shape (sequences, length).
    """
    concentration = torch.full((2, 2), HMM_PRIORS.concentration)
    transition = pyro.sample("transition", dist.Dirichlet(concentration).to_event(1))
    variance = pyro.sample("variance", dist.InverseGamma(HMM_PRIORS.shape, HMM_PRIORS.rate))
    centre = torch.as_tensor(HMM_PRIORS.centre)
    means = pyro.sample("means", dist.Normal(centre, 1.0).to_event(1))
    with pyro.plate("sequences", len(y), subsample_size=batch_size) as i:
        law = HiddenMarkov(transition, means, variance.sqrt(), y.shape[-1])
        pyro.sample("y", law, obs=y[i])


# The exact answer: EM with forward-backward, in which the means are integrated out by quadrature,
# as they are by the sampler. (EM that maximises over the means too ends a little elsewhere.)


def section_hidden_markov(args: argparse.Namespace) -> str:
    """Learned transition and variance, and the means' law, against forward-backward EM."""
    sequences, length, batch = (12, 6, 4) if args.smoke else (60, 20, 12)
    chains, draws = (3, 6) if args.smoke else (16, 100)
    _, y = baum_welch.simulate(sequences, length, HMM, HMM_PRIORS.centre, np.random.default_rng(0))
    start = baum_welch.Parameters(np.full((2, 2), 0.5), 1.0)
    exact, law = baum_welch.em(y, start, HMM_PRIORS)
    maximised, _ = baum_welch.baum_welch(y, start, HMM_PRIORS)

    latents = {"transition": Transitions(), "variance": Variance(HMM_PRIORS.shape + 1 + y.size / 2)}
    sampler = aeb.SGHMC(step_size=1e-5, friction=0.1)
    learn = aeb.StochasticApproximation(OMEGA, latents=latents)
    first = {**start._asdict(), "means": [-0.5, 0.5]}
    data = (torch.from_numpy(y), batch)
    learned = by_chain(run(hidden_markov, sampler, learn, first, data, chains, draws, draws // 2))
    transition, variance = learned["transition"].mean(1), learned["variance"].mean(1)
    rows = [
        agreement("P(1 → 2)", transition[:, 0, 1], exact.transition[0, 1]),
        agreement("P(2 → 1)", transition[:, 1, 0], exact.transition[1, 0]),
        agreement("variance", variance, exact.variance),
    ]

    # The means' posterior, in a second run on all sequences with the parameters held.
    hold = aeb.StochasticApproximation(0.0, latents=latents)
    first = {**exact._asdict(), "means": law.mean()}
    data = (torch.from_numpy(y), None)
    means = by_chain(run(hidden_markov, sampler, hold, first, data, chains, draws, 10))["means"]
    for j in range(2):
        own = means[..., j]
        rows.append(agreement(f"mean of state {j + 1}", own.mean(1), law.mean()[j]))
        spread = ((own - law.mean()[j]) ** 2).mean(1)
        rows.append(agreement(f"variance of mean {j + 1}", spread, law.sd()[j] ** 2))
    figures.hidden_markov(learned, exact, means, law).savefig(
        args.out / "hidden_markov.png", dpi=110
    )
    return "\n\n".join(
        [
            "## Hidden Markov model",
            agreement_table(rows),
            "EM that maximises over the means too (Baum and Welch) ends at\nP(1 → 2) = "
            f"{maximised.transition[0, 1]:.5f}, P(2 → 1) = {maximised.transition[1, 0]:.5f}, "
            f"variance = {maximised.variance:.5f}.",
        ]
    )


# 3. A neural law of motion
# -------------------------
# x_t = f(x_{t-1}) + noise, with f a network of 16 hidden units. The path and the weights are
# sampled together; q and r are learned by ClosedForm(), which does not care what f is; and the
# weights have the spike-and-slab prior, whose delta is learned too.

HIDDEN = 16
NEURAL = {"q": 0.16, "r": 0.1}
WEIGHTS = ("w_in", "b_in", "w_out", "b_out")


def true_motion(x: Any) -> Any:
    """The law that the data follow."""
    return 2.0 * (torch.sin if isinstance(x, Tensor) else np.sin)(1.5 * x)


def network(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """One hidden layer, of states of any shape."""
    hidden = torch.tanh(x[..., None] * w_in + b_in)
    return (hidden * w_out).sum(-1) + b_out


def neural(y: Tensor) -> None:
    """
    A nonlinear state-space model.

    :param y: the series, shape (T,).
    """
    q = pyro.sample("q", dist.InverseGamma(2.0, 0.3))
    r = pyro.sample("r", dist.InverseGamma(2.0, 0.3))
    delta = pyro.sample("delta", dist.Beta(2.0, 2.0))
    sparse = aeb.SSGL(v0=0.1, v1=4.0, delta=delta, sigma=1.0).expand([HIDDEN]).to_event(1)
    weights = (
        pyro.sample("w_in", sparse),
        pyro.sample("b_in", dist.Normal(torch.zeros(HIDDEN), 2.0).to_event(1)),
        pyro.sample("w_out", sparse),
        pyro.sample("b_out", dist.Normal(0.0, 1.0)),
    )
    x = pyro.sample("x", StatePath(lambda x: network(x, *weights), q.sqrt(), len(y)))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(x, r.sqrt()), obs=y)


def run_neural(y: Tensor, seed: int, smoke: bool) -> dict[str, Any]:
    """Draws of shape (chains, draws, ...); the path starts at the observations."""
    chains, draws = (2, 6) if smoke else (4, 150)
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(HIDDEN, generator=generator)

    first = {"x": y, "w_in": normal(1.0), "b_in": normal(1.0), "w_out": normal(0.3), "b_out": 0.0,
             "q": 0.5, "r": 0.2, "delta": 0.5}  # fmt: skip
    learn = aeb.StochasticApproximation(OMEGA, latents={"q": CLOSED, "r": CLOSED})
    sampler = aeb.SGHMC(step_size=5e-5, friction=0.05)
    return by_chain(run(neural, sampler, learn, first, (y,), chains, draws, draws, seed))


# Is it any good? The series goes on for 200 observations that the chains have not seen, and every
# one is forecast from those before it, by particle filters: one under each of 40 draws, averaged;
# one under the truth, which nothing can beat by more than luck; and one under the linear model of
# section 1, its parameters at the maximiser.


def forecasts(y: Tensor, train: int, draws: dict[str, Any], smoke: bool) -> dict[str, Any]:
    """Scores on what comes after the first ``train`` observations, by forecaster."""
    flat = {n: torch.from_numpy(v.reshape(-1, *v.shape[2:])) for n, v in draws.items()}
    chosen = torch.linspace(0, len(flat["q"]) - 1, 4 if smoke else 40).long()
    weights = [flat[name][chosen][:, None] for name in WEIGHTS]
    fit = kalman.em(y[:train].numpy(), kalman.Parameters(0.5, 0.5, 0.5), kalman.Priors(2.0, 0.3))
    forecasters = {
        "linear": (lambda x: fit.a * x, torch.tensor([fit.q]), torch.tensor([fit.r])),
        "network": (lambda x: network(x, *weights), flat["q"][chosen], flat["r"][chosen]),
        "truth": (true_motion, torch.tensor([NEURAL["q"]]), torch.tensor([NEURAL["r"]])),
    }
    particles = 50 if smoke else 1000
    return {
        name: score(y, forecast(y, *given, particles, seed=0), train)
        for name, given in forecasters.items()
    }


def section_neural(args: argparse.Namespace) -> str:
    """Forecasts, learned noise and smoothed paths of every seed; a figure of the first."""
    train, test = (30, 10) if args.smoke else (300, 200)
    rows = []
    for seed in args.seeds:
        rng = np.random.default_rng(seed)
        x, y = simulate(train + test, true_motion, **NEURAL, rng=rng)
        series = torch.from_numpy(y)
        draws = run_neural(series[:train], seed, args.smoke)
        rows.append(forecast_row(seed, x, draws, forecasts(series, train, draws, args.smoke)))
        if seed == args.seeds[0]:
            grid = torch.linspace(-3.5, 3.5, 141)
            weights = [torch.from_numpy(draws[n])[:, :, None] for n in WEIGHTS]
            motions = network(grid, *weights).numpy()
            figures.neural(x, y, draws, grid.numpy(), motions, true_motion, NEURAL).savefig(
                args.out / "neural.png", dpi=110
            )
    return "## A neural law of motion\n\n" + markdown_table(FORECAST_HEADER, rows)


def main(args: argparse.Namespace) -> None:
    """The walkthrough."""
    torch.set_default_dtype(torch.float64)  # exact answers are compared to the fourth digit
    args.out.mkdir(parents=True, exist_ok=True)
    report = ""
    for section in (section_linear, section_hidden_markov, section_neural):
        found = section(args)
        print(f"\n{found}\n")
        report += found + "\n\n"
    (args.out / "table.md").write_text(report.rstrip() + "\n", encoding="utf-8")
    print(f"linear.png, hidden_markov.png, neural.png and table.md are in {args.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Paths sampled, parameters learned.")
    parser.add_argument("--out", type=Path, default=Path("state_space_output"))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of section 3's data and chains"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, to see that everything runs")
    main(parser.parse_args())
