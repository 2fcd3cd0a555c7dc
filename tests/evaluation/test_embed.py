"""Real shards and a real model in, embeddings out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from pipeline.data.parquet import write_parquet
from pipeline.data.shards.format import read_manifest
from pipeline.data.shards.partition import read_assignment, write_plan
from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError
from pipeline.evaluation import embedding
from pipeline.evaluation.embedding import captions_of, embed_audio, embed_sounds, embed_texts, encode_windows
from pipeline.files import read_json, sha256_of
from pipeline.models import load_model, save_model
from pipeline.stages import embed, evaluate, index_shards, shard_audio, tabulate

WINDOW = 40_960  # 2.56 s at 16 kHz; the clips last 1 to 4 s


def run_stage(tiny_study, path: Path, *more: str, split: str = "labeled") -> dict[str, np.ndarray]:
    shards = tiny_study.shards / split / "train"
    embed.main(["--model", str(tiny_study.pretrained), "--shards", str(shards), "--embeddings", str(path), *more])
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def model(tiny_study):
    return load_model(str(tiny_study.pretrained))


@pytest.fixture(scope="module")
def raw_audio(tiny_study) -> dict[str, np.ndarray]:
    """The samples of each clip in the raw files, in [-1, 1]."""
    rows = pd.read_parquet(tiny_study.manifest("labeled"))
    folder = tiny_study.folder / "raw" / "labeled" / "train"
    return {row.key: soundfile.read(folder / Path(row.source_name).name)[0] for row in rows.itertuples()}


def embed_windows(model, windows: list[np.ndarray]) -> np.ndarray:
    """The mean of the windows' unit embeddings, one window at a time."""
    with torch.inference_mode():
        vectors = [model.encode_audio(torch.from_numpy(window).float()[None])[0].numpy() for window in windows]
    return np.mean([vector / np.linalg.norm(vector) for vector in vectors], axis=0)


@pytest.mark.parametrize("windows", ["mean", "first", "center"])
def test_clips_are_embedded_from_the_raw_samples_at_their_windows(tmp_path, tiny_study, model, raw_audio, windows):
    found = run_stage(tiny_study, tmp_path / "e.npz", "--windows", windows, "--batch-size", "5")
    assert str(found["windows"]) == windows
    assert found["audio_key"].tolist() == list(raw_audio)
    expected, long_clips = [], 0
    for samples in raw_audio.values():
        spare = len(samples) - WINDOW
        if spare <= 0:
            taken = [np.tile(samples, 3)[:WINDOW]]
        elif windows == "mean":
            taken = [samples[:WINDOW], samples[-WINDOW:]]  # two windows of 2.56 s reach over 4 s
        else:
            taken = [samples[(0 if windows == "first" else spare // 2) :][:WINDOW]]
        long_clips += spare > 0
        expected.append(embed_windows(model, taken))
    assert 5 < long_clips < 20
    np.testing.assert_allclose(found["audio"], np.array(expected), atol=1e-5)


def test_window_modes_differ_for_long_clips_only(tmp_path, tiny_study, raw_audio):
    mean, first = (
        run_stage(tiny_study, tmp_path / f"{name}.npz", "--windows", name)["audio"] for name in ("mean", "first")
    )
    is_long = np.array([len(samples) > WINDOW for samples in raw_audio.values()])
    moved = np.abs(mean - first).max(axis=1)
    assert (moved[is_long] > 1e-4).all()
    assert (moved[~is_long] < 1e-5).all()


def test_texts_are_in_the_order_of_clips_and_captions(tmp_path, tiny_study, model):
    found = run_stage(tiny_study, tmp_path / "e.npz", "--batch-size", "3")
    manifest = read_manifest(tiny_study.manifest("labeled")).to_pylist()
    assert found["caption"].tolist() == [caption for row in manifest for caption in row["captions"]]
    assert found["audio_of_text"].tolist() == [number for number, row in enumerate(manifest) for _ in row["captions"]]
    with torch.inference_mode():
        expected = np.concatenate([model.encode_text([caption]).numpy() for caption in found["caption"].tolist()])
    np.testing.assert_allclose(found["text"], expected, atol=1e-5)


def test_equal_captions_have_bit_identical_embeddings(tmp_path, tiny_study):
    found = run_stage(tiny_study, tmp_path / "e.npz", "--batch-size", "3")
    rows = pd.Series(found["caption"]).groupby(found["caption"]).indices
    assert len(rows) < len(found["caption"])
    for places in rows.values():
        assert (found["text"][places] == found["text"][places[0]]).all()


def test_same_inputs_give_the_same_bytes(tmp_path, tiny_study):
    for name in ("one", "two"):
        run_stage(tiny_study, tmp_path / f"{name}.npz", "--threads", "1")
    assert sha256_of(tmp_path / "one.npz") == sha256_of(tmp_path / "two.npz")


def test_batch_size_changes_nothing(tmp_path, tiny_study):
    one = run_stage(tiny_study, tmp_path / "one.npz", "--batch-size", "1")
    all_at_once = run_stage(tiny_study, tmp_path / "all.npz", "--batch-size", "100")
    for name in ("audio", "text"):
        np.testing.assert_allclose(one[name], all_at_once[name], atol=1e-5)


@pytest.mark.parametrize("samples", [1, 2.5])
def test_a_cpu_encodes_few_windows_at_a_time(model, monkeypatch, samples):
    generator = torch.Generator().manual_seed(0)
    windows_WS = torch.randint(-3000, 3000, (5, model.window_frames), dtype=torch.int16, generator=generator)
    sizes: list[int] = []
    with torch.inference_mode():
        whole_WD = encode_windows(model, windows_WS)
        counting = model.audio_encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        monkeypatch.setattr(embedding, "SAMPLES_AT_A_TIME", int(samples * model.window_frames))
        parts_WD = encode_windows(model, windows_WS)
        counting.remove()
    assert sizes == {1: [1, 1, 1, 1, 1], 2.5: [2, 2, 1]}[samples]
    torch.testing.assert_close(parts_WD, whole_WD, rtol=0, atol=1e-5)


def test_flac_shards_give_the_embeddings_of_wav_shards(tmp_path, tiny_study):
    make_shards(tiny_study, tmp_path / "flac", "--format", "flac", "--sample-rate-hz", "16000")
    arguments = ["--model", str(tiny_study.pretrained), "--shards", str(tmp_path / "flac")]
    embed.main([*arguments, "--embeddings", str(tmp_path / "flac.npz")])
    run_stage(tiny_study, tmp_path / "wav.npz")
    assert sha256_of(tmp_path / "flac.npz") == sha256_of(tmp_path / "wav.npz")


def test_files_give_the_embeddings_of_shards(tmp_path, tiny_study, model):
    """Decoding, windows and repetition of short clips are the same for both."""
    found = run_stage(tiny_study, tmp_path / "e.npz", "--batch-size", "5")
    rows = pd.read_parquet(tiny_study.manifest("labeled"))
    folder = tiny_study.folder / "raw" / "labeled" / "train"
    files = [folder / Path(name).name for name in rows["source_name"]]
    np.testing.assert_array_equal(embed_sounds(model, files, "mean", 5, "mean"), found["audio"])


def test_a_model_trained_with_padding_pads_short_clips_of_shards_and_files(tmp_path, tiny_study, raw_audio):
    model = load_model(tiny_study.pretrained)
    model.short_clips = "pad"
    save_model(model, tmp_path / "model")
    shards = tiny_study.shards / "labeled" / "train"
    embed.main(
        ["--model", str(tmp_path / "model"), "--shards", str(shards), "--embeddings", str(tmp_path / "e.npz")]
        + ["--windows", "first", "--batch-size", "5"]
    )
    found = np.load(tmp_path / "e.npz")["audio"]
    padded = [np.pad(samples, (0, max(0, WINDOW - len(samples))))[:WINDOW] for samples in raw_audio.values()]
    np.testing.assert_allclose(found, np.array([embed_windows(model, [window]) for window in padded]), atol=1e-5)
    names = pd.read_parquet(tiny_study.manifest("labeled"))["source_name"]
    files = [tiny_study.folder / "raw" / "labeled" / "train" / Path(name).name for name in names]
    np.testing.assert_array_equal(embed_sounds(load_model(tmp_path / "model"), files, "first", 5, "mean"), found)
    repeated = run_stage(tiny_study, tmp_path / "repeated.npz", "--windows", "first")["audio"]
    is_short = np.array([len(samples) < WINDOW for samples in raw_audio.values()])
    assert (np.abs(found - repeated).max(axis=1) > 1e-4).tolist() == is_short.tolist()


def test_files_give_the_first_channel_on_request(tmp_path, tiny_study, model):
    left, right = (
        soundfile.read(tiny_study.folder / "raw" / "labeled" / "train" / f"clip {number}.wav", dtype="int16")[0]
        for number in (1, 2)
    )
    frames = min(len(left), len(right))
    stereo, mono = tmp_path / "stereo.wav", tmp_path / "left.wav"
    soundfile.write(stereo, np.stack([left[:frames], right[:frames]], axis=1), 16_000)
    soundfile.write(mono, left[:frames], 16_000)
    of_left = embed_sounds(model, [mono], "mean", 1, "mean")
    np.testing.assert_array_equal(embed_sounds(model, [stereo], "mean", 1, "first"), of_left)
    assert np.abs(embed_sounds(model, [stereo], "mean", 1, "mean") - of_left).max() > 1e-3


def make_shards(tiny_study, folder: Path, *more: str) -> None:
    """The labeled split again, in one shard, with other settings."""
    plan = str(folder / "plan.parquet")
    catalog = tiny_study.folder / "catalogs" / "labeled" / "train.parquet"
    write_plan(read_assignment(catalog, 64), Path(plan))
    outputs = ["--shards", str(folder), "--done", str(folder / "parts" / "0-of-1.json")]
    shard_audio.main(["--catalog", str(catalog), "--plan", plan, *outputs, *more])
    outputs = ["--manifest", str(folder / "manifest.parquet"), "--summary", str(folder / "manifest.json")]
    outputs += ["--identities", str(folder / "identities.parquet")]
    index_shards.main(["--plan", plan, "--shards", str(folder), *outputs])


def test_shards_at_another_rate_are_refused(tmp_path, tiny_study):
    make_shards(tiny_study, tmp_path / "shards", "--format", "wav", "--sample-rate-hz", "8000")
    arguments = ["--model", str(tiny_study.pretrained), "--shards", str(tmp_path / "shards")]
    with pytest.raises(PipelineError, match=r"shards are at 8000 Hz, the model takes 16000 Hz"):
        embed.main([*arguments, "--embeddings", str(tmp_path / "e.npz")])
    assert not (tmp_path / "e.npz").exists()


def test_clip_without_caption_is_named(tmp_path, tiny_study):
    first = open_shards(tiny_study.shards / "unlabeled" / "train").keys[0]
    with pytest.raises(PipelineError, match=f"clip {first} has no caption"):
        run_stage(tiny_study, tmp_path / "e.npz", split="unlabeled")


def test_split_without_clips_is_named(tiny_study, model, tmp_path):
    folder = tiny_study.shards / "labeled" / "train"
    summary = read_json(folder / "manifest.json")
    write_parquet(read_manifest(folder / "manifest.parquet").slice(0, 0), tmp_path / "manifest.parquet")
    with pytest.raises(PipelineError, match="has no clip to embed"):
        embed_audio(model, ShardReader(tmp_path, summary), "mean", 8)


def test_embeddings_pass_through_evaluation_into_a_table(tmp_path, tiny_study):
    """The three stages on each other's real files; a random model is near chance."""
    found = run_stage(tiny_study, tmp_path / "e.npz")
    evaluate.main(
        f"--embeddings {tmp_path}/e.npz --run vanilla --seed 0 --target labeled --split train "
        f"--metrics {tmp_path}/metrics.json --ranks {tmp_path}/ranks.parquet "
        f"--contributions {tmp_path}/contributions.parquet".split()
    )
    tabulate.main(
        f"--row labeled|vanilla|-|-|- {tmp_path}/metrics.json --protocol dcase --study-name tiny "
        f"--datasets clotho audiocaps audioset "
        f"--csv {tmp_path}/table1.csv --tex {tmp_path}/table1.tex".split()
    )
    row = pd.read_csv(tmp_path / "table1.csv").iloc[0]
    assert (row["n_audio"], row["n_text"], row["protocol"]) == (24, 48, "dcase")
    metrics = read_json(tmp_path / "metrics.json")
    assert row["t2a_R10"] == pytest.approx(metrics["protocols"]["dcase"]["t2a_R10"], abs=0.005)
    ranks = pd.read_parquet(tmp_path / "ranks.parquet")
    assert ranks["query_key"].tolist() == [*found["audio_key"][found["audio_of_text"]], *found["audio_key"]]
    assert 0 < row["t2a_R10"] < 100


def test_a_damaged_tar_is_named_and_nothing_is_written(tmp_path, tiny_study):
    shards = Path(shutil.copytree(tiny_study.shards / "labeled" / "train", tmp_path / "shards"))
    tar = sorted(shards.glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    arguments = ["--model", str(tiny_study.pretrained), "--shards", str(shards)]
    with pytest.raises(PipelineError, match=tar.name):
        embed.main([*arguments, "--embeddings", str(tmp_path / "e.npz")])
    assert not (tmp_path / "e.npz").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bfloat16_on_a_gpu_gives_the_directions_of_float32(tiny_study, model):
    shards = open_shards(tiny_study.shards / "labeled" / "train")
    on_gpu = load_model(str(tiny_study.pretrained), device="cuda")
    captions, _ = captions_of(shards)
    for found, expected in (
        (embed_audio(on_gpu, shards, "mean", 8), embed_audio(model, shards, "mean", 8)),
        (embed_texts(on_gpu, captions, 8), embed_texts(model, captions, 8)),
    ):
        cosine = torch.cosine_similarity(torch.from_numpy(found), torch.from_numpy(expected))
        assert cosine.min() > 0.999
