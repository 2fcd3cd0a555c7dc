"""Splits and pairs that the tests of the commands may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from audio_files import make_catalog, make_shards, write_folder
from outputs import change_manifest

from pipeline.data.leaks import AudioForm, leaked_path, write_identities
from pipeline.data.shards.format import read_manifest, read_summary
from pipeline.stages import pair_clips


@pytest.fixture
def split(tiny_study, tmp_path: Path) -> Path:
    """A copy of the labeled split, to be damaged: shards of 6 and 18 clips."""
    return Path(shutil.copytree(tiny_study.shards / "labeled" / "train", tmp_path / "shards" / "labeled" / "train"))


@pytest.fixture
def lossy(tmp_path: Path) -> Path:
    """FLAC shards of five clips, of which one has no file and one is no audio."""
    write_folder(tmp_path / "raw", clips=5)
    (tmp_path / "raw/train/clip 1.wav").unlink()
    (tmp_path / "raw/train/clip 3.wav").write_text("no audio")
    return make_shards(
        make_catalog(tmp_path / "raw", tmp_path / "catalog.parquet"), tmp_path / "out", 2, audio_format="flac"
    )


@pytest.fixture
def leaky(tiny_study, split: Path, tmp_path: Path) -> Path:
    """Pairs of a split of which two clips have the source of a held-out one, and a third its audio."""
    held_out = Path(shutil.copytree(tiny_study.shards / "unlabeled" / "train", tmp_path / "shards" / "held" / "test"))
    sounds = read_manifest(held_out / "manifest.parquet")["sha256"].to_pylist()
    change_manifest(held_out, 4, source_id="-aVideoId_0")
    for row, identity in {
        3: {"source_id": "-aVideoId_0"},
        8: {"source_id": "-aVideoId_0"},
        9: {"sha256": sounds[7]},
    }.items():
        change_manifest(split, row, **identity)
    path = tmp_path / "pairs" / "seed0.parquet"
    identities = held_out / "identities.parquet"
    write_identities(held_out / "manifest.parquet", AudioForm.of(read_summary(held_out / "manifest.json")), identities)
    manifests = ["--labeled", str(split / "manifest.parquet"), "--held-out", str(identities)]
    plan = ["--backbone", "mini", "--epochs", "1", "--batch-size", "7", "--seed", "0", "--leaks", "drop"]
    pair_clips.main([*manifests, *plan, "--pairs", str(path), "--leaked", str(leaked_path(path))])
    return path
