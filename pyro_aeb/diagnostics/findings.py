# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Findings of single diagnostics, and the verdict on a run that they make up."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pyro_aeb.testing.reports import find_check

Severity = Literal["good", "note", "warning"]
"""Nothing is wrong; undecided, or worth knowing; something should be done."""

COLORS: dict[Severity, str] = {"good": "#2ca02c", "note": "#7f7f7f", "warning": "#d62728"}
"""Colors in notebooks, on a light ground and on a dark one."""


def join_names(names: Iterable[str]) -> str:
    """Join different names for a message: the first four, and the number of the others."""
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - 4} more" if len(unique) > 4 else ""
    return ", ".join(unique[:4]) + more


@dataclass(frozen=True)
class Finding:
    """
    The result of one diagnostic.

    :param str check: name of the check, by which a verdict is indexed.
    :param str severity: ``"good"``, ``"note"`` or ``"warning"``.
    :param str found: what was found, with its figures.
    :param str expected: what was expected.
    :param str cure: what to do; empty if nothing is wrong.
    """

    check: str
    severity: Severity
    found: str
    expected: str = ""
    cure: str = ""

    def __str__(self) -> str:
        lines = [f"[{self.severity}] {self.check}: {self.found}"]
        if self.severity != "good":
            details = {"expected": self.expected, "cure": self.cure}
            lines += [f"    {name}: {text}" for name, text in details.items() if text]
        return "\n".join(
            textwrap.fill(line, 100, subsequent_indent="        " if line[0] == " " else "    ")
            for line in lines
        )


@dataclass(frozen=True, repr=False)
class Verdict:
    """
    All findings on a run. Printed, it reads as a report; ``verdict["pruning"]`` is the
    :class:`Finding` of one check, and a verdict can be iterated over.

    :param str subject: the run.
    :param findings: the findings, in the order of the checks.
    """

    subject: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no finding is a warning."""
        return not self.warnings

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that are warnings."""
        return tuple(f for f in self.findings if f.severity == "warning")

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, check: str) -> Finding:
        return find_check(self.findings, check)

    def __repr__(self) -> str:
        return "\n".join([self._head, *map(str, self.findings)])

    def _repr_html_(self) -> str:
        """Return a table, for notebooks."""
        rows = "".join(
            f'<tr><td style="border-left: 0.5em solid {COLORS[finding.severity]}">'
            + "</td><td>".join(
                html.escape(x)
                for x in (finding.severity, finding.check, finding.found, finding.cure)
            )
            + "</td></tr>"
            for finding in self.findings
        )
        head = "<tr><th></th><th>check</th><th>found</th><th>what to do</th></tr>"
        caption = f"<caption>{html.escape(self._head)}</caption>"
        return f'<table style="text-align: left">{caption}{head}{rows}</table>'

    @property
    def _head(self) -> str:
        count = len(self.warnings)
        head = "nothing to be done" if self.ok else f"{count} warning{'s' if count > 1 else ''}"
        return f"{self.subject}: {head}"
