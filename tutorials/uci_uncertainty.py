# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
How sure is a network? Regression with intervals
================================================

A network that predicts a number is of more use if it says how far off it may be. This walkthrough
samples the weights of a small network, turns the draws into predictive intervals, and checks on
rows that the network has not seen whether the intervals hold what they promise.

    python tutorials/uci_uncertainty.py                                 # diabetes, of scikit-learn
    python tutorials/uci_uncertainty.py --data-dir DATA --table boston  # DATA/boston.csv

It takes half a minute and leaves a figure and the trace in ``uci_uncertainty_output/``. A table of
your own is a CSV file with a header line, numbers only, and the target in the last column.
"""

from __future__ import annotations

import argparse
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from matplotlib.figure import Figure
from pyro.infer import MCMC, Predictive
from reproduce.uci_regression.data import read_table, split
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

import pyro_aeb as aeb

HIDDEN = 50
LEVEL = 0.9

# 1. The model
# ------------
# `bayesianize` gives every weight of a torch module a prior. Here both weight matrices get the
# spike-and-slab Gaussian-Laplace prior: the narrower Laplace for weights that matter little, the
# wider Gaussian for the others; delta, the share of the Gaussian, is learned for each layer. Both
# are measured in units of sigma, and sigma is the noise's standard deviation as well: it feeds the
# likelihood too. AEBKernel sees that from the model and learns it in closed form, from residuals
# and weights together.
#
# The Laplace's scale, v0, decides how honest the intervals are. Where the data are noisy and the
# weights many, a wide one lets them fit the noise: sigma comes out too small, and intervals too
# short. v0 = 1 / sqrt(n) is the standard error of one weight in units of sigma, and about as wide
# as it should be (the page on choosing v0 says more on this).


class Model:
    """
    y = network(x) + noise.

    :param int features: d.
    :param int rows: n, of the training data.
    """

    def __init__(self, features: int, rows: int) -> None:
        layers = OrderedDict(
            hidden=nn.Linear(features, HIDDEN), relu=nn.ReLU(), output=nn.Linear(HIDDEN, 1)
        )
        self.net = aeb.nn.bayesianize(
            nn.Sequential(layers),
            v0=rows**-0.5,
            v1=10.0,
            delta=dist.Beta(2.0, 10.0),
            sigma2=dist.InverseGamma(0.5, 0.5),
            dense_scale=3.0,
        )

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """
        The model.

        :param x: inputs, shape (n, d).
        :param y: targets, shape (n,); None to predict them.
        """
        mean = self.net(x).squeeze(-1)
        with pyro.plate("rows", len(x)):
            return pyro.sample("y", dist.Normal(mean, self.net.sigma2.sqrt()), obs=y)


# 2. The data
# -----------
# A tenth of the rows is held out. Inputs are standardised. The target is brought to mean 0 and
# standard deviation 10: then the noise of most tables is somewhere around 1 to 10, and one step
# size serves them. (The gradient goes with 1 / sigma^2: at a tenth of the noise, a step has to be a
# hundredth.)

TARGET_SCALE = 10.0


def read_data(args: argparse.Namespace) -> tuple[Any, Any, list[str], str]:
    """Inputs, targets, the inputs' names, and a title."""
    if args.data_dir is None:
        data = load_diabetes()
        return data.data, data.target, list(data.feature_names), "diabetes"
    path = args.data_dir / f"{args.table}.csv"
    X, y = read_table(path)
    names = path.open(encoding="utf-8").readline().strip().split(",")
    return X, y, names[:-1], args.table


# 3. The sampler
# --------------
# All rows at every step: they are few. A draw is kept every 20 steps. Three chains start from three
# networks: a network's posterior has many modes, one chain sees few of them, and an average over
# several is the safer prediction.


def run_chains(X: Tensor, y: Tensor, args: argparse.Namespace) -> list[tuple[Model, MCMC]]:
    """One model and one finished run for each chain."""
    draws, warmup = (8, 4) if args.smoke else (100, 60)
    runs = []
    for chain in range(3):
        pyro.set_rng_seed(args.seed + chain)
        model = Model(X.shape[1], len(X))
        kernel = aeb.AEBKernel(
            model,
            aeb.SGHMC(step_size=5e-5, friction=0.1),
            adaptation=aeb.StochasticApproximation(aeb.Polynomial(10.0, 1000.0, 0.7)),
            steps_per_draw=20,
            seed=args.seed + chain,
        )
        mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup)
        mcmc.run(X, y)
        runs.append((model, mcmc))
    return runs


def replies(runs: list[tuple[Model, MCMC]], X: Tensor) -> tuple[Any, Any]:
    """
    Return what every draw predicts for inputs of shape (rows, d).

    :returns: the network's outputs, and new targets drawn with noise; shape (chains, draws, rows).
    """
    means, targets = [], []
    for model, mcmc in runs:
        samples = mcmc.get_samples()
        new = Predictive(model, samples)(X)["y"]
        with torch.no_grad():
            hidden = torch.relu(X @ samples["hidden.weight"].mT + samples["hidden.bias"][:, None])
            mean = hidden @ samples["output.weight"].mT + samples["output.bias"][:, None]
        means.append(mean.squeeze(-1).numpy())
        targets.append(new.numpy())
    return np.stack(means), np.stack(targets)


def main(args: argparse.Namespace) -> None:
    """The walkthrough."""
    args.out.mkdir(parents=True, exist_ok=True)
    X, y, names, title = read_data(args)
    data = split(X, y, args.seed)
    centre, unit = float(data.y.mean()), float(data.y.std(correction=0)) / TARGET_SCALE
    runs = run_chains(data.X, (data.y - centre) / unit, args)

    # 4. Did the chains agree?
    # ------------------------
    # Weights of two networks cannot be compared, since hidden units may change places. What they
    # predict can: R-hat over the three chains, for every held-out row. sigma2 is no draw, it is a
    # point estimate on its way to a fixed point: look at its mean, not at its spread.
    means, targets = replies(runs, data.X_test)
    means, targets = centre + unit * means, centre + unit * targets
    print_checks(means, runs, unit)
    for chain, (_, mcmc) in enumerate(runs):
        aeb.to_arviz(mcmc).to_netcdf(args.out / f"trace_{chain + 1}.nc")

    # 5. Predictions and intervals
    # ----------------------------
    # The mean over all draws is the prediction. A draw's target is its network's output plus noise;
    # the quantiles of these over all draws are the interval for a new observation.
    flat, drawn = means.reshape(-1, means.shape[-1]), targets.reshape(-1, targets.shape[-1])
    y_test = data.y_test.numpy()
    low, high = np.quantile(drawn, (0.5 - LEVEL / 2, 0.5 + LEVEL / 2), axis=0)
    errors = {
        "mean of the target": data.y.mean().item() - y_test,
        "least squares": LinearRegression().fit(data.X, data.y).predict(data.X_test) - y_test,
        "network, last draw": flat[-1] - y_test,
        "network, average": flat.mean(0) - y_test,
    }
    print(f"\nRMSE on {len(y_test)} held-out rows of {title}:")
    for name, error in errors.items():
        print(f"  {name:20}{np.sqrt(np.mean(error**2)):8.2f}")
    held = np.mean((low <= y_test) & (y_test <= high))
    print(f"\n{LEVEL:.0%} intervals hold {held:.0%} of the held-out rows; mean width "
          f"{np.mean(high - low):.1f}")  # fmt: skip

    # 6. Where is it unsure?
    # ----------------------
    # Two things make an interval wide: the noise, and that the draws' networks differ. The second
    # grows where there are few data. In the figure, one input leaves its range while all others
    # stay at their mean.
    feature = int(np.abs(np.corrcoef(data.X.T.numpy(), data.y.numpy())[-1, :-1]).argmax())
    line = torch.linspace(-6.0, 6.0, 121)
    inputs = torch.zeros(121, data.X.shape[1])
    inputs[:, feature] = line
    along = [centre + unit * values.reshape(-1, 121) for values in replies(runs, inputs)]
    figure = draw(title, y_test, flat, drawn, runs, unit)
    draw_line(figure.axes[2], line.numpy(), *along, data, feature, names[feature])
    figure.savefig(args.out / "uci_uncertainty.png", dpi=110)
    print(f"\nuci_uncertainty.png and the traces are in {args.out}")


def print_checks(means: Any, runs: list[tuple[Model, MCMC]], unit: float) -> None:
    """R-hat and effective sample size of the predictions; the learned latents."""
    predictions = xr.Dataset({"prediction": (("chain", "draw", "row"), means)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few draws
        checks = az.summary(predictions, kind="diagnostics").astype(float)
    print(f"\npredictions of the held-out rows, {means.shape[0]} chains of {means.shape[1]} draws:")
    print(f"  R-hat: median {checks['r_hat'].median():.2f}, largest {checks['r_hat'].max():.2f}")
    print(f"  effective draws: median {checks['ess_bulk'].median():.0f}")
    for name, label in (("sigma2", "noise, standard deviation"), ("hidden.delta", "delta, hidden"),
                        ("output.delta", "delta, output")):  # fmt: skip
        values = torch.stack([mcmc.get_samples()[name].mean() for _, mcmc in runs])
        values = values.sqrt() * unit if name == "sigma2" else values
        print(f"  {label}: " + ", ".join(f"{float(value):.3g}" for value in values))


# 7. The figure
# -------------
# Predictions with intervals against the truth; how often intervals of every level hold it; what is
# said along one input; and the noise that the chains settle on.


def draw(
    title: str, y_test: Any, means: Any, targets: Any, runs: list[tuple[Model, MCMC]], unit: float
) -> Figure:
    """
    The figure, its third panel empty.

    :param y_test: held-out targets, shape (rows,).
    :param means: every draw's prediction, shape (draws, rows).
    :param targets: new targets, shape (draws, rows).
    """
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    first, second, _, fourth = figure.subplots(2, 2).ravel()

    low, high = np.quantile(targets, (0.5 - LEVEL / 2, 0.5 + LEVEL / 2), axis=0)
    middle, inside = means.mean(0), (low <= y_test) & (y_test <= high)
    for which, color in ((inside, "C0"), (~inside, "C3")):
        reach = np.clip([middle - low, high - middle], 0.0, None)[:, which]
        first.errorbar(y_test[which], middle[which], yerr=reach, fmt="o", color=color,
                       markersize=3, elinewidth=0.8)  # fmt: skip
    ends = [min(y_test.min(), low.min()), max(y_test.max(), high.max())]
    first.plot(ends, ends, color="black", linewidth=0.8)
    first.set(title=f"{title}: {LEVEL:.0%} intervals (red: missed)",
              xlabel="observed", ylabel="predicted, held-out rows")  # fmt: skip

    levels = np.linspace(0.05, 0.95, 19)
    held = []
    for level in levels:
        ends = np.quantile(targets, (0.5 - level / 2, 0.5 + level / 2), axis=0)
        held.append(np.mean((ends[0] <= y_test) & (y_test <= ends[1])))
    spread = 2.0 * np.sqrt(levels * (1.0 - levels) / len(y_test))
    second.fill_between(levels, levels - spread, levels + spread, color="0.9",
                        label="what chance allows (± 2 sd)")  # fmt: skip
    second.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    second.plot(levels, held, "o-", markersize=4, label="held-out rows")
    second.set(title="do intervals hold what they promise?", xlabel="level of the interval",
               ylabel="share of rows inside", ylim=(0.0, 1.02))  # fmt: skip
    second.legend(loc="upper left")

    for chain, (_, mcmc) in enumerate(runs):
        fourth.plot(mcmc.get_samples()["sigma2"].sqrt() * unit, label=f"chain {chain + 1}")
    fourth.set(title="noise σ, a point estimate that still wanders", xlabel="draw")
    fourth.legend()
    return figure


def draw_line(
    axes: Any, line: Any, means: Any, targets: Any, data: Any, feature: int, name: str
) -> None:
    """
    Predictions along one input, the others at their mean.

    :param line: values of the input, shape (points,).
    :param means: every draw's prediction, shape (draws, points).
    :param targets: new targets, shape (draws, points).
    """
    quantiles = (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)
    axes.fill_between(line, *np.quantile(targets, quantiles, axis=0), color="C0", alpha=0.2,
                      label=f"a new observation ({LEVEL:.0%})")  # fmt: skip
    axes.fill_between(line, *np.quantile(means, quantiles, axis=0), color="C0", alpha=0.4,
                      label=f"the network ({LEVEL:.0%})")  # fmt: skip
    axes.plot(line, means.mean(0), color="C0")
    axes.plot(data.X[:, feature], data.y, ".", color="0.4", markersize=2, label="training rows")
    axes.set(title=f"along {name}, the others at their mean", xlabel=f"{name}, standardised",
             ylabel="target")  # fmt: skip
    axes.legend(loc="upper left", fontsize="small")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="folder of CSV files; without, diabetes data")
    parser.add_argument("--table", default="boston", help="which of them (default boston)")
    parser.add_argument("--out", type=Path, default=Path("uci_uncertainty_output"))
    parser.add_argument("--seed", type=int, default=2019, help="of the split and of the chains")
    parser.add_argument("--smoke", action="store_true", help="tiny, to see that everything runs")
    main(parser.parse_args())
