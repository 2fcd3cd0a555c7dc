"""The contents of a split's shards and of a catalog, as values for JSON."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from pipeline.commands.inspection.columns import (
    batches,
    caption_statistics,
    count_values,
    distributions,
    evenly_spaced,
    lost_rows,
    numbers,
    read_schema,
)
from pipeline.data.catalogs import OK, SEGMENT_COLUMNS
from pipeline.data.shards.format import is_manifest, read_summary, segment_columns
from pipeline.errors import PipelineError
from pipeline.files import sha256_of

FULL_SCALE_DBFS = -0.001  # both 32767 and -32768


def describe_shards(manifest: Path, samples: int) -> dict[str, Any]:
    """Sections on a split's manifest and its manifest.json, if there is one."""
    check_manifest(manifest)
    counts = {
        "status": count_values(manifest, "status", usable=False),
        "reason": count_values(manifest, "reason", usable=False),
        **{name: count_values(manifest, name, usable=True) for name in ("source_sample_rate_hz", "source_channels")},
    }
    captions = caption_statistics(manifest, samples)
    frames = numbers(manifest, "frames")
    rates = numbers(manifest, "sample_rate_hz")
    seconds = frames / rates
    peaks = numbers(manifest, "peak_dbfs")
    shown = ["key", "source_name", *segment_columns(manifest), "status", "reason", "shard"]
    measured = ["peak_dbfs", "rms_dbfs", "captions"]
    rows = evenly_spaced(manifest, [*shown, *measured, "frames", "sample_rate_hz"], samples)
    for row in rows:
        row["duration_s"] = None if row["frames"] is None else row["frames"] / row["sample_rate_hz"]
    return {
        "split": {
            **describe_summary(manifest),
            "rows": sum(counts["status"].values()),
            "clips": counts["status"].get(OK, 0),
            "duration_h": round(float(seconds.sum()) / 3600, 4),
            "clips_at_full_scale": int((peaks >= FULL_SCALE_DBFS).sum()),
            **captions.totals,
        },
        "counts": counts,
        "distributions": distributions(
            {"duration_s": seconds, "peak_dbfs": peaks, "rms_dbfs": numbers(manifest, "rms_dbfs")}
            | captions.distributions
        ),
        "duplicate_captions": captions.duplicates,
        "lost": lost_rows(manifest, samples),
        "samples": [{name: row[name] for name in (*shown, "duration_s", *measured)} for row in rows],
    }


def describe_summary(manifest: Path) -> dict[str, Any]:
    """The fields of manifest.json, whether it agrees with the manifest, and how many tars lie next to it."""
    path = manifest.with_name("manifest.json")
    if not path.is_file():
        return {"manifest_json": "missing"}
    summary = read_summary(path)
    shards = summary["shards"]
    return {
        "dataset": summary["dataset"],
        "split": summary["split"],
        **({"tars_at": summary["address"]} if "address" in summary else {}),
        "format": summary["format"],
        "sample_rate_hz": summary["sample_rate_hz"],
        "channels": summary["channels"],
        "shards": len(shards),
        "shards_beside": sum((manifest.parent / shard["tar"]).is_file() for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "manifest_json": "agrees" if sha256_of(manifest) == summary["manifest_sha256"] else "is of another manifest",
    }


def describe_catalog(path: Path, samples: int) -> dict[str, Any]:
    """Sections on a catalog: the listed clips, before any audio is decoded."""
    counts = {name: count_values(path, name, usable=False) for name in ("status", "reason", "dataset", "split")}
    types: Counter[str] = Counter()
    source_ids = 0
    times = [name for name in ("start_s", *SEGMENT_COLUMNS) if name in read_schema(path).names]
    for batch in batches(path, ["path", "source_id"], usable=True):
        suffixes = pc.utf8_lower(pc.struct_field(pc.extract_regex(batch["path"], r"(?P<type>\.[^./]*)$"), "type"))
        for item in suffixes.drop_null().value_counts():
            types[item["values"].as_py()] += item["counts"].as_py()
        source_ids += len(batch["source_id"].drop_null())
    captions = caption_statistics(path, samples)
    return {
        "catalog": {
            "dataset": ", ".join(counts.pop("dataset")),
            "split": ", ".join(counts.pop("split")),
            "rows": sum(counts["status"].values()),
            "clips": counts["status"].get(OK, 0),
            "clips_with_source_id": source_ids,
            **captions.totals,
        },
        "counts": counts | {"file_type": dict(types.most_common())},
        "distributions": distributions(captions.distributions),
        "duplicate_captions": captions.duplicates,
        "lost": lost_rows(path, samples),
        "samples": evenly_spaced(
            path, ["key", "source_name", "path", "source_id", *times, "status", "reason", "captions"], samples
        ),
    }


def check_manifest(path: Path) -> None:
    """Raise PipelineError unless a manifest is there and has the columns of one."""
    if not path.is_file():
        raise PipelineError(f"{path}: not found; make it with index_shards")
    if not is_manifest(names := read_schema(path).names):
        raise PipelineError(f"{path}: no manifest, its columns are {', '.join(names)}; make it again with index_shards")
