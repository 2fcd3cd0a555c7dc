"""The checksums that the files of a study carry, and files of earlier versions, which have none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from pipeline.data.parquet import content_sha256, read_parquet, write_parquet
from pipeline.errors import PipelineError
from pipeline.evaluation.npz import read_npz, write_npz
from pipeline.files import read_json, sha256_of, write_json

TABLE = pa.table({"key": ["a", "b", "c"], "frames": [1, 2, 3]}).replace_schema_metadata({"facts": '{"seed": 0}'})
VALUES = {"shards": [{"clips": 3, "sha256": "ab"}], "rows": 3.5, "name": "Caf\u00e9"}


def flipped(content: bytes, byte: int) -> bytes:
    """The content with one bit of a byte flipped, of each byte another."""
    return content[:byte] + bytes([content[byte] ^ 1 << byte % 8]) + content[byte + 1 :]


def test_a_flipped_bit_in_every_byte_of_a_parquet_file_is_named_or_changes_nothing(tmp_path):
    path = tmp_path / "table.parquet"
    write_parquet(TABLE, path)
    content, unchanged = path.read_bytes(), 0
    for byte in range(len(content)):
        path.write_bytes(flipped(content, byte))
        try:
            found = read_parquet(path, "evaluate")
        except PipelineError as error:
            assert str(path) in str(error) and "evaluate" in str(error)
        else:
            assert found.equals(TABLE, check_metadata=True)
            unchanged += 1
    assert unchanged == len(b"\0SHA-256"), "the mark of the checksum alone"


def test_a_flipped_bit_in_every_byte_of_a_json_file_is_named_or_changes_nothing(tmp_path):
    path = tmp_path / "values.json"
    write_json(VALUES, path)
    content = path.read_bytes()
    for byte in range(len(content)):
        path.write_bytes(flipped(content, byte))
        try:
            found = read_json(path)
        except PipelineError as error:
            assert str(path) in str(error)
        else:
            assert {name: found[name] for name in VALUES} == VALUES


def test_other_libraries_read_parquet_files_with_a_checksum(tmp_path):
    path = tmp_path / "table.parquet"
    write_parquet(TABLE, path)
    assert pyarrow.dataset.dataset(path).to_table().equals(TABLE)


def test_a_parquet_file_of_an_earlier_version_is_read(tmp_path):
    path = tmp_path / "table.parquet"
    pq.write_table(TABLE, path, compression="zstd")
    assert read_parquet(path, "evaluate").equals(TABLE)


def test_the_checksum_of_the_contents_is_that_of_the_file_of_an_earlier_version(tmp_path):
    earlier, path = tmp_path / "earlier.parquet", tmp_path / "table.parquet"
    pq.write_table(TABLE, earlier, compression="zstd")
    write_parquet(TABLE, path)
    assert content_sha256(path) == content_sha256(earlier) == sha256_of(earlier) != sha256_of(path)


def test_a_json_file_of_an_earlier_version_is_read(tmp_path):
    path = tmp_path / "values.json"
    path.write_text(json.dumps(VALUES))
    assert read_json(path) == VALUES


def test_an_edited_json_file_is_named(tmp_path):
    path = tmp_path / "values.json"
    write_json(VALUES, path)
    path.write_text(path.read_text().replace("3.5", "4.5"))
    with pytest.raises(PipelineError, match=r"values.json: is damaged or was edited, .* delete it and make it again"):
        read_json(path)


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x" * 9)]
)
def test_a_parquet_file_that_is_none_is_named(tmp_path, damage):
    path = tmp_path / "table.parquet"
    write_parquet(TABLE, path)
    damage(path)
    with pytest.raises(PipelineError, match=r"table.parquet: .*evaluate"):
        read_parquet(path, "evaluate")


def test_numbers_as_names_of_entries_pass(tmp_path):
    write_json({"counts": {2: "b", 10: "a"}}, tmp_path / "values.json")
    assert read_json(tmp_path / "values.json") == {"counts": {"2": "b", "10": "a"}}


def test_a_flipped_bit_in_every_byte_of_an_npz_file_is_named_or_changes_nothing(tmp_path):
    path = tmp_path / "embeddings.npz"
    arrays = {"audio": np.arange(12, dtype=np.float32).reshape(4, 3), "caption": np.array(["a", "b"])}
    write_npz(path, **arrays)
    content = path.read_bytes()
    for byte in range(len(content)):
        path.write_bytes(flipped(content, byte))
        try:
            found = read_npz(path, arrays, "embed")
        except PipelineError as error:
            assert str(path) in str(error) and "embed" in str(error)
        else:
            assert all(np.array_equal(found[name], array) for name, array in arrays.items())
