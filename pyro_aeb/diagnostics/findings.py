# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What a diagnostic says: a finding in plain words, and a verdict made of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Severity = Literal["good", "note", "warning"]
"""All is well; it cannot be told, or is worth knowing; something is to be done."""


@dataclass(frozen=True)
class Finding:
    """
    What one diagnostic found.

    :param str check: what was looked at, in a few words; the name by which a verdict finds it.
    :param str severity: ``"good"``, ``"note"`` or ``"warning"``.
    :param str found: what was found, with its figures.
    :param str expected: what should have been.
    :param str cure: what to do; empty where all is well.
    """

    check: str
    severity: Severity
    found: str
    expected: str = ""
    cure: str = ""

    def __str__(self) -> str:
        lines = [f"[{self.severity}] {self.check}: {self.found}"]
        if self.severity != "good":
            lines += [f"expected: {self.expected}"] if self.expected else []
            lines += [f"cure: {self.cure}"] if self.cure else []
        wrapped = (
            textwrap.fill(
                line,
                width=100,
                initial_indent="    " if i else "",
                subsequent_indent="        " if i else "    ",
            )
            for i, line in enumerate(lines)
        )
        return "\n".join(wrapped)


@dataclass(frozen=True, repr=False)
class Verdict:
    """
    All findings on a run. Printed, it reads as a report; ``verdict["pruning"]`` is the finding of
    one check, and iterating goes through all.

    :param str subject: the run.
    :param findings: in the order in which they were made.
    """

    subject: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no finding is a warning."""
        return not self.warnings

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that ask for something to be done."""
        return tuple(f for f in self.findings if f.severity == "warning")

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, check: str) -> Finding:
        """
        The finding of one check.

        :raises KeyError: if it was not made.
        """
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"{check!r} was not checked; checked were {[f.check for f in self]}")

    def __repr__(self) -> str:
        count = len(self.warnings)
        head = "nothing to be done" if self.ok else f"{count} warning{'s' if count > 1 else ''}"
        return "\n".join([f"{self.subject}: {head}", *map(str, self.findings)])
