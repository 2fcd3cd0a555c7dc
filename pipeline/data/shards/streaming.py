"""Stream shards from beginning to end with webdataset; training reads windows by offset instead."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import soundfile
import webdataset

from pipeline.data.shards.format import check_tars, read_summary


def decode_clip(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a webdataset sample as key, samples (int16, mono) and the values of its JSON member (captions, ...)."""
    audio = sample["wav"] if "wav" in sample else sample["flac"]
    samples, _ = soundfile.read(io.BytesIO(audio), dtype="int16")
    return {**json.loads(sample["json"]), "key": sample["__key__"], "samples": samples}


def stream_clips(folder: str | Path, *, verify: bool = False) -> webdataset.WebDataset:
    """Every clip of a split in the order of its shards, as dictionaries; an IterableDataset for a DataLoader.

    Tars are shared out among nodes and loader workers, so the parts differ in size by up to a tar: a training that
    needs equal parts reads by offset instead (`pipeline.training.batches`). Tars at an address are streamed from there
    by webdataset, which calls curl for http. Raises PipelineError for a tar that is missing or of another size, which
    webdataset would read up to where it is cut, without an error; with `verify` also for one with another checksum.

    Example:
        >>> import pipeline
        >>> for clip in pipeline.stream_clips("results/shards/clotho/evaluation"):  # doctest: +SKIP
        ...     print(clip["key"], clip["captions"], clip["samples"].shape)
    """
    folder = Path(folder)
    summary = read_summary(folder / "manifest.json")
    check_tars(folder, summary, verify=verify)
    tars = [f"{summary.get('address', folder)}/{shard['tar']}" for shard in summary["shards"]]
    dataset = webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=webdataset.split_by_node, empty_check=False)
    return dataset.map(decode_clip)
