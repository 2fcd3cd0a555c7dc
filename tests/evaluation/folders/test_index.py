"""The index of a folder: what is committed stays, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.evaluation.folders import index as folder_index
from pipeline.evaluation.folders.index import FolderIndex
from pipeline.evaluation.folders.recordings import RecordingFile

ROOT = Path(__file__).parents[3]
MADE_FOR = {"model": "a", "folder": "b"}


def opened(folder: Path, **made_for: str) -> FolderIndex:
    return FolderIndex(folder, 4, MADE_FOR | made_for)


def vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4), np.float32)


def add(folder: Path, names: list[str], count: int = 3, mtime_ns: int = 1) -> None:
    """Add complete files, each with its vectors."""
    index = opened(folder)
    with index.locked(), index.writer() as writer:
        for name in names:
            file = writer.file(RecordingFile(name, 10, mtime_ns))
            writer.append(file, vectors(count, sum(name.encode("utf-8", "surrogateescape"))), np.arange(count))
            file.is_complete, file.duration_s = True, 2.5
        writer.commit()


def held(index: FolderIndex, name: str) -> np.ndarray:
    rows = [row for first, count in index.files[name].extents for row in range(first, first + count)]
    return np.array(index.vectors()[rows])


def check(index: FolderIndex, name: str, count: int = 3) -> None:
    np.testing.assert_array_equal(held(index, name), vectors(count, sum(name.encode("utf-8", "surrogateescape"))))


def test_files_are_added_without_writing_others_again(tmp_path):
    add(tmp_path, ["a", "b"])
    before = (tmp_path / "vectors-0.f32").read_bytes()
    add(tmp_path, ["c"])
    index = opened(tmp_path)
    for name in "abc":
        check(index, name)
    assert (tmp_path / "vectors-0.f32").read_bytes()[: len(before)] == before
    assert index.files["a"].is_complete and index.files["a"].duration_s == 2.5


@pytest.mark.parametrize("name", ["tab\tand\nline", "<script>", '"quoted"', os.fsdecode(b"not utf-8 \xff\xfe")])
def test_names_of_every_kind_are_kept(tmp_path, name):
    add(tmp_path, [name])
    check(opened(tmp_path), name)


def test_rows_that_were_not_committed_are_overwritten(tmp_path):
    add(tmp_path, ["a"])
    index = opened(tmp_path)
    with index.locked(), index.writer() as writer:
        writer.append(writer.file(RecordingFile("lost", 1, 1)), vectors(5, 0), np.arange(5))
    assert "lost" not in opened(tmp_path).files
    add(tmp_path, ["b"])
    index = opened(tmp_path)
    check(index, "a")
    check(index, "b")
    assert len(index.vectors()) == 6


def test_a_file_goes_on_where_a_killed_search_left_it(tmp_path):
    long = RecordingFile("long", 10, 1)
    for part in (range(0, 4), range(4, 9)):
        index = opened(tmp_path)
        with index.locked(), index.writer() as writer:
            file = writer.file(long)
            assert file.next_window == part[0]
            writer.append(file, vectors(9, 5)[part[0] : part[-1] + 1], np.array(part))
            file.is_complete = part[-1] == 8
            writer.commit()
    index = opened(tmp_path)
    np.testing.assert_array_equal(held(index, "long"), vectors(9, 5))
    assert index.numbers().tolist() == list(range(9))


def test_a_changed_file_replaces_its_older_self(tmp_path):
    add(tmp_path, ["a", "b"])
    add(tmp_path, ["a"], count=2, mtime_ns=7)
    index = opened(tmp_path)
    assert index.files["a"].mtime_ns == 7
    check(index, "a", count=2)
    check(index, "b")


def test_compaction_keeps_the_living_rows(tmp_path):
    add(tmp_path, list("abcdefgh"))
    index = opened(tmp_path)
    index.forget_all_but({"c", "f"})
    assert index.is_mostly_dead
    with index.locked():
        index.forget_all_but({"c", "f"})
        index.compact()
    for found in (index, opened(tmp_path)):
        assert set(found.files) == {"c", "f"} and len(found.vectors()) == 6
        check(found, "c")
        check(found, "f")
    assert len(list(tmp_path.glob("vectors-*"))) == len(list(tmp_path.glob("windows-*"))) == 1
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    add(tmp_path, ["z"])
    check(opened(tmp_path), "z")


def test_a_kill_in_compaction_leaves_the_index_as_it_was(tmp_path):
    add(tmp_path, list("abcdefgh"))
    code = (
        "import os, sys; from pathlib import Path; from pipeline.evaluation.folders import index as module\n"
        "module.write_parquet = lambda *args: os._exit(9)\n"
        f"index = module.FolderIndex(Path(sys.argv[1]), 4, {MADE_FOR!r})\n"
        "with index.locked():\n    index.forget_all_but({'c'})\n    index.compact()\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert killed.returncode == 9 and len(list(tmp_path.glob("vectors-*"))) == 2
    index = opened(tmp_path)
    for name in "abcdefgh":
        check(index, name)


def test_many_parts_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_index, "MOST_PARTS", 5)
    names = [f"file {number}" for number in range(14)]
    for name in names:
        add(tmp_path, [name])
    index = opened(tmp_path)
    for name in names:
        check(index, name)
    assert len(list(tmp_path.glob("*.parquet"))) <= 6


def test_an_index_of_another_model_is_refused(tmp_path):
    add(tmp_path, ["a"])
    with pytest.raises(PipelineError, match="is the index of another model or folder; delete the folder"):
        opened(tmp_path, model="another")


def test_a_shortened_file_of_vectors_is_named(tmp_path):
    add(tmp_path, ["a"])
    os.truncate(tmp_path / "vectors-0.f32", 20)
    with pytest.raises(PipelineError, match=r"vectors-0\.f32: is damaged, it holds 1 of 3 rows; delete"):
        opened(tmp_path)


def test_a_damaged_journal_is_named(tmp_path):
    add(tmp_path, ["a"])
    part = tmp_path / "00000001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(PipelineError, match=r"00000001\.parquet: is damaged"):
        opened(tmp_path)


def test_only_one_process_adds_to_an_index(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipeline.evaluation.folders.index import FolderIndex\n"
        f"index = FolderIndex(Path(sys.argv[1]), 4, {MADE_FOR!r})\n"
        "with index.locked():\n    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(PipelineError, match="another search adds to this index; wait"), opened(tmp_path).locked():
            pass
        other.stdin.close()
    with opened(tmp_path).locked():
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match=r"file.*: cannot be"), opened(tmp_path / "file" / "index").locked():
        pass
