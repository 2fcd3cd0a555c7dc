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
    """Return an IterableDataset of a split's clips in the order of its shards, as dictionaries.

    Nodes and loader workers each read some of the tars, so their parts differ in size by up to one tar. A training that
    needs equal parts reads by offset (`pipeline.training.batches`). Tars at an address are streamed by webdataset,
    which calls curl for http.

    Raises:
        PipelineError: A tar is missing or has another size, or with `verify` another checksum. webdataset itself would
            stop at the cut without an error.

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
