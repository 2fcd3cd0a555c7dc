"""The recordings that the benchmark shards are as long as they should be, each in one stream."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.recordings import SOURCE_HZ, measure_format, shard_alone, write_recording
from pipeline.data.decoding import open_audio
from pipeline.data.layouts import AudioBytes, ogg_links


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_repeated_packets_are_one_stream(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_recording(path, 2)
    with open_audio(path) as audio:
        assert sum(map(len, audio.blocks)) == pytest.approx(120 * SOURCE_HZ, rel=0.002)
    with path.open("rb") as file:
        assert len(ogg_links(AudioBytes(file))) <= 1


def test_the_stage_and_the_loop_write_every_segment(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    path = tmp_path / "train" / "a.flac"
    write_recording(path, 1)
    measured = measure_format(tmp_path, 1, 1)
    assert set(measured["costs"]) == {"index_audio", "shard_audio", "alone"}
    assert all(cost.peak_mb > 20 for costs in measured["costs"].values() for cost in costs)
    shard_alone(path, tmp_path / "alone.tar")
    assert (tmp_path / "alone.tar").stat().st_size > 60 * 44_100 * 2
