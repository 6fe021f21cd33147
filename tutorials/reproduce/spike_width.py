# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Why a wide spike loses, without a sampler in the way.

    python tutorials/reproduce/spike_width.py

Take the large-p small-n problem, tell the prior which features are real, and make every spike a
Gaussian of the same variance, 2 v0^2 sigma^2. Then the posterior mean is exact, and so is the
marginal likelihood of sigma. The table shows, for several v0, what all spikes together can explain
(in units of the noise variance), the test MSE with the three real features in the slab, with only
the first two there, and the sigma of greatest marginal likelihood, which is 1.73 in truth. Data
sets are those of development, seeds 1000 and up.
"""

from __future__ import annotations

import argparse

import numpy as np
from sparse_linear.data import NOISE_VARIANCE, Array, Problem, Size, simulate

SLAB_VARIANCE = 10.0
WIDTHS = (0.1, 0.05, 0.035, 0.02, 0.01, 0.005)


def posterior(problem: Problem, v0: float, slab: int) -> tuple[float, float]:
    """
    Exact inference with known support.

    :param Problem problem: the data set.
    :param float v0: width of the spikes, in units of sigma.
    :param int slab: the first so many features are in the slab.
    :returns: test MSE of the posterior mean, and sigma of greatest marginal likelihood.
    """
    n, p = problem.X.shape
    variance: Array = np.full(p, 2.0 * v0**2)
    variance[:slab] = SLAB_VARIANCE
    covariance = (problem.X * variance) @ problem.X.T + np.eye(n)  # of y, in units of sigma^2
    weighted = np.linalg.solve(covariance, problem.y)
    mean = variance * (problem.X.T @ weighted)
    error = np.mean((problem.y_test - problem.X_test @ mean) ** 2)
    return float(error), float(np.sqrt(problem.y @ weighted / n))


def main(replicates: int) -> None:
    """Prints the table."""
    problems = [simulate(1000 + seed, Size()) for seed in range(replicates)]
    p = problems[0].X.shape[1]
    print("| v0 | 2 p v0² | MSE, three in the slab | MSE, two in the slab | likeliest σ |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for v0 in WIDTHS:
        three = np.array([posterior(problem, v0, 3) for problem in problems])
        two = np.array([posterior(problem, v0, 2) for problem in problems])
        print(
            f"| {v0} | {2 * p * v0**2:.2f} | {three[:, 0].mean():.2f} | {two[:, 0].mean():.2f} "
            f"| {three[:, 1].mean():.2f} |"
        )
    print(f"\n{replicates} data sets; the truth of σ is {NOISE_VARIANCE**0.5:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicates", type=int, default=20, help="data sets (default 20)")
    main(parser.parse_args().replicates)
