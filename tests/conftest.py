"""A tiny study of real files, made once a session by the pipeline's own stages."""

from __future__ import annotations

import csv
import ctypes
import functools
import gc
import os
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

# The tests run in more processes than there are cores: threads that wait must not keep a core busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

# numpy, torch and the stages are imported in functions: the process that hands the tests out reads this file, too, and
# the processes that run them wait for it.

CAPTIONS = ["a low tone hums", "a high tone whistles", "noise hisses", "a tone beeps while noise hisses"]


LONG = ("workflow", "training", "models")
"""Folders whose tests take longest, longest first."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests stay, a million of objects: the garbage collector looks at them neither now nor later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000)  # new objects until the next look; Python's 700 take 4 % of the tests' time
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: begun last, one of them would run alone while the other processes have nothing left to do.

    Only the processes that run tests come here. They have one thread, and compute a Fourier matrix once per size.
    """
    import torch
    from torchlibrosa.stft import DFTBase

    torch.set_num_threads(1)
    # The matrix takes half of the time that the construction of a small model takes.
    matrix_of_size = functools.cache(functools.partial(DFTBase.dft_matrix, None))
    DFTBase.dft_matrix = lambda stft, size: matrix_of_size(size)
    items.sort(key=lambda item: LONG.index(name) if (name := item.path.parent.name) in LONG else len(LONG))


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back() -> Generator[None]:
    """glibc keeps memory that is freed, and each later fork would copy its page tables: 0.1 s with full-size models."""
    yield
    if give_back := getattr(ctypes.CDLL(None), "malloc_trim", None):
        give_back(0)


@dataclass(frozen=True)
class TinyStudy:
    """Two sharded splits of synthetic audio, `labeled/train` (24 clips) and `unlabeled/train` (20), and a model."""

    folder: Path

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def pretrained(self) -> Path:
        return self.folder / "pretrained"

    def manifest(self, dataset: str) -> Path:
        return self.shards / dataset / "train" / "manifest.parquet"

    def identities(self, dataset: str) -> Path:
        return self.manifest(dataset).with_name("identities.parquet")

    def pairs(self, objective: str, *, seed: int = 0, epochs: int = 2, batch_size: int = 8) -> Path:
        """A pairs file for an objective or another entry of `partners`, made by the stage where it is not there yet."""
        from pipeline.data.leaks import leaked_path
        from pipeline.stages import pair_clips

        path = self.folder / "pairs" / f"{objective}_{seed}_{epochs}_{batch_size}.parquet"
        if path.exists():
            return path
        unlabeled = ["--unlabeled", str(self.manifest("unlabeled"))]
        partners = {
            "finetune": [],
            "composed": unlabeled,
            "concatenate": ["--mix-labeled"],
            "mostly_labeled": [*unlabeled, "--labeled-partners=0.75"],
            "all_labeled": [*unlabeled, "--labeled-partners=1"],
            "two_partners": [*unlabeled, "--labeled-partners=0.75", "--mix-labeled"],
        }
        arguments = ["--labeled", str(self.manifest("labeled")), *partners[objective], "--backbone", "mini"]
        plan = ["--epochs", str(epochs), "--batch-size", str(batch_size), "--seed", str(seed)]
        pair_clips.main([*arguments, *plan, "--pairs", str(path), "--leaked", str(leaked_path(path))])
        return path


def write_raw_dataset(root: Path, clips: int, captioned: bool, seed: int) -> None:
    """Tones and noise of 1 to 4 s in the `folder` layout."""
    import numpy as np
    import soundfile

    generator = np.random.default_rng(seed)
    (root / "train").mkdir(parents=True)
    rows = []
    for clip in range(clips):
        frames = int(generator.uniform(1, 4) * 16_000)
        tone = np.sin(np.arange(frames) * generator.uniform(0.05, 1.5)) * 0.3
        noise = generator.normal(0, 0.05, frames)
        soundfile.write(root / "train" / f"clip {clip}.wav", tone + noise, 16_000)
        rows.append([f"clip {clip}.wav", *generator.permutation(CAPTIONS)[:2]])
    if captioned:
        with (root / "train.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["file_name", "caption_1", "caption_2"], *rows])


def shard_dataset(folder: Path, dataset: str, captioned: bool) -> None:
    """Catalog and shards of the raw dataset `folder`/raw/`dataset`."""
    from pipeline.stages import index_audio, index_shards, shard_audio

    root, split = folder / "raw" / dataset, folder / "shards" / dataset / "train"
    catalog = folder / "catalogs" / dataset / "train.parquet"
    plan = catalog.with_suffix(".shards.parquet")
    flag = "--labeled" if captioned else "--unlabeled"
    index_audio.main(
        ["--dataset", dataset, "--split", "train", "--adapter", "folder", "--root", str(root), flag]
        + ["--clips-per-shard", "20", "--catalog", str(catalog), "--plan", str(plan)]
    )
    shard_audio.main(
        ["--catalog", str(catalog), "--plan", str(plan), "--sample-rate-hz", "16000", "--format", "wav"]
        + ["--shards", str(split), "--done", str(split / "parts" / "0-of-1.json")]
    )
    index_shards.main(
        ["--plan", str(plan), "--shards", str(split), "--identities", str(split / "identities.parquet")]
        + ["--manifest", str(split / "manifest.parquet"), "--summary", str(split / "manifest.json")]
    )


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """Raw files, catalogs, shards and manifests of two datasets, and a randomly initialised mini."""
    import torch

    from pipeline.models import mini, save_model

    study = TinyStudy(tmp_path_factory.mktemp("tiny"))
    for dataset, clips, captioned in (("labeled", 24, True), ("unlabeled", 20, False)):
        write_raw_dataset(study.folder / "raw" / dataset, clips, captioned, seed=clips)
        shard_dataset(study.folder, dataset, captioned)
    torch.manual_seed(0)
    save_model(mini.build(mini.train_tokenizer(CAPTIONS, 300)), study.pretrained)
    return study


@dataclass(frozen=True)
class PoolStudy:
    """Shards of `labeled/train` (24 clips), `unlabeled/train` (20) and `target/train` (6), all embedded."""

    folder: Path

    def arguments(self, out: Path) -> list[str]:
        """Flags of describe_pool for `target/train`."""
        return [
            *("--target", "target", "--role", "test", "--held-out", "target/train", "--labeled", "labeled/train"),
            *("--unlabeled", "unlabeled/train", "--shards", str(self.folder / "shards")),
            *("--embeddings", str(self.folder / "embeddings"), "--out", str(out)),
            *("--identities", str(self.folder / "shards" / "target" / "train" / "identities.parquet")),
        ]


@pytest.fixture(scope="session")
def pool_study(tiny_study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> PoolStudy:
    """The tiny study with a third, captioned dataset; its description is in `folder`/pool."""
    from pipeline.stages import describe_pool, embed_split

    study = PoolStudy(tmp_path_factory.mktemp("pool"))
    shutil.copytree(tiny_study.shards, study.folder / "shards")
    write_raw_dataset(study.folder / "raw" / "target", clips=6, captioned=True, seed=6)
    shard_dataset(study.folder, "target", captioned=True)
    for name in ("labeled/train", "unlabeled/train", "target/train"):
        embed_split.main(
            ["--model", str(tiny_study.pretrained), "--shards", str(study.folder / "shards" / name), "--device", "cpu"]
            + ["--embeddings", str(study.folder / "embeddings" / name / "embeddings.parquet")]
        )
    describe_pool.main(study.arguments(study.folder / "pool"))
    return study
