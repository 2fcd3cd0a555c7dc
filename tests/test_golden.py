"""The output of every stage on a tiny study, against recorded checksums.

A stage runs again in every study when its number in `pipeline.stages.VERSIONS` rises, so the number must rise when its
bytes change for the same input, and only then. Where bytes depend on the processor (weights, embeddings, resampled
sound) or on a library's version (the bytes of Parquet), their content is compared, as far as it does not.

To record: RECORD_GOLDEN=1 python -m pytest tests/test_golden.py
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from safetensors import safe_open

from pipeline.files import read_json
from pipeline.stages import (
    VERSIONS,
    average_weights,
    choose_settings,
    compare,
    describe_pool,
    draw_curves,
    embed,
    embed_split,
    evaluate,
    find_near_duplicates,
    import_weights,
    index_audio,
    index_shards,
    mix_soundscapes,
    pair_clips,
    pretrain,
    report,
    shard_audio,
    stage_shards,
    tabulate,
    train,
)

GOLDEN = Path(__file__).parent / "golden.json"
RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"
RATE = 16_000
CAPTIONS = ("a low tone hums", "a high tone whistles", "noise hisses", "a tone beeps while noise hisses")
SPLITS = {"labeled": 12, "unlabeled": 8, "test": 6}
"""Clips of each dataset."""


# --- inputs and what is compared -------------------------------------------------------------------------------------


def write_clips(root: Path, dataset: str, clips: int) -> None:
    """Sounds of whole numbers, so that every processor writes the same; one of them in stereo."""
    (root / "train").mkdir(parents=True)
    rows = [["file_name", "caption_1", "caption_2"]]
    for clip in range(clips):
        frames = np.arange(RATE * (2 + clip % 3), dtype=np.int64)
        samples = ((frames * (frames + 17 * clip + len(dataset)) // 7) % 12_001 - 6_000).astype(np.int16)
        stereo = np.stack([samples, samples[::-1]], axis=1)
        soundfile.write(root / "train" / f"{dataset} {clip}.wav", stereo if clip == 1 else samples, RATE, "PCM_16")
        rows.append([f"{dataset} {clip}.wav", CAPTIONS[clip % 4], CAPTIONS[(clip + 1) % 4]])
    with (root / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def content(path: Path) -> Any:
    """What is compared of a file: all of it, but for what depends on the processor, a library's version or a path."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        footer = {
            name.decode(): value.decode()
            for name, value in (table.schema.metadata or {}).items()
            if name not in (b"ARROW:schema", b"pandas")
        }
        return [str(table.schema.remove_metadata()), table.to_pylist(), footer]
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as tensors:
            return {name: [str(tensors.get_slice(name).get_dtype()), tensors.get_slice(name).get_shape()]
                    for name in sorted(tensors.keys())}  # fmt: skip
    if path.suffix == ".npz":
        arrays = np.load(path)
        return {name: [str(arrays[name].dtype), arrays[name].shape] for name in sorted(arrays)}
    if path.suffix == ".json" and path.name != "tokenizer.json":
        values = read_json(path)
        values.pop("files_sha256", None)
        return hashlib.sha256(
            (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
        ).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Study:
    """A tiny study in a folder: its paths, and the calls of the stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, stage: Any, *words: object) -> None:
        """Call a stage with its options; paths that are not absolute are below the folder of the study."""
        stage.main([str(word) for word in words])

    def split(self, dataset: str) -> Path:
        return self.folder / "shards" / dataset / "train"

    def prepare(self) -> None:
        """Catalogs and shards of three datasets, pairs and a pretrained model."""
        for dataset, clips in SPLITS.items():
            root, catalog = self.folder / "raw" / dataset, self.folder / f"{dataset}.parquet"
            write_clips(root, dataset, clips)
            plan, split = catalog.with_suffix(".shards.parquet"), self.split(dataset)
            flag = "--unlabeled" if dataset == "unlabeled" else "--labeled"
            self.run(index_audio, "--dataset", dataset, "--split", "train", "--adapter", "folder", "--root", root, flag,
                     "--clips-per-shard", 8, "--catalog", catalog, "--plan", plan)  # fmt: skip
            self.run(shard_audio, "--catalog", catalog, "--plan", plan, "--sample-rate-hz", RATE, "--format", "wav",
                     "--shards", split, "--done", split / "parts" / "0-of-1.json")  # fmt: skip
            self.run(index_shards, "--plan", plan, "--shards", split, "--manifest", split / "manifest.parquet",
                     "--summary", split / "manifest.json", "--identities", split / "identities.parquet")  # fmt: skip
        self.pair("general", "finetune")
        self.run(pretrain, "--pairs", self.pairs("general"), "--shards", self.folder / "shards", "--seed", 0,
                 "--vocabulary-size", 300, "--device", "cpu", "--batch-norm", "batch",
                 "--out", self.folder / "pretrained")  # fmt: skip

    def pairs(self, run: str) -> Path:
        return self.folder / "pairs" / run / "seed0.parquet"

    def pair(self, run: str, objective: str) -> None:
        partners = ["--unlabeled", self.split("unlabeled") / "manifest.parquet"] if objective == "composed" else []
        self.run(pair_clips, "--labeled", self.split("labeled") / "manifest.parquet", *partners,
                 "--held-out", self.split("test") / "identities.parquet", "--backbone", "mini", "--epochs", 1,
                 "--batch-size", 4, "--seed", 0, "--pairs", self.pairs(run),
                 "--leaked", self.pairs(run).with_suffix(".leaked.parquet"))  # fmt: skip

    def exact_embeddings(self, name: str, shift: int) -> Path:
        """Embeddings of whole numbers for the test split: their products are exact everywhere."""
        manifest = pq.read_table(self.split("test") / "manifest.parquet").to_pylist()
        captions = [caption for row in manifest for caption in row["captions"]]
        clip_of = np.repeat(np.arange(len(manifest)), 2)
        audio = np.eye(len(manifest), 8, dtype=np.float32)
        path = self.folder / "evaluations" / name / "embeddings.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez(file, audio=audio, audio_key=np.array([row["key"] for row in manifest]),
                     text=audio[(clip_of + shift * (np.arange(len(clip_of)) % 3 == 0)) % len(manifest)],
                     audio_of_text=clip_of, caption=np.array(captions), windows=np.array("mean"))  # fmt: skip
        return path

    def evaluation(self, name: str, shift: int) -> Path:
        folder = self.exact_embeddings(name, shift).parent
        self.run(evaluate, "--embeddings", folder / "embeddings.npz", "--run", name, "--seed", 0, "--target", "test",
                 "--split", "train", "--metrics", folder / "metrics.json", "--ranks", folder / "ranks.parquet",
                 "--contributions", folder / "contributions.parquet")  # fmt: skip
        return folder

    def rows(self, file: str) -> list[object]:
        """Two rows of a table as flags."""
        methods = {"finetune": ("A+T", 0), "composed": ("A+T", 1)}
        folders = {method: self.evaluation(method, shift) for method, (_, shift) in methods.items()}
        flags = [["--row", f"test|{method}|{cell}", folders[method] / file] for method, (cell, _) in methods.items()]
        return ["--datasets", "labeled", *(word for flag in flags for word in flag)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    own = Study(tmp_path_factory.mktemp("golden"))
    before = Path.cwd()
    os.chdir(own.folder)  # paths in footers are relative, as in the workflow
    own.folder = Path()
    own.prepare()
    yield own
    os.chdir(before)


# --- one function per stage: what it made ----------------------------------------------------------------------------


def made_by_mix_soundscapes(study: Study) -> Any:
    out = study.folder / "mixed"
    study.run(
        mix_soundscapes, "--recordings", RECORDINGS, "--dataset", "clotho", "--seed", 0, "--scale", 0.02, "--out", out
    )
    lists = {path.name: content(path) for path in sorted(out.glob("*.csv"))}
    return lists, {str(path.relative_to(out)): soundfile.info(path).frames for path in sorted(out.rglob("*.wav"))}


def made_by_index_audio(study: Study) -> Any:
    return [content(study.folder / name) for name in ("labeled.parquet", "labeled.shards.parquet", "unlabeled.parquet")]


def made_by_shard_audio(study: Study) -> Any:
    split = study.split("labeled")
    rows = [pq.read_table(path).to_pylist() for path in sorted(split.glob("0*.parquet"))]
    return {path.name: content(path) for path in sorted(split.glob("*.tar"))}, rows


def made_by_index_shards(study: Study) -> Any:
    split, names = study.split("labeled"), ("manifest.parquet", "identities.parquet")
    summary = read_json(split / "manifest.json")
    del summary["manifest_sha256"]  # of a Parquet file's bytes
    return [content(split / name) for name in names], summary


def made_by_stage_shards(study: Study) -> Any:
    out = study.folder / "copy"
    study.run(stage_shards, "--address", study.split("test").absolute(), "--manifest", out / "manifest.parquet",
              "--summary", out / "manifest.json", "--identities", out / "identities.parquet")  # fmt: skip
    summary = read_json(out / "manifest.json")
    del summary["manifest_sha256"]
    return [content(out / name) for name in ("manifest.parquet", "identities.parquet")], summary


def made_by_pair_clips(study: Study) -> Any:
    study.pair("composed", "composed")
    pairs = content(study.pairs("composed"))
    pairs[2] = {name: value for name, value in pairs[2].items() if "sha256" not in name}
    facts = json.loads(pairs[2].get("facts", "{}"))
    for role in ("labeled", "unlabeled"):
        facts[role] = sorted(facts.get(role, {}))  # without the checksums of Parquet files
    return pairs[:2], facts, content(study.pairs("composed").with_suffix(".leaked.parquet"))


def made_by_find_near_duplicates(study: Study) -> Any:
    path = study.folder / "near.json"
    study.run(
        find_near_duplicates, "--shards", study.split("labeled"), "--held-out", study.split("test"), "--report", path
    )
    found = read_json(path)
    return {name: found[name] for name in ("clips", "held_out_clips", "meaning")}, sorted(found)


def training_files(folder: Path) -> Any:
    log = pq.read_table(folder / "training.parquet")
    account = read_json(folder / "training.json")
    return {
        "weights": content(folder / "model.safetensors"),
        "tokenizer": content(folder / "tokenizer.json"),
        "description": content(folder / "model.json"),
        "log": [str(log.schema.remove_metadata()), log.select(["step", "epoch", "learning_rate"]).to_pylist()],
        "account": [sorted(account), account["settings"], account["steps"]],
    }


def made_by_pretrain(study: Study) -> Any:
    return training_files(study.folder / "pretrained")


def made_by_import_weights(study: Study) -> Any:
    from models.small import LAION_FEATURES, laion_config, roberta_tokenizer
    from transformers import ClapFeatureExtractor
    from transformers import ClapModel as PublishedClap

    published, out = study.folder / "published", study.folder / "imported"
    tokenizer = roberta_tokenizer()
    PublishedClap(laion_config(tokenizer.get_vocab_size())).save_pretrained(published)
    tokenizer.save(str(published / "tokenizer.json"))
    ClapFeatureExtractor(**LAION_FEATURES, truncation="rand_trunc").save_pretrained(published)
    study.run(import_weights, "--backbone", "laion-clap", "--weights", published, "--out", out)
    return [content(out / name) for name in ("model.safetensors", "model.json")]


def made_by_train(study: Study) -> Any:
    if not study.pairs("composed").exists():
        study.pair("composed", "composed")
    study.run(train, "--pretrained", study.folder / "pretrained", "--pairs", study.pairs("composed"), "--shards",
              study.folder / "shards", "--seed", 0, "--device", "cpu", "--objective", "composed",
              "--out", study.folder / "runs" / "composed" / "seed0")  # fmt: skip
    return training_files(study.folder / "runs" / "composed" / "seed0")


def made_by_average_weights(study: Study) -> Any:
    trained, out = study.folder / "runs" / "composed" / "seed0", study.folder / "averaged"
    if not trained.exists():
        made_by_train(study)
    study.run(average_weights, "--pretrained", study.folder / "pretrained", "--trained", trained, "--validation",
              study.split("test"), "--device", "cpu", "--out", out)  # fmt: skip
    with (out / "validation.csv").open(newline="") as file:
        figures = list(csv.DictReader(file))
    return training_files(out), [row["alpha"] for row in figures], list(figures[0])


def made_by_embed(study: Study) -> Any:
    path = study.folder / "embedded" / "embeddings.npz"
    study.run(embed, "--model", study.folder / "pretrained", "--shards", study.split("test"), "--device", "cpu",
              "--embeddings", path)  # fmt: skip
    arrays = np.load(path)
    exact = {name: arrays[name].tolist() for name in ("audio_key", "audio_of_text", "caption", "windows")}
    return content(path), exact


def split_embeddings(study: Study) -> list[Path]:
    paths = [study.folder / "embeddings" / name / "train" / "embeddings.parquet" for name in SPLITS]
    for name, path in zip(SPLITS, paths, strict=True):
        study.run(embed_split, "--model", study.folder / "pretrained", "--shards", study.split(name), "--device", "cpu",
                  "--embeddings", path)  # fmt: skip
    return paths


def made_by_embed_split(study: Study) -> Any:
    found = []
    for path in split_embeddings(study):
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[b"embeddings"])
        found.append([table["key"].to_pylist(), sorted(facts), facts["width"], facts["windows"]])
    return found


def made_by_describe_pool(study: Study) -> Any:
    split_embeddings(study)
    out = study.folder / "pool"
    study.run(describe_pool, "--target", "test", "--role", "test", "--held-out", "test/train", "--labeled",
              "labeled/train", "--unlabeled", "unlabeled/train", "--shards", study.folder / "shards", "--embeddings",
              study.folder / "embeddings", "--identities", study.split("test") / "identities.parquet",
              "--out", out)  # fmt: skip
    tables = {path.name: pq.read_table(path) for path in sorted(out.glob("*.parquet"))}
    exact = ["key", "source_name", "captions", "duration_s", "leaked", "group"]
    rows = [table.select([name for name in exact if name in table.column_names]) for table in tables.values()]
    summary = read_json(out / "summary.json")
    return (
        [
            (str(table.schema.remove_metadata()), kept.to_pylist())
            for table, kept in zip(tables.values(), rows, strict=True)
        ],
        [sorted(summary), sorted(summary["unlabeled"][0]), summary["dots"], summary["unlabeled"][0]["hours"]],
    )


def made_by_evaluate(study: Study) -> Any:
    folder = study.evaluation("finetune", 1)
    return [content(folder / name) for name in ("metrics.json", "ranks.parquet", "contributions.parquet")]


def made_by_compare(study: Study) -> Any:
    path = study.folder / "comparisons.csv"
    study.run(compare, "--protocol", "paper", *study.rows("contributions.parquet"), "--csv", path)
    return content(path)


def made_by_tabulate(study: Study) -> Any:
    made_by_compare(study)
    paths = {kind: study.folder / f"table.{kind}" for kind in ("csv", "md", "tex")}
    study.run(tabulate, "--study-name", "golden", "--study-note", "A note.", "--protocol", "paper",
              *study.rows("metrics.json"), "--comparisons", study.folder / "comparisons.csv", "--csv", paths["csv"],
              "--markdown", paths["md"], "--tex", paths["tex"])  # fmt: skip
    return {kind: content(path) for kind, path in paths.items()}


def made_by_draw_curves(study: Study) -> Any:
    contributions = study.evaluation("finetune", 1) / "contributions.parquet"
    path = study.folder / "curve.csv"
    study.run(draw_curves, "--protocol", "paper", "--against", "labeled_clips", "--point", "finetune",
              study.pairs("general"), contributions, "--csv", path, "--svg", path.with_suffix(".svg"))  # fmt: skip
    return content(path)


def made_by_report(study: Study) -> Any:
    made_by_tabulate(study)
    out = study.folder / "page"
    folders = [study.evaluation(name, shift) for name, shift in (("finetune", 0), ("composed", 1))]
    study.run(report, "--name", "golden", "--note", "A note.", "--protocol", "paper", "--tables",
              study.folder / "table.csv", "--comparisons", study.folder / "comparisons.csv", "--curves",
              "--evaluations", *folders, "--logs", "--summaries", study.split("test") / "manifest.json",
              "--out", out)  # fmt: skip
    return content(out / "data.js"), sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def made_by_choose_settings(study: Study) -> Any:
    folders = []
    for rate, shift in (("0.001", 0), ("0.0001", 1)):
        folder = study.folder / "sweep" / f"learning_rate={rate}" / "tuned" / "seed0" / "test"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "contributions.parquet"):
            (folder / name).write_bytes((study.evaluation("tuned", shift) / name).read_bytes())
        folders.append(folder)
    paths = [study.folder / "sweep.csv", study.folder / "sweep.yaml"]
    study.run(choose_settings, "--evaluations", *folders, "--protocol", "paper", "--csv", paths[0], "--yaml", paths[1])
    return [content(path) for path in paths]


STAGES: dict[str, Callable[[Study], Any]] = {
    name.removeprefix("made_by_"): function for name, function in list(globals().items()) if name.startswith("made_by_")
}


def test_every_stage_has_a_version_and_a_recorded_output():
    assert STAGES.keys() == VERSIONS.keys() == json.loads(GOLDEN.read_text()).keys()


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_bytes_change_only_with_the_version(study, stage):
    made = json.dumps(STAGES[stage](study), sort_keys=True, default=str)
    found = {"version": VERSIONS[stage], "sha256": hashlib.sha256(made.encode()).hexdigest()}
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("RECORD_GOLDEN"):
        GOLDEN.write_text(json.dumps({**recorded, stage: found}, indent=2, sort_keys=True) + "\n")
        return
    if found != recorded[stage]:
        same = found["version"] == recorded[stage]["version"]
        pytest.fail(
            f"{stage} makes other output than recorded"
            + (f": raise its number in pipeline/stages/__init__.py above {found['version']}, then" if same else ":")
            + " record it with RECORD_GOLDEN=1 python -m pytest tests/test_golden.py"
        )
