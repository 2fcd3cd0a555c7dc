"""Commands called in this process, and outputs of the stages to damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.data.shards.format import read_manifest
from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_of, write_json


def inspected(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> dict[str, Any]:
    main(["inspect", str(path), "--json", *arguments])
    return json.loads(capsys.readouterr().out)


def verified(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> str:
    main(["verify", str(path), *arguments])
    return capsys.readouterr().out


SECOND = "labeled_train_clip_15_8c1362bf"
"""The second shard of the labeled split, named by its first key."""


def refused(*arguments: object) -> str:
    with pytest.raises(PipelineError) as caught:
        main([str(argument) for argument in arguments])
    return str(caught.value)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def agree(folder: Path, **changes: Any) -> None:
    """Make manifest.json tell of the tars and the manifest as they are now, so that only what they hold is wrong."""
    summary = read_json(folder / "manifest.json")
    for shard in summary["shards"]:
        tar = folder / shard["tar"]
        shard |= {"bytes": tar.stat().st_size, "sha256": sha256_of(tar)}
    summary["manifest_sha256"] = sha256_of(folder / "manifest.parquet")
    write_json(summary | changes, folder / "manifest.json")


def change_manifest(folder: Path, row: int, **values: Any) -> None:
    table = read_manifest(folder / "manifest.parquet")
    rows = table.to_pylist()
    rows[row] |= values
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "manifest.parquet")
    agree(folder)
