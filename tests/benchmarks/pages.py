# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Write the figures of :mod:`.table` into the pages that have them.

    python -m tests.benchmarks.pages docs/results/speed

What stands between ``<!-- speed: NAME -->`` and ``<!-- /speed -->`` is replaced. NAME is a figure
as in :mod:`.figures`, or ``tables``, ``bounds``, or a file of the folder.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from . import figures

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("big_models", "comparison", "results/speed")),
]
MARKED = re.compile(r"(<!-- speed: (.+?) -->)(.*?)(<!-- /speed -->)", re.DOTALL)


def filled(text: str, folder: Path) -> str:
    """A page with the figures of a folder; a block whose file is not there stays."""
    found = figures.read(folder)
    blocks = {"tables": figures.tables(found), "bounds": figures.bounds(found)}

    def replace(match: re.Match[str]) -> str:
        begin, name, _, end = match.groups()
        if (folder / name).is_file():
            blocks[name] = (folder / name).read_text(encoding="utf-8").strip()
        elif "." in name:
            return match[0]
        inside = f"\n\n{blocks[name]}\n\n" if name in blocks else found.text(name)
        return f"{begin}{inside}{end}"

    return MARKED.sub(replace, text)


def fill(folder: Path) -> None:
    """Write all pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), folder), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).strip().splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the figures")
    fill(parser.parse_args().folder)
