"""The digest of a split's files changes exactly when its catalog can."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.adapters.listing import MAX_READ_BYTES, MAX_READ_LISTS, listing_digest
from pipeline.errors import PipelineError


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_dataset(root: Path) -> Path:
    for split in ("train", "test"):
        put(root / f"{split}.csv", b"file_name,caption_1\na.wav,dog\n")
        put(root / split / "a.wav", b"sound")
        put(root / "data" / f"{split}-00000-of-00001.parquet")
        put(root / "tars" / split / "0.tar")
    put(root / "metadata.csv")
    return root


def digests(root: Path) -> tuple[str, str]:
    """Of the splits train and test."""
    return listing_digest(root, "train", ["test"]), listing_digest(root, "test", ["train"])


def touch_later(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


CHANGES: dict[str, tuple[Callable[[Path], object], bool, bool]] = {
    "new clip": (lambda root: put(root / "train/b.wav"), True, False),
    "new clip, deeper": (lambda root: put(root / "train/test/b.flac"), True, False),
    "new clip of another split": (lambda root: put(root / "audio/test_v2/b.MP3"), False, True),
    "new clip of no split": (lambda root: put(root / "audio/b.wav"), True, True),
    "clip that is named like a split": (lambda root: put(root / "test_b.wav"), True, True),
    "removed clip": (lambda root: (root / "train/a.wav").unlink(), True, False),
    "replaced clip": (lambda root: put(root / "train/a.wav", b"louder"), True, False),
    "broken link": (lambda root: (root / "train/b.wav").symlink_to("gone.wav"), True, False),
    "touched clip": (lambda root: touch_later(root / "train/a.wav"), False, False),
    "changed list": (lambda root: put(root / "test.csv", b"file_name,caption_1\na.wav,cat\n"), False, True),
    "new list": (lambda root: put(root / "clotho_captions_train.csv"), True, False),
    "changed list of all splits": (lambda root: put(root / "metadata.csv", b"y"), True, True),
    "touched list": (lambda root: touch_later(root / "train.csv"), False, False),
    "touched Parquet file": (lambda root: touch_later(root / "data/train-00000-of-00001.parquet"), True, False),
    "touched tar": (lambda root: touch_later(root / "tars/test/0.tar"), False, True),
    "touched folder": (lambda root: os.utime(root / "train", (1, 1)), False, False),
    "empty folder": (lambda root: (root / "train/more").mkdir(), False, False),
    "lock file of Excel": (lambda root: put(root / "~$train.csv"), False, False),
    "lock file of LibreOffice": (lambda root: put(root / ".~lock.train.csv#"), False, False),
    "hidden file": (lambda root: put(root / "train/._a.wav"), False, False),
    "hidden folder": (lambda root: put(root / ".cache/a.wav"), False, False),
    "files of other kinds": (lambda root: (put(root / "Thumbs.db"), put(root / "train/desktop.ini")), False, False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_counts_for_the_splits_it_can_change(tmp_path: Path, name: str) -> None:
    change, changes_train, changes_test = CHANGES[name]
    before = digests(make_dataset(tmp_path))
    change(tmp_path)
    after = digests(tmp_path)
    assert (before[0] != after[0], before[1] != after[1]) == (changes_train, changes_test)


def test_the_digest_does_not_depend_on_where_the_dataset_lies(tmp_path: Path) -> None:
    before = digests(make_dataset(tmp_path / "test"))
    (tmp_path / "test").rename(tmp_path / "train")
    assert digests(tmp_path / "train") == before


@pytest.mark.parametrize(
    ("split", "others", "folder", "counts"),
    [
        ("train", ["bal_train"], "bal_train", True),  # has both names
        ("bal_train", ["train"], "train", False),
        ("balanced_train", ["unbalanced_train"], "unbalanced_train_segments", False),
        ("val", ["evaluation"], "validation", True),  # is no split's
        ("a.b", ["c"], "axb", True),
        ("test", ["train"], "training", True),
        ("test", ["train"], "audio-train.v2", False),
        ("test", ["train", "test"], "test", True),
    ],
)
def test_names_of_splits_count_between_separators(
    tmp_path: Path, split: str, others: list[str], folder: str, counts: bool
) -> None:
    (tmp_path / folder).mkdir()
    before = listing_digest(tmp_path, split, others)
    put(tmp_path / folder / "a.wav")
    assert (listing_digest(tmp_path, split, others) != before) == counts


def test_clips_behind_links_count(tmp_path: Path) -> None:
    put(tmp_path / "disk/a.wav")
    root = tmp_path / "root"
    root.mkdir()
    found = [listing_digest(root, "train", [])]
    for name in ("one", "two"):
        (root / name).symlink_to(tmp_path / "disk")
        found.append(listing_digest(root, "train", []))
    put(tmp_path / "disk/b.wav")
    found.append(listing_digest(root, "train", []))
    (tmp_path / "disk/back").symlink_to(root)
    assert listing_digest(root, "train", []) == found[-1]
    assert len(set(found)) == 4


def test_long_lists_count_by_size_and_time(tmp_path: Path) -> None:
    listing = put(tmp_path / "train.csv")
    os.truncate(listing, MAX_READ_BYTES + 1)
    before = digests(tmp_path)
    touch_later(listing)
    assert digests(tmp_path)[0] != before[0]


def test_texts_next_to_clips_count(tmp_path: Path) -> None:
    for number in range(MAX_READ_LISTS + 1):
        put(tmp_path / f"{number:04d}.txt")
    before = digests(tmp_path)
    put(tmp_path / f"{MAX_READ_LISTS:04d}.txt", b"other")
    assert digests(tmp_path) != before


def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.csv")
    os.mkfifo(tmp_path / "train.tar")
    assert listing_digest(tmp_path, "train", [])


def test_a_root_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"nowhere: expected the folder of the dataset, found nothing"):
        listing_digest(tmp_path / "nowhere", "train", [])


def test_a_root_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"cannot be read \(File name too long\)"):
        listing_digest(tmp_path / ("x" * 300), "train", [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_root_that_cannot_be_listed_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        with pytest.raises(PipelineError, match=r"cannot be listed \(Permission denied\)"):
            listing_digest(tmp_path, "train", [])
    finally:
        tmp_path.chmod(0o755)


def test_planning_imports_neither_torch_nor_pyarrow() -> None:
    code = "import sys, pipeline.data.adapters.listing; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
