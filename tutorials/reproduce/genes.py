# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Expression of genes: spikes and slabs with a learned width beside penalised regressions and the
horseshoe.

    python tutorials/reproduce/genes.py --data-dir DATA --out results

Riboflavin (71 rows, a number to predict) by linear regression; colon (alon, 62 rows), leukemia
(golub, 72), prostate (singh, 102), lymphoma (shipp, 77) and breast (gravier, 168), of two classes,
by logistic; SRBCT (khan, 63), of four classes, by multinomial. Five folds of two shuffles; of every
fold, the genes of greatest variance in its training rows, standardised by these. Penalties of the
references are chosen by cross-validation in the training rows. MCP is for riboflavin only, and the
horseshoe, by NumPyro, for all but SRBCT. Four chains by Gibbs, whose starts of v0 are apart, are
pooled; its flips are proposals that are accepted always in the linear model, and by a Metropolis
ratio in the others. Nothing is chosen on test rows. DATA holds riboflavin.npz, alon.npz and so on,
with x and y.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.experiment import command_line
from common.harness import Replicates, run_all
from common.options import new_parser
from common.tables import write_page
from gene_expression import selections
from gene_expression.data import FOLDS, SETS, SHUFFLES
from gene_expression.fits import FIGURES, HAS_NUMPYRO, METHODS, methods_of, run_one, settings_of
from gene_expression.report import report


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="folder of the files")
    add("--data", nargs="+", default=list(SETS), choices=list(SETS), metavar="NAME",
        help=f"of {', '.join(SETS)} (default: all)")  # fmt: skip
    add("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD",
        help=f"of {', '.join(METHODS)} (default: all that a set has)")  # fmt: skip
    add("--genes", type=int, default=1000, help="genes of greatest variance (default 1000)")
    add("--draws", type=int, default=500, help="of each chain, after as many of warm-up")
    add("--jobs", type=int, default=1, help="fits to run at the same time (default 1)")
    add("--out", type=Path, default=Path("genes_output"), help="where results go")
    add("--smoke", action="store_true", help="tiny and meaningless, to see that everything runs")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every fit is there."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    genes, draws = (30, 4) if args.smoke else (args.genes, args.draws)
    if not HAS_NUMPYRO and "horseshoe" in args.methods:
        print("numpyro is not installed, so the horseshoe is left out", file=sys.stderr)
    tasks = [
        (number, f"{data}; {method}")
        for data in args.data
        for number in range(1 if args.smoke else FOLDS * SHUFFLES)
        for method in methods_of(data)
        if method in args.methods
    ]
    settings = partial(settings_of, genes=genes, draws=draws)
    replicates = Replicates(args.out / "replicates.csv", FIGURES)
    selections.begin(args.out)
    run = partial(run_one, data_dir=args.data_dir, genes=genes, draws=draws, out=args.out)
    failed = run_all(tasks, run, settings, replicates, args.jobs)
    if replicates.rows:
        chosen = selections.read_selections(args.out)
        table = report(replicates.rows, chosen, command_line("genes.py", argv))
        write_page(args.out / "table.md", table)
        print(table)
    for (number, name), error in failed:
        print(f"failed: {name}, fold {number}: {error}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
