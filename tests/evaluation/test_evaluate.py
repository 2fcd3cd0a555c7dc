"""Embeddings in, ranks and figures out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES, PROTOCOLS, retrieval_metrics
from pipeline.files import read_json
from pipeline.stages import evaluate

CLIPS, CAPTIONS, WIDTH = 30, 4, 12


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Embeddings of 30 clips with 4 captions each that retrieve each other sometimes."""
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(CLIPS), CAPTIONS)
    audio = generator.standard_normal((CLIPS, WIDTH)).astype(np.float32)
    return {
        "audio": audio,
        "audio_key": np.array([f"clotho_evaluation_{clip:02d}" for clip in range(CLIPS)]),
        "text": (audio[owners] + 1.5 * generator.standard_normal((len(owners), WIDTH))).astype(np.float32),
        "audio_of_text": owners,
        "caption": np.array([f"caption {row % CAPTIONS} of sound {row // CAPTIONS}" for row in range(len(owners))]),
        "windows": np.array("mean"),
    }


def run_stage(folder: Path, arrays: dict[str, np.ndarray], *more: str) -> tuple[Path, Path]:
    np.savez(folder / "embeddings.npz", **arrays)
    metrics, ranks = folder / "metrics.json", folder / "ranks.parquet"
    evaluate.main(
        f"--embeddings {folder}/embeddings.npz --run composed --seed 3 --target clotho --split evaluation "
        f"--metrics {metrics} --ranks {ranks} --contributions {folder}/contributions.parquet".split()
        + list(more)
    )
    return metrics, ranks


def test_metrics_record_the_evaluation(tmp_path, arrays, caplog):
    with caplog.at_level(logging.WARNING):
        path, _ = run_stage(tmp_path, arrays, "--n-audio-expected", "31")
    metrics = read_json(path)
    assert {name: value for name, value in metrics.items() if not isinstance(value, dict)} == {
        "run": "composed",
        "seed": 3,
        "target": "clotho",
        "split": "evaluation",
        "n_text": 120,
        "n_audio": 30,
        "n_audio_expected": 31,
        "windows": "mean",
    }
    assert "clotho/evaluation: 30 of 31 clips" in caplog.text
    cosine = [row / np.linalg.norm(row) for row in arrays["text"].astype(float)] @ np.array(
        [row / np.linalg.norm(row) for row in arrays["audio"].astype(float)]
    ).T
    for protocol in PROTOCOLS:
        expected = retrieval_metrics(cosine, arrays["audio_of_text"], protocol)
        assert metrics["protocols"][protocol] == pytest.approx(expected)
        assert 10 < expected["t2a_R1"] < 90
        for name, (low, high) in metrics["intervals_95"][protocol].items():
            assert low <= expected[name] <= high
    assert set(metrics["paper_mean_over_captions"]) == set(FIGURES[4:])


def test_figures_can_be_computed_from_the_ranks(tmp_path, arrays):
    metrics_path, ranks_path = run_stage(tmp_path, arrays)
    protocols = read_json(metrics_path)["protocols"]
    ranks = pd.read_parquet(ranks_path)
    texts, clips = ranks[ranks["direction"] == "t2a"], ranks[ranks["direction"] == "a2t"]
    assert len(texts) == 120
    assert len(clips) == 30
    reciprocal = texts["rank"].map(lambda rank: 1 / rank if rank <= 10 else 0.0)
    assert protocols["paper"]["t2a_mAP10"] == pytest.approx(100 * reciprocal.mean())
    for k in (1, 5, 10):
        assert protocols["paper"][f"t2a_R{k}"] == pytest.approx(100 * (texts["rank"] <= k).mean())
        assert protocols["paper"][f"a2t_R{k}"] == pytest.approx(100 * (clips["rank_one_caption"] <= k).mean())
        assert protocols["best-of-5"][f"a2t_R{k}"] == pytest.approx(100 * (clips["rank"] <= k).mean())


def test_a_row_of_ranks_has_the_query_and_its_first_answers(tmp_path, arrays):
    _, path = run_stage(tmp_path, arrays)
    ranks = pd.read_parquet(path)
    text = ranks[(ranks["direction"] == "t2a") & (ranks["query"] == 42)].iloc[0]
    assert (text["query_key"], text["caption"]) == ("clotho_evaluation_10", 2)
    unit = arrays["text"][42] / np.linalg.norm(arrays["text"][42])
    cosine = arrays["audio"] @ unit / np.linalg.norm(arrays["audio"], axis=1)
    assert text["top10"].tolist() == np.argsort(-cosine)[:10].tolist()
    assert text["top10_score"] == pytest.approx(np.sort(cosine)[::-1][:10], abs=1e-6)
    assert text["rank"] == 1 + np.sum(cosine > cosine[10])
    clip = ranks[(ranks["direction"] == "a2t") & (ranks["query"] == 10)].iloc[0]
    assert (clip["query_key"], clip["caption"]) == ("clotho_evaluation_10", -1)
    places = np.argsort(np.argsort(-(arrays["text"] @ arrays["audio"][10]) / np.linalg.norm(arrays["text"], axis=1)))
    assert clip["rank"] == 1 + places[40:44].min()
    assert clip["top10"].tolist() == np.argsort(places)[:10].tolist()


def test_same_embeddings_give_the_same_bytes(tmp_path, arrays):
    outputs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        outputs.append([path.read_bytes() for path in run_stage(tmp_path / name, arrays)])
    assert outputs[0] == outputs[1]


def test_constant_embeddings_score_as_chance(tmp_path, arrays):
    arrays["audio"][:] = arrays["audio"][0]
    path, _ = run_stage(tmp_path, arrays)
    for figures in read_json(path)["protocols"].values():
        assert figures["t2a_R1"] == pytest.approx(100 / CLIPS)
        assert figures["t2a_R10"] == pytest.approx(100 * 10 / CLIPS)


def with_nan_audio(arrays):
    arrays["audio"][7, 3] = np.nan


def with_infinite_text(arrays):
    arrays["text"][9, 0] = np.inf


def with_zero_audio(arrays):
    arrays["audio"][4] = 0


def with_unknown_clip(arrays):
    arrays["audio_of_text"][-1] = CLIPS


def with_clip_without_caption(arrays):
    arrays["audio_of_text"][arrays["audio_of_text"] == 5] = 6


def with_no_clip(arrays):
    arrays.update({name: arrays[name][:0] for name in ("audio", "audio_key", "text", "audio_of_text", "caption")})


def with_repeated_key(arrays):
    arrays["audio_key"][1] = arrays["audio_key"][0]


def with_shuffled_texts(arrays):
    arrays["audio_of_text"][[0, -1]] = arrays["audio_of_text"][[-1, 0]]


def with_other_width(arrays):
    arrays["text"] = arrays["text"][:, 1:]


def without_captions(arrays):
    del arrays["caption"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_nan_audio, r"the embedding of clip clotho_evaluation_07 is not finite \(1 of 30\)"),
        (with_infinite_text, r"'caption 1 of sound 2' of clip clotho_evaluation_02 is not finite \(1 of 120\)"),
        (with_zero_audio, r"the embedding of clip clotho_evaluation_04 is zero \(1 of 30\)"),
        (with_unknown_clip, r"'caption 3 of sound 29' \(text 119\) belongs to clip 30, but the clips are 0 to 29"),
        (with_clip_without_caption, "clip clotho_evaluation_05 has no caption"),
        (with_no_clip, "0 clips and 0 texts"),
        (with_repeated_key, "clip clotho_evaluation_00 occurs 2 times"),
        (with_shuffled_texts, "not sorted by clip"),
        (with_other_width, r"do not fit .* \(120, 11\)"),
        (without_captions, "holds no caption"),
    ],
)
def test_unusable_embeddings_are_named(tmp_path, arrays, damage, message):
    damage(arrays)
    with pytest.raises(PipelineError, match=message) as error:
        run_stage(tmp_path, arrays)
    assert str(tmp_path / "embeddings.npz") in str(error.value)
    assert not (tmp_path / "metrics.json").exists()


def test_missing_or_damaged_file_is_named(tmp_path, arrays):
    path = tmp_path / "embeddings.npz"
    with pytest.raises(PipelineError, match=r"embeddings\.npz: not found"):
        evaluate.read_embeddings(path)
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PipelineError, match=r"embeddings\.npz: cannot be read"):
        evaluate.read_embeddings(path)


def run_candidate(folder: Path, outcome: str) -> Path:
    """Run the stage on a candidate of the sweep that diverged."""
    np.savez(folder / "embeddings.npz")
    (folder / "outcome.txt").write_text(outcome)
    evaluate.main(
        f"--embeddings {folder}/embeddings.npz --outcome {folder}/outcome.txt --run composed --seed 3 --target clotho "
        f"--split validation --metrics {folder}/metrics.json --ranks {folder}/ranks.parquet "
        f"--contributions {folder}/contributions.parquet".split()
    )
    return folder / "metrics.json"


def test_metrics_of_a_diverged_training_record_the_reason(tmp_path):
    path = run_candidate(tmp_path, "step 3: the loss is nan\n")
    assert read_json(path) == {
        "diverged": "step 3: the loss is nan",
        "run": "composed",
        "seed": 3,
        "target": "clotho",
        "split": "validation",
    }


def test_tables_of_a_diverged_training_are_empty_with_the_usual_columns(tmp_path, arrays):
    run_candidate(tmp_path, "step 3: the loss is nan\n")
    (tmp_path / "other").mkdir()
    run_stage(tmp_path / "other", arrays)
    for name in ("ranks.parquet", "contributions.parquet"):
        empty, full = pq.read_table(tmp_path / name), pq.read_table(tmp_path / "other" / name)
        assert (empty.num_rows, empty.schema) == (0, full.schema)


def test_outcome_of_a_finished_training_changes_nothing(tmp_path, arrays):
    without = [path.read_bytes() for path in run_stage(tmp_path, arrays)]
    (tmp_path / "outcome.txt").write_text("finished\n")
    assert without == [
        path.read_bytes() for path in run_stage(tmp_path, arrays, "--outcome", str(tmp_path / "outcome.txt"))
    ]


def test_missing_or_empty_outcome_is_named(tmp_path, arrays):
    for message in (r"outcome\.txt: not found", r"outcome\.txt: is empty"):
        with pytest.raises(PipelineError, match=message):
            run_stage(tmp_path, arrays, "--outcome", str(tmp_path / "outcome.txt"))
        (tmp_path / "outcome.txt").write_text("\n")
