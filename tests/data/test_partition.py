"""Clips are cut into shards by their keys alone, so that new clips leave most shards as they are."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import catalogs
from pipeline.data.adapters.rows import SourceRow
from pipeline.data.catalogs import CATALOG_SCHEMA, catalog_of, regrouped
from pipeline.data.parquet import write_parquet
from pipeline.data.shards.partition import (
    FIRST_SHARD,
    LEAST_SHARE,
    Assignment,
    digest_of,
    part_of,
    read_assignment,
    read_plan,
    write_plan,
)
from pipeline.errors import PipelineError


def catalog(names: list[str], **changes: str) -> pa.Table:
    rows = [SourceRow(source_name=name, path=f"/raw/{name}", captions=(f"of {name}",)) for name in names]
    table, _ = catalog_of(rows, dataset="sounds", split="train", labeled=True)
    return table


def assign(table: pa.Table, most: int) -> list[Assignment]:
    """The shards of a catalog, by way of its file."""
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(table, Path(folder) / "catalog.parquet")
        return read_assignment(Path(folder) / "catalog.parquet", most)


def scattered(count: int, seed: int = 0) -> list[str]:
    """Names in no order, as the ids of videos."""
    return [f"{number:016x}.wav" for number in np.random.default_rng(seed).integers(0, 1 << 60, count)]


def recorded(first: int, count: int) -> list[str]:
    """Names by date and time, as recorders in the field give them: a minute a file."""
    start = np.datetime64("2026-05-01T00:00") + first
    return [f"{str(start + minute).translate({45: '', 58: '', 84: '_'})}00.WAV" for minute in range(count)]


def changed(before: list[Assignment], after: list[Assignment]) -> set[str]:
    """The shards that are made anew."""
    known = {(shard.shard, shard.digest) for shard in before}
    return {shard.shard for shard in after if (shard.shard, shard.digest) not in known}


@settings(max_examples=50, deadline=None)
@given(names=st.sets(st.text("abcdef012", min_size=1, max_size=6), min_size=1), most=st.integers(1, 12))
def test_every_row_stands_in_one_shard_of_bounded_size(names: set[str], most: int) -> None:
    table = catalog([f"{name}.wav" for name in sorted(names)])
    shards = assign(table, most)
    assert shards[0].first_row == 0 and shards[0].shard == FIRST_SHARD
    assert all(one.first_row + one.rows == two.first_row for one, two in pairwise(shards))
    assert shards[-1].first_row + shards[-1].rows == len(table)
    assert all(shard.rows <= most for shard in shards)
    assert len(shards) == 1 or all(shard.rows >= max(1, most // LEAST_SHARE) for shard in shards)
    assert [shard.shard for shard in shards[1:]] == [table["key"][shard.first_row].as_py() for shard in shards[1:]]


def test_a_catalog_is_assigned_alike_in_batches_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(catalog(scattered(500)), tmp_path / "catalog.parquet", row_group_size=70)
    whole = read_assignment(tmp_path / "catalog.parquet", 20)
    for rows in (1, 33, 1000):  # read at a time
        monkeypatch.setattr(catalogs, "ROW_GROUP_ROWS", rows)
        assert read_assignment(tmp_path / "catalog.parquet", 20) == whole


@given(lengths=st.lists(st.integers(0, 5), max_size=8), sizes=st.lists(st.integers(1, 7), max_size=8))
def test_regrouped_rows_are_the_same_in_tables_of_the_sizes_asked(lengths: list[int], sizes: list[int]) -> None:
    rows = list(range(sum(lengths)))
    ends = np.cumsum([0, *lengths]).tolist()
    tables = [pa.table({"row": pa.array(rows[first:end], pa.int64())}) for first, end in pairwise(ends)]
    found = [table["row"].to_pylist() for table in regrouped(tables, sizes)]
    ends = np.cumsum([0, *sizes]).tolist()
    assert found == [rows[first:end] for first, end in pairwise(ends) if rows[first:end]]


@given(seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_the_order_of_the_list_does_not_matter(seed: int) -> None:
    names = scattered(60)
    assert assign(catalog(list(np.random.default_rng(seed).permutation(names))), 9) == assign(catalog(names), 9)


def test_as_many_clips_as_a_shard_may_hold_are_one_shard() -> None:
    assert [len(assign(catalog(scattered(count)), 20)) for count in (1, 19, 20, 21)] == [1, 1, 1, 2]


def test_one_new_clip_remakes_one_shard_and_rarely_a_second() -> None:
    names, more = scattered(2_000), scattered(40, seed=1)
    before = assign(catalog(names), 64)
    counts = [len(changed(before, assign(catalog([*names, name]), 64))) for name in more]
    assert len(before) > 40
    assert min(counts) == 1 and np.mean(counts) < 1.2 and max(counts) <= 3


def test_one_clip_less_remakes_one_shard_and_rarely_a_second() -> None:
    names = scattered(2_000)
    before = assign(catalog(names), 64)
    counts = [len(changed(before, assign(catalog(names[:place] + names[place + 1 :]), 64))) for place in range(40)]
    assert np.mean(counts) < 1.2 and max(counts) <= 3


def test_a_batch_of_recordings_remakes_the_shards_it_fills_and_the_ones_beside() -> None:
    """640 files of new dates fill ten shards of 64 at least; of 6,400 others about 170 shards stay."""
    before = assign(catalog(recorded(0, 6_400)), 64)
    for first in (6_400, -640):  # after all others, and before them
        after = assign(catalog([*recorded(0, 6_400), *recorded(first, 640)]), 64)
        fill = len(after) - len(before)
        assert 10 <= fill <= 40
        assert len(changed(before, after)) <= fill + 3


@pytest.mark.parametrize("column", CATALOG_SCHEMA.names)
def test_the_digest_sees_a_change_of_any_column(column: str) -> None:
    table = catalog(scattered(6))
    place = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    other = 1.5 if column == "start_s" else [["a", "b"]][0] if column == "captions" else "another"
    values[3] = other
    assert digest_of(table.set_column(place, table.field(place), pa.array(values, table.field(place).type))) != (
        digest_of(table)
    )


def test_the_digest_sees_where_a_text_ends_and_what_is_null() -> None:
    def digest(*captions: list[str] | None) -> str:
        return digest_of(pa.table({"captions": pa.array(captions, pa.list_(pa.string()))}))

    different = [(["ab", "c"], []), (["a", "bc"], []), (["ab"], ["c"]), (["abc"], []), (["abc", ""], []), ([], ["abc"])]
    assert len({digest(*captions) for captions in [*different, (["abc"], None)]}) == len(different) + 1


def test_the_digest_does_not_depend_on_chunks_or_on_what_lies_beside() -> None:
    table = catalog(scattered(50))
    chunked = pa.concat_tables([table.slice(0, 13), table.slice(13, 4), table.slice(17)])
    alone = pa.Table.from_pylist(table.slice(10, 20).to_pylist(), schema=table.schema)
    assert digest_of(chunked) == digest_of(table)
    assert digest_of(chunked.slice(10, 20)) == digest_of(table.slice(10, 20)) == digest_of(alone)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    shards = assign(catalog(scattered(50)), 9)
    write_plan(shards, tmp_path / "plan.parquet")
    assert read_plan(tmp_path / "plan.parquet") == shards


@given(count=st.integers(0, 30), jobs=st.integers(1, 40))
def test_parts_are_all_shards_once_in_their_order(count: int, jobs: int) -> None:
    shards = [Assignment(shard=f"{row}", first_row=row, rows=1, digest="") for row in range(count)]
    parts = [part_of(shards, f"{number}-of-{jobs}") for number in range(jobs)]
    assert [shard for part in parts for shard in part] == shards
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("part", ["", "1", "1-of-1", "4-of-2", "-1-of-2", "0-of-0", "a-of-2", "0-of-", "0_of_2"])
def test_a_part_that_does_not_exist_is_refused(part: str) -> None:
    with pytest.raises(PipelineError, match="there is no part"):
        part_of([], part)
