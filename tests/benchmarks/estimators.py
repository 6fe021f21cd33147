# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Held-out errors and times of estimators with their defaults, for ``docs/scikit_learn.md``::

    python -m tests.benchmarks.estimators --data-dir DATA

DATA holds riboflavin.npz (x and y) and concrete.csv (a header, the target last). A fifth of the
rows is held out, once for every split. Times are of the processor, on one thread. Every fit is a
line of output.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import ElasticNetCV, LassoCV, RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyro_aeb.sklearn import NetworkRegressor, SparseRegressor


def read_table(name: str, folder: Path) -> tuple[Any, Any]:
    if name == "riboflavin":
        stored = np.load(folder / "riboflavin.npz")
        return stored["x"], stored["y"]
    table = np.loadtxt(folder / f"{name}.csv", delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1]


def estimators(name: str, seed: int) -> dict[str, Any]:
    own = SparseRegressor if name == "riboflavin" else NetworkRegressor
    alphas = np.logspace(-3.0, 5.0, 33)
    return {
        "ridge": make_pipeline(StandardScaler(), RidgeCV(alphas)),
        "elastic net": make_pipeline(
            StandardScaler(),
            ElasticNetCV(l1_ratio=[0.1, 0.3, 0.5, 0.7, 0.9], random_state=seed, max_iter=10_000),
        ),
        "lasso": make_pipeline(StandardScaler(), LassoCV(random_state=seed, max_iter=10_000)),
        own.__name__: own(random_state=seed),
    }


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print("table,method,seed,rmse,seconds,held,warnings")
    for seed in range(args.splits):
        for name in args.tables:
            X, y = read_table(name, args.data_dir)
            X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=seed)
            for method, estimator in estimators(name, seed).items():
                start = time.process_time()
                estimator.fit(X, y)
                seconds = time.process_time() - start
                rmse = float(np.sqrt(np.mean((estimator.predict(X_test) - y_test) ** 2)))
                held, warnings = "", ""
                if hasattr(estimator, "check_"):
                    low, high = estimator.predict_interval(X_test).T
                    held = f"{np.mean((low <= y_test) & (y_test <= high)):.3f}"
                    warnings = "; ".join(f.check for f in estimator.check_.warnings)
                print(
                    f"{name},{method},{seed},{rmse:.4f},{seconds:.1f},{held},{warnings}", flush=True
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Errors and times of estimators.")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", default=["concrete", "riboflavin"])
    parser.add_argument("--splits", type=int, default=5)
    main(parser.parse_args())
