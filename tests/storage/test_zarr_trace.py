# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Draws in a file: what readers see during a run, after a kill, and at the end."""

from __future__ import annotations

import gc
import os
import random
import sys
import time
import tracemalloc

import arviz as az
import numpy as np
import pytest
import torch
import trace_writers
import xarray
from trace_writers import Writer, make_record, make_records

from pyro_aeb.storage import zarr_store
from pyro_aeb.storage.zarr_trace import TraceFile, open_trace

pytest.importorskip("zarr")

CHAINS, DRAWS = 2, 60


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


def is_equal(found, expected) -> None:
    """Two nested dictionaries of tensors are the same, dtypes included."""
    assert found.keys() == expected.keys()
    for group, variables in expected.items():
        assert found[group].keys() == variables.keys()
        for name, value in variables.items():
            torch.testing.assert_close(found[group][name], value, rtol=0, atol=0)


def select_chain(values, chain, stop=None):
    return {g: {n: v[chain, :stop] for n, v in values[g].items()} for g in values}


def stack_chains(draw):
    """A draw of all chains at once."""
    one, other = make_record(0, draw), make_record(1, draw)
    return {g: {n: torch.stack([v, other[g][n]]) for n, v in one[g].items()} for g in one}


def write_whole_trace(path, draws=DRAWS, chains=CHAINS, **options) -> TraceFile:
    """A trace whose chains were written one after another."""
    trace = TraceFile(path, chains, draws, **options)
    for chain in range(chains):
        for draw in range(draws):
            trace.write(chain, draw, make_record(chain, draw))
    trace.close()
    return trace


# What is kept


def test_every_number_and_dtype_is_read_under_its_own_name(path):
    values = write_whole_trace(path).read()
    for chain in range(CHAINS):
        is_equal(select_chain(values, chain), make_records(chain, 0, DRAWS))
    assert values["sample_stats"]["diverging"].dtype == torch.bool
    assert values["sample_stats"]["step"].dtype == torch.int64


def test_chains_at_once_and_one_after_another_give_the_same_trace(path, tmp_path):
    together = TraceFile(tmp_path / "together.zarr", CHAINS, DRAWS)
    for draw in range(DRAWS):
        together.write(None, draw, stack_chains(draw))
    is_equal(together.read(), write_whole_trace(path).read())


def test_chains_that_alternate_wait_in_memory_together(path, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    trace = TraceFile(path, CHAINS, DRAWS)
    for draw in range(DRAWS):
        for chain in range(CHAINS):
            trace.write(chain, draw, make_record(chain, draw))
    assert trace.finished == (0, 0)
    is_equal(trace.read(), write_whole_trace(tmp_path / "whole.zarr").read())


def test_chains_alone_and_then_together(path, tmp_path):
    trace = TraceFile(path, CHAINS, DRAWS)
    for chain in range(CHAINS):
        for draw in range(20 + chain):
            trace.write(chain, draw, make_record(chain, draw))
    for draw in range(20, DRAWS):
        trace.write(None, draw, stack_chains(draw))
    is_equal(trace.read(), write_whole_trace(tmp_path / "whole.zarr").read())


def test_blocks_and_chunks_of_any_size_hold_the_same(path, tmp_path, monkeypatch):
    expected = write_whole_trace(path).read()
    for bytes_of_block, bytes_of_chunk in [(1, 100), (30_000, 1), (100_000, 300_000)]:
        monkeypatch.setattr(zarr_store, "BLOCK_BYTES", bytes_of_block)
        monkeypatch.setattr(zarr_store, "SMALL_CHUNK_BYTES", bytes_of_chunk)
        is_equal(
            write_whole_trace(tmp_path / f"{bytes_of_block}_{bytes_of_chunk}").read(), expected
        )


def test_bfloat16_is_kept_in_float32(path):
    value = torch.tensor([1.5, -2.0]).bfloat16()
    trace = TraceFile(path, 1, 1)
    trace.write(0, 0, {"posterior": {"w": value}})
    torch.testing.assert_close(trace.read()["posterior"]["w"], value.float()[None, None])


def test_sites_without_numbers_and_groups_without_sites(path):
    trace = TraceFile(path, 1, 3)
    for draw in range(2):
        trace.write(0, draw, {"posterior": {"none": torch.zeros(0, 2)}, "adaptation": {}})
    assert trace.read()["posterior"]["none"].shape == (1, 2, 0, 2)
    assert trace.read().keys() == {"posterior"}
    TraceFile(path, 1, 3, resume=True).write(0, 2, {"posterior": {"none": torch.zeros(0, 2)}})


# What ArviZ and xarray see


def test_names_axes_and_attributes(path):
    write_whole_trace(
        path,
        dims={"bias": ["units"]},
        roles={"net/weight": "draw", "bias": "draw", "sigma2": "stochastic approximation"},
        attrs={"kernel": "SGLD"},
    )
    posterior = xarray.open_zarr(path, group="posterior")
    assert posterior["net.weight"].dims == ("chain", "draw", "net.weight_dim_0", "net.weight_dim_1")
    assert posterior["net.weight"].attrs["source"] == "net/weight"
    assert posterior["bias"].dims == ("chain", "draw", "units")
    assert posterior["sigma2"].attrs["kind"] == "stochastic approximation"
    assert posterior["bias"].attrs["kind"] == "draw"
    assert (
        posterior.attrs["inference_library"] == "pyro_aeb" and posterior.attrs["kernel"] == "SGLD"
    )
    assert posterior.attrs["draws"] == "net.weight, bias"
    np.testing.assert_array_equal(posterior["chain"], range(CHAINS))
    np.testing.assert_array_equal(posterior["draw"], range(DRAWS))
    adaptation = xarray.open_zarr(path, group="adaptation")
    assert adaptation["bias_rho"].dims == ("chain", "draw", "units")


@pytest.mark.parametrize("consolidated", [None, False])
def test_xarray_opens_groups_and_the_tree_without_a_warning(path, recwarn, consolidated):
    write_whole_trace(path)
    tree = xarray.open_datatree(path, engine="zarr", consolidated=consolidated)
    assert set(tree.children) == {"posterior", "sample_stats", "adaptation"}
    assert tree["sample_stats"]["diverging"].dtype == bool
    assert tree["sample_stats"]["step"].dtype == np.int64
    np.testing.assert_array_equal(tree["sample_stats"]["step"][1], 10 * np.arange(DRAWS) + 1)
    assert [str(w.message) for w in recwarn if "zarr" in str(w.message).lower()] == []


def test_arviz_summarises_the_trace_and_saves_it_as_netcdf(path, tmp_path):
    trace = write_whole_trace(path)
    data = open_trace(path)
    assert isinstance(data, getattr(az, "InferenceData", xarray.DataTree))
    summary = az.summary(data, var_names=["sigma2"], round_to="none")
    mean = trace.read()["posterior"]["sigma2"].double().mean().item()
    assert float(summary.loc["sigma2", "mean"]) == pytest.approx(mean)
    data.to_netcdf(tmp_path / "run.nc")
    saved = xarray.open_dataset(tmp_path / "run.nc", group="posterior")
    expected = trace.read()["posterior"]["net/weight"]
    np.testing.assert_array_equal(saved["net.weight"], expected)


def test_arviz_opens_the_path_where_it_can(path):
    write_whole_trace(path)
    try:
        data = az.from_zarr(str(path))
    except ImportError as error:  # ArviZ 0.x with Zarr 3
        pytest.skip(str(error))
    assert data["posterior"]["net.weight"].shape == (CHAINS, DRAWS, 40, 50)


def test_readers_see_what_was_flushed(path):
    trace = TraceFile(path, CHAINS, DRAWS)
    for draw in range(10):
        trace.write(0, draw, make_record(0, draw))
        if draw == 6:
            trace.flush()
    assert trace.finished == (7, 0)
    posterior = xarray.open_zarr(path, group="posterior")
    assert posterior.sizes["draw"] == 7
    assert posterior.attrs["finished_draws"] == [7, 0]
    np.testing.assert_array_equal(posterior["bias"][0], make_records(0, 0, 7)["posterior"]["bias"])
    assert posterior["bias"][1].isnull().all()


def test_draws_are_flushed_after_some_seconds(path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    trace = TraceFile(path, 1, DRAWS)
    seen = []
    for draw, now in enumerate([1.0, 2.0, 5.0, 6.0, 9.9, 10.0, 12.0]):  # noqa: B007
        trace.write(0, draw, make_record(0, draw))
        seen.append(trace.finished[0])
    assert seen == [0, 0, 3, 3, 3, 6, 6]


def test_full_blocks_are_flushed_at_once(path, monkeypatch):
    size = 4 * (2000 + 3 + 1) + (1 + 8 + 8) + 4 * 3
    monkeypatch.setattr(zarr_store, "BLOCK_BYTES", 4 * size)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    trace = TraceFile(path, 1, DRAWS)
    seen = []
    for draw in range(9):
        trace.write(0, draw, make_record(0, draw))
        seen.append(trace.finished[0])
    assert seen == [0, 0, 0, 4, 4, 4, 4, 8, 8]


def test_open_trace_leaves_out_what_has_not_started_or_is_behind(path):
    trace = TraceFile(path, 3, DRAWS)
    for chain, draws in [(0, 9), (1, 4)]:
        for draw in range(draws):
            trace.write(chain, draw, make_record(chain, draw))
    trace.flush()

    def chains_and_draws(data):
        return list(data["posterior"]["chain"].values), data["posterior"].sizes["draw"]

    assert chains_and_draws(open_trace(path)) == ([0, 1], 4)
    assert chains_and_draws(open_trace(path, chains=[0])) == ([0], 9)
    assert not open_trace(path)["posterior"]["net.weight"].isnull().any()
    is_equal(select_chain(trace.read(), 0), make_records(0, 0, 9))
    is_equal(select_chain(trace.read(), 1, 4), make_records(1, 0, 4))
    assert trace.read()["posterior"]["bias"][1, 4:].isnan().all()


# Other processes


def test_a_reader_beside_the_writing_process_sees_finished_draws_only(path):
    writer = Writer(path)
    try:
        lengths = []
        while len(set(lengths)) < 5:
            writer.wait()
            posterior = xarray.open_zarr(path, group="posterior")
            lengths.append(posterior.sizes["draw"])
            sigma2 = posterior["sigma2"][0].values
            np.testing.assert_array_equal(sigma2, np.arange(lengths[-1], dtype=np.float32))
            assert not posterior["net.weight"][0, -5:].isnull().any()
            stats = open_trace(path)["sample_stats"]
            np.testing.assert_array_equal(stats["step"][0], 10 * np.arange(stats.sizes["draw"]))
        assert lengths == sorted(lengths)
    finally:
        writer.kill()


def test_every_flushed_draw_outlives_a_kill_at_any_moment(path):
    moments = random.Random(1)
    start = finished = 0
    for kill in range(10):
        writer = Writer(path, chain=0, start=start)
        if kill % 3:  # otherwise perhaps before it has written anything
            writer.wait()
        time.sleep(moments.uniform(0, 0.1))
        safe = writer.kill()
        if path.exists():
            finished = count_finished_draws(path)
            start = max(finished - moments.randrange(20), 0)  # where a checkpoint may have been
        assert finished >= safe
    assert finished > 0


def count_finished_draws(path) -> int:
    """How many draws of the first chain a trace has, after it was checked from end to end."""
    for consolidated in (True, False):
        tree = xarray.open_datatree(path, engine="zarr", consolidated=consolidated)
        assert len({group.sizes["draw"] for group in tree.children.values()}) == 1
    chains = len(tree["posterior"]["chain"])
    trace = TraceFile(path, chains, 1, resume=True)
    finished = trace.finished[0]
    if finished:
        is_equal(select_chain(trace.read(), 0), make_records(0, 0, finished))
        assert open_trace(path)["posterior"].sizes["draw"] == finished
    return finished


@pytest.mark.filterwarnings("ignore:Object at .zmetadata.partial")
def test_every_flushed_draw_outlives_a_stop_between_any_two_files(tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    replace = os.replace
    for stop in range(1000):
        path = tmp_path / f"{stop}.zarr"
        trace = TraceFile(path, 1, 10)
        trace.write(0, 0, make_record(0, 0))
        files = iter(range(stop))

        def stopped(*args, files=files):
            if next(files, None) is None:
                raise Stop
            replace(*args)

        safe = 0
        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", stopped)
                for draw in [1, 2, 3, 2, 3]:
                    safe = min(safe, draw)
                    trace.write(0, draw, make_record(0, draw))
                    if draw == 3:
                        trace.flush()
                        safe = 4
            break
        except Stop:
            assert count_finished_draws(path) >= safe
    assert count_finished_draws(path) == 4
    assert stop == 2 * (7 + 1) + 1  # two flushes of seven variables, and one return to draw 2


# Going on


def test_resuming_at_an_earlier_draw_overwrites_it_and_drops_the_rest(path):
    write_whole_trace(path)
    trace = TraceFile(path, CHAINS, DRAWS, resume=True)
    assert trace.finished == (DRAWS, DRAWS)
    trace.write(1, 40, make_record(1, 1040))
    seen = xarray.open_zarr(path, group="posterior").attrs["finished_draws"]
    assert seen == [DRAWS, 40]  # before a byte of theirs is changed
    trace.flush()
    assert trace.finished == (DRAWS, 41)
    values = trace.read()
    is_equal(select_chain(values, 0), make_records(0, 0, DRAWS))
    is_equal(select_chain(values, 1, 40), make_records(1, 0, 40))
    torch.testing.assert_close(
        values["posterior"]["bias"][1, 40], make_record(1, 1040)["posterior"]["bias"]
    )


@pytest.mark.parametrize("chain", [0, None])
def test_resuming_equals_one_run(path, tmp_path, chain):
    draws = {0: lambda draw: make_record(0, draw), None: stack_chains}[chain]
    chains = 1 if chain == 0 else CHAINS
    one = TraceFile(tmp_path / "one.zarr", chains, DRAWS)
    for draw in range(DRAWS):
        one.write(chain, draw, draws(draw))
    for start, stop in [(0, 20), (15, 33), (33, DRAWS)]:
        trace = TraceFile(path, chains, DRAWS, resume=True)
        for draw in range(start, stop):
            trace.write(chain, draw, draws(draw))
        trace.close()
    is_equal(trace.read(), one.read())


def test_writing_a_draw_again_before_it_is_flushed(path):
    trace = TraceFile(path, 1, DRAWS)
    for draw in [0, 1, 2, 3, 2]:
        trace.write(0, draw, make_record(0, draw))
    is_equal(select_chain(trace.read(), 0), make_records(0, 0, 3))


def test_growing(path):
    trace = write_whole_trace(path, draws=10)
    with pytest.raises(IndexError, match="room for 10 draws"):
        trace.write(0, 10, make_record(0, 10))
    trace.grow(25)
    for draw in range(10, 25):
        trace.write(0, draw, make_record(0, draw))
    trace.grow(5)  # there is never less room than before
    is_equal(select_chain(trace.read(), 0), make_records(0, 0, 25))
    np.testing.assert_array_equal(xarray.open_zarr(path, group="posterior")["draw"], range(25))
    resumed = TraceFile(path, CHAINS, 30, resume=True)
    for draw in range(25, 30):
        resumed.write(0, draw, make_record(0, draw))
    is_equal(select_chain(resumed.read(), 0), make_records(0, 0, 30))


def test_a_write_that_failed_is_repeated(path, monkeypatch):
    trace = TraceFile(path, 1, DRAWS)
    for draw in range(5):
        trace.write(0, draw, make_record(0, draw))

    def disk_full(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zarr_store, "_publish", disk_full)
        with pytest.raises(OSError, match="no space left"):
            trace.flush()
    trace.write(0, 5, make_record(0, 5))
    is_equal(select_chain(trace.read(), 0), make_records(0, 0, 6))


# Memory


def test_memory_does_not_grow_with_the_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_store, "BLOCK_BYTES", 2**20)
    shapes = {"bias": (3,), "w": (64, 256)}  # 64 KiB a draw

    def peak(draws, number) -> int:
        trace = TraceFile(tmp_path / f"{draws}-{number}.zarr", 1, draws)
        gc.collect()  # what other tests left would be collected at any time
        tracemalloc.start()
        for draw in range(draws):
            trace.write(0, draw, make_record(0, draw, shapes))
        trace.close()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # By chance a thread of zarr's holds a block for longer: the lowest of three peaks.
    few, many = (min(peak(draws, number) for number in range(3)) for draws in (64, 320))
    assert many < few + zarr_store.BLOCK_BYTES  # 16 MiB more have been written


# What is refused


def test_an_existing_path_is_refused(path):
    write_whole_trace(path, draws=2)
    with pytest.raises(FileExistsError, match="resume=True"):
        TraceFile(path, CHAINS, DRAWS)


def test_an_empty_folder_is_taken(path):
    path.mkdir()
    is_equal(select_chain(write_whole_trace(path, draws=2).read(), 1), make_records(1, 0, 2))


def test_resuming_where_there_is_nothing_begins_a_trace(path):
    trace = TraceFile(path, 1, 1, resume=True)
    assert trace.finished == (0,) and trace.read() == {} and not path.exists()
    trace.write(0, 0, make_record(0, 0))
    is_equal(select_chain(trace.read(), 0), make_records(0, 0, 1))


def test_what_a_killed_process_left_of_a_new_store_is_replaced(path):
    partial = path.with_name("run.zarr.partial")
    partial.mkdir()
    (partial / "rest").write_text("")
    write_whole_trace(path, draws=2)
    assert not partial.exists() and path.is_dir() and not (path / "rest").exists()


def test_another_number_of_chains_is_refused(path):
    write_whole_trace(path, draws=2)
    with pytest.raises(ValueError, match="has 2 chains, expected 3"):
        TraceFile(path, 3, DRAWS, resume=True)


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"metadata": {}}', '{"metadata": {".zattrs": {}}}']
)
@pytest.mark.parametrize("opened", [open_trace, lambda p: TraceFile(p, 1, 1, resume=True)])
def test_another_folder_is_refused(path, content, opened):
    path.mkdir()
    (path / "something").write_text("else")
    if content is not None:
        (path / ".zmetadata").write_text(content)
    with pytest.raises(ValueError, match="is no trace that pyro_aeb wrote"):
        opened(path)


def test_a_path_without_a_trace(path):
    with pytest.raises(FileNotFoundError, match="there is no trace"):
        open_trace(path)


@pytest.mark.parametrize("file", ["posterior/bias/.zarray", "posterior/bias/0.0.0"])
def test_a_missing_file_is_reported(path, file):
    write_whole_trace(path)
    (path / file).unlink()
    with pytest.raises(ValueError, match=f"is damaged.*{file}"):
        TraceFile(path, CHAINS, DRAWS, resume=True)


def test_a_truncated_chunk_is_reported(path):
    write_whole_trace(path)
    chunk = path / "posterior" / "bias" / "0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(ValueError, match="'posterior/bias' .* is damaged|'/posterior/bias'"):
        TraceFile(path, CHAINS, DRAWS, resume=True).read()


def test_draws_unlike_the_first_are_refused(path):
    trace = TraceFile(path, 1, DRAWS)
    trace.write(0, 0, make_record(0, 0))
    lacking = make_record(0, 1)
    del lacking["posterior"]["bias"]
    with pytest.raises(ValueError, match=r"lacks \['posterior: bias'\]"):
        trace.write(0, 1, lacking)
    reshaped = make_record(0, 1, {**trace_writers.SHAPES, "bias": (4,)})
    with pytest.raises(ValueError, match=r"of shape \(4,\), expected float32 of shape \(3,\)"):
        trace.write(0, 1, reshaped)
    fractional = make_record(0, 1)
    fractional["sample_stats"]["step"] = torch.tensor(0.5)
    with pytest.raises(ValueError, match="'sample_stats: step' is float32"):
        trace.write(0, 1, fractional)
    is_equal(select_chain(trace.read(), 0), make_records(0, 0, 1))


def test_gaps_and_places_outside_are_refused(path):
    trace = TraceFile(path, CHAINS, 5)
    trace.write(0, 0, make_record(0, 0))
    with pytest.raises(ValueError, match="draw 2 of chain 0 cannot follow the 1 draws"):
        trace.write(0, 2, make_record(0, 2))
    for chain, draw in [(0, 5), (0, -1), (2, 0), (-1, 0)]:
        with pytest.raises(IndexError, match=f"draw {draw} of chain {chain}"):
            trace.write(chain, draw, make_record(0, 0))


def test_without_zarr_the_message_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"pip install pyro_aeb\[zarr\]"):
        TraceFile(path, 1, 1)
