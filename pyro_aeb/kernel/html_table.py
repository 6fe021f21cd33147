# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def html_table(
    caption: str,
    rows: Iterable[Sequence[str]],
    head: Sequence[str] = (),
    colors: Sequence[str] = (),
) -> str:
    """
    Return a table in HTML.

    :param str caption: of the table.
    :param rows: texts of the cells.
    :param head: texts of the first row, if there is one.
    :param colors: of the left edge of each row in ``rows``, if there are any.
    """
    edges = [f' style="border-left: 0.5em solid {color}"' for color in colors]
    lines = [_row("th", head)] if head else []
    for i, cells in enumerate(rows):
        lines.append(_row("td", cells, edges[i] if edges else ""))
    caption = f"<caption>{html.escape(caption)}</caption>"
    return f'<table style="text-align: left">{caption}{"".join(lines)}</table>'


def _row(tag: str, cells: Sequence[str], edge: str = "") -> str:
    texts = [f"{html.escape(cell)}</{tag}>" for cell in cells]
    return f"<tr><{tag}{edge}>" + f"<{tag}>".join(texts) + "</tr>"
