# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Findings of single diagnostics, and the verdict on a run that they make up."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pyro_aeb.kernel.html_table import html_table
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


def _ipython() -> Any:
    """Return the shell of IPython in which this runs; None outside of it."""
    module = sys.modules.get("IPython")
    return None if module is None else module.get_ipython()


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
        return html_table(
            self._head,
            [(f.severity, f.check, f.found, f.cure) for f in self.findings],
            head=("", "check", "found", "what to do"),
            colors=[COLORS[f.severity] for f in self.findings],
        )

    def show(self) -> None:
        """Print the verdict; in IPython and in notebooks display it, once in every cell."""
        if (shell := _ipython()) is None:
            print(self)
        elif self.__dict__.get("_shown_in") != shell.execution_count:
            object.__setattr__(self, "_shown_in", shell.execution_count)
            shown = {"text/plain": repr(self), "text/html": self._repr_html_()}
            shell.display_pub.publish(shown)

    _ipython_display_ = show  # where a cell ends with check(mcmc), which has shown it already

    @property
    def _head(self) -> str:
        count = len(self.warnings)
        head = f"{count} warning{'s' if count > 1 else ''}"
        if self.ok:
            has_advice = any(f.cure for f in self.findings if f.severity == "note")
            head = "no warning, see the notes" if has_advice else "nothing to be done"
        return f"{self.subject}: {head}"
