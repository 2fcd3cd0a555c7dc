"""Real shards and a real model in, the nearest clips and captions out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from pipeline.__main__ import main
from pipeline.data.parquet import write_parquet
from pipeline.data.shards.format import read_manifest
from pipeline.data.shards.reader import open_shards
from pipeline.errors import PipelineError
from pipeline.evaluation.embedding import captions_of, embed_audio, embed_texts
from pipeline.evaluation.search import search
from pipeline.evaluation.vectors import check_vectors, nearest, unit_rows
from pipeline.files import read_json, sha256_of
from pipeline.models import load_model, mini, save_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run_folder(tmp_path, tiny_study) -> Path:
    return Path(shutil.copytree(tiny_study.pretrained, tmp_path / "run"))


@pytest.fixture(scope="module")
def model(tiny_study):
    return load_model(tiny_study.pretrained)


def split(tiny_study, dataset: str = "labeled") -> Path:
    return tiny_study.shards / dataset / "train"


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T) / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("dataset", ["labeled", "unlabeled"])
def test_clips_come_in_the_order_of_their_cosine_to_the_text(tiny_study, run_folder, model, dataset):
    shards = open_shards(split(tiny_study, dataset))
    expected = cosine(embed_texts(model, ["noise hisses"], 1), embed_audio(model, shards, "mean", 64))[0]
    found = search("noise hisses", run_folder, split(tiny_study, dataset), top=7)
    best = np.argsort(-expected)[:7]
    assert [result.rank for result in found] == list(range(1, 8))
    assert [result.key for result in found] == [shards.keys[row] for row in best]
    assert [result.score for result in found] == pytest.approx(expected[best], abs=1e-5)
    assert [result.captions for result in found] == [shards.captions(shards.keys[row]) for row in best]
    names = pd.read_parquet(tiny_study.manifest(dataset)).set_index("key")["source_name"]
    assert [result.source_name for result in found] == [names[result.key] for result in found]


def test_sound_of_a_clip_finds_that_clip_first(tiny_study, run_folder):
    raw = tiny_study.folder / "raw" / "unlabeled" / "train" / "clip 3.wav"
    first = search(raw, run_folder, split(tiny_study, "unlabeled"), top=1)[0]
    assert Path(first.source_name).name == "clip 3.wav"
    assert first.score == pytest.approx(1, abs=1e-4)


def test_a_stereo_query_keeps_the_channels_of_the_split(tiny_study, run_folder, tmp_path):
    """The sound of a clip in the first channel, and of another one in the second."""
    raw = tiny_study.folder / "raw" / "unlabeled" / "train"
    first, second = (soundfile.read(raw / f"clip {number}.wav", dtype="int16")[0] for number in (3, 4))
    stereo = np.stack([first, np.resize(second, len(first))], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 16_000)
    folder = Path(shutil.copytree(split(tiny_study, "unlabeled"), tmp_path / "shards"))
    found = {}
    for channels in ("mean", "first"):
        summary = read_json(folder / "manifest.json")
        (folder / "manifest.json").write_text(json.dumps({**summary, "channels": channels}))
        (found[channels],) = search(tmp_path / "stereo.wav", run_folder, folder, top=1)
    assert Path(found["first"].source_name).name == "clip 3.wav"
    assert found["first"].score == pytest.approx(1, abs=1e-4) and found["mean"].score < 0.9999


def test_captions_are_ranked_by_sound(tiny_study, run_folder, model):
    shards = open_shards(split(tiny_study))
    texts, _ = captions_of(shards)
    raw = tiny_study.folder / "raw" / "labeled" / "train" / "clip 5.wav"
    row = next(row for row, key in enumerate(shards.keys) if "clip_5_" in key)
    expected = cosine(embed_audio(model, shards, "mean", 64)[[row]], embed_texts(model, texts, 64))[0]
    found = search(raw, run_folder, split(tiny_study), captions=True, top=48)
    assert [result.score for result in found] == pytest.approx(np.sort(expected)[::-1], abs=1e-4)
    assert all(result.caption in shards.captions(result.key) for result in found)


def test_index_is_made_once_per_weights(tiny_study, run_folder):
    before = search("noise hisses", run_folder, split(tiny_study))
    (index,) = run_folder.glob("index/*/audio.npy")
    assert np.load(index, mmap_mode="r").shape == (24, 128)
    np.save(index, np.load(index) / 2)  # a second embedding of the split would not give these scores
    halved = search("noise hisses", run_folder, split(tiny_study))
    assert [found.score for found in halved] == pytest.approx([found.score / 2 for found in before])
    changed = load_model(run_folder)
    with torch.no_grad():
        next(changed.audio_encoder.projection.parameters()).add_(0.1)
    save_model(changed, run_folder)
    assert search("noise hisses", run_folder, split(tiny_study)) != before
    assert len(list(run_folder.glob("index/*/audio.npy"))) == 2


def test_index_is_made_per_way_with_short_clips(tiny_study, run_folder):
    before = search("noise hisses", run_folder, split(tiny_study), top=24)
    changed = load_model(run_folder)
    changed.short_clips = "pad"
    save_model(changed, run_folder)
    after = search("noise hisses", run_folder, split(tiny_study), top=24)
    scores = [{result.key: result.score for result in found} for found in (before, after)]
    moved = [key for key in scores[0] if abs(scores[0][key] - scores[1][key]) > 1e-4]
    frames = pd.read_parquet(tiny_study.manifest("labeled")).set_index("key")["frames"]
    assert 0 < len(moved) < 24 and set(moved) <= set(frames.index[frames < changed.window_frames])


def test_a_changed_split_has_an_index_of_its_own(tiny_study, run_folder, tmp_path):
    folder = Path(shutil.copytree(split(tiny_study), tmp_path / "shards"))
    search("noise hisses", run_folder, folder)
    summary = read_json(folder / "manifest.json")
    rows = read_manifest(folder / "manifest.parquet")
    write_parquet(rows.slice(3), folder / "manifest.parquet")  # three clips are gone
    summary["manifest_sha256"] = sha256_of(folder / "manifest.parquet")
    (folder / "manifest.json").write_text(json.dumps({**summary, "clips": len(rows) - 3}))
    found = search("noise hisses", run_folder, folder, top=100)
    assert {result.key for result in found} == set(rows["key"].to_pylist()[3:])
    assert len(list(run_folder.glob("index/*/audio.npy"))) == 2


def test_command_prints_lines_or_json(tiny_study, run_folder, capsys):
    arguments = ["search", "a high tone", "--run", str(run_folder), "--in", str(split(tiny_study)), "--top", "2"]
    main([*arguments, "--json"])
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["rank"] for result in results] == [1, 2]
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["1", f"{results[0]['score']:.3f}", results[0]["key"]]
    assert [line.strip() for line in lines[1:3]] == results[0]["captions"]


def test_nearest_are_those_of_a_full_sort_and_ties_keep_their_order():
    vectors = np.random.default_rng(0).integers(-2, 3, (500, 6)).astype(np.float32)
    vectors[:, 0] = 3
    query = np.array([1, 2, 0, 0, 1, 1], np.float32)
    scores = vectors @ query
    for count in (1, 10, 500, 1000):
        rows, found = nearest(vectors, query, count)
        assert rows.tolist() == np.argsort(-scores, kind="stable")[:count].tolist()
        assert found.tolist() == scores[rows].tolist()


def test_vectors_without_direction_are_named():
    vectors = np.ones((4, 3), np.float32)
    assert np.linalg.norm(unit_rows(vectors * 5), axis=1) == pytest.approx([1] * 4)
    vectors[2] = 0
    with pytest.raises(PipelineError, match=r"embedding of clip 2 is zero \(1 of 4\)"):
        check_vectors(vectors, lambda row: f"clip {row}")
    vectors[1, 1] = np.nan
    with pytest.raises(PipelineError, match=r"embedding of clip 1 is not finite \(1 of 4\)"):
        check_vectors(vectors, lambda row: f"clip {row}")


def test_diverged_model_is_named_and_leaves_no_index(tiny_study, tmp_path):
    model = mini.build(mini.byte_tokenizer())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    save_model(model, tmp_path / "run")
    with pytest.raises(PipelineError, match=r"is not finite .* did the training diverge"):
        search("x", tmp_path / "run", split(tiny_study))
    assert not list((tmp_path / "run").rglob("*.npy"))


def test_refusals_of_search_name_the_cause(tiny_study, run_folder, tmp_path):
    labeled, unlabeled = split(tiny_study), split(tiny_study, "unlabeled")
    with pytest.raises(PipelineError, match=r"nowhere: not found; give the folder of a run"):
        search("x", tmp_path / "nowhere", labeled)
    with pytest.raises(PipelineError, match=r"nowhere/manifest\.json: not found"):
        search("x", run_folder, tmp_path / "nowhere")
    with pytest.raises(PipelineError, match="has no captions; leave --captions out"):
        search("x", run_folder, unlabeled, captions=True)
    with pytest.raises(PipelineError, match="query text is blank"):
        search(" ", run_folder, labeled)
    with pytest.raises(PipelineError, match=r"nothing\.wav: not found; give an audio file"):
        search(tmp_path / "nothing.wav", run_folder, labeled)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(PipelineError, match=r"text\.wav: undecodable"):
        search(tmp_path / "text.wav", run_folder, labeled)


def test_damaged_index_is_named(tiny_study, run_folder):
    search("x", run_folder, split(tiny_study))
    (index,) = run_folder.glob("index/*/audio.npy")
    np.save(index, np.load(index)[:5])
    with pytest.raises(PipelineError, match=r"audio\.npy: the index holds .* \(5, 128\), expected 24 rows"):
        search("x", run_folder, split(tiny_study))
    index.write_bytes(index.read_bytes()[:40])
    with pytest.raises(PipelineError, match=r"audio\.npy: the index is damaged"):
        search("x", run_folder, split(tiny_study))


def test_an_exported_folder_stays_as_it_is(tiny_study, run_folder, cache):
    (run_folder / "README.md").write_text("model card")
    before = sorted(run_folder.rglob("*"))
    found = search("noise hisses", run_folder, split(tiny_study))
    assert sorted(run_folder.rglob("*")) == before
    assert len(list(cache.glob("audio-composed-text/index/*/audio.npy"))) == 1
    assert search("noise hisses", run_folder, split(tiny_study)) == found


def test_index_of_a_folder_that_cannot_be_written_is_in_the_cache(tiny_study, run_folder, cache):
    (run_folder / "index").write_text("a file where the folder would be")
    search("noise hisses", run_folder, split(tiny_study))
    assert len(list(cache.glob("audio-composed-text/index/*/audio.npy"))) == 1


def test_search_works_where_no_index_can_be_kept(tiny_study, run_folder, cache, caplog):
    expected = search("noise hisses", run_folder, split(tiny_study))
    shutil.rmtree(run_folder / "index")
    for folder in (run_folder / "index", cache):
        folder.write_text("a file where the folder would be")
    assert search("noise hisses", run_folder, split(tiny_study)) == expected
    assert "the index cannot be kept" in caplog.text


def test_index_is_kept_where_it_is_asked_for(tiny_study, run_folder, tmp_path, capsys):
    arguments = ["search", "x", "--run", str(run_folder), "--in", str(split(tiny_study)), "--index"]
    main([*arguments, str(tmp_path / "index")])
    assert len(list((tmp_path / "index").glob("*/audio.npy"))) == 1 and not (run_folder / "index").exists()
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match=r"file: cannot be written to .* give another folder"):
        main([*arguments, str(tmp_path / "file")])


def test_a_damaged_tar_is_named_before_it_is_indexed(tiny_study, run_folder, tmp_path):
    folder = Path(shutil.copytree(split(tiny_study), tmp_path / "shards"))
    tar = sorted(folder.glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    with pytest.raises(PipelineError, match=tar.name):
        search("x", run_folder, folder)
    assert not list(run_folder.rglob("*.npy"))


# --- recordings ------------------------------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path) -> Path:
    """Two recordings, and a file that is none."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(2):
        soundfile.write(folder / f"{number}.flac", generator.normal(0, 0.1, 100_000 * (number + 1)), 16_000)
    (folder / "bad\n.wav").write_text("no sound")
    return folder


def test_command_finds_moments_of_recordings(run_folder, recordings, tmp_path, capsys):
    arguments = ["search", "noise hisses", "--run", str(run_folder), "--in", str(recordings), "--top", "3"]
    files = ["--csv", "hits.csv", "--audacity", "labels", "--raven", "tables", "--page", "page"]
    main([*arguments, *(str(tmp_path / name) if not name.startswith("--") else name for name in files)])
    lines = capsys.readouterr().out.splitlines()
    main([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3] and found["files"] == 2
    assert lines[0].split()[1] == f"{found['hits'][0]['score']:.3f}" and lines[0].endswith(found["hits"][0]["file"])
    assert found["unsearched"][0]["file"] == "bad\n.wav" and "  bad\\n.wav: " in "\n".join(lines)
    assert pd.read_csv(tmp_path / "hits.csv")["file"].tolist() == [hit["file"] for hit in found["hits"]]
    named = {hit["file"] for hit in found["hits"]}
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {f"{name}.labels.txt" for name in named}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {f"{name}.selections.txt" for name in named}
    assert (tmp_path / "page" / "index.html").exists()


def test_command_takes_an_example_for_recordings(run_folder, recordings, tmp_path, capsys):
    arguments = ["search", "--audio", str(recordings / "0.flac"), "--run", str(run_folder), "--in", str(recordings)]
    main([*arguments, "--hop", "2", "--page", str(tmp_path / "page"), "--json"])
    assert len(json.loads(capsys.readouterr().out)["hits"]) >= 2 and (tmp_path / "page" / "index.html").exists()


def test_command_prints_names_that_are_not_utf8_as_json(run_folder, recordings, capsys):
    name = os.fsdecode(b"\xff.flac")
    (recordings / "0.flac").rename(recordings / name)
    main(["search", "x", "--run", str(run_folder), "--in", str(recordings), "--top", "99", "--json"])
    assert name in {hit["file"] for hit in json.loads(capsys.readouterr().out)["hits"]}


def test_options_of_recordings_and_splits_are_kept_apart(tiny_study, run_folder, recordings, tmp_path):
    def refused(message: str, *arguments: str) -> None:
        with pytest.raises(PipelineError, match=message):
            main(["search", "x", "--run", str(run_folder), *arguments])

    for option, value in (("--hop", "1"), ("--like-chance", "0.1"), ("--page", str(tmp_path / "page"))):
        refused(
            f"is a split, and {option} is for a folder of recordings", "--in", str(split(tiny_study)), option, value
        )
    refused("is no split, and --captions is for splits", "--in", str(recordings), "--captions")
    refused("is inside the recordings", "--in", str(recordings), "--page", str(recordings / "page"))
    refused("nowhere: not found; give the folder of a split or of recordings", "--in", str(tmp_path / "nowhere"))
