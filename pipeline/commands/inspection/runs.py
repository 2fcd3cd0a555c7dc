"""The contents of a run's folder, or of a pretrained model's, as values for JSON."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.commands.inspection.columns import batches, read_schema
from pipeline.commands.inspection.targets import TRAINING_COLUMNS
from pipeline.data.parquet import check_parquet
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.models import check_files


def describe_run(folder: Path) -> dict[str, Any]:
    """Sections on a model: its description, its weights and, where it was trained, the training."""
    sections: dict[str, Any] = {}
    if (folder / "model.json").is_file():
        sections["model"] = read_json(folder / "model.json")
        if "backbone" not in sections["model"]:
            raise PipelineError(f"{folder / 'model.json'}: is not the description of a model; make the model again")
        check_files(folder, sections["model"])
    if (folder / "model.safetensors").is_file():
        sections["weights"] = describe_weights(folder / "model.safetensors")
    if (folder / "training.parquet").is_file():
        sections |= describe_training(folder / "training.parquet")
    if (folder / "training.json").is_file():
        sections["account"] = describe_account(folder / "training.json")
    return sections


def describe_account(path: Path) -> dict[str, Any]:
    """The versions, hardware, duration and speed of a training."""
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


def describe_weights(path: Path) -> list[dict[str, Any]]:
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
        raise PipelineError(f"{path}: {path.stat().st_size} bytes, its header announces {size}; make the model again")
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


def describe_training(path: Path) -> dict[str, Any]:
    """The first and last value of each column of a training log, and the settings where its footer has them."""
    check_parquet(path, "train")
    schema = read_schema(path)
    table = pa.Table.from_batches(batches(path, schema.names), schema)
    if len(table) == 0 or not set(schema.names) >= TRAINING_COLUMNS:
        raise PipelineError(f"{path}: not the log of a training: {len(table)} rows of {', '.join(schema.names)}")
    curves = {}
    for name in table.column_names:
        if name not in ("step", "epoch"):
            values = table[name].drop_null().to_numpy()  # validations are in few rows
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
