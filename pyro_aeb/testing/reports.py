# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Reports of checks that passed, and the AssertionError of a check that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


class _Result(Protocol):
    @property
    def check(self) -> str: ...


ResultT = TypeVar("ResultT", bound=_Result)


def find_check(results: Sequence[ResultT], check: str) -> ResultT:
    """
    Return the result of one check.

    :raises KeyError: if the check was not made.
    """
    for result in results:
        if result.check == check:
            return result
    raise KeyError(f"{check!r} was not checked; checked were {[r.check for r in results]}")


@dataclass(frozen=True)
class Outcome:
    """
    The outcome of one check that passed.

    :param str check: name of the check.
    :param str result: what was found, with its figures.
    """

    check: str
    result: str


@dataclass(frozen=True, repr=False)
class Report:
    """
    The outcomes of checks, all of which passed. Printed, it is a table; ``report["state"]`` is the
    :class:`Outcome` of one check.

    :param str subject: what was checked.
    :param outcomes: the outcomes, in the order of the checks.
    """

    subject: str
    outcomes: tuple[Outcome, ...]

    def __getitem__(self, check: str) -> Outcome:
        return find_check(self.outcomes, check)

    def __repr__(self) -> str:
        width = max((len(outcome.check) for outcome in self.outcomes), default=0)
        lines = [f"  {outcome.check:<{width}}  {outcome.result}" for outcome in self.outcomes]
        return "\n".join([f"{self.subject}: {len(self.outcomes)} checks passed", *lines])


def require(condition: bool, check: str, found: object, expected: object, meaning: str) -> None:
    """
    Fail a check unless its condition holds.

    :param str meaning: what a failure means, and where to look for its cause.
    :raises AssertionError: if the condition does not hold.
    """
    if not condition:
        raise AssertionError(f"{check}: found {found}, expected {expected}; {meaning}")
