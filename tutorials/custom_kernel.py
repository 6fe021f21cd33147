# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A kernel of your own for Pyro: SGLD from nothing
================================================

Pyro's `MCMC` runs any kernel, and its documentation says little on how to write one: a tutorial has
been asked for since 2019 [1]. Here a kernel for stochastic-gradient Langevin dynamics, SGLD, is
written from nothing and run on a regression whose posterior is known, so that everything that is
right and wrong with it can be seen. Then the same model runs under `AEBKernel`, and at the end a
sampler of one's own becomes a transition of that kernel, with a proof that it is right.

    python tutorials/custom_kernel.py

It takes some four minutes on one CPU core and leaves a figure in ``custom_kernel_output/``.

[1] "Tutorial on implementing custom MCMC samplers", https://github.com/pyro-ppl/pyro/issues/2069
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.poutine.util import site_is_subsample
from reproduce.conjugate_regression.figure import draw
from reproduce.conjugate_regression.problem import (
    BATCH,
    PRIOR_SD,
    ROWS,
    SCALE,
    SHAPE,
    Exact,
    excess,
    simulate,
    variance_ratio,
)
from torch import Tensor
from torch.distributions import biject_to

import pyro_aeb as aeb

# 1. A model with a known answer
# ------------------------------
# Linear regression with the conjugate prior. `sigma2` is positive, so the kernel will have to work
# in a space without bounds; and the plate may take a subsample, so that it will have to cope with
# minibatches. The plate multiplies the log likelihood of a batch by N / n: its mean over batches is
# that of all rows, and so is its gradient's.


def model(X: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    """Linear regression with the conjugate prior; X of shape (n, p), y of shape (n,)."""
    n, p = X.shape
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(SHAPE, SCALE))
    with pyro.plate("features", p):
        beta = pyro.sample("beta", dist.Normal(0.0, PRIOR_SD * sigma2.sqrt()))
    with pyro.plate("data", n, subsample_size=batch_size) as i:
        pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=y[i])


# 2. The kernel
# -------------
# A kernel is asked, in this order: `setup`, once a chain, with the arguments of `mcmc.run`; then
# `initial_params`; then `sample`, once a draw, from the last draw to the next; after each of these
# `logging`, for the progress bar; and at the end `diagnostics`. All of it is in unconstrained
# space. `MCMC` takes the draws back through the inverse of `kernel.transforms`, so there must be
# such a dictionary.
#
# Pyro has a function for what `setup` needs, `initialize_model`, but it refuses models with
# subsamples (HMC has no use for them). So we look at the model ourselves. One run under
# `poutine.trace` shows its sites: those with a plate's indices are left to the model, which draws
# a fresh minibatch whenever it runs, and the others are what we sample.


class SGLDKernel(MCMCKernel):
    r"""
    Stochastic-gradient Langevin dynamics (Welling and Teh 2011): with U minus the log joint density
    in unconstrained space, of which a minibatch gives an estimate,

    .. math:: u \leftarrow u - \epsilon \nabla U(u) + N(0, 2 \epsilon).

    :param model: a Pyro model, with or without subsampling, whose latents are continuous.
    :param float step_size: epsilon.
    :param int steps_per_draw: steps between draws; `MCMC` itself knows no thinning.
    """

    def __init__(
        self, model: Callable[..., Any], step_size: float, steps_per_draw: int = 1
    ) -> None:
        self.model = model
        self.step_size = step_size
        self.steps_per_draw = steps_per_draw
        self._given: dict[str, Tensor] | None = None
        super().__init__()

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self._arguments = args, kwargs
        self._potential = math.nan
        self.transforms: dict[str, Any] = {}
        self._first: dict[str, Tensor] = {}
        trace = poutine.trace(self.model).get_trace(*args, **kwargs)
        for name, site in trace.iter_stochastic_nodes():
            if site_is_subsample(site):
                continue
            if site["fn"].support.is_discrete:
                raise ValueError(f"the site {name!r} is discrete, and has no gradient")
            self.transforms[name] = biject_to(site["fn"].support).inv
            self._first[name] = self.transforms[name](site["value"]).detach()

    # A kernel serves all chains that run one after the other, and `MCMC` hands it the user's first
    # values before `setup`: so these must not be overwritten, nor those of a chain be kept.

    @property
    def initial_params(self) -> dict[str, Tensor]:
        return self._first if self._given is None else self._given

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._given = params

    # The gradient. `poutine.condition` puts our values into the model, `poutine.trace` collects
    # the log densities of all its sites, scaled by the plates. The density of u is that of the
    # value times the Jacobian of the map between them: forget it, and sigma2 follows another law.

    def _gradient(self, params: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the gradient of U by one run of the model, on one minibatch if it takes any."""
        args, kwargs = self._arguments
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        values = {name: self.transforms[name].inv(leaf) for name, leaf in leaves.items()}
        conditioned = poutine.condition(self.model, data=values)
        trace = poutine.trace(conditioned).get_trace(*args, **kwargs)
        potential = -trace.log_prob_sum()
        for name, leaf in leaves.items():
            log_jacobian = self.transforms[name].log_abs_det_jacobian(values[name], leaf)
            potential = potential + log_jacobian.sum()
        self._potential = potential.detach()
        return torch.autograd.grad(potential, list(leaves.values()))

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        for _ in range(self.steps_per_draw):
            gradients = self._gradient(params)
            params = {
                name: value
                - self.step_size * gradient
                + math.sqrt(2.0 * self.step_size) * torch.randn_like(value)
                for (name, value), gradient in zip(params.items(), gradients, strict=True)
            }
        return params

    def logging(self) -> OrderedDict[str, str]:
        return OrderedDict(potential=f"{float(self._potential):.3g}")

    def diagnostics(self) -> dict[str, Any]:
        return {"step_size": self.step_size}


# That is all: no accept step, no adaptation. It goes into `MCMC` as NUTS would.


def run_own(X: Tensor, y: Tensor, step_size: float, batch_size: int | None, draws: int) -> MCMC:
    """A chain of the kernel above, a draw every 10 steps, 1/10 of them for warm-up."""
    pyro.set_rng_seed(0)
    kernel = SGLDKernel(model, step_size, steps_per_draw=10)
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=draws // 10, disable_progbar=True)
    mcmc.run(X, y, batch_size=batch_size)
    return mcmc


# 3. Is it right?
# ---------------
# Means are. Standard deviations are too large, by an amount that is known. Along a direction of
# curvature h, with noise of variance g in the gradient, the chain is an autoregression, whose
# variance over the posterior's 1 / h is
#
#     (1 + epsilon g / 2) / (1 - epsilon h / 2).
#
# The first error, of the minibatch, is nearly always the larger one: with n of N rows drawn
# without replacement g is (N / n - 1) h, so the step has to be smaller than n / N of what it might
# be with all rows. There is no accept step that would notice.


def compare(X: Tensor, y: Tensor, exact: Exact, draws: int) -> dict[str, Any]:
    """Three runs of our own kernel beside the exact posterior; returns the draws of beta_1."""
    print(f"{'':34}{'beta_1':>17}{'beta_2':>17}{'sigma2':>17}{'sd / exact':>12}{'formula':>9}")

    def line(name: str, means: Any, sds: Any, tail: str) -> None:
        cells = [f"{m:.3f} ({s:.4f})" for m, s in zip(means, sds, strict=True)]
        print(f"{name:34}" + "".join(f"{cell:>17}" for cell in cells) + tail)

    law, scale = exact.beta, exact.sigma2
    means, sds = [*law.mean()[:2], scale.mean()], [*law.std()[:2], scale.std()]
    line("exact: mean (sd)", means, sds, "")
    kept = {}
    for relative, batch_size in ((0.05, None), (0.05, BATCH), (0.2, BATCH)):
        mcmc = run_own(X, y, relative / exact.curvature, batch_size, draws)
        beta = mcmc.get_samples()["beta"].numpy()
        sigma2 = mcmc.get_samples()["sigma2"].numpy()
        ratio = (beta.std(0) / law.std()).mean()
        batch = "all rows" if batch_size is None else f"{BATCH} rows"
        name = f"epsilon h = {relative:g}, {batch}"
        means, sds = [*beta.mean(0)[:2], sigma2.mean()], [*beta.std(0)[:2], sigma2.std()]
        tail = f"{ratio:12.3f}{math.sqrt(excess(relative, batch_size)):9.3f}"
        line(name, means, sds, tail)
        kept[name] = beta[:, 0]
    return kept


# 4. The same under AEBKernel
# ---------------------------
# `AEBKernel` is such a kernel, after some more thought. It looks at the model once, and from then
# on scores its sites without a trace. With `adaptation=None` it samples all latents, and so can be
# held against ours. Chains can step together in one process: the curve of the error over step sizes
# in the figure has 64 chains at every point.


def run_chains(
    X: Tensor,
    y: Tensor,
    transition: Any,
    batch_size: int | None,
    draws: int,
    chains: int = 64,
    **options: Any,
) -> aeb.MCMC:
    """AEBKernel's chains, side by side if there are several; a draw every 10 steps."""
    kernel = aeb.AEBKernel(
        model, transition, steps_per_draw=10, seed=0, **{"compile": False, **options}
    )
    mcmc = aeb.MCMC(
        kernel,
        num_samples=draws,
        warmup_steps=draws // 2,
        num_chains=chains,
        chain_method="vectorized" if chains > 1 else "sequential",
        disable_progbar=True,
    )
    mcmc.run(X, y, batch_size=batch_size)
    return mcmc


# Four things that ours lacks. A run's own record says that it is too hot: `check` reads the
# kinetic temperature, which for SGLD is the very factor of the formula above, without knowing the
# posterior. Minibatches are cut from a permutation of the rows, so that within an epoch their
# errors cancel; in the figure that is most of the heat as long as steps are small. A step size may
# be a schedule. And a run goes on after it was stopped, bit for bit.


def what_else(X: Tensor, y: Tensor, exact: Exact, draws: int) -> None:
    """A verdict on a run that is too hot; a schedule; a run in two parts."""
    step_size = 0.2 / exact.curvature
    print("\nepsilon h = 0.2 on minibatches, seen by its own record:")
    hot = run_chains(X, y, aeb.SGLD(step_size), BATCH, draws, 4, minibatches="replacement")
    print(aeb.check(hot, quiet=True)["temperature"])
    print(f"the variance of its draws is {ratio_of(hot, exact):.2f} times the exact one")

    falling = aeb.SGLD(aeb.Polynomial(scale=step_size, offset=0.0, power=1 / 3))
    cooled = run_chains(X, y, falling, BATCH, draws, 4)
    print(
        f"with permuted rows and steps that fall like k^(-1/3): {ratio_of(cooled, exact):.2f} times"
    )

    def begin(num_samples: int, **options: Any) -> aeb.MCMC:
        kernel = aeb.AEBKernel(model, aeb.SGLD(step_size), seed=1)
        return aeb.MCMC(
            kernel, num_samples=num_samples, warmup_steps=10, disable_progbar=True, **options
        )

    whole = begin(40)
    whole.run(X, y, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        half = begin(20, checkpoint=f"{folder}/run")
        half.run(X, y, batch_size=BATCH)  # the process may end after this
        resumed = aeb.MCMC.resume(f"{folder}/run", model, disable_progbar=True)
        resumed.run(X, y, batch_size=BATCH)
    same = torch.equal(whole.get_samples()["beta"], resumed.get_samples()["beta"])
    print(f"40 draws at once, and 20 + 20 from a checkpoint: {'the same' if same else 'different'}")


def ratio_of(mcmc: MCMC, exact: Exact) -> float:
    """Return the coefficients' variance in a run over the posterior's."""
    return variance_ratio(mcmc.get_samples()["beta"].numpy(), exact)


# And what it is for: give the coefficients a spike-and-slab prior in place of the Normal one, and
# the kernel learns which of them matter. No line of the sampler changes. Our own kernel takes this
# model as well, through the density of the prior with its indicators summed out; what it does not
# have is the inclusion probabilities, pruning, and the speed of a prior whose gradient is known.
#
# One thing to see in the output: with pruning, sigma squared is learned too small. A weight that is
# held at zero still counts in its equation, (6) of the documentation, as one that the spike has
# drawn there.


def sparse_model(X: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    """Linear regression with a spike-and-slab prior; X of shape (n, p), y of shape (n,)."""
    n, p = X.shape
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(SHAPE, SCALE))
    delta = pyro.sample("delta", dist.Beta(2.0, float(p)))
    with pyro.plate("features", p):
        prior = aeb.SSGL(v0=0.02, v1=10.0, delta=delta, sigma=sigma2.sqrt())
        beta = pyro.sample("beta", prior)
    with pyro.plate("data", n, subsample_size=batch_size) as i:
        pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=y[i])


def sparse(seed: int, draws: int) -> dict[str, Any]:
    """Three of 40 features matter; returns the traces of a run without and one with pruning."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(ROWS, 40, generator=generator)
    noise = torch.randn(ROWS, generator=generator)
    y = X[:, :3] @ torch.tensor([1.0, -0.5, 0.5]) + noise
    print("\nWith a spike-and-slab prior on 40 features, of which x1, x2 and x3 matter:")
    schedule = aeb.PruningSchedule(0.9, damping=0.9, period=50)
    traces = {}
    for name, pruning in (("learned", None), ("and pruned", aeb.MagnitudePruning(schedule))):
        kernel = aeb.AEBKernel(
            sparse_model,
            aeb.SGLD(5e-5),
            adaptation=aeb.StochasticApproximation(aeb.Polynomial(10.0, 1000.0, 0.7)),
            pruning=pruning,
            steps_per_draw=10,
            seed=seed,
        )
        mcmc = MCMC(kernel, num_samples=draws, warmup_steps=0, disable_progbar=True)
        mcmc.run(X, y, batch_size=100)
        trace = traces[name] = aeb.to_arviz(mcmc)
        inclusion = trace.adaptation["beta_rho"].values[0, -1]
        found = ", ".join(f"x{j + 1}" for j in np.flatnonzero(inclusion > 0.5)) or "none"
        sigma2, delta = (float(trace.posterior[site][0, -1]) for site in ("sigma2", "delta"))
        zeros = float((trace.posterior["beta"][0, -1] == 0).mean())
        print(
            f"{name:12}found {found}; sigma2 {sigma2:.2f} (the noise's: {float(noise.var()):.2f}), "
            f"delta {delta:.3f}, {100 * zeros:.0f} % zeros"
        )
    return traces


# What does all this cost? For the model of five numbers above next to nothing is to be gained: what
# takes time is the Python of the model and of Pyro, in both kernels. Chains together share it, and
# `compile=True` takes it out. With more weights, and a prior whose density is a mixture, its
# closed-form gradient shows too.


def what_a_step_costs(X: Tensor, y: Tensor, draws: int) -> None:
    """Both kernels on minibatches of both models; prints milliseconds of processor time."""
    wide = torch.randn(ROWS, 1000, generator=torch.Generator().manual_seed(0))
    learned = aeb.StochasticApproximation(0.1)

    def own(model: Any) -> Any:
        return SGLDKernel(model, 1e-6, steps_per_draw=10)

    def adaptive(model: Any, **options: Any) -> Any:
        return aeb.AEBKernel(
            model, aeb.SGLD(1e-6), steps_per_draw=10, seed=0, **{"compile": False, **options}
        )

    rows = {
        "conjugate, our kernel": (own(model), X, 1),
        "conjugate, AEBKernel": (adaptive(model), X, 1),
        "... compile=True": (adaptive(model, compile=True), X, 1),
        "... 64 chains together": (adaptive(model), X, 64),
        "1000 SSGL weights, our kernel": (own(sparse_model), wide, 1),
        "1000 SSGL weights, AEBKernel": (adaptive(sparse_model, adaptation=learned), wide, 1),
        "... compile=True ": (
            adaptive(sparse_model, adaptation=learned, compile=True), wide, 1),
    }  # fmt: skip
    print(f"\n{'milliseconds for':32}{'a step':>10}{'a step of a chain':>20}")
    for name, (kernel, features, chains) in rows.items():
        step = a_step(kernel, chains, draws, features, y)
        print(f"{name:32}{step:10.2f}{step / chains:20.3f}")


def a_step(kernel: MCMCKernel, chains: int, draws: int, X: Tensor, y: Tensor) -> float:
    """Milliseconds of a step, over the second half of a run: no look at the model, no compiling."""
    clock: list[float] = []

    def note_the_time(*_: Any) -> None:
        clock.append(time.process_time())

    together: dict[str, Any] = {"num_chains": chains, "chain_method": "vectorized"}
    run = partial(aeb.MCMC, **together) if chains > 1 else MCMC
    mcmc = run(
        kernel, num_samples=draws, warmup_steps=0, hook_fn=note_the_time, disable_progbar=True
    )
    mcmc.run(X, y, batch_size=BATCH)
    start = len(clock) // 2
    return 1e3 * (clock[-1] - clock[start]) / (10 * (len(clock) - 1 - start))


# 5. A transition of your own
# ---------------------------
# A sampler for `AEBKernel` needs no Pyro at all. It is a frozen dataclass with two pure functions,
# `init` and `step`; gradient and noise come in as arguments, weights as one flat tensor.
# Minibatches, priors, latents, schedules, pruning, chains and checkpoints are the kernel's.
#
# This one is SGLD with one change: a step adds the mean of its own normal number and the last one's
# (Leimkuhler and Matthews 2013, "Rational construction of stochastic numerical methods for
# molecular sampling"). On Gaussians that makes the variance exact for steps of any size.


class AveragedNoise(NamedTuple):
    position: Tensor
    noise: Tensor


@dataclass(frozen=True)
class LeimkuhlerMatthews:
    r"""
    .. math:: \beta_{k+1} = \beta_k + \epsilon \nabla Q(\beta_k)
        + \sqrt{2 \epsilon / \tau}\, (z_k + z_{k+1}) / 2.

    :param step_size: epsilon, a schedule: from the number of a step to its size.
    """

    step_size: Callable[[int], float]

    def init(self, position: Tensor) -> AveragedNoise:
        return AveragedNoise(position, torch.zeros_like(position))

    def step(
        self, state: AveragedNoise, gradient: Tensor, noise: Tensor, numbers: Any
    ) -> AveragedNoise:
        epsilon, tau = numbers
        position = state.position + epsilon * gradient
        position = position + math.sqrt(epsilon / (2.0 * tau)) * (state.noise + noise)
        return AveragedNoise(position, noise.clone())  # the kernel uses noise's memory again


# `check_transition` asks whether it keeps the contract, and computes the law that its steps have on
# Gaussians, from the steps themselves. "exact at any step size", it says of this one. What it does
# not make up for is the noise of minibatches: see the figure.


def curves(X: Tensor, y: Tensor, exact: Exact, draws: int, steps: list[float]) -> dict[str, Any]:
    """Variance over the posterior's at some values of epsilon h, by sampler and batch."""
    lines = {
        "SGLD, all rows": (aeb.SGLD, None, "permutation"),
        f"SGLD, {BATCH} rows, independent": (aeb.SGLD, BATCH, "replacement"),
        f"SGLD, {BATCH} rows, permuted": (aeb.SGLD, BATCH, "permutation"),
        "Leimkuhler-Matthews, all rows": (LeimkuhlerMatthews, None, "permutation"),
    }
    print(f"\nvariance over the exact one{'':9}" + "".join(f"{f'eh = {s:g}':>11}" for s in steps))
    found = {}
    for name, (transition, batch_size, order) in lines.items():
        row = []
        for relative in steps:
            sampler = transition(aeb.Constant(relative / exact.curvature))
            mcmc = run_chains(X, y, sampler, batch_size, draws, minibatches=order)
            row.append(ratio_of(mcmc, exact))
        print(f"{name:36}" + "".join(f"{ratio:11.2f}" for ratio in row))
        found[name] = row
    for batch_size, name in ((None, "formula, all rows"), (BATCH, f"formula, {BATCH} rows")):
        cells = "".join(f"{excess(relative, batch_size):11.2f}" for relative in steps)
        print(f"{name:36}" + cells)
    return found


def main(args: argparse.Namespace) -> None:
    """The walkthrough."""
    args.out.mkdir(parents=True, exist_ok=True)
    X, y = simulate(args.seed)
    exact = Exact.of(X, y)
    own = compare(X, y, exact, 20 if args.smoke else 2000)
    what_else(X, y, exact, 20 if args.smoke else 300)
    traces = sparse(args.seed, 20 if args.smoke else 1000)
    what_a_step_costs(X, y, 6 if args.smoke else 100)
    print()
    print(aeb.testing.check_transition(LeimkuhlerMatthews(aeb.Constant(1e-3))))
    steps = [0.05, 0.4] if args.smoke else [0.05, 0.1, 0.2, 0.4]
    measured = curves(X, y, exact, 10 if args.smoke else 100, steps)
    figure = draw(exact, own, steps, measured, traces)
    figure.savefig(args.out / "custom_kernel.png", dpi=110)
    print(f"\ncustom_kernel.png is in {args.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An SGLD kernel for Pyro, from nothing.")
    parser.add_argument("--out", type=Path, default=Path("custom_kernel_output"))
    parser.add_argument("--seed", type=int, default=0, help="of the data")
    parser.add_argument("--smoke", action="store_true", help="tiny, to see that everything runs")
    main(parser.parse_args())
