"""The shards read from beginning to end with webdataset, for those who stream; training reads windows by offset."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import soundfile
import webdataset

from pipeline.errors import PipelineError


def decode_clip(sample: dict[str, Any]) -> dict[str, Any]:
    """A webdataset sample as key, samples (int16, mono) and the facts of its JSON member (captions and so on)."""
    audio = sample["wav"] if "wav" in sample else sample["flac"]
    samples, _ = soundfile.read(io.BytesIO(audio), dtype="int16")
    return {**json.loads(sample["json"]), "key": sample["__key__"], "samples": samples}


def stream_clips(folder: Path) -> webdataset.WebDataset:
    """Every clip of a split in the order of its shards, as dictionaries; an IterableDataset for a DataLoader.

    Tars are shared out among nodes and loader workers, so the parts differ in size by up to a tar: a training that
    needs equal parts reads by offset instead (`pipeline.training.batches`). Raises PipelineError for a missing tar.
    """
    summary = folder / "manifest.json"
    if not summary.exists():
        raise PipelineError(f"{summary}: no such file; a folder of shards is made by index_shards")
    tars = [folder / shard["tar"] for shard in json.loads(summary.read_text(encoding="utf-8"))["shards"]]
    if missing := [tar for tar in tars if not tar.exists()]:
        raise PipelineError(f"{missing[0]}: no such file, but {summary} lists it; make it again with shard_audio")
    dataset = webdataset.WebDataset(
        [str(tar) for tar in tars], shardshuffle=False, nodesplitter=webdataset.split_by_node, empty_check=False
    )
    return dataset.map(decode_clip)
