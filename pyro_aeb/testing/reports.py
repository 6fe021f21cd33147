# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What a check says: a report where all is well, an AssertionError where it is not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """
    What one check found.

    :param str check: what was checked, in a few words.
    :param str result: what was found, with its figures.
    """

    check: str
    result: str


@dataclass(frozen=True, repr=False)
class Report:
    """
    The outcomes of checks, all of which passed.

    :param str subject: what was checked.
    :param outcomes: in the order in which they were made.
    """

    subject: str
    outcomes: tuple[Outcome, ...]

    def __getitem__(self, check: str) -> Outcome:
        """
        The outcome of one check.

        :raises KeyError: if it was not made.
        """
        for outcome in self.outcomes:
            if outcome.check == check:
                return outcome
        raise KeyError(
            f"{check!r} was not checked; checked were {[f.check for f in self.outcomes]}"
        )

    def __repr__(self) -> str:
        width = max((len(outcome.check) for outcome in self.outcomes), default=0)
        lines = [f"  {outcome.check:<{width}}  {outcome.result}" for outcome in self.outcomes]
        return "\n".join([f"{self.subject}: {len(self.outcomes)} checks passed", *lines])


def require(condition: bool, check: str, found: object, expected: object, meaning: str) -> None:
    """
    Fails a check that does not hold.

    :param bool condition: whether it holds.
    :param str check: what is checked.
    :param found: what was found.
    :param expected: what should have been.
    :param str meaning: what that means, and what to look at.
    :raises AssertionError: if it does not hold, with all of that.
    """
    if not condition:
        raise AssertionError(f"{check}: found {found}, expected {expected}; {meaning}")
