"""What `python -m pipeline inspect` shows: facts of shards, catalogs, pairs and runs as plain values, ready for JSON.

Every column is read on its own and in batches. What is kept of a row is at most a few numbers, so that the manifest of
ten million clips fits in memory; texts are compared by 64-bit hashes.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commands.inspection.targets import (
    PAIRS_FACTS,
    TRAINING_COLUMNS,
    PairedSplit,
    Target,
    batches,
    check_manifest,
    leaked_of,
    read_pairs_facts,
    read_schema,
    splits_of,
)
from pipeline.data.catalogs import OK
from pipeline.data.pairs import SCHEMA as PAIRS_SCHEMA
from pipeline.data.shards.format import read_summary
from pipeline.data.shards.reader import hashes_of
from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_of
from pipeline.training.settings import PairingSettings

QUANTILES = {"min": 0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1}
FULL_SCALE_DBFS = -0.001  # both 32767 and -32768


def facts_of(target: Target, *, shards: Path | None, samples: int) -> dict[str, Any]:
    """The facts of whatever it is, by section: names and values, `counts` of values, tables (a list or a dict of rows),
    and rows one by one (`leaked`, `samples`)."""
    if target.kind == "shards":
        facts = shards_facts(target.path, samples)
    elif target.kind == "catalog":
        facts = catalog_facts(target.path, samples)
    elif target.kind == "pairs":
        facts = pairs_facts(target.path, shards, samples)
    else:
        facts = run_facts(target.path)
    return {"kind": target.kind, "path": str(target.path)} | facts


# --- parts -----------------------------------------------------------------------------------------------------------


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Least, greatest and what lies between, linearly interpolated."""
    found = np.quantile(values, list(QUANTILES.values()))
    return {name: round(float(value), 4) for name, value in zip(QUANTILES, found, strict=True)}


def distributions(values: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Quantiles of everything of which there is anything."""
    return {name: quantiles(array) for name, array in values.items() if len(array)}


def count_values(path: Path, column: str, *, usable: bool) -> dict[str, int]:
    """How often each value occurs, nulls left out, the most frequent first."""
    counts: Counter[Any] = Counter()
    for batch in batches(path, [column], usable=usable):
        for item in batch[column].drop_null().value_counts():
            counts[item["values"].as_py()] += item["counts"].as_py()
    return {str(value): count for value, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}


def numbers(path: Path, column: str) -> np.ndarray:
    """A numeric column of the usable rows."""
    parts = [batch[column].drop_null().to_numpy(zero_copy_only=False) for batch in batches(path, [column], usable=True)]
    return np.concatenate(parts) if parts else np.empty(0)


def caption_facts(path: Path, shown: int) -> tuple[dict[str, int], dict[str, np.ndarray], list[dict[str, Any]]]:
    """Of the usable clips' captions: totals, numbers to summarise, and the captions that occur most often.

    Captions are duplicates if they are equal character by character.
    """
    per_clip, words, hashes = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [np.empty(0, np.uint64)]
    for batch in batches(path, ["captions"], usable=True):
        captions = batch["captions"].flatten()
        per_clip.append(pc.list_value_length(batch["captions"]).to_numpy())
        words.append(pc.count_substring_regex(captions, r"\S+").to_numpy())
        hashes.append(hashes_of(captions))
    distinct, counts = np.unique(np.concatenate(hashes), return_counts=True)
    if len(distinct) == 0:
        return {"captions": 0}, {}, []
    repeated = counts > 1
    totals = {
        "captions": int(counts.sum()),
        "distinct_captions": len(distinct),
        "captions_in_use_more_than_once": int(repeated.sum()),
    }
    distinct, counts = distinct[repeated], counts[repeated]
    most = np.lexsort((distinct, -counts))[:shown]
    wanted = dict(zip(distinct[most].tolist(), counts[most].tolist(), strict=True))
    found: dict[int, str] = {}
    for batch in batches(path, ["captions"], usable=True):
        if len(found) == len(wanted):
            break
        captions = batch["captions"].flatten()
        hashes_here = hashes_of(captions)
        for place in np.flatnonzero(np.isin(hashes_here, np.array(list(wanted), np.uint64))):
            found.setdefault(int(hashes_here[place]), captions[int(place)].as_py())
    duplicates = [{"times": count, "caption": found[number]} for number, count in wanted.items()]
    return totals, {"captions_a_clip": np.concatenate(per_clip), "words_a_caption": np.concatenate(words)}, duplicates


def lost_rows(path: Path, shown: int) -> list[dict[str, Any]]:
    """The first rows of each reason."""
    by_reason: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for batch in batches(path, ["status", "reason", "key", "source_name"]):
        for row in batch.filter(pc.not_equal(batch["status"], OK)).to_pylist():
            if len(by_reason[row["reason"]]) < shown:
                by_reason[row["reason"]].append({name: row[name] for name in ("reason", "key", "source_name")})
    return [row for reason in sorted(by_reason) for row in by_reason[reason]]


def evenly_spaced(path: Path, columns: Sequence[str], count: int) -> list[dict[str, Any]]:
    """So many rows, from the first to the last, of which only their row groups are read."""
    metadata = pq.read_metadata(path)
    wanted = np.unique(np.linspace(0, metadata.num_rows - 1, min(count, metadata.num_rows)).astype(int))
    rows: list[dict[str, Any]] = []
    first = 0
    for group in range(metadata.num_row_groups):
        end = first + metadata.row_group(group).num_rows
        if ((wanted >= first) & (wanted < end)).any():
            for batch in batches(path, columns, [group]):
                here = wanted[(wanted >= first) & (wanted < first + batch.num_rows)] - first
                rows += batch.take(pa.array(here, pa.int64())).to_pylist()
                first += batch.num_rows
        first = end
    return rows


# --- what the stages make --------------------------------------------------------------------------------------------


def shards_facts(manifest: Path, samples: int) -> dict[str, Any]:
    """Of a split's manifest and, where it is beside, of its manifest.json."""
    beside = summary_facts(manifest)
    counts = {
        "status": count_values(manifest, "status", usable=False),
        "reason": count_values(manifest, "reason", usable=False),
        **{name: count_values(manifest, name, usable=True) for name in ("source_sample_rate_hz", "source_channels")},
    }
    totals, of_captions, duplicates = caption_facts(manifest, samples)
    frames = numbers(manifest, "frames")
    rates = numbers(manifest, "sample_rate_hz")
    seconds = frames / rates
    peaks = numbers(manifest, "peak_dbfs")
    shown = ["key", "source_name", "status", "reason", "shard", "duration_s", "peak_dbfs", "rms_dbfs", "captions"]
    rows = evenly_spaced(manifest, [*shown, "frames", "sample_rate_hz"], samples)
    for row in rows:
        row["duration_s"] = None if row["frames"] is None else row["frames"] / row["sample_rate_hz"]
    return {
        "split": {
            **beside,
            "rows": sum(counts["status"].values()),
            "clips": counts["status"].get(OK, 0),
            "duration_h": round(float(seconds.sum()) / 3600, 4),
            "clips_at_full_scale": int((peaks >= FULL_SCALE_DBFS).sum()),
            **totals,
        },
        "counts": counts,
        "distributions": distributions(
            {"duration_s": seconds, "peak_dbfs": peaks, "rms_dbfs": numbers(manifest, "rms_dbfs")} | of_captions
        ),
        "duplicate_captions": duplicates,
        "lost": lost_rows(manifest, samples),
        "samples": [{name: row[name] for name in shown} for row in rows],
    }


def summary_facts(manifest: Path) -> dict[str, Any]:
    """What only manifest.json tells; where it or the tars are not beside the manifest, that they are not."""
    check_manifest(manifest)
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


def catalog_facts(path: Path, samples: int) -> dict[str, Any]:
    """Of a catalog: what is listed, before any audio is decoded."""
    counts = {name: count_values(path, name, usable=False) for name in ("status", "reason", "dataset", "split")}
    types: Counter[str] = Counter()
    source_ids = 0
    for batch in batches(path, ["path", "source_id"], usable=True):
        suffixes = pc.utf8_lower(pc.struct_field(pc.extract_regex(batch["path"], r"(?P<type>\.[^./]*)$"), "type"))
        for item in suffixes.drop_null().value_counts():
            types[item["values"].as_py()] += item["counts"].as_py()
        source_ids += len(batch["source_id"].drop_null())
    totals, of_captions, duplicates = caption_facts(path, samples)
    return {
        "catalog": {
            "dataset": ", ".join(counts.pop("dataset")),
            "split": ", ".join(counts.pop("split")),
            "rows": sum(counts["status"].values()),
            "clips": counts["status"].get(OK, 0),
            "clips_with_source_id": source_ids,
            **totals,
        },
        "counts": counts | {"file_type": dict(types.most_common())},
        "distributions": distributions(of_captions),
        "duplicate_captions": duplicates,
        "lost": lost_rows(path, samples),
        "samples": evenly_spaced(
            path, ["key", "source_name", "path", "source_id", "start_s", "status", "reason", "captions"], samples
        ),
    }


def pairs_facts(path: Path, shards: Path | None, samples: int) -> dict[str, Any]:
    """Of a pairs file: its plan, how evenly it uses the clips, and rows with the captions that were drawn."""
    facts = read_pairs_facts(path)
    splits = splits_of(path, facts, shards)
    labeled = np.concatenate([hashes_of(batch["labeled_key"]) for batch in batches(path, ["labeled_key"])])
    partner_parts, partners = [], 0
    for batch in batches(path, ["partner_key"]):
        partner_parts.append(hashes_of(pc.fill_null(batch["partner_key"], "")))
        partners += len(batch["partner_key"]) - batch["partner_key"].null_count
    partner = np.concatenate(partner_parts)
    if len(labeled) != len(partner):
        raise PipelineError(
            f"{path}: {len(labeled)} labeled clips and {len(partner)} partners can be read; the file is damaged, "
            "make it again with pair_clips"
        )
    partner_role = "none" if partners == 0 else "unlabeled" if facts["unlabeled"] else "labeled"

    uses = {"uses_of_a_labeled_clip": np.unique(labeled, return_counts=True)[1]}
    told = [*sorted(PAIRS_FACTS), *(name for name in ("labeled_fraction", "unlabeled_fraction") if name in facts)]
    plan = {
        **{name: facts[name] for name in told},
        "window_s": facts["window_frames"] / facts["sample_rate_hz"],
        "steps": facts["epochs"] * facts["steps_per_epoch"],
        "rows": len(labeled),
        "partners": partner_role,
    }
    if partner_role != "none":
        uses["uses_of_a_partner"] = np.unique(partner, return_counts=True)[1]
        mixed = labeled * np.uint64(0x9E3779B97F4A7C15) + partner  # an odd factor, so that order counts
        plan["distinct_pairs"] = len(np.unique(mixed))
        plan["distinct_pairs_share"] = plan["distinct_pairs"] / len(mixed)
    clips = {split.name: clips_of(split) for split in splits if split.folder is not None}
    for role, used in zip(("labeled", "unlabeled"), uses.values(), strict=False):
        names = [split.name for split in splits if split.role == role]
        if names and clips.keys() >= set(names):
            plan[f"{role}_clips_never_used"] = sum(clips[name] for name in names) - len(used)
    state, leaked = leaked_of(path, facts)
    plan |= {"clips_left_out_as_leaked": sum(facts.get("left_out_as_leaked", {}).values()), "list_of_leaked": state}
    return {
        "plan": plan,
        "drawing": PairingSettings.of(facts).model_dump(),
        "splits": [
            {
                "split": split.name,
                "role": split.role,
                "clips": clips.get(split.name),
                "manifest": split.state(),
            }
            for split in splits
        ],
        "left_out": left_out_counts(leaked),
        "leaked": leaked.slice(0, samples).to_pylist(),
        "distributions": distributions(uses),
        "samples": pair_samples(path, splits, facts["sample_rate_hz"], samples),
    }


def left_out_counts(leaked: pa.Table) -> list[dict[str, Any]]:
    """How many clips of which split were left out, by what they share with which held-out split."""
    names = ["role", "dataset", "split", "reason", "shared", "held_out_dataset", "held_out_split"]
    counted = leaked.group_by(names).aggregate([([], "count_all")]).sort_by([(name, "ascending") for name in names])
    return counted.rename_columns([*names, "clips"]).to_pylist()


def clips_of(split: PairedSplit) -> int:
    """The usable clips of a split that was found."""
    return sum(batch.num_rows for batch in batches(split.manifest, [], usable=True))


def captions_of(splits: Iterable[PairedSplit], keys: Sequence[str]) -> dict[str, list[str]]:
    """The captions of some clips of the splits that were found."""
    captions: dict[str, list[str]] = {}
    for split in splits:
        if split.folder is None:
            continue
        for batch in batches(split.manifest, ["key", "captions"], usable=True):
            rows = batch.filter(pc.is_in(batch["key"], pa.array(keys, pa.string())))
            captions |= dict(zip(rows["key"].to_pylist(), rows["captions"].to_pylist(), strict=True))
    return captions


def pair_samples(path: Path, splits: Sequence[PairedSplit], sample_rate_hz: int, count: int) -> list[dict[str, Any]]:
    """Rows of a pairs file with the captions in place of their indices, where the splits are found."""
    rows = evenly_spaced(path, PAIRS_SCHEMA.names, count)
    keys = [row[name] for row in rows for name in ("labeled_key", "partner_key") if row[name] is not None]
    captions = captions_of(splits, keys)

    def caption(key: str, index: int) -> str | None:
        if index < 0:
            return None
        known = captions.get(key, [])
        return known[index] if index < len(known) else f"(caption {index})"

    shown = []
    for row in rows:
        shown.append(
            {
                **{name: row[name] for name in ("epoch", "step", "slot", "labeled_key")},
                "caption": caption(row["labeled_key"], row["caption"]),
                "labeled_start_s": row["labeled_start"] / sample_rate_hz,
            }
        )
        if row["partner_key"] is not None:
            shown[-1] |= {
                "partner_key": row["partner_key"],
                "partner_caption": caption(row["partner_key"], row["partner_caption"]),
                "partner_start_s": row["partner_start"] / sample_rate_hz,
            }
    return shown


def run_facts(folder: Path) -> dict[str, Any]:
    """Of a run, or of a pretrained model: its description, weights and, where it was trained, how that went."""
    facts: dict[str, Any] = {}
    if (folder / "model.json").is_file():
        facts["model"] = read_json(folder / "model.json")
    if (folder / "model.safetensors").is_file():
        facts["weights"] = weights_facts(folder / "model.safetensors")
    if (folder / "training.parquet").is_file():
        facts |= training_facts(folder / "training.parquet")
    if (folder / "training.json").is_file():
        facts["account"] = account_facts(folder / "training.json")
    return facts


def account_facts(path: Path) -> dict[str, Any]:
    """Of a training's account: made with and on what, how long it took and how fast it was."""
    account = read_json(path)
    try:
        hardware, git, flops = account["hardware"], account["git"], account["flops_a_step"]
        gpus = Counter(hardware["gpus"])
        return {
            "versions": {name: version for name, version in account["versions"].items() if version is not None},
            "commit": None if git is None else git["commit"] + (", files changed" if git["dirty"] else ""),
            "processor": hardware["processor"],
            "gpus": [f"{count} {name}" for name, count in gpus.items()] or None,
            "processes": hardware["processes"],
            "threads_a_process": hardware["threads_a_process"],
            "micro_batch": account["machine"]["micro_batch"],
            "compiled": account["machine"]["compiled"],
            "parts": len(account["parts"]),
            "wall_s": account["wall_s"],
            "gpu_s": account["gpu_s"],
            "clips_per_s": account["clips_per_s"],
            "peak_memory_gb": account["peak_memory_gb"],
            "gflop_a_step": None if flops is None else flops / 1e9,
            "gflop_per_s": None if flops is None else account["flops_per_s"] / 1e9,
            "model_flops_utilization": account["model_flops_utilization"],
            "hardware_flops_utilization": account.get("hardware_flops_utilization"),  # older accounts have none
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path}: not the account of a training ({error!r}); make the run again") from error


def weights_facts(path: Path) -> list[dict[str, Any]]:
    """Tensors and values of every part of a model, from the header alone."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length) if length < path.stat().st_size else b"")
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        size = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (struct.error, ValueError, AttributeError, KeyError, TypeError) as error:
        raise PipelineError(f"{path}: is not a safetensors file, or is damaged; make the model again") from error
    if path.stat().st_size != size:
        raise PipelineError(f"{path}: {path.stat().st_size} bytes, its header tells of {size}; make the model again")
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        values, part = math.prod(tensor["shape"]), name.split(".")[0]
        for row in (part, "total"):
            entry = parts.setdefault(row, {"part": row, "tensors": 0, "values": 0, "types": set()})
            entry["tensors"] += 1
            entry["values"] += values
            entry["types"].add(tensor["dtype"])
    total = parts.pop("total", None)
    rows = [parts[part] for part in sorted(parts)] + ([total] if total else [])
    return [row | {"types": " ".join(sorted(row["types"]))} for row in rows]


def training_facts(path: Path) -> dict[str, Any]:
    """First and last value of everything that was logged at every step, and the settings where the footer has them."""
    schema = read_schema(path)
    table = pa.Table.from_batches(batches(path, schema.names), schema)
    if len(table) == 0 or not set(schema.names) >= TRAINING_COLUMNS:
        raise PipelineError(f"{path}: not the log of a training: {len(table)} rows of {', '.join(schema.names)}")
    curves = {}
    for name in table.column_names:
        if name not in ("step", "epoch"):
            values = table[name].to_numpy()
            curves[name] = {
                "first": float(values[0]),
                "last": float(values[-1]),
                "min": float(values.min()),
                "max": float(values.max()),
            }
    settings = (schema.metadata or {}).get(b"settings")
    return {
        "training": {"steps": len(table), "epochs": table["epoch"][-1].as_py() + 1},
        **({} if settings is None else {"settings": json.loads(settings)}),
        "curves": curves,
    }
