"""The public interface: light to import, one way to embed for all, and errors that say what to do."""

from __future__ import annotations

import doctest
import importlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import pipeline
from pipeline.commands import COMMANDS
from pipeline.evaluation.ranking import rank_embeddings
from pipeline.evaluation.vectors import unit_rows
from pipeline.models import load_model, save_model
from pipeline.results.export import MODEL_FILES
from pipeline.stages import VERSIONS, embed, evaluate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tiny_study) -> pipeline.AudioTextModel:
    return pipeline.load(tiny_study.pretrained)


@pytest.fixture(scope="module")
def embeddings(tiny_study, tmp_path_factory) -> Path:
    """The file of the stage embed for the labeled split."""
    path = tmp_path_factory.mktemp("embeddings") / "embeddings.npz"
    shards = tiny_study.shards / "labeled" / "train"
    embed.main(["--model", str(tiny_study.pretrained), "--shards", str(shards), "--embeddings", str(path)])
    return path


def raw_files(tiny_study) -> list[Path]:
    """The raw files of the labeled split, in the order of its keys."""
    folder = tiny_study.folder / "raw" / "labeled" / "train"
    names = pd.read_parquet(tiny_study.manifest("labeled"))["source_name"]
    return [folder / Path(name).name for name in names]


# --- import ----------------------------------------------------------------------------------------------------------


def test_import_loads_nothing_heavy():
    code = "import pipeline, sys; print(sorted({'torch', 'numpy', 'pyarrow', 'pandas'} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_loads_nothing_heavy(command):
    code = (
        "import atexit, sys; from pipeline.commands import run;"
        "atexit.register(lambda: print({'torch', 'numpy', 'pyarrow', 'pandas'} & sys.modules.keys())); run()"
    )
    shown = subprocess.check_output([sys.executable, "-c", code, *command, "--help"], cwd=ROOT, text=True)
    assert shown.startswith("usage: ") and shown.endswith("set()\n") and "%%" not in shown


def test_stages_load_what_takes_long_when_they_need_it():
    """Their --help takes less than half a second."""
    heavy = {"torch", "pandas", "scipy.stats", "matplotlib", "numba"}
    code = f"import sys; from pipeline.stages import {', '.join(VERSIONS)}; print({heavy} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "set()\n"


def test_every_public_name_is_documented():
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pipeline.nothing


@pytest.mark.parametrize("module", ["pipeline.evaluation.metrics", "pipeline.training.losses"])
def test_examples_of_docstrings_give_what_they_show(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0 and found.failed == 0


# --- scores ----------------------------------------------------------------------------------------------------------


def test_files_have_the_embeddings_of_the_stage_embed(tiny_study, model, embeddings):
    stored = np.load(embeddings)
    audio = model.embed_audio(raw_files(tiny_study))
    assert audio.dtype == np.float32 and np.linalg.norm(audio, axis=1) == pytest.approx(1)
    np.testing.assert_array_equal(audio, unit_rows(stored["audio"]))
    np.testing.assert_array_equal(model.embed_text(stored["caption"].tolist()), unit_rows(stored["text"]))


def test_scores_are_those_of_the_stage_evaluate(tiny_study, model, embeddings, tmp_path):
    stored = np.load(embeddings)
    audio, text = model.embed_audio(raw_files(tiny_study)), model.embed_text(stored["caption"].tolist())
    evaluate.main(
        f"--embeddings {embeddings} --run vanilla --seed 0 --target labeled --split train --metrics {tmp_path}/m.json "
        f"--ranks {tmp_path}/ranks.parquet --contributions {tmp_path}/contributions.parquet".split()
    )
    ranked = rank_embeddings(stored["text"], stored["audio"], stored["audio_of_text"])
    best = (text @ audio.T).max(axis=1)
    np.testing.assert_allclose(best, ranked.t2a_top.score[:, 0], rtol=0, atol=1e-6)
    metrics = pd.read_json(tmp_path / "m.json", typ="series")["protocols"]
    for protocol, expected in metrics.items():
        found = pipeline.retrieval_metrics((text.astype(np.float64) @ audio.T), stored["audio_of_text"], protocol)
        assert {name: found[name] for name in ("t2a_R1", "t2a_R10")} == pytest.approx(
            {name: expected[name] for name in ("t2a_R1", "t2a_R10")}
        )


@pytest.mark.parametrize("query", ["noise hisses", "sound"])
def test_scores_are_those_of_search(tiny_study, model, query, tmp_path):
    split, files = tiny_study.shards / "labeled" / "train", raw_files(tiny_study)
    asked = query if query != "sound" else files[3]
    found = pipeline.search(asked, model, split, top=24, index=tmp_path)
    vector = (model.embed_text([query]) if query != "sound" else model.embed_audio([files[3]]))[0]
    row_of = {key: row for row, key in enumerate(pipeline.open_split(split).keys)}
    scores = model.embed_audio(files) @ vector
    assert [result.score for result in found] == scores[[row_of[result.key] for result in found]].tolist()


def test_a_folder_and_a_loaded_model_search_alike(tiny_study, model, tmp_path):
    split = str(tiny_study.shards / "labeled" / "train")
    found = [pipeline.search("a tone", way, split, index=tmp_path) for way in (model, str(tiny_study.pretrained))]
    assert found[0] == found[1] and len(found[0]) == 10


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_samples_in_memory_have_the_embedding_of_their_file(tiny_study, model, dtype):
    files = raw_files(tiny_study)[:3]
    samples = [soundfile.read(file, dtype=dtype) for file in files]
    np.testing.assert_array_equal(model.embed_audio(samples), model.embed_audio(files))


def test_files_of_other_formats_and_rates_are_near_to_the_original(tiny_study, model, tmp_path):
    file = raw_files(tiny_study)[0]
    samples, rate = soundfile.read(file)
    soundfile.write(tmp_path / "a.flac", samples, rate)
    soundfile.write(tmp_path / "a.ogg", samples, rate)
    soundfile.write(tmp_path / "b.wav", np.repeat(samples, 2)[:, None].repeat(2, axis=1), 2 * rate)
    audio = model.embed_audio([file, tmp_path / "a.flac", tmp_path / "a.ogg", tmp_path / "b.wav"])
    assert (audio[0] == audio[1]).all()
    assert (audio @ audio[0] > 0.9).all()


def test_channels_are_those_of_the_models_training(tiny_study, model, tmp_path):
    first, second = (soundfile.read(file, dtype="int16")[0] for file in raw_files(tiny_study)[:2])
    stereo = np.stack([first, np.resize(second, len(first))], axis=1)
    network = load_model(tiny_study.pretrained)
    network.channels = "first"
    save_model(network, tmp_path / "run")
    of_first = pipeline.load(tmp_path / "run").embed_audio([(stereo, 16_000)])
    np.testing.assert_array_equal(of_first, model.embed_audio([(first, 16_000)]))
    assert np.abs(of_first - model.embed_audio([(stereo, 16_000)])).max() > 1e-4


# --- splits ----------------------------------------------------------------------------------------------------------


def test_a_split_gives_samples_windows_and_captions_by_key(tiny_study):
    split = pipeline.open_split(str(tiny_study.shards / "labeled" / "train"))
    samples, _ = soundfile.read(raw_files(tiny_study)[0], dtype="int16")
    key = split.keys[0]
    assert len(split) == 24 and len(split.captions(key)) == 2
    np.testing.assert_array_equal(split.read(key), samples)
    np.testing.assert_array_equal(split.read_window(key, 1000, 2000), samples[1000:3000])


def test_streamed_clips_are_those_of_the_split(tiny_study):
    folder = str(tiny_study.shards / "labeled" / "train")
    split = pipeline.open_split(folder)
    streamed = list(pipeline.stream_clips(folder))
    assert [clip["key"] for clip in streamed] == split.keys
    assert all((clip["samples"] == split.read(clip["key"])).all() for clip in streamed)


def test_the_loss_takes_embeddings_of_a_model(tiny_study, model):
    audio, text = model.embed_audio(raw_files(tiny_study)[:2]), model.embed_text(["a low tone hums", "noise hisses"])
    scores = 10 * audio.astype(np.float64) @ text.T
    expected = sum(np.log(np.exp(way).sum(axis=1)).mean() - np.diag(way).mean() for way in (scores, scores.T))
    loss = pipeline.info_nce(torch.from_numpy(audio), torch.from_numpy(text), 10.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_sounds_that_cannot_be_embedded_are_named(tiny_study, model, tmp_path):
    whole = raw_files(tiny_study)[0]

    def refused(sounds, message: str) -> None:
        with pytest.raises(pipeline.PipelineError, match=message):
            model.embed_audio(sounds)

    refused([], "got an empty list; give at least one sound")
    refused("dog.wav", r"takes a list of sounds; give \['dog.wav'\]")
    refused([whole, "nothere.wav"], "^nothere.wav: not found; give an audio file")
    refused([tmp_path], "is not a file; give an audio file")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    refused([whole, tmp_path / "silent.wav"], r"silent\.wav: silent .*; give another sound")
    (tmp_path / "text.wav").write_text("no sound")
    refused([tmp_path / "text.wav"], r"text\.wav: undecodable")
    (tmp_path / "empty.wav").touch()
    refused([tmp_path / "empty.wav"], r"empty\.wav: empty")
    refused([whole, (np.zeros(16_000), 16_000)], "^sound 1: silent")
    refused(
        [(np.zeros((2, 16_000)), 16_000)], r"^sound 0: has the shape \(2, 16000\); give \(samples,\) or \(samples, c"
    )
    refused([(np.zeros(16_000, complex), 16_000)], "^sound 0: has the type complex128; give one of int16")
    refused([(np.ones(16_000), 0)], "^sound 0: has the rate 0")
    refused([(np.full(16_000, np.nan), 16_000)], "^sound 0: not finite")


def test_texts_that_cannot_be_embedded_are_named(model):
    for texts, message in (
        ([], "got an empty list; give at least one text"),
        ("a dog", r"takes a list of texts; give \['a dog'\]"),
        (["a dog", " "], "text 1 is blank"),
    ):
        with pytest.raises(pipeline.PipelineError, match=message):
            model.embed_text(texts)


def test_folders_without_a_model_are_refused_with_their_contents(tiny_study, tmp_path):
    def refused(folder: object, message: str) -> None:
        with pytest.raises(pipeline.PipelineError, match=message):
            pipeline.load(folder)

    refused(tmp_path / "nowhere", "nowhere: not found; give the folder of a run")
    refused("msclap-2023", "is a backbone's name, not a folder")
    refused(__file__, r"test_api\.py: is not a folder")
    refused(tmp_path, "is not a saved model, because it holds no model.json")
    refused(tiny_study.shards / "labeled" / "train", "holds the shards of a split, not a model")
    (tmp_path / "run" / "seed0" / "checkpoints").mkdir(parents=True)
    refused(tmp_path / "run" / "seed0", "the training has not finished")
    shutil.copytree(tiny_study.pretrained, tmp_path / "run" / "seed1")
    refused(tmp_path / "run", "holds no model.json; give one of its subfolders: seed1")
    (tmp_path / "run" / "seed1" / "tokenizer.json").unlink()
    refused(tmp_path / "run" / "seed1", r"tokenizer\.json: no such file")


def test_an_exported_folder_loads(tiny_study, model, tmp_path):
    for name in MODEL_FILES:
        shutil.copy(tiny_study.pretrained / name, tmp_path / name)
    (tmp_path / "README.md").write_text("model card")
    np.testing.assert_array_equal(pipeline.load(tmp_path).embed_text(["a"]), model.embed_text(["a"]))


def test_a_loaded_model_says_what_it_is(model):
    assert "16000 Hz, 128 dimensions" in repr(model)
    assert (model.sample_rate_hz, model.embedding_dim) == (16_000, 128)


def test_samples_of_the_wav_in_memory_are_exact():
    from pipeline.evaluation.embedding import wav_of

    samples = np.random.default_rng(0).normal(0, 0.1, (100, 2))
    for dtype in ("float32", "float64"):
        read, rate = soundfile.read(io.BytesIO(wav_of(samples.astype(dtype), 8000, "sound 0")), dtype=dtype)
        assert rate == 8000 and (read == samples.astype(dtype)).all()
