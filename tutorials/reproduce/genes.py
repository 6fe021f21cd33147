# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Expression of genes: spikes and slabs with a learned width beside ridge, elastic net and lasso.

    python tutorials/reproduce/genes.py --data-dir DATA --out results

Riboflavin (71 rows, a number to predict) by linear regression, and colon (alon, 62 rows) and
leukemia (golub, 72) by logistic. Five folds of two shuffles; of every fold, the genes of greatest
variance in its training rows, standardised by these. Penalties of the references are chosen by
cross-validation in the training rows. Four chains by Gibbs, whose starts of v0 are apart, are
pooled. Nothing is chosen on test rows. DATA holds riboflavin.npz, alon.npz and golub.npz, with x
and y.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common.experiment import command_line
from common.harness import Replicates, run_all
from common.options import new_parser
from common.tables import cell, frame, markdown_table, write_page
from learned_width import ridge
from sklearn.linear_model import ElasticNetCV, LassoCV, LogisticRegressionCV
from sparse_linear.data import Array

import pyro_aeb as aeb

DATA = {"riboflavin": None, "alon": "t", "golub": "AML"}
"""Data sets, with the class whose probability is predicted."""
METHODS = {
    "riboflavin": ("ridge", "elastic net", "lasso", "gibbs"),
    "alon": ("ridge", "lasso", "gibbs"),
    "golub": ("ridge", "lasso", "gibbs"),
}
FIGURES = ("loss", "error", "coverage", "genes", "halves", "v0", "sigma", "seconds")
CHAINS, STEPS_PER_DRAW, FOLDS, SHUFFLES = 4, 10, 5, 2
STARTS = (0.002, 0.008, 0.03, 0.1)
"""First values of v0, of the chains."""
Split = tuple[Array, Array, Array, Array]


def fold(name: str, number: int, data_dir: Path, genes: int) -> Split:
    """The features and targets of a fold, to learn from and to test on."""
    stored = np.load(data_dir / f"{name}.npz")
    x, y = stored["x"].astype(float), stored["y"]
    if name != "riboflavin":
        x, y = np.log10(np.clip(x, 100.0, 16000.0)), (y == DATA[name]).astype(float)
    order = np.random.default_rng(number // FOLDS).permutation(len(y))
    test = np.array_split(order, FOLDS)[number % FOLDS]
    train = np.setdiff1d(order, test)
    chosen = np.argsort(-x[train].var(0))[:genes]
    centre, scale = x[train][:, chosen].mean(0), x[train][:, chosen].std(0)
    standard = (x[:, chosen] - centre) / scale
    return standard[train], y[train].astype(float), standard[test], y[test].astype(float)


def linear_reference(method: str, split: Split) -> dict[str, float]:
    """Figures of a penalised regression, its penalty by cross-validation in the training rows."""
    x, y, x_test, y_test = split
    mean = y.mean()
    if method == "ridge":
        found, genes = ridge(x, y - mean, x_test) + mean, float(x.shape[1])
    else:
        shares = [0.1, 0.3, 0.5, 0.7, 0.9]
        model = LassoCV(cv=5) if method == "lasso" else ElasticNetCV(l1_ratio=shares, cv=5)
        found = model.fit(x, y).predict(x_test)
        genes = float((model.coef_ != 0.0).sum())
    return {"loss": float(((y_test - found) ** 2).mean()), "genes": genes}


def logistic_reference(method: str, split: Split) -> dict[str, float]:
    """Figures of a penalised logistic regression, likewise."""
    x, y, x_test, y_test = split
    penalty = {"ridge": "l2", "lasso": "l1"}[method]
    model = LogisticRegressionCV(
        Cs=np.geomspace(1e-5, 10.0, 13) if penalty == "l2" else np.geomspace(0.02, 20.0, 10),
        cv=5, penalty=penalty, solver="lbfgs" if penalty == "l2" else "liblinear",
        scoring="neg_log_loss", max_iter=2000,
    ).fit(x, y)  # fmt: skip
    genes = float((model.coef_ != 0.0).sum())
    return class_figures(model.predict_proba(x_test)[:, 1], y_test) | {"genes": genes}


def class_figures(chance: Array, y: Array) -> dict[str, float]:
    """Log loss and the share of errors, of the probabilities of class 1."""
    chance = chance.clip(1e-12, 1.0 - 1e-12)
    loss = -(y * np.log(chance) + (1.0 - y) * np.log1p(-chance)).mean()
    return {"loss": float(loss), "error": float(((chance > 0.5) != (y > 0.5)).mean())}


def spikes(x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """Sample the weights; sites without an ``init_value`` start where Gibbs starts them."""
    p = x.shape[1]
    delta = pyro.sample("delta", dist.Beta(4.0, float(p)))
    v0 = aeb.priors.spike_width("v0", p)
    return pyro.sample("beta", aeb.SSGL(v0, 1.0, delta, sigma).expand([p]).to_event(1))


def linear(x: torch.Tensor, y: torch.Tensor) -> None:
    """The model of riboflavin."""
    sigma = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5)).sqrt()
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    mean = intercept + x @ spikes(x, sigma)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def logistic(x: torch.Tensor, y: torch.Tensor) -> None:
    """The model of two classes."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
    logits = intercept + x @ spikes(x, 1.0)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def gibbs(name: str, number: int, split: Split, draws: int) -> dict[str, float]:
    """Figures of pooled chains."""
    x, y, x_test, y_test = split
    is_linear = name == "riboflavin"
    mean, scale = (y.mean(), y.std()) if is_linear else (0.0, 1.0)
    kernel = aeb.AEBKernel(
        linear if is_linear else logistic,
        aeb.SGHMC(0.01),  # in units of sigma v0
        aeb.Gibbs(every=10),
        seed=number,
        steps_per_draw=STEPS_PER_DRAW,
    )
    mcmc = aeb.MCMC(
        kernel, draws, draws, num_chains=CHAINS, chain_method="vectorized", disable_progbar=True,
        initial_params={"v0": torch.tensor(STARTS).log()},
    )  # fmt: skip
    mcmc.run(torch.from_numpy(x).float(), torch.from_numpy((y - mean) / scale).float())
    own = {k: v.double().numpy() for k, v in mcmc.get_samples().items()}
    means = own["beta"] @ x_test.T + own["intercept"].reshape(-1, 1)
    records = list(mcmc.diagnostics()["adaptation"].values())
    key = "beta_rho" if is_linear else "beta_gamma"  # a rejected flip is not in rho
    chains = np.stack([np.asarray(chain[key], float).mean(0) for chain in records])
    figures = {
        "genes": float(np.stack([np.asarray(c["beta_gamma"]) for c in records]).sum(-1).mean()),
        "halves": float(abs(chains[:2].mean(0) - chains[2:].mean(0)).max()),
        "v0": float(np.median(own["v0"])),
    }
    if not is_linear:
        return figures | class_figures((1.0 / (1.0 + np.exp(-means))).mean(0), y_test)
    sigma = np.sqrt(own["sigma2"]).reshape(-1, 1)
    noisy = means + sigma * np.random.default_rng(number).standard_normal(means.shape)
    low, high = np.quantile(noisy, (0.05, 0.95), axis=0) * scale + mean
    found = means.mean(0) * scale + mean
    return figures | {
        "loss": float(((y_test - found) ** 2).mean()),
        "coverage": float(((low <= y_test) & (y_test <= high)).mean()),
        "sigma": float(sigma.mean() * scale),
    }


def run_one(name: str, number: int, data_dir: Path, genes: int, draws: int) -> dict[str, float]:
    """The figures of one method on one fold."""
    data, method = name.split("; ")
    split = fold(data, number, data_dir, genes)
    clock = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method == "gibbs":
            figures = gibbs(data, number, split, draws)
        elif data == "riboflavin":
            figures = linear_reference(method, split)
        else:
            figures = logistic_reference(method, split)
    return figures | {"seconds": time.process_time() - clock}


def report(rows: Sequence[dict[str, str]], command: str) -> str:
    """A table: means, and paired differences from ridge on the same folds."""
    table = frame(rows, FIGURES)
    table[["data", "method"]] = table["method"].str.split("; ", expand=True).to_numpy()
    lines = []
    for data, methods in METHODS.items():
        of_data = table[table["data"] == data]
        losses = of_data.pivot(index="seed", columns="method", values="loss")
        for method in (m for m in methods if m in losses):
            own = of_data[of_data["method"] == method]
            less = (losses[method] - losses["ridge"]).dropna()
            difference = "reference" if method == "ridge" else cell(less.mean(), less.sem(), 3)
            loss = cell(own["loss"].mean(), own["loss"].sem(), 3)
            others = [cell(own[name].mean()) for name in FIGURES[1:]]
            lines.append([f"{data}, {method}", str(len(own)), loss, difference, *others])
    header = ["", "folds", "loss", "less ridge, paired", "errors", "in 90 % intervals", "genes"]
    header += ["halves apart", "v0", "σ", "seconds"]
    return (
        f"# Genes\n\n    {command}\n\npyro_aeb {aeb.__version__}, torch {version('torch')}, "
        f"scikit-learn {version('scikit-learn')}. The loss is the squared error of riboflavin, the "
        "log loss of the others. Means ± standard errors over folds, which share rows; seconds of "
        f"one core.\n\n{markdown_table(header, lines)}\n"
    )


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every fit is there."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="folder of the files")
    add("--data", nargs="+", default=list(DATA), choices=list(DATA), metavar="NAME",
        help=f"of {', '.join(DATA)} (default: all)")  # fmt: skip
    add("--genes", type=int, default=1000, help="genes of greatest variance (default 1000)")
    add("--draws", type=int, default=500, help="of each chain, after as many of warm-up")
    add("--jobs", type=int, default=1, help="fits to run at the same time (default 1)")
    add("--out", type=Path, default=Path("genes_output"), help="where results go")
    add("--smoke", action="store_true", help="tiny and meaningless, to see that everything runs")
    args: argparse.Namespace = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    genes, draws = (30, 4) if args.smoke else (args.genes, args.draws)
    tasks = [
        (number, f"{data}; {method}")
        for data in args.data
        for number in range(1 if args.smoke else FOLDS * SHUFFLES)
        for method in METHODS[data]
    ]

    def settings_of(name: str) -> str:
        own = f"; {CHAINS} chains, {draws} draws of {STEPS_PER_DRAW} steps"
        return f"{genes} genes{own if name.endswith('gibbs') else ''}"

    replicates = Replicates(args.out / "replicates.csv", FIGURES)
    run = partial(run_one, data_dir=args.data_dir, genes=genes, draws=draws)
    failed = run_all(tasks, run, settings_of, replicates, args.jobs)
    if replicates.rows:
        table = report(replicates.rows, command_line("genes.py", argv))
        write_page(args.out / "table.md", table)
        print(table)
    for (number, name), error in failed:
        print(f"failed: {name}, fold {number}: {error}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
