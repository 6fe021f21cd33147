# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Make a notebook of a tutorial
=============================

    python tutorials/notebook.py sparse_regression

writes ``sparse_regression.ipynb`` beside the script. Options of the script may follow, such as
``--smoke``; in the notebook they stand in the cell that makes ``args``. It needs nbformat, which
Jupyter brings.

Comments that begin a paragraph become text, and the body of ``main`` becomes cells. Functions that
stand below ``main`` come right before the cell that needs them.
"""

from __future__ import annotations

import argparse
import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbformat import v4

FOLDER = Path(__file__).resolve().parent


class Piece(NamedTuple):
    """A statement of a script, with the text before it."""

    text: str
    code: str
    node: ast.stmt

    def defined(self) -> set[str]:
        """Names of the function or class, or of what is assigned."""
        if name := getattr(self.node, "name", None):
            return {name}
        return {x.id for x in ast.walk(self.node) if isinstance(x, ast.Name) and _is_stored(x)}

    def used(self) -> set[str]:
        """Names that the code reads."""
        return {x.id for x in ast.walk(self.node) if isinstance(x, ast.Name) and not _is_stored(x)}


def pieces(lines: list[str], body: list[ast.stmt], begin: int) -> Iterator[Piece]:
    """
    Split statements from their texts.

    :param lines: of the script.
    :param body: statements of the script, or of a function.
    :param int begin: number of the line after which the first may have comments.
    """
    for node in body:
        first = min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", []))])
        above, text = lines[begin : first - 1], ""
        starts = [i for i, line in enumerate(above) if line.lstrip().startswith("# ")]
        if starts and (starts[0] == 0 or not above[starts[0] - 1].strip()):
            text = "\n".join(line.strip().removeprefix("#").removeprefix(" ") for line in above)
            above = []
        code = textwrap.dedent("\n".join([*above, *lines[first - 1 : node.end_lineno]]))
        yield Piece(_markdown(text), code.rstrip(), node)
        begin = int(node.end_lineno or first)


def make_notebook(source: str, options: list[str]) -> Any:
    """
    Return the notebook of a tutorial.

    :param str source: the script, with a function ``main`` of one argument.
    :param options: of the script, for the cell that reads them.
    """
    lines, tree = source.splitlines(), ast.parse(source)
    docstring, *body = tree.body
    title = _markdown(ast.literal_eval(docstring.value).strip())  # type: ignore[attr-defined]
    tops = list(pieces(lines, body, int(docstring.end_lineno or 0)))
    (at,) = (i for i, piece in enumerate(tops) if getattr(piece.node, "name", "") == "main")
    main, script = tops[at].node, tops[-1].node
    assert isinstance(main, ast.FunctionDef) and isinstance(script, ast.If)
    later = {name: piece for piece in tops[at + 1 : -1] for name in piece.defined()}

    cells = [v4.new_markdown_cell(title), v4.new_code_cell("%matplotlib inline")]
    for piece in tops[:at]:
        _add(cells, piece)
    arguments = _arguments(lines, script, main.args.args[0].arg, options)
    cells += [
        v4.new_markdown_cell("The script's options:"),
        v4.new_code_cell(arguments, metadata={"alone": True}),
    ]
    for piece in pieces(lines, main.body[1:], int(main.body[0].end_lineno or 0)):
        for needed in _needed(piece, later):
            _add(cells, needed)
        _add(cells, piece, show=True)
    return v4.new_notebook(cells=cells)


def _needed(piece: Piece, later: dict[str, Piece]) -> Iterator[Piece]:
    """Take the pieces that a piece needs, and those that they need, out of ``later``."""
    for name in sorted(piece.used() & set(later), key=list(later).index):
        if (needed := later.get(name)) is not None:
            for name in needed.defined():
                del later[name]
            yield from _needed(needed, later)
            yield needed


def _arguments(lines: list[str], script: ast.If, name: str, options: list[str]) -> str:
    """The block that reads the options, without the call of main."""
    *before, last = pieces(lines, script.body, script.lineno)
    (given,) = last.node.value.args  # type: ignore[attr-defined]
    code = "\n".join([*(piece.code for piece in before), f"{name} = {ast.unparse(given)}"])
    return code.replace(".parse_args()", f".parse_args({options!r})")


def _add(cells: list[Any], piece: Piece, show: bool = False) -> None:
    """Append a piece. Statements share a cell until a text or a definition comes."""
    if piece.text:
        cells.append(v4.new_markdown_cell(piece.text))
    code = piece.code
    if show and (figure := re.match(r"(\w+)\.savefig\(", code)):
        code += f"\ndisplay({figure[1]})"
    previous = cells[-1]
    is_definition = isinstance(piece.node, ast.FunctionDef | ast.ClassDef)
    if is_definition or previous.cell_type != "code" or previous.metadata.get("alone", True):
        cells.append(v4.new_code_cell(code.lstrip("\n"), metadata={"alone": is_definition}))
    else:
        previous.source += "\n" + code


def _markdown(text: str) -> str:
    """Turn reStructuredText's headings into Markdown's."""
    text = re.sub(r"^(.+)\n={3,}$", r"# \1", text.strip(), flags=re.M)
    return re.sub(r"^(.+)\n-{3,}$", r"## \1\n", text, flags=re.M)


def _is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def main(args: argparse.Namespace) -> None:
    """Write the notebook."""
    script = FOLDER / Path(args.script).with_suffix(".py").name
    notebook = make_notebook(script.read_text(encoding="utf-8"), args.options)
    path = script.with_suffix(".ipynb")
    nbformat.write(notebook, path)
    print(f"{path} is written; open it with: jupyter lab {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a notebook of a tutorial.")
    parser.add_argument("script", help="name of the tutorial, such as sparse_regression")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the script")
    main(parser.parse_args())
