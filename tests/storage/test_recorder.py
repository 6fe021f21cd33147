# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What a chain records."""

from __future__ import annotations

import pytest
import torch

from pyro_aeb.storage import recorder as history
from pyro_aeb.storage.recorder import History


def draw(i: int, size: int = 3) -> dict[str, torch.Tensor]:
    return {"beta": torch.full([size], float(i)), "sigma2": torch.tensor(10.0 + i)}


def recorded(draws: int) -> History:
    record = History()
    for i in range(draws):
        stats = {
            "potential": torch.tensor(0.5 * i),
            "step_size": 0.1 / (i + 1),
            "diverging": i == 1,
        }
        record.add(draw(i), stats, {"beta_rho": torch.full([3], 0.1 * i)})
    return record


def test_everything_comes_back_with_the_draws_as_the_first_axis():
    record = recorded(4)
    draws = record.draws()
    torch.testing.assert_close(draws["beta"], torch.arange(4.0)[:, None].expand(4, 3))
    torch.testing.assert_close(draws["sigma2"], 10.0 + torch.arange(4.0))
    stats = record.stats()
    torch.testing.assert_close(stats["potential"], 0.5 * torch.arange(4.0))
    torch.testing.assert_close(stats["step_size"], 0.1 / torch.arange(1.0, 5.0))
    assert stats["diverging"].tolist() == [False, True, False, False]
    assert stats["diverging"].dtype == torch.bool
    torch.testing.assert_close(record.latents()["beta_rho"][:, 0], 0.1 * torch.arange(4.0))


def test_nothing_recorded_is_nothing_returned():
    record = History()
    assert record.draws() == record.stats() == record.latents() == {}


def test_forgetting_draws_keeps_the_rest():
    record = recorded(4)
    record.forget_draws()
    assert record.draws() == {}
    assert len(record.stats()["potential"]) == len(record.latents()["beta_rho"]) == 4
    record.add(draw(7), {"potential": 0.0}, {})
    assert record.draws()["beta"].shape == (1, 3)


@pytest.mark.parametrize("room", [1, 2, 5])
def test_only_the_latest_draws_are_kept_where_memory_is_short(monkeypatch, room):
    one = sum(value.nbytes for value in draw(0).values())
    monkeypatch.setattr(history, "RECOVERY_BYTES", room * one)
    record = recorded(9)
    kept = record.draws()["sigma2"]
    torch.testing.assert_close(kept, 10.0 + torch.arange(9.0 - room, 9.0))
    assert len(record.stats()["potential"]) == 9


def test_a_draw_larger_than_all_the_memory_is_kept_alone(monkeypatch):
    monkeypatch.setattr(history, "RECOVERY_BYTES", 1)
    assert recorded(3).draws()["sigma2"].tolist() == [12.0]


def test_forgotten_bytes_are_free_again(monkeypatch):
    one = sum(value.nbytes for value in draw(0).values())
    monkeypatch.setattr(history, "RECOVERY_BYTES", 2 * one)
    record = recorded(2)
    record.forget_draws()
    for i in range(2):
        record.add(draw(i), {}, {})
    assert len(record.draws()["sigma2"]) == 2
