"""Streaming gives the clips that the offset reader gives."""

import shutil
import tarfile

import numpy as np
import pytest
from torch.utils.data import DataLoader

from pipeline.data.shards.reader import open_shards
from pipeline.data.shards.streaming import stream_clips
from pipeline.errors import PipelineError


def test_streamed_clips_equal_those_read_by_offset(tiny_study):
    folder = tiny_study.manifest("labeled").parent
    reader, streamed = open_shards(folder), list(stream_clips(folder))
    assert [clip["key"] for clip in streamed] == list(reader.keys)
    for clip in streamed:
        assert np.array_equal(clip["samples"], reader.read_window(clip["key"], 0, reader.frames(clip["key"])))
        assert clip["captions"] == reader.captions(clip["key"])


def test_loader_workers_share_the_clips_out_without_repeating_any(tiny_study):
    folder = tiny_study.manifest("labeled").parent
    loader = DataLoader(stream_clips(folder), batch_size=None, num_workers=2)
    assert sorted(clip["key"] for clip in loader) == sorted(open_shards(folder).keys)


def test_a_tar_that_is_missing_or_cut_between_clips_is_named_before_anything_is_read(tiny_study, tmp_path):
    folder = shutil.copytree(tiny_study.manifest("labeled").parent, tmp_path / "train")
    tar = folder / "00000.tar"
    with tarfile.open(tar) as archive:
        end = archive.getmembers()[2].offset
    tar.write_bytes(tar.read_bytes()[:end])
    with pytest.raises(PipelineError, match=rf"00000\.tar: {end} bytes, \d+ expected"):
        stream_clips(folder)
    tar.unlink()
    with pytest.raises(PipelineError, match=r"00000\.tar: not found"):
        stream_clips(folder)
