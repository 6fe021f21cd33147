# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Turns: what is timed, in which order, and what a failure leaves."""

from __future__ import annotations

import pytest

from .peers.base import Peer
from .timing import Turns, ratio


def fake(now: list[float], seconds: float, calls: list[str], name: str) -> Peer:
    """A peer that takes some seconds of a clock, half of them when it is waited for."""

    def spend() -> None:
        now[0] += seconds / 2

    def call() -> None:
        calls.append(name)
        spend()

    return Peer(call, steps=10, wait=spend)


def test_a_time_is_that_of_a_step_until_all_is_done():
    now, calls = [0.0], []
    peers = {name: fake(now, 2.0 + 2 * i, calls, name) for i, name in enumerate("ab")}
    turns = Turns(peers, duration=0.0, clock=lambda: now[0])
    turns.take(8)
    assert turns.times == {"a": pytest.approx([0.2] * 8), "b": pytest.approx([0.4] * 8)}
    assert ratio(turns.times["b"], turns.times["a"]) == pytest.approx((2.0, 2.0, 2.0))


def test_the_order_changes_from_turn_to_turn():
    now, calls = [0.0], []
    turns = Turns({n: fake(now, 1.0, calls, n) for n in "abc"}, 0.0, lambda: now[0])
    turns.take(1)
    assert len(calls) == 9  # each is called twice before it is timed for the first time
    del calls[:]
    turns.take(20)
    orders = {tuple(calls[i : i + 3]) for i in range(0, 60, 3)}
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(orders) == 6


def test_what_fails_takes_no_further_turns(capsys):
    now, calls, left = [0.0], [], iter(range(4))

    def fails() -> None:
        if next(left, None) is None:
            raise ValueError("no further\nthan this")

    turns = Turns({"a": fake(now, 1.0, calls, "a"), "b": Peer(fails)}, 0.0, lambda: now[0])
    turns.take(5)
    assert (len(turns.times["a"]), len(turns.times["b"])) == (5, 2)
    assert turns.notes == {"b": "ValueError: no further"}
    assert "than this" in capsys.readouterr().err
