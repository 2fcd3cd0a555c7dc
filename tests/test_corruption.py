"""Every kind of damage to every kind of result file, for every reader: a message that names the file, or no change.

By default each reader meets some damages of each of its files, drawn with a fixed seed. FAULTS=full: all of them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.__main__ import main as command
from pipeline.data.leaks import leaked_path
from pipeline.errors import PipelineError, crash_message
from pipeline.files import read_json
from pipeline.stages import (
    choose_settings,
    compare,
    describe_pool,
    draw_curves,
    embed,
    embed_split,
    evaluate,
    find_near_duplicates,
    index_shards,
    pair_clips,
    report,
    shard_audio,
    stage_shards,
    tabulate,
    train,
)

IS_FULL = os.environ.get("FAULTS") == "full"
FLIPS = 8 if IS_FULL else 3
SAMPLED = 2
"""Damages of a file that a reader meets by default; one that takes a second or more meets one."""
SLOW = {"export", "report", "resume", "search", "train", "train_again"}
SECONDS = 60
"""A reader that takes longer hangs."""

SPLIT = Path("shards/labeled/train")
RUN, MODEL, RUN_AT_WORK = Path("results/runs/birds/seed0"), Path("pretrained"), Path("at_work")
EVALUATION, OTHER = Path("results/evaluations/birds/seed0/labeled"), Path("evaluations/other")
PAIRS = Path("pairs/composed.parquet")
SWEEP = Path("sweep/learning_rate=0.001/birds/seed0/labeled")
EMBEDDED, POOL = Path("embeddings"), Path("pools/labeled/test")
TRAIN = ["--pairs", PAIRS, "--shards", "shards", "--seed", 0, "--device", "cpu", "--objective", "composed"]


# --- the study -------------------------------------------------------------------------------------------------------


def run(stage: Any, *words: object) -> None:
    stage.main([str(word) for word in words])


def evaluate_run(model: Path, folder: Path, name: str) -> None:
    run(embed, "--model", model, "--shards", SPLIT, "--device", "cpu", "--threads", 1, "--embeddings",
        folder / "embeddings.npz")  # fmt: skip
    run(evaluate, "--embeddings", folder / "embeddings.npz", "--run", name, "--seed", 0, "--target", "labeled",
        "--split", "train", "--metrics", folder / "metrics.json", "--ranks", folder / "ranks.parquet",
        "--contributions", folder / "contributions.parquet")  # fmt: skip


@pytest.fixture(scope="module")
def study(tiny_study, tmp_path_factory) -> Iterator[Path]:
    """A folder with one file of every kind, from which the copies are made that are damaged."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("catalogs", "shards", "pretrained"):
        shutil.copytree(tiny_study.folder / name, folder / name)
    with contextlib.chdir(folder):
        shutil.copytree("catalogs", "results/catalogs")
        labeled, unlabeled = (Path("shards", name, "train/manifest.parquet") for name in ("labeled", "unlabeled"))
        run(pair_clips, "--labeled", labeled, "--unlabeled", unlabeled, "--backbone", "mini", "--epochs", 2,
            "--batch-size", 8, "--seed", 0, "--pairs", PAIRS, "--leaked", leaked_path(PAIRS))  # fmt: skip
        run(train, "--pretrained", MODEL, *TRAIN, "--out", RUN, "--outcome", RUN / "outcome.txt")
        stop_in_the_middle(RUN_AT_WORK)
        evaluate_run(RUN, EVALUATION, "birds")
        evaluate_run(MODEL, OTHER, "other")
        for name in ("labeled", "unlabeled"):
            run(embed_split, "--model", MODEL, "--shards", Path("shards", name, "train"), "--device", "cpu",
                "--threads", 1, "--embeddings", EMBEDDED / name / "train/embeddings.parquet")  # fmt: skip
        run(find_near_duplicates, "--shards", "shards/unlabeled/train", "--held-out", SPLIT, "--report", "near.json")
        READERS["describe_pool"].read(POOL)
        SWEEP.mkdir(parents=True)
        for name in ("metrics.json", "contributions.parquet"):
            shutil.copyfile(EVALUATION / name, SWEEP / name)
        for reader in ("compare", "draw_curves", "tabulate"):
            READERS[reader].read(Path())
        READERS["search"].read(Path())
        yield folder


def stop_in_the_middle(out: Path) -> None:
    """Leave what a kill leaves of a run: a checkpoint and notes, and no outputs."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.training.trainer.Trainer._write_outputs", interrupt)
        run(train, "--pretrained", MODEL, *TRAIN, "--out", out, "--outcome", out / "outcome.txt",
            "--steps-per-checkpoint", 4)  # fmt: skip


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# --- readers ---------------------------------------------------------------------------------------------------------


def content(path: Path) -> Any:
    """What a reader made of its input, without times and versions."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path)): content(file) for file in files}
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return str(table.schema), table.to_pylist()
    if path.suffix == ".json" and path.name != "tokenizer.json":
        return read_json(path)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tolist() for name in arrays}
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Reader:
    """A stage, a command or a function of the API, and the files of a study that it reads."""

    read: Callable[[Path], Any]
    """From a folder for its outputs to what it made; the working directory is the study."""
    files: list[Path]
    """A `*` stands for the name of one folder."""


READERS: dict[str, Reader] = {}


def reads(*files: str | Path) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def register(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        READERS[read.__name__.removeprefix("by_")] = Reader(read, [Path(file) for file in files])
        return read

    return register


CATALOG, PLAN = Path("catalogs/labeled/train.parquet"), Path("catalogs/labeled/train.shards.parquet")
MANIFEST = [SPLIT / "manifest.parquet", SPLIT / "manifest.json"]
TAR, ROWS = SPLIT / "00000.tar", SPLIT / "00000.parquet"
MODEL_FILES = ("model.safetensors", "model.json", "tokenizer.json")
ROWS_OF_TABLE = ["--datasets", "labeled", "--protocol", "paper"]


@reads(CATALOG, PLAN, TAR, ROWS, SPLIT / "parts/0-of-1.json")
def by_shard_audio(out):
    run(shard_audio, "--catalog", CATALOG, "--plan", PLAN, "--sample-rate-hz", 16_000, "--format", "wav",
        "--shards", SPLIT, "--done", SPLIT / "parts/0-of-1.json")  # fmt: skip
    return [content(SPLIT / "parts/0-of-1.json"), content(ROWS)]


@reads(PLAN, TAR, ROWS)
def by_index_shards(out):
    run(index_shards, "--plan", PLAN, "--shards", SPLIT, "--manifest", out / "manifest.parquet", "--summary",
        out / "manifest.json", "--identities", out / "identities.parquet")  # fmt: skip
    return content(out)


@reads(*MANIFEST, TAR)
def by_stage_shards(out):
    run(stage_shards, "--address", SPLIT.absolute(), "--manifest", out / "manifest.parquet", "--summary",
        out / "manifest.json", "--identities", out / "identities.parquet")  # fmt: skip
    return content(out)


@reads(*MANIFEST, "shards/unlabeled/train/identities.parquet")
def by_pair_clips(out):
    run(pair_clips, "--labeled", MANIFEST[0], "--held-out", "shards/unlabeled/train/identities.parquet", "--backbone",
        "mini", "--epochs", 2, "--batch-size", 8, "--seed", 0, "--pairs", out / "seed0.parquet", "--leaked",
        out / "seed0.leaked.parquet")  # fmt: skip
    return content(out)


@reads(*MANIFEST, TAR)
def by_find_near_duplicates(out):
    run(find_near_duplicates, "--shards", SPLIT, "--held-out", "shards/unlabeled/train", "--report", out / "near.json")
    return content(out)


@reads(PAIRS, *MANIFEST, TAR, *(MODEL / name for name in MODEL_FILES))
def by_train(out):
    run(train, "--pretrained", MODEL, *TRAIN, "--out", out)
    return [content(out / name) for name in ("model.safetensors", "training.parquet")]


@reads(*(RUN_AT_WORK / "checkpoints" / name for name in ("last.pt", "last.pt.sha256", "parts.json")))
def by_resume(out):
    run(train, "--pretrained", MODEL, *TRAIN, "--out", RUN_AT_WORK, "--outcome", RUN_AT_WORK / "outcome.txt")
    return [content(RUN_AT_WORK / name) for name in ("model.safetensors", "training.parquet")]


@reads(*(RUN / name for name in (*MODEL_FILES, "training.parquet", "training.json", "outcome.txt")),
       *(RUN / ".kept" / name for name in ("made_from.json", "model.safetensors")))  # fmt: skip
def by_train_again(out):
    run(train, "--pretrained", MODEL, *TRAIN, "--out", RUN, "--outcome", RUN / "outcome.txt")
    return [content(RUN / name) for name in ("model.safetensors", "training.parquet", "outcome.txt")]


@reads(*(MODEL / name for name in MODEL_FILES), *MANIFEST, TAR, RUN / "outcome.txt")
def by_embed(out):
    run(embed, "--model", MODEL, "--shards", SPLIT, "--device", "cpu", "--threads", 1, "--outcome",
        RUN / "outcome.txt", "--embeddings", out / "embeddings.npz")  # fmt: skip
    return content(out / "embeddings.npz")


@reads(EVALUATION / "embeddings.npz", RUN / "outcome.txt")
def by_evaluate(out):
    run(evaluate, "--embeddings", EVALUATION / "embeddings.npz", "--run", "birds", "--seed", 0, "--target", "labeled",
        "--split", "train", "--metrics", out / "metrics.json", "--ranks", out / "ranks.parquet", "--outcome",
        RUN / "outcome.txt", "--contributions", out / "contributions.parquet")  # fmt: skip
    return content(out)


@reads(*(MODEL / name for name in MODEL_FILES), *MANIFEST, TAR)
def by_embed_split(out):
    run(embed_split, "--model", MODEL, "--shards", SPLIT, "--device", "cpu", "--threads", 1, "--embeddings",
        out / "embeddings.parquet")  # fmt: skip
    return content(out / "embeddings.parquet")


@reads(*(EMBEDDED / name / "train/embeddings.parquet" for name in ("labeled", "unlabeled")), *MANIFEST, "near.json",
       "shards/labeled/train/identities.parquet", "shards/unlabeled/train/manifest.parquet")  # fmt: skip
def by_describe_pool(out):
    run(describe_pool, "--target", "labeled", "--role", "test", "--held-out", "labeled/train", "--labeled",
        "labeled/train", "--unlabeled", "unlabeled/train", "--shards", "shards", "--embeddings", EMBEDDED,
        "--identities", SPLIT / "identities.parquet", "--near-duplicates", "near.json", "--out", out)  # fmt: skip
    return [content(out / name) for name in describe_pool.OUTPUTS]


def rows(name: str) -> list[object]:
    return ["--row", "labeled|finetune|A+T", OTHER / name, "--row", "labeled|composed|A+T", EVALUATION / name]


@reads(EVALUATION / "contributions.parquet")
def by_compare(out):
    path = out / "comparisons.csv"
    run(compare, *ROWS_OF_TABLE, *rows("contributions.parquet"), "--samples", 200, "--csv", path)
    return content(path)


@reads(EVALUATION / "contributions.parquet", PAIRS)
def by_draw_curves(out):
    path = out / "curve.csv"
    run(draw_curves, "--protocol", "paper", "--against", "labeled_clips", "--samples", 200, "--point", "finetune",
        PAIRS, EVALUATION / "contributions.parquet", "--csv", path, "--svg", path.with_suffix(".svg"))  # fmt: skip
    return content(path)


@reads(EVALUATION / "metrics.json", "comparisons.csv")
def by_tabulate(out):
    run(tabulate, *ROWS_OF_TABLE, *rows("metrics.json"), "--study-name", "tiny", "--comparisons", "comparisons.csv",
        "--csv", out / "table.csv", "--tex", out / "table.tex")  # fmt: skip
    return [content(out / name) for name in ("table.csv", "table.tex")]


@reads("table.csv", "comparisons.csv", "curve.csv", EVALUATION / "metrics.json", EVALUATION / "ranks.parquet",
       EVALUATION / "embeddings.npz", RUN / "training.parquet", RUN / "training.json", *MANIFEST, TAR,
       POOL / "summary.json", POOL / "map.parquet")  # fmt: skip
def by_report(out):
    run(report, "--name", "tiny", "--note", "", "--protocol", "paper", "--tables", "table.csv", "--comparisons",
        "comparisons.csv", "--curves", "curve.csv", "--evaluations", EVALUATION, OTHER, "--logs",
        RUN / "training.parquet", "--summaries", MANIFEST[1], "shards/unlabeled/train/manifest.json", "--pools", POOL,
        "--out", out)  # fmt: skip
    return content(out)


@reads(SWEEP / "metrics.json", SWEEP / "contributions.parquet")
def by_choose_settings(out):
    run(choose_settings, "--evaluations", SWEEP, "--protocol", "paper", "--csv", out / "sweep.csv",
        "--yaml", out / "sweep.yaml")  # fmt: skip
    return content(out)


def printed(*words: object) -> str:
    with contextlib.redirect_stdout(Output()) as output:
        command([str(word) for word in words])
    return output.text


class Output:
    """Text that is printed."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...


@reads(*MANIFEST)
def by_inspect_shards(out):
    return printed("inspect", SPLIT)


@reads(CATALOG)
def by_inspect_catalog(out):
    return printed("inspect", CATALOG)


@reads(PAIRS, leaked_path(PAIRS), *MANIFEST)
def by_inspect_pairs(out):
    return printed("inspect", PAIRS, "--shards", "shards")


@reads(*(RUN / name for name in (*MODEL_FILES, "training.parquet", "training.json")))
def by_inspect_run(out):
    return printed("inspect", RUN)


@reads(*MANIFEST, TAR)
def by_verify_shards(out):
    return printed("verify", SPLIT)


@reads(PAIRS, leaked_path(PAIRS), *MANIFEST)
def by_verify_pairs(out):
    return printed("verify", PAIRS, "--shards", "shards")


@reads(PAIRS, *MANIFEST, TAR)
def by_listen(out):
    printed("listen", PAIRS, "--shards", "shards", "--out", out)
    return [content(path) for path in sorted(out.glob("*.wav"))]


@reads(*(MODEL / name for name in MODEL_FILES), *MANIFEST, "index/*/audio.npy")
def by_search(out):
    return printed("search", "noise", "--run", MODEL, "--in", SPLIT, "--index", "index")


@reads(TAR)
def by_search_without_index(out):
    return printed("search", "noise", "--run", MODEL, "--in", SPLIT, "--index", out)


@reads(*(RUN / name for name in (*MODEL_FILES, "training.json", "learning_curves.svg")), EVALUATION / "metrics.json",
       "results/catalogs/labeled/train.parquet")  # fmt: skip
def by_export(out):
    printed("export", RUN, "--to", out / "made")
    return content(out / "made")


@reads(*(MODEL / name for name in MODEL_FILES))
def by_load(out):
    return pipeline.load(MODEL, device="cpu").embed_text(["noise hisses"]).tolist()


@reads(*MANIFEST, TAR)
def by_open_split(out):
    split = pipeline.open_split(SPLIT, verify=True)
    return [(key, split.captions(key), split.read(key).tobytes()) for key in split.keys]


@reads(MANIFEST[1], TAR)
def by_stream_clips(out):
    clips = pipeline.stream_clips(SPLIT, verify=True)
    return [(clip["key"], clip["captions"], clip["samples"].tobytes()) for clip in clips]


# --- damages ---------------------------------------------------------------------------------------------------------


def replace(path: Path, data: bytes) -> None:
    path.unlink()  # it is a hard link to the whole study's
    path.write_bytes(data)


def flip(path: Path, seed: int) -> None:
    data = bytearray(path.read_bytes())
    bit = random.Random(f"{path}{seed}").randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    replace(path, data)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


OTHERS = {".parquet": PLAN, ".npz": Path("other.npz"), ".tar": SPLIT / "parts/0-of-1.json"}
"""A whole file of another kind, by the suffix of the file whose place it takes; of other suffixes a JSON object."""


def put_another(path: Path) -> None:
    if path.suffix == ".npz":
        np.savez("other.npz", other=np.zeros(3))
    other = OTHERS.get(path.suffix)
    replace(path, b"{}\n" if other is None or other == path else other.read_bytes())


DAMAGES: dict[str, Callable[[Path], None]] = {
    "half": lambda path: replace(path, path.read_bytes()[: path.stat().st_size // 2]),
    "one byte less": lambda path: replace(path, path.read_bytes()[:-1]),
    "empty": lambda path: replace(path, b""),
    "zeros": lambda path: replace(path, bytes(path.stat().st_size)),
    "random": lambda path: replace(path, random.Random(str(path)).randbytes(path.stat().st_size)),
    "another": put_another,
    "missing": Path.unlink,
    "folder": make_folder,
    **{f"flip {seed}": functools.partial(flip, seed=seed) for seed in range(FLIPS)},
}


def damages_for(reader: str, file: Path) -> list[str]:
    # Bits of the vectors of an index are not checked: reading them all would take longer than a search.
    damages = [damage for damage in DAMAGES if not (file.suffix == ".npy" and damage.startswith("flip"))]
    return damages if IS_FULL else random.Random(f"{reader} {file}").sample(damages, 1 if reader in SLOW else SAMPLED)


STATES = ("has changed", "not found", "is of another manifest", "missing")


def says_so(reader: str, damage: str, found: Any, expected: Any) -> bool:
    """Whether `inspect` or a card, which describe what is there, leave out or name what is not, or not as it was."""
    if reader == "export":
        return damage in ("missing", "folder")
    if not reader.startswith("inspect"):
        return False
    new = set(found.splitlines()) - set(expected.splitlines())
    is_gone = damage in ("missing", "folder") and not new
    return is_gone or any(state in line for line in new for state in STATES)


# --- the matrix ------------------------------------------------------------------------------------------------------


def outcome(reader: str, out: Path) -> tuple[str, Any]:
    """What a reader made, or its message; other errors, which would be tracebacks, are raised."""
    out.mkdir()
    try:
        return "made", READERS[reader].read(out)
    except Exception as error:
        message = str(error) if isinstance(error, PipelineError) else crash_message(error)
        if message is None:
            raise
        return "message", message


@contextlib.contextmanager
def copy_of(study: Path, folder: Path) -> Iterator[None]:
    """Work in a copy of a study, whose files are hard links."""
    shutil.copytree(study, folder, copy_function=os.link)
    with contextlib.chdir(folder):
        yield
    shutil.rmtree(folder)


@pytest.fixture
def patience() -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise AssertionError(f"it took more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, hangs)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("reader", sorted(READERS))
def test_damage_is_named_or_changes_nothing(study, reader, tmp_path, patience):
    @functools.cache
    def expected() -> Any:
        with copy_of(study, tmp_path / "whole"):
            return outcome(reader, tmp_path / "out of whole")[1]

    problems = []
    for file in READERS[reader].files:
        for damage in damages_for(reader, file):
            with copy_of(study, tmp_path / "study"):
                place = next(Path().glob(str(file)))
                DAMAGES[damage](place)
                signal.alarm(SECONDS)
                try:
                    kind, found = outcome(reader, tmp_path / f"{place} {damage}".replace("/", " "))
                except Exception as error:
                    problems.append(f"{place}: {damage}: traceback {error!r:.300}")
                    continue
            if kind == "message" and place.name not in found:
                problems.append(f"{place}: {damage}: message does not name it: {found:.300}")
            elif kind == "message" and "\n" in found:
                problems.append(f"{place}: {damage}: more than one line: {found:.300}")
            elif kind == "made" and found != expected() and not says_so(reader, damage, found, expected()):
                problems.append(f"{place}: {damage}: another result")
    assert not problems, "\n" + "\n".join(problems)
