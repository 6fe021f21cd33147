# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The recorder of a chain whose number of draws is not known."""

from __future__ import annotations

import pytest
import torch

from pyro_aeb.storage import recorder
from pyro_aeb.storage.recorder import History, Record


def make_draw(i: int, size: int = 3) -> dict[str, torch.Tensor]:
    return {"beta": torch.full([size], float(i)), "sigma2": torch.tensor(10.0 + i)}


def record(posterior, sample_stats, adaptation) -> Record:
    return {"posterior": posterior, "sample_stats": sample_stats, "adaptation": adaptation}


def make_recorder(draws: int) -> History:
    history = History()
    for i in range(draws):
        statistics = {
            "potential": torch.tensor(0.5 * i),
            "step_size": torch.tensor(0.1 / (i + 1)),
            "diverging": torch.tensor(i == 1),
        }
        history.add(i, record(make_draw(i), statistics, {"beta_rho": torch.full([3], 0.1 * i)}))
    return history


def test_everything_is_read_with_the_draws_as_the_first_axis():
    history = make_recorder(4)
    draws = history.read("posterior")
    torch.testing.assert_close(draws["beta"], torch.arange(4.0)[:, None].expand(4, 3))
    torch.testing.assert_close(draws["sigma2"], 10.0 + torch.arange(4.0))
    stats = history.read("sample_stats")
    torch.testing.assert_close(stats["potential"], 0.5 * torch.arange(4.0))
    torch.testing.assert_close(stats["step_size"], 0.1 / torch.arange(1.0, 5.0))
    assert stats["diverging"].tolist() == [False, True, False, False]
    assert stats["diverging"].dtype == torch.bool
    rho = history.read("adaptation")["beta_rho"]
    torch.testing.assert_close(rho[:, 0], 0.1 * torch.arange(4.0))


def test_nothing_recorded_is_nothing_returned():
    for group in ("posterior", "sample_stats", "adaptation"):
        assert History().read(group) == {}


def test_forgetting_draws_keeps_the_rest():
    history = make_recorder(4)
    history.forget_draws()
    assert history.read("posterior") == {}
    assert len(history.read("sample_stats")["potential"]) == 4
    assert len(history.read("adaptation")["beta_rho"]) == 4
    history.add(4, record(make_draw(7), {"potential": torch.tensor(0.0)}, {}))
    assert history.read("posterior")["beta"].shape == (1, 3)


@pytest.mark.parametrize("room", [1, 2, 5])
def test_only_the_latest_draws_are_kept_where_memory_is_short(monkeypatch, room):
    one = sum(value.nbytes for value in make_draw(0).values())
    monkeypatch.setattr(recorder, "RECOVERY_BYTES", room * one)
    history = make_recorder(9)
    kept = history.read("posterior")["sigma2"]
    torch.testing.assert_close(kept, 10.0 + torch.arange(9.0 - room, 9.0))
    assert len(history.read("sample_stats")["potential"]) == 9


def test_a_draw_larger_than_all_the_memory_is_kept_alone(monkeypatch):
    monkeypatch.setattr(recorder, "RECOVERY_BYTES", 1)
    assert make_recorder(3).read("posterior")["sigma2"].tolist() == [12.0]


def test_forgotten_bytes_are_free_again(monkeypatch):
    one = sum(value.nbytes for value in make_draw(0).values())
    monkeypatch.setattr(recorder, "RECOVERY_BYTES", 2 * one)
    history = make_recorder(2)
    history.forget_draws()
    for i in range(2):
        history.add(i, record(make_draw(i), {}, {}))
    assert len(history.read("posterior")["sigma2"]) == 2
