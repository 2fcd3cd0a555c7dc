"""inspect shows the contents of each output as JSON and as text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outputs import change_manifest, inspected, refused, verified

from pipeline.__main__ import main
from pipeline.data.leaks import leaked_path, read_leaked
from pipeline.data.pairs import read_epoch
from pipeline.data.parquet import write_parquet
from pipeline.data.shards.format import read_manifest
from pipeline.data.shards.reader import open_shards
from pipeline.files import read_json, write_json
from pipeline.stages import train


def test_inspect_shows_the_audio_and_captions_of_a_split(tiny_study, capsys) -> None:
    folder = tiny_study.shards / "labeled" / "train"
    reader = open_shards(folder)
    clips = [reader.read_window(key, 0, reader.frames(key)) / 32768 for key in reader.keys]
    captions = [caption for key in reader.keys for caption in reader.captions(key)]
    facts = inspected(capsys, folder, "--samples", "4")
    assert facts["kind"] == "shards"
    assert facts["split"] | facts["counts"]["status"] == {
        "dataset": "labeled",
        "split": "train",
        "format": "wav",
        "channels": "mean",
        "sample_rate_hz": 16_000,
        "shards": 2,
        "shards_beside": 2,
        "bytes": sum(tar.stat().st_size for tar in folder.glob("*.tar")),
        "manifest_json": "agrees",
        "rows": 24,
        "clips": 24,
        "duration_h": round(sum(map(len, clips)) / 16_000 / 3600, 4),
        "clips_at_full_scale": 0,
        "captions": 48,
        "distinct_captions": 4,
        "captions_in_use_more_than_once": 4,
        "ok": 24,
    }
    told = facts["distributions"]
    for name, values in {
        "duration_s": [len(clip) / 16_000 for clip in clips],
        "peak_dbfs": [20 * np.log10(np.abs(clip).max()) for clip in clips],
        "rms_dbfs": [10 * np.log10((clip**2).mean()) for clip in clips],
        "captions_a_clip": [2] * 24,
        "words_a_caption": [len(caption.split()) for caption in captions],
    }.items():
        expected = np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
        np.testing.assert_allclose(list(told[name].values()), expected, atol=2e-4, err_msg=name)
    duplicates = {row["caption"]: row["times"] for row in facts["duplicate_captions"]}
    assert duplicates == {caption: captions.count(caption) for caption in captions}
    assert list(duplicates.values()) == sorted(duplicates.values(), reverse=True)
    assert [row["key"] for row in facts["samples"]] == [reader.keys[row] for row in (0, 7, 15, 23)]
    assert facts["samples"][0]["captions"] == reader.captions(reader.keys[0])


def test_inspect_shows_lost_rows_with_their_reason(lossy: Path, capsys) -> None:
    facts = inspected(capsys, lossy)
    assert facts["counts"]["status"] == {"ok": 3, "dropped": 1, "failed": 1}
    assert facts["counts"]["reason"] == {"missing_file": 1, "undecodable": 1}
    assert [(row["reason"], row["source_name"]) for row in facts["lost"]] == [
        ("missing_file", "clip 1.wav"),
        ("undecodable", "clip 3.wav"),
    ]
    assert facts["distributions"]["duration_s"]["max"] == 1.0
    catalog = inspected(capsys, lossy.parent / "catalog.parquet")
    assert catalog["kind"] == "catalog"
    assert catalog["counts"]["reason"] == {"missing_file": 1}
    assert catalog["counts"]["file_type"] == {".wav": 4}
    assert catalog["catalog"]["rows"] == 5


def test_a_manifest_is_inspected_without_its_tars_and_summary(split: Path, tmp_path: Path, capsys) -> None:
    for tar in split.glob("*.tar"):
        tar.unlink()
    for path in (split, split / "manifest.parquet", split / "manifest.json"):
        assert inspected(capsys, path)["split"]["shards_beside"] == 0
    alone = shutil.copy(split / "manifest.parquet", tmp_path / "of another name")
    facts = inspected(capsys, Path(alone))
    assert facts["split"]["manifest_json"] == "missing" and facts["split"]["clips"] == 24
    agree_with_another = read_json(split / "manifest.json") | {"manifest_sha256": "0" * 64}
    write_json(agree_with_another, split / "manifest.json")
    assert inspected(capsys, split)["split"]["manifest_json"] == "is of another manifest"


@pytest.mark.parametrize("objective", ["finetune", "composed", "concatenate"])
def test_inspect_shows_plan_use_and_captions_of_pairs(tiny_study, capsys, objective: str) -> None:
    path = tiny_study.pairs(objective, epochs=3)
    rows = [row for epoch in range(3) for row in read_epoch(path, epoch).to_pylist()]
    facts = inspected(capsys, path, "--samples", "5")
    plan = facts["plan"]
    assert (plan["epochs"], plan["steps"], plan["batch_size"], plan["rows"], plan["seed"]) == (3, 9, 8, 72, 0)
    assert plan["partners"] == {"finetune": "none", "composed": "unlabeled", "concatenate": "labeled"}[objective]
    if objective == "finetune":
        assert "distinct_pairs" not in plan
    else:
        assert plan["distinct_pairs"] == len({(row["labeled_key"], row["partner_key"]) for row in rows})
        uses = np.unique([row["partner_key"] for row in rows], return_counts=True)[1]
        told = facts["distributions"]["uses_of_a_partner"]
        assert (told["min"], told["median"], told["max"]) == (uses.min(), np.median(uses), uses.max())
    assert plan["labeled_clips_never_used"] == 24 - len({row["labeled_key"] for row in rows}) == 0
    assert {row["manifest"] for row in facts["splits"]} == {"as paired"}
    reader = open_shards(tiny_study.shards / "labeled" / "train")
    assert len(facts["samples"]) == 5
    for sample in facts["samples"]:
        row = rows[sample["epoch"] * 24 + sample["step"] * 8 + sample["slot"]]
        assert sample["labeled_key"] == row["labeled_key"]
        assert sample["caption"] == reader.captions(row["labeled_key"])[row["caption"]]
        assert sample.get("partner_key") == row["partner_key"]
        if objective == "concatenate":
            assert sample["partner_caption"] == reader.captions(row["partner_key"])[row["partner_caption"]]


def test_inspect_shows_each_leaked_clip_with_its_overlap(tiny_study, leaky: Path, split: Path, capsys) -> None:
    keys = read_manifest(split / "manifest.parquet")["key"].to_pylist()
    others = read_manifest(tiny_study.manifest("unlabeled"))["key"].to_pylist()
    facts = inspected(capsys, leaky)
    assert (facts["plan"]["clips_left_out_as_leaked"], facts["plan"]["list_of_leaked"]) == (3, "agrees")
    assert [(row["key"], row["shared"], row["held_out_key"]) for row in facts["leaked"]] == [
        (keys[3], "source_id", others[4]),
        (keys[8], "source_id", others[4]),
        (keys[9], "sha256", others[7]),
    ]
    assert [(row["split"], row["reason"], row["shared"], row["clips"]) for row in facts["left_out"]] == [
        ("train", "leaked", "sha256", 1),
        ("train", "leaked", "source_id", 2),
    ]
    main(["inspect", str(leaky), "--samples", "1"])
    text = capsys.readouterr().out
    assert re.search(rf"^leaked\n.*\n.*\n.*\n  key +{keys[3]}\n", text, re.MULTILINE) and keys[8] not in text
    assert verified(capsys, leaky).startswith(f"{leaky}: ok: ")
    assert "give the pairs file next to it" in refused("inspect", leaked_path(leaky))


def test_a_list_of_leaked_clips_that_is_missing_or_of_other_pairs_is_refused(leaky: Path, capsys) -> None:
    leaked = leaked_path(leaky)
    write_parquet(read_leaked(leaked).slice(1), leaked)
    assert inspected(capsys, leaky)["plan"]["list_of_leaked"] == "is of other pairs"
    assert f"{leaked}: is of other pairs; " in refused("verify", leaky, "--quick")
    leaked.unlink()
    assert inspected(capsys, leaky)["plan"]["list_of_leaked"] == "missing"
    assert f"{leaked}: missing; " in refused("verify", leaky)


def test_pairs_are_inspected_without_shards(tiny_study, capsys, tmp_path: Path) -> None:
    facts = inspected(capsys, tiny_study.pairs("composed"), "--shards", str(tmp_path))
    assert {row["manifest"] for row in facts["splits"]} == {"not found"}
    assert all(re.fullmatch(r"\(caption [01]\)", row["caption"]) for row in facts["samples"])
    assert "labeled_clips_never_used" not in facts["plan"]


def test_inspect_shows_weights_and_losses_of_a_run(tiny_study, capsys, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_study.pretrained, tmp_path / "run"))
    settings = {"learning_rate": 0.5, "prompt": "this sound is"}
    curves = {
        "step": [0, 1, 2],
        "epoch": [0, 0, 1],
        "loss": [3.0, 1.0, 2.0],
        "learning_rate": [0.5, 0.25, 0.1],
    }
    table = pa.table(curves).replace_schema_metadata({"settings": json.dumps(settings)})
    pq.write_table(table, run / "training.parquet")
    for path in (run, run / "model.json", run / "training.parquet"):
        facts = inspected(capsys, path)
        assert (facts["kind"], facts["model"]["backbone"], facts["settings"]) == ("run", "mini", settings)
        assert facts["training"] == {"steps": 3, "epochs": 2}
        assert facts["curves"]["loss"] == {"first": 3.0, "last": 2.0, "min": 1.0, "max": 3.0}
    from safetensors.numpy import load_file

    weights = load_file(run / "model.safetensors")
    total = facts["weights"][-1]
    assert (total["part"], total["tensors"]) == ("total", len(weights))
    assert total["values"] == sum(array.size for array in weights.values())
    assert sum(row["values"] for row in facts["weights"][:-1]) == total["values"]


def test_inspect_shows_the_account_of_a_training(tiny_study, capsys, tmp_path: Path) -> None:
    words = ["--pretrained", tiny_study.pretrained, "--pairs", tiny_study.pairs("finetune"), "--seed", 0]
    train.main(list(map(str, [*words, "--shards", tiny_study.shards, "--out", tmp_path])))
    written = read_json(tmp_path / "training.json")
    account = inspected(capsys, tmp_path)["account"]
    for name in ("wall_s", "gpu_s", "clips_per_s", "peak_memory_gb", "model_flops_utilization"):
        assert account[name] == written[name], name
    assert account["versions"]["torch"] == written["versions"]["torch"] and "msclap" in account["versions"]
    assert account["gflop_a_step"] == written["flops_a_step"] / 1e9 > 0
    assert (account["processes"], account["parts"], account["gpus"]) == (1, 1, None)
    main(["inspect", str(tmp_path)])
    text = capsys.readouterr().out
    assert re.search(rf"account\n  versions .*python .*torch {re.escape(written['versions']['torch'])}", text)
    (tmp_path / "training.json").write_text("{}")
    assert "training.json: not the account of a training" in refused("inspect", tmp_path)


@pytest.mark.parametrize("cut", [0, 7, 8, 500, -1])
def test_cut_weights_are_refused(tiny_study, tmp_path: Path, cut: int) -> None:
    run = Path(shutil.copytree(tiny_study.pretrained, tmp_path / "run"))
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    assert refused("inspect", run).startswith(f"{weights}: ")


def test_a_non_finite_figure_leaves_the_json_parseable(tiny_study, capsys, tmp_path: Path) -> None:
    curves = {"step": [0, 1], "epoch": [0, 0], "loss": [1.0, float("nan")], "learning_rate": [1.0, float("inf")]}
    pq.write_table(pa.table(curves), tmp_path / "training.parquet")
    facts = inspected(capsys, tmp_path)
    assert facts["curves"]["loss"] == {"first": 1.0, "last": None, "min": None, "max": None}


def test_the_text_shows_every_section_and_escapes_what_a_terminal_would_obey(split: Path, capsys) -> None:
    change_manifest(split, 0, captions=["a tone\x1b[2J\nand more"], source_name="ton\x07e.wav")
    main(["inspect", str(split), "--samples", "1"])
    text = capsys.readouterr().out
    assert r"a tone\x1b[2J\nand more" in text and r"ton\x07e.wav" in text
    assert text.isascii() and "\x1b" not in text
    assert [line for line in text.splitlines() if line and line[0] != " "] == [
        f"shards  {split / 'manifest.parquet'}",
        *("split", "counts", "distributions", "duplicate captions", "samples"),
    ]
    assert re.search(r"^  status +ok +24  100.0%$", text, re.MULTILINE)
