# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The program on the page ``docs/latents.md`` runs as it stands there, with the page's answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_aeb as aeb

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "latents.md").read_text(encoding="utf-8")


def run_page() -> dict[str, Any]:
    (program,) = re.findall(r"^<!-- runs -->\n```python\n(.*?)^```$", PAGE, re.M | re.S)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(program, "latents.md", "exec"), names)
    return names


def marginal_mode(y: torch.Tensor) -> float:
    """Of the share's marginal posterior, on a grid of shares and rates."""
    share = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)[:, None]
    rate = torch.linspace(2.0, 4.0, 401, dtype=torch.float64)
    zeros, total = int((y == 0).sum()), float(y.sum())
    rest = len(y) - zeros
    log_joint = zeros * (share + (1 - share) * torch.exp(-rate)).log()
    log_joint = log_joint + rest * ((1 - share).log() - rate) + total * rate.log()
    log_joint = log_joint + (share * (1 - share)).log() + rate.log() - 0.5 * rate
    return float(share[log_joint.logsumexp(-1).argmax()])


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    return run_page()


def test_both_updates_come_to_the_mode(names: dict[str, Any]) -> None:
    expected = marginal_mode(names["y"])
    assert f"{expected:.2f}" in re.findall(r"Both come to ([\d.]+),", PAGE)
    # The posterior's standard deviation is above sqrt(0.34 * 0.66 / 400) = 0.024.
    assert names["by_function"] == pytest.approx(expected, abs=0.01)
    assert names["by_gradient"] == pytest.approx(expected, abs=0.01)


def test_the_page_shows_the_error(names: dict[str, Any]) -> None:
    with pytest.raises(aeb.ModelError) as caught:
        names["learned"](aeb.latents.ClosedForm())
    assert f"ModelError: {caught.value}" in PAGE
