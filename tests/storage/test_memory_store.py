# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A store of draws in memory."""

from __future__ import annotations

import pytest
import torch

from pyro_aeb.mcmc.chain_group import ChainGroup, Plan
from pyro_aeb.mcmc.run_record import RunRecord, RunRecorder
from pyro_aeb.storage.memory import MemoryStore

CHAINS, DRAWS = 3, 5


def make_record(chain: int, draw: int) -> dict:
    number = 10.0 * chain + draw
    return {
        "posterior": {"net.w": torch.full([2], number), "a/b": torch.tensor(number)},
        "sample_stats": {"diverging": torch.tensor(draw == 1), "potential": torch.tensor(-number)},
        "adaptation": {"net.w_rho": torch.full([2], number / 100)},
    }


def make_joint_record(draw: int) -> dict:
    records = [make_record(chain, draw) for chain in range(CHAINS)]
    return {
        group: {name: torch.stack([own[group][name] for own in records]) for name in values}
        for group, values in records[0].items()
    }


def expected_draws() -> dict:
    rows = [make_joint_record(draw) for draw in range(DRAWS)]
    return {
        group: {name: torch.stack([row[group][name] for row in rows], 1) for name in values}
        for group, values in rows[0].items()
    }


def assert_draws(found: dict, draws: int = DRAWS) -> None:
    assert found.keys() == expected_draws().keys()
    for group, values in expected_draws().items():
        assert found[group].keys() == values.keys()
        for name, value in values.items():
            assert found[group][name].dtype == value.dtype
            assert torch.equal(found[group][name][:, :draws], value[:, :draws]), name


def make_filled_store(by_chain: bool, draws: int = DRAWS) -> MemoryStore:
    store = MemoryStore(CHAINS, draws)
    for draw in range(draws):
        if by_chain:
            for chain in reversed(range(CHAINS)):
                store.write(chain, draw, make_record(chain, draw))
        else:
            store.write(None, draw, make_joint_record(draw))
    return store


@pytest.mark.parametrize("by_chain", [True, False])
def test_what_was_written_is_read(by_chain):
    assert_draws(make_filled_store(by_chain).read())


def test_nothing_written_is_nothing_read():
    assert MemoryStore(CHAINS, DRAWS).read() == {}


def test_a_draw_that_is_written_again_is_overwritten():
    store = make_filled_store(True)
    store.write(1, 2, make_record(7, 7))
    assert store.read()["posterior"]["a/b"][1].tolist() == [10, 11, 77, 13, 14]
    store.write(1, 2, make_record(1, 2))
    assert_draws(store.read())


def test_draws_are_copies():
    draw = make_record(0, 0)
    store = MemoryStore(CHAINS, DRAWS)
    store.write(0, 0, draw)
    draw["posterior"]["net.w"].fill_(9.0)
    assert store.read()["posterior"]["net.w"][0, 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("by_chain", [True, False])
def test_a_store_that_grows_keeps_its_draws(by_chain):
    store = make_filled_store(by_chain, draws=2)
    store.grow(DRAWS)
    for draw in range(2, DRAWS):
        store.write(None, draw, make_joint_record(draw))
    assert_draws(store.read())


def test_a_store_without_draws_may_grow():
    store = MemoryStore(CHAINS, 1)
    store.grow(DRAWS)
    for draw in range(DRAWS):
        store.write(None, draw, make_joint_record(draw))
    assert_draws(store.read())


def test_draws_of_a_chain_are_restored_in_pieces():
    store = MemoryStore(CHAINS, DRAWS)
    for chain in range(CHAINS):
        at = 0
        for piece in (slice(0, 2), slice(2, 5)):
            rows = {
                group: {name: value[chain : chain + 1, piece] for name, value in values.items()}
                for group, values in expected_draws().items()
            }
            at += store.restore(chain, at, rows)
        assert at == DRAWS
    assert_draws(store.read())


def test_draws_of_all_chains_are_restored():
    store = MemoryStore(CHAINS, DRAWS)
    assert store.restore(None, 0, expected_draws()) == DRAWS
    assert_draws(store.read())


def test_draws_are_of_the_first_records_dtype_and_hold_nothing_else():
    store = make_filled_store(True)
    rows = [value for values in store.read().values() for value in values.values()]
    one = sum(value.nbytes for values in make_record(0, 0).values() for value in values.values())
    assert sum(value.nbytes for value in rows) == CHAINS * DRAWS * one


def run_recorder(store: MemoryStore, group: ChainGroup) -> RunRecorder:
    run = RunRecord(CHAINS, Plan(warmup=0, kept=4, thinning=1, steps=1), None, None)
    run._store = store
    return RunRecorder(run, group)


@pytest.mark.parametrize("chain", [1, None])
def test_a_recorder_continues_behind_the_draws_that_exist(chain):
    store = make_filled_store(True, draws=2)
    store.grow(4)
    numbers = tuple(range(CHAINS)) if chain is None else (chain,)
    recorder = run_recorder(store, ChainGroup(numbers, draws=2))
    for draw in (2, 3):
        recorder.add(draw, make_joint_record(draw) if chain is None else make_record(chain, draw))
    rows = slice(None) if chain is None else chain
    for group, values in expected_draws().items():
        for name, value in values.items():
            assert torch.equal(recorder.read(group)[name], value[:, :4][rows]), name


def test_a_recorder_without_draws_has_none():
    recorder = run_recorder(MemoryStore(1, 2), ChainGroup((0,)))
    for group in ("posterior", "sample_stats", "adaptation"):
        assert recorder.read(group) == {}
