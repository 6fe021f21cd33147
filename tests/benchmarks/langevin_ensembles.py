# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Networks on UCI tables by ``sklearn-contrib-bde`` (microcanonical Langevin ensembles), on the splits
of the page on UCI tables, one hidden layer of 50 units, with the settings of that package's README.

    python -m venv peer && peer/bin/pip install sklearn-contrib-bde
    peer/bin/python tests/benchmarks/langevin_ensembles.py --data-dir DATA

An environment of its own, as the package asks for one release of BlackJAX. A row is written as soon
as it is there, and a second call goes on; seconds are of processor time on one thread, compilation
among them. The rows of this project beside it are those of docs/results/uci.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from bde import BdeRegressor  # noqa: E402
from bde.loss import GaussianNLL  # noqa: E402
from scipy.special import logsumexp  # noqa: E402
from scipy.stats import norm  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
TABLES = ("boston", "yacht", "energy", "wine", "concrete")
SEEDS = (5, 55, 555, 5555, 6)
FIELDS = ("table", "seed", "rmse", "nll", "seconds")
SETTINGS = dict(
    n_members=8,
    hidden_layers=[50],
    epochs=200,
    validation_split=0.15,
    lr=1e-3,
    weight_decay=1e-4,
    warmup_steps=5000,
    n_samples=2000,
    n_thinning=2,
    patience=10,
)


def fit(path: Path, seed: int) -> dict[str, float]:
    """Fit one split of a table; error and negative log density are in the target's unit."""
    data = np.loadtxt(path, delimiter=",", skiprows=1)
    X, X_test, y, y_test = train_test_split(
        data[:, :-1], data[:, -1], test_size=0.1, random_state=seed
    )
    center, scale = X.mean(0), X.std(0) + 1e-8
    mean, unit = y.mean(), y.std()
    model = BdeRegressor(seed=seed, loss=GaussianNLL(), **SETTINGS)
    start = time.process_time()
    model.fit(x=(X - center) / scale, y=((y - mean) / unit).reshape(-1, 1))
    raw = model.predict((X_test - center) / scale, raw=True)
    draws = np.asarray(raw, dtype=float).reshape(-1, len(y_test), 2)
    seconds = time.process_time() - start
    location = mean + unit * draws[..., 0]
    deviation = unit * (np.asarray(jax.nn.softplus(draws[..., 1])) + 1e-6)
    density = logsumexp(norm.logpdf(y_test, location, deviation), axis=0) - np.log(len(draws))
    error = np.sqrt(np.mean((location.mean(0) - y_test) ** 2))
    return {"rmse": float(error), "nll": -float(density.mean()), "seconds": seconds}


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Write means and standard errors of both packages over the splits that both have."""
    ours = read(RESULTS / "uci" / "replicates.csv")
    lines = [
        f"sklearn-contrib-bde {version('sklearn-contrib-bde')}, jax {jax.__version__}.",
        "",
        "| table | splits | RMSE, bde | RMSE, pyro_aeb | NLL, bde | NLL, pyro_aeb "
        "| CPU seconds, bde | CPU seconds, pyro_aeb |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for table in TABLES:
        theirs = [row for row in rows if row["table"] == table]
        seeds = {row["seed"] for row in theirs}
        method = f"{table}/ours"
        mine = [row for row in ours if row["method"] == method and row["seed"] in seeds]
        if not theirs:
            continue
        cells = [table.capitalize(), str(len(theirs))]
        for field, digits in (("rmse", 3), ("nll", 2), ("seconds", 0)):
            for group in (theirs, mine):
                values = np.array([float(row[field]) for row in group])
                text = f"{values.mean():.{digits}f}"
                if digits and len(values) > 1:
                    text += f" ± {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}"
                cells.append(text)
        lines.append(f"| {' | '.join(cells)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS / "bde")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "replicates.csv"
    done = {(row["table"], int(row["seed"])) for row in read(path)}
    for seed in args.seeds:
        for table in args.tables:
            if (table, seed) in done:
                continue
            row = {"table": table, "seed": seed} | fit(args.data_dir / f"{table}.csv", seed)
            text = {name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()}
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, FIELDS)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(text)
            print(text, flush=True)
            write_table(args.out / "table.md", read(path))


if __name__ == "__main__":
    main()
