# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Say where non-finite numbers of a run come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyro_aeb.data.arguments import Arguments, named_numbers
from pyro_aeb.data.finite import count_non_finite
from pyro_aeb.errors import NonFiniteError, first_line

_KEPT = "The draws finished before are in this error's `draws` and in kernel.recover()"


def sum_is_finite(values: Sequence[Tensor]) -> bool:
    """
    Return whether all numbers have a finite sum, which shows at the least cost that all are finite.

    :param values: at least one tensor.
    """
    first, *others = (value.sum() for value in values)
    return math.isfinite(sum(others, start=first))


def first_non_finite(values: Mapping[str, Tensor]) -> str | None:
    """Return the first name whose values are not all finite; one synchronisation if all are."""
    is_finite = {name: torch.isfinite(value).all() for name, value in values.items()}
    if not is_finite or bool(torch.stack(list(is_finite.values())).all()):
        return None
    return next(name for name, finite in is_finite.items() if not bool(finite))


def non_finite_chains(shape: torch.Size, *values: Tensor) -> list[int]:
    """
    Return which of several chains have numbers that are not finite.

    :param torch.Size shape: (C,) of C chains; () of one chain, which has no number.
    :param values: of shape (C, ...).
    """
    if not shape:
        return []
    is_finite = [torch.isfinite(value).reshape(*shape, -1).all(-1) for value in values]
    return (~torch.stack(is_finite).all(0)).nonzero().flatten().tolist()


def check_batch(k: int, arguments: Arguments, draws: dict[str, Tensor]) -> None:
    """
    Check that the data of a step are finite.

    :raises NonFiniteError: if a number in the batch is not finite.
    """
    for name, value in named_numbers(arguments):
        if count := count_non_finite(value):
            error = NonFiniteError(
                f"step {k}: argument {name} of this batch has {count} non-finite of "
                f"{value.numel()} numbers, so the run stops here; remove or impute them in "
                f"the data set. {_KEPT}",
                step=k,
                site=None,
                draws=draws,
            )
            error.in_data = True
            raise error


def divergence_error(
    k: int,
    site: str | None,
    what: str,
    chains: Sequence[int],
    step_size: float | None,
    draws: dict[str, Tensor],
    fastest: tuple[str, float] | None = None,
) -> NonFiniteError:
    """
    Return the error of a chain that has diverged.

    :param site: the first site with a non-finite number, None if it is the potential.
    :param str what: what is not finite, in words.
    :param chains: of several chains that step together, those that have diverged.
    :param step_size: None if it was tuned.
    :param fastest: the site of the largest mean square momentum, about 1 in a run that is well,
        and that; of a tuned run.
    """
    if chains:
        what += f" of chain {', '.join(map(str, chains))}"
    if step_size is None:
        advice = (
            "warm-up chooses it, and the posterior is steeper where the chain is now, as in a "
            "funnel. Write a hierarchy with sites that are not centred, by "
            "pyro.infer.reparam.LocScaleReparam"
        )
        if fastest is not None:
            name, square = fastest
            advice += f"; here {name!r} moves fastest, by a momentum of mean square {square:.2g}"
    else:
        advice = f"it is {step_size:.3g}, try {step_size / 10:.1g}"
    return NonFiniteError(
        f"step {k}: {what} is not finite, so the run stops here. The usual cause is a step "
        f"size that is too large for the curvature: {advice}. Else look at the data's "
        f"scale and the starting point. {_KEPT}",
        step=k,
        site=site,
        draws=draws,
    )


def missing_density_error(
    k: int, site: str | None, error: Exception, step_size: float | None, draws: dict[str, Tensor]
) -> NonFiniteError:
    """
    Return the error of a chain at whose weights the model fails, for its density does not exist.

    :param site: where the model fails: the last site that it has reached.
    :param step_size: None if it was tuned.
    """
    advice = "Try "
    if step_size is not None:
        advice += f"a step size of {step_size / 10:.1g} instead of {step_size:.3g}, "
    where = "" if site is None else f" at or after site {site!r}"
    return NonFiniteError(
        f"step {k}: the model has no density at the weights of this step, it fails{where}: "
        f"{first_line(error)} So the run stops here. {advice}a prior that keeps away from such "
        "values, 1e-4 or more on the diagonal of a matrix that is nearly singular, or float64; "
        f"transitions.HMC rejects such values and goes on. {_KEPT}",
        step=k,
        site=site,
        draws=draws,
    )
