# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The pages have short paragraphs and short source lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Scripts write these, with the command in an indented line.
WRITTEN = {*ROOT.glob("docs/results/*/*.md")}
MAX_WORDS = 120  # of a paragraph or an item of a list
MAX_LENGTH = 120  # of a source line, in characters

COMMENT = re.compile(r"<!--.*?-->", re.S)
GENERATED = re.compile(r"<!-- speed: [^>]*-->\n.*?<!-- /speed -->", re.S)
FENCE = re.compile(r"[\s*-]*([`:~]{3,})(.*)")
PROSE = re.compile(r"\{(note|warning|tip|important|admonition|list-table)\}")
ITEM = re.compile(r"\s*([-*+]|\d+\.) ")


def blank(match: re.Match[str]) -> str:
    """Keep the line breaks alone, so that line numbers stay."""
    return "\n" * match.group().count("\n")


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """
    Yield number, kind and text of every line.

    The kind is "" for prose, "table" for a row, and what follows the fence for code.
    """
    text = COMMENT.sub(blank, GENERATED.sub(blank, text))
    code, kind = "", ""
    open_prose: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.fullmatch(line)
        if code:
            yield number, kind, line
            code = "" if line.strip() == code else code
        elif fence:
            mark, kind = fence[1], fence[2] or "text"
            if PROSE.match(kind):
                open_prose.append(mark)
            elif open_prose and line.strip() == open_prose[-1]:
                open_prose.pop()
            else:
                code = mark
            yield number, kind, ""
        else:
            yield number, "table" if line.lstrip().startswith("|") else "", line


def long_paragraphs(text: str) -> list[str]:
    """Return first line and number of words of every paragraph of more than MAX_WORDS words."""
    found: list[str] = []
    first, words = 0, 0
    for number, kind, line in [*blocks(text), (0, "", "")]:
        prose = bool(line.strip()) and not kind
        if words > MAX_WORDS and (not prose or ITEM.match(line)):
            found.append(f"{first}: {words} words")
        if not prose or ITEM.match(line):
            words = 0
        if prose:
            first = first if words else number
            words += len(line.split())
    return found


def long_lines(text: str) -> list[str]:
    """Return the lines of prose and Python of more than MAX_LENGTH characters, URLs left out."""
    return [
        f"{number}: {line[:60]}..."
        for number, kind, line in blocks(text)
        if kind in ("", "python") and len(re.sub(r"https?://\S+", "", line)) > MAX_LENGTH
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_easy_to_read(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page in WRITTEN:
        text = re.sub(r"^    python .*$", "", text, flags=re.M)
    found = long_paragraphs(text) + long_lines(text)
    assert found == [], "\n".join(["", *found])


def test_long_paragraphs_are_found() -> None:
    words = "word " * MAX_WORDS
    assert long_paragraphs(f"{words}\n\n{words}\n- {words[:-5]}\n- {words[:-5]}\n") == []
    assert long_paragraphs(f"# A\n\nOne\n{words}\n\nTwo\n") == [f"3: {MAX_WORDS + 1} words"]
    assert long_paragraphs(f"- {words}\n- two") == [f"1: {MAX_WORDS + 1} words"]
    assert long_paragraphs(f"```{{note}}\n{words}one\n```\n") == [f"2: {MAX_WORDS + 1} words"]
    assert long_paragraphs(f"```text\n{words}one\n```\n| {words}one |\n") == []
    assert long_paragraphs(f"<!-- speed: tables -->\n{words}one\n<!-- /speed -->\n") == []


def test_long_lines_are_found() -> None:
    line = "x" * MAX_LENGTH
    assert long_lines(f"{line}\n| {line} |\n```text\n{line}y\n```\n") == []
    assert (
        long_lines(f"{line}<!-- speed: F ours cpu --><!-- /speed -->https://pyro.ai/{line}") == []
    )
    assert long_lines(f"\n{line}y\n") == [f"2: {line[:60]}..."]
    assert long_lines(f"```python\n{line}y\n```\n") == [f"2: {line[:60]}..."]
