# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Ten questions of a newcomer, each answered in at most two clicks from the table of the docs' index.

The questions were written down before the pages were searched for their answers.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
INDEX = "index.md"

# Question: page, heading of the section, and words of the answer in it.
QUESTIONS = {
    "Can I try it without knowing Pyro?": (
        "scikit_learn.md",
        "Estimators for scikit-learn",
        "SparseRegressor(random_state=0).fit(X, y)",
    ),
    "How do I install it on a laptop without a GPU?": (
        "installation.md",
        "Installation",
        "https://download.pytorch.org/whl/cpu",
    ),
    "My data are a pandas data frame. What do I pass?": (
        "your_data.md",
        "From a table to tensors",
        "torch.tensor(",
    ),
    "I want logistic regression. Which likelihood?": (
        "your_data.md",
        "Choose the likelihood",
        "dist.Bernoulli",
    ),
    "Which features matter, and how sure is that?": (
        "your_data.md",
        "Which features?",
        "aeb.inclusion(trace)",
    ),
    "What will the next row be, with an interval?": (
        "your_data.md",
        "What will the next one be?",
        "Predictive(",
    ),
    "Can I trust this run?": (
        "troubleshooting.md",
        "What `aeb.check` finds",
        "draws: R-hat",
    ),
    "Why is it so slow?": ("troubleshooting.md", "It is slow", "compile=True"),
    "How do I stop a run and go on tomorrow?": (
        "runs.md",
        "Checkpoints",
        "aeb.MCMC.resume(",
    ),
    "Can I open a tutorial in Jupyter?": (
        "gallery.md",
        "As notebooks",
        "python tutorials/notebook.py",
    ),
}


def links(page: str) -> set[str]:
    """Pages that a page links to; those of the index's table for the index."""
    text = (DOCS / page).read_text(encoding="utf-8")
    if page == INDEX:
        text = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    targets = re.findall(r"\]\(([\w/]+\.md)(?:#[\w-]+)?\)", text)
    folder = (DOCS / page).parent
    return {str((folder / target).resolve().relative_to(DOCS)) for target in targets}


def section(page: str, heading: str) -> str:
    """Return the text under a heading, until the next one of its level."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (found,) = re.finditer(rf"^(#+) {re.escape(heading)}$", text, re.M)
    rest = text[found.end() :]
    # The comment lines of Python in a page begin with one # too.
    end = re.search(rf"^#{{2,{max(len(found[1]), 2)}}} ", rest, re.M)
    return rest if end is None else rest[: end.start()]


def test_there_are_ten() -> None:
    assert len(QUESTIONS) == 10


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered_in_two_clicks(question: str) -> None:
    page, heading, answer = QUESTIONS[question]
    one = links(INDEX)
    two = one.union(*map(links, one))
    assert page in two, f"{page} is more than two clicks from the index"
    assert answer in section(page, heading)
