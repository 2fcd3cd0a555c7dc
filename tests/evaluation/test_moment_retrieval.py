"""Captioned stretches of long recordings in, figures of moment retrieval out."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile

from pipeline.data.catalogs import CATALOG_SCHEMA
from pipeline.data.parquet import write_parquet
from pipeline.errors import PipelineError
from pipeline.evaluation.embedding import embed_recordings, encode_windows
from pipeline.evaluation.moment_metrics import moment_figures
from pipeline.evaluation.moment_retrieval import Queries, Windows, query_figures, read_queries, within
from pipeline.evaluation.moments import Moment
from pipeline.files import read_json
from pipeline.models import load_model
from pipeline.results.page.sections import difference_plots, read_table
from pipeline.stages import compare, embed, evaluate, index_audio, index_shards, shard_audio, tabulate

RATE = 16_000
SOUNDS = sorted((Path(__file__).parents[2] / "data" / "recordings" / "audio").iterdir())[:6]
TIMETABLE = [(4.0, 9.0), (14.0, 20.0), (26.0, 29.0), (32.0, 38.0), (41.0, 44.0), (50.0, 58.0)]
"""When each sound plays, in seconds."""


def mixed(timetable: list[tuple[float, float]], duration_s: float) -> np.ndarray:
    """Real sounds at their times, over quiet noise."""
    samples = np.random.default_rng(0).normal(0, 0.002, round(duration_s * RATE))
    for path, (start, end) in zip(SOUNDS, timetable, strict=False):
        sound, rate = soundfile.read(path, always_2d=True)
        sound = sound[:, 0][:: max(1, round(rate / RATE))]
        first, frames = round(start * RATE), round((end - start) * RATE)
        samples[first : first + frames] += 0.5 * np.resize(sound / np.abs(sound).max(), frames)
    return samples


def write_catalog(path: Path, rows: list[dict]) -> Path:
    """A catalog with the columns that stretches of recordings add."""
    schema = CATALOG_SCHEMA
    for name in ("segment_start_s", "segment_end_s"):
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.float64()))
    same = {"dataset": "forest", "split": "test", "status": "ok"}
    records = [{"key": f"forest_test_{number:02d}", **same, **row} for number, row in enumerate(rows)]
    write_parquet(pa.Table.from_pylist(records, schema=schema), path)
    return path


def stretch(path: Path | str | None, start: float | None, end: float | None, *captions: str, **more) -> dict:
    name = Path(path or "gone.wav").name
    row = {"source_name": name, "path": None if path is None else str(path), "captions": list(captions)}
    return {**row, "segment_start_s": start, "segment_end_s": end, **more}


def queries_of(*asked: tuple[int, list[tuple[float, float]]], recordings: int = 1) -> Queries:
    """Queries, each a recording and its true moments."""
    return Queries(
        recording=[f"{number}.wav" for number in range(recordings)],
        caption_Q=[f"caption {number}" for number in range(len(asked))],
        recording_Q=np.array([recording for recording, _ in asked]),
        true_T2=np.array([span for _, spans in asked for span in spans], float),
        query_T=np.repeat(np.arange(len(asked)), [len(spans) for _, spans in asked]),
        lost=0,
    )


def oracle(queries: Queries, duration_s: float, window_s: float, hop_s: float, recordings: int = 1) -> Windows:
    """A window's vector has the share of it that each query's true moments cover, and a constant rest."""
    starts = np.arange(0, duration_s - window_s + 1e-9, hop_s)
    ends = starts + window_s
    vectors = []
    for recording in range(recordings):
        share_WQ = np.zeros((len(starts), len(queries.caption_Q) + 1))
        share_WQ[:, -1] = 0.2
        for (start, end), query in zip(queries.true_T2, queries.query_T, strict=True):
            if queries.recording_Q[query] == recording:
                share_WQ[:, query] += np.clip(np.minimum(ends, end) - np.maximum(starts, start), 0, None) / window_s
        vectors.append(share_WQ / np.linalg.norm(share_WQ, axis=1, keepdims=True))
    return Windows(
        recording_W=np.repeat(np.arange(recordings), len(starts)),
        start_s_W=np.tile(starts, recordings),
        end_s_W=np.tile(ends, recordings),
        vector_WD=np.concatenate(vectors).astype(np.float32),
    )


def texts(queries: Queries) -> np.ndarray:
    return np.eye(len(queries.caption_Q), len(queries.caption_Q) + 1)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_a_perfect_model_scores_100():
    queries = queries_of(*((0, [span]) for span in TIMETABLE))
    figures = query_figures(queries, texts(queries), oracle(queries, 60, 1, 1))
    assert figures == pytest.approx(np.ones((6, 5)))


def test_a_sound_that_recurs_is_one_query_with_several_moments():
    queries = queries_of((0, TIMETABLE[:3]), (0, [TIMETABLE[4]]))
    figures = query_figures(queries, texts(queries), oracle(queries, 60, 1, 1))
    assert figures == pytest.approx(np.ones((2, 5)))


def test_overlapping_windows_find_the_sounds_of_a_perfect_model():
    """Windows of 4 s every 2 s: the best moment of every caption overlaps its sound at least by half."""
    queries = queries_of(*((0, [span]) for span in TIMETABLE))
    figures = query_figures(queries, texts(queries), oracle(queries, 60, 4, 2))
    assert (figures[:, 0] == 1).all()
    assert figures[:, 1].mean() >= 4 / 6


def test_a_collapsed_model_answers_with_the_whole_recording():
    """So it scores by the share of the recording that a true moment takes, for any order of its windows."""
    queries = queries_of((0, [(10, 20)]), (0, [(0, 48)]), (0, [(5, 50)]))
    windows = oracle(queries, 60, 4, 2)
    windows.vector_WD[:] = windows.vector_WD[0]
    whole = [Moment(start_s=0, end_s=60, score=1)]
    figures = query_figures(queries, texts(queries), windows)
    assert figures.tolist() == [moment_figures(whole, queries.true_T2[[row]]).tolist() for row in range(3)]
    assert figures[:, :2].tolist() == [[0, 0], [1, 1], [1, 1]]


def test_random_vectors_score_as_random_moments():
    """With a random model, few of many captions are found: far from the 100 % of an oracle."""
    generator = np.random.default_rng(5)
    queries = queries_of(*((0, [span]) for span in TIMETABLE * 10))
    windows = oracle(queries, 60, 2, 1)
    windows.vector_WD[:] = generator.standard_normal(windows.vector_WD.shape)
    figures = query_figures(queries, generator.standard_normal(texts(queries).shape), windows)
    assert 0 <= figures[:, 0].mean() < 0.2


def test_a_caption_asks_in_its_own_recording_only():
    queries = queries_of((0, [(4, 9)]), (1, [(14, 20)]), recordings=2)
    windows = oracle(queries, 60, 1, 1, recordings=2)
    assert query_figures(queries, texts(queries), windows) == pytest.approx(np.ones((2, 5)))
    swapped = Windows(**{**vars(windows), "recording_W": 1 - windows.recording_W})
    assert query_figures(queries, texts(queries), swapped)[:, :2].tolist() == [[0, 0], [0, 0]]


# --- queries ---------------------------------------------------------------------------------------------------------


def test_captions_of_a_recording_are_its_queries(tmp_path):
    rows = [
        stretch("a.wav", 4, 9, "rain", "drops fall"),  # two captions of one stretch
        stretch("a.wav", 20, 25, "rain"),  # the caption of another stretch again
        stretch("b.wav", 1, 2, "rain"),
        stretch(None, 1, 2, "rain", "snow", status="dropped", reason="missing_file"),
        stretch("b.wav", None, None, "all of it"),
    ]
    queries, paths = read_queries(write_catalog(tmp_path / "test.parquet", rows))
    assert paths == [Path("a.wav"), Path("b.wav")]
    assert list(zip(queries.recording_Q.tolist(), queries.caption_Q, strict=True)) == [
        (0, "drops fall"),
        (0, "rain"),
        (1, "rain"),
    ]
    assert queries.true_T2.tolist() == [[4, 9], [4, 9], [20, 25], [1, 2]]
    assert queries.query_T.tolist() == [0, 1, 1, 2]
    assert queries.lost == 3


def test_moments_behind_the_end_of_their_recording_are_counted():
    queries = queries_of((0, [(4, 9), (59, 70)]), (0, [(60, 61)]), (1, [(0, 0.01)]), recordings=2)
    left = within(queries, np.array([60.0, 0.0]))
    assert (left.caption_Q, left.true_T2.tolist(), left.query_T.tolist()) == (["caption 0"], [[4, 9]], [0])
    assert left.lost == 3


@pytest.mark.parametrize("rows", [[], [stretch("a.wav", None, None, "rain")], [stretch("a.wav", 1, 2)]])
def test_a_catalog_without_captioned_stretches_is_named(tmp_path, rows):
    path = write_catalog(tmp_path / "test.parquet", rows)
    with pytest.raises(PipelineError, match=r"test\.parquet: has no captioned stretch of a file"):
        read_queries(path)


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_study):
    return load_model(str(tiny_study.pretrained))  # windows of 2.56 s at 16 kHz


def test_windows_cover_the_whole_recording(tmp_path, model):
    samples = (mixed(TIMETABLE[:1], 10) * 30_000).astype(np.int16)
    soundfile.write(tmp_path / "long.wav", samples, RATE)
    windows, durations, unusable = embed_recordings(model, [tmp_path / "long.wav"], 1.0, 4, "mean")
    assert (durations.tolist(), unusable) == ([10.0], {})
    assert windows.start_s_W.tolist() == list(range(9))
    assert windows.end_s_W == pytest.approx([*(start + 2.56 for start in range(8)), 10])
    np.testing.assert_allclose(np.linalg.norm(windows.vector_WD, axis=1), 1, atol=1e-5)
    import torch

    with torch.inference_mode():
        third = encode_windows(model, torch.from_numpy(samples[None, 3 * RATE : 3 * RATE + model.window_frames]))[0]
    np.testing.assert_allclose(windows.vector_WD[3], third / third.norm(), atol=1e-5)


def test_a_recording_shorter_than_a_window_has_one(tmp_path, model):
    soundfile.write(tmp_path / "short.wav", mixed([(0, 0.5)], 0.5), RATE)
    windows, durations, _ = embed_recordings(model, [tmp_path / "short.wav"], 1.0, 4, "mean")
    assert (windows.start_s_W.tolist(), windows.end_s_W.tolist(), durations.tolist()) == ([0], [0.5], [0.5])


def test_unusable_recordings_have_no_windows(tmp_path, model):
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "empty.wav", np.empty(0), RATE)
    soundfile.write(tmp_path / "good.wav", mixed([(1, 3)], 5), RATE)
    paths = [tmp_path / name for name in ("text.wav", "empty.wav", "good.wav")]
    windows, durations, unusable = embed_recordings(model, paths, 2.0, 4, "mean")
    assert set(windows.recording_W.tolist()) == {2}
    assert durations.tolist() == [0, 0, 5]
    assert 0 in unusable


def test_a_recording_that_is_cut_off_is_searched_up_to_there(tmp_path, model):
    soundfile.write(tmp_path / "long.wav", mixed(TIMETABLE[:1], 12), RATE)
    data = (tmp_path / "long.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    windows, durations, unusable = embed_recordings(model, [tmp_path / "cut.wav"], 1.0, 4, "mean")
    assert 5 < durations[0] < 7
    assert windows.end_s_W.max() == durations[0]
    assert unusable[0].reason == "truncated"


# --- from the catalog to the table -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, tiny_study) -> Path:
    """Two evaluations of a random model on two recordings of real sounds, and one that cannot be read.

    The clips of the split are those of the tiny study, because stretches and recordings are read apart.
    """
    folder = tmp_path_factory.mktemp("moments")
    soundfile.write(folder / "a.wav", mixed(TIMETABLE, 60), RATE)
    soundfile.write(folder / "b.flac", mixed(TIMETABLE[:2], 22), RATE)
    (folder / "c.wav").write_text("no sound")
    rows = [stretch(folder / "a.wav", *span, f"sound {n}", "a sound") for n, span in enumerate(TIMETABLE)]
    rows += [stretch(folder / "b.flac", *span, f"sound {n}") for n, span in enumerate(TIMETABLE[:2])]
    rows += [stretch(folder / "c.wav", 1, 2, "silence"), stretch(folder / "b.flac", 30, 31, "too late")]
    write_catalog(folder / "test.parquet", rows)
    shards = tiny_study.shards / "labeled" / "train"
    for run in ("vanilla", "finetune"):
        out = folder / run
        out.mkdir()
        embed.main(
            ["--model", str(tiny_study.pretrained), "--shards", str(shards), "--embeddings", str(out / "e.npz")]
            + ["--moments", str(folder / "test.parquet"), "--hop-s", "0.5", "--threads", "1"]
        )
        run_evaluate(out, run, "--moments")
    return folder


def run_evaluate(out: Path, run: str, *more: str) -> None:
    evaluate.main(
        [*f"--embeddings {out}/e.npz --run {run} --seed 0 --target labeled --split train".split(), *more]
        + ["--metrics", str(out / "metrics.json"), "--ranks", str(out / "ranks.parquet")]
        + ["--contributions", str(out / "contributions.parquet")]
    )


def rows_of(folder: Path, name: str) -> list[str]:
    runs = ("vanilla", "finetune")
    return [word for run in runs for word in ("--row", f"labeled|{run}|-", str(folder / run / name))]


def table_of(folder: Path) -> pd.DataFrame:
    outputs = {flag: folder / f"table.{kind}" for flag, kind in (("csv", "csv"), ("tex", "tex"), ("markdown", "md"))}
    tabulate.main(
        rows_of(folder, "metrics.json")
        + ["--datasets", "labeled", "--protocol", "moments", "--study-name", "tiny"]
        + [word for flag, path in outputs.items() for word in (f"--{flag}", str(path))]
    )
    return pd.read_csv(outputs["csv"])


def test_metrics_hold_the_protocol_and_what_is_left_out(evaluated):
    metrics = read_json(evaluated / "vanilla" / "metrics.json")
    assert metrics["moments"]["note"] == (
        "14 true moments. Windows of 2.56 s every 0.5 s, merged into moments. "
        "Left out: 2 captions without a usable stretch or recording."
    )
    assert (metrics["moments"]["queries"], metrics["moments"]["recordings"], metrics["moments"]["lost"]) == (9, 2, 2)
    figures = metrics["protocols"]["moments"]
    assert set(figures) == {"t2m_R1_50", "t2m_R1_70", "t2m_mAP_50", "t2m_mAP_75", "t2m_mAP"}
    assert figures["t2m_R1_50"] >= figures["t2m_R1_70"]
    assert all(0 <= value <= 100 for value in figures.values())
    for name, (low, high) in metrics["intervals_95"]["moments"].items():
        assert low <= figures[name] <= high
    assert set(metrics["protocols"]) == {"paper", "best-of-5", "dcase", "moments"}


def test_figures_follow_from_the_arrays(evaluated):
    with np.load(evaluated / "vanilla" / "e.npz") as file:
        arrays = {name: file[name] for name in file.files}
    rows = arrays["moments_window_recording"] == 1
    assert arrays["moments_recording"].tolist() == ["a.wav", "b.flac", "c.wav"]
    assert arrays["moments_window_end_s"][rows].max() == 22
    assert arrays["moments_caption"].tolist().count("sound 0") == 2
    assert arrays["moments_true_s"].shape == (14, 2)


def test_the_table_shows_the_protocol(evaluated):
    row = table_of(evaluated).iloc[0]
    assert (row["protocol"], row["n_text"], row["n_audio"]) == ("moments", 9, 2)
    figures = read_json(evaluated / "vanilla" / "metrics.json")["protocols"]["moments"]
    assert row["t2m_mAP"] == pytest.approx(figures["t2m_mAP"], abs=0.005)
    markdown, latex = ((evaluated / f"table.{kind}").read_text() for kind in ("md", "tex"))
    assert "| t2m R1@0.5 | t2m R1@0.7 | t2m mAP@0.5 | t2m mAP@0.75 | t2m mAP |" in markdown
    assert "Protocol `moments`: every caption ranks the moments of its recording" in markdown
    assert "Left out: 2 captions" in markdown
    assert r"\multicolumn{5}{c}{text $\rightarrow$ moment retrieval}" in latex
    assert "9 captions, 2 recordings. 14 true moments." in latex


def test_runs_are_compared_by_recordings(evaluated):
    compare.main(
        rows_of(evaluated, "contributions.parquet")
        + ["--datasets", "labeled", "--protocol", "moments", "--samples", "50", "--csv", str(evaluated / "c.csv")]
    )
    table = pd.read_csv(evaluated / "c.csv")
    assert table["figure"].tolist() == ["t2m_R1_50", "t2m_R1_70", "t2m_mAP_50", "t2m_mAP_75", "t2m_mAP"]
    assert (table["n_audio"] == 2).all()
    assert (table["difference"] == 0).all()
    assert [plot.subject for plot in difference_plots(evaluated / "c.csv")] == ["labeled"]
    table_of(evaluated)
    columns = read_table(evaluated / "table.csv").columns
    assert [column.name for column in columns if "moment" in column.group] == [
        *("R1@0.5", "R1@0.7", "mAP@0.5", "mAP@0.75", "mAP")
    ]


def test_embeddings_without_moments_are_named(tmp_path, evaluated):
    with np.load(evaluated / "vanilla" / "e.npz") as file:
        np.savez(tmp_path / "e.npz", **{name: file[name] for name in file.files if not name.startswith("moments_")})
    with pytest.raises(PipelineError, match=r"e\.npz: holds no moments_caption.*make it again with embed --moments"):
        run_evaluate(tmp_path, "vanilla", "--moments")


def test_a_split_whose_recordings_cannot_be_read_is_named(tmp_path, tiny_study):
    (tmp_path / "c.wav").write_text("no sound")
    catalog = write_catalog(tmp_path / "test.parquet", [stretch(tmp_path / "c.wav", 1, 2, "silence")])
    with pytest.raises(PipelineError, match=r"no captioned stretch lies in a recording that can be read"):
        embed.main(
            ["--model", str(tiny_study.pretrained), "--shards", str(tiny_study.shards / "labeled" / "train")]
            + ["--embeddings", str(tmp_path / "e.npz"), "--moments", str(catalog)]
        )
    assert not (tmp_path / "e.npz").exists()


def test_a_recording_that_is_gone_is_named(tmp_path, tiny_study):
    catalog = write_catalog(tmp_path / "test.parquet", [stretch(tmp_path / "gone.wav", 1, 2, "rain")])
    with pytest.raises(PipelineError, match=r"gone\.wav"):
        embed.main(
            ["--model", str(tiny_study.pretrained), "--shards", str(tiny_study.shards / "labeled" / "train")]
            + ["--embeddings", str(tmp_path / "e.npz"), "--moments", str(catalog)]
        )


# --- from the list to the table --------------------------------------------------------------------------------------


def test_a_list_of_captioned_stretches_becomes_a_row_of_the_table(tmp_path, tiny_study):
    """Two recordings of real sounds; one caption ends before it begins, one after its recording, one file is gone."""
    root, shards = tmp_path / "forest", tmp_path / "shards"
    (root / "test").mkdir(parents=True)
    soundfile.write(root / "test" / "dawn.wav", mixed(TIMETABLE, 60), RATE)
    soundfile.write(root / "test" / "dusk.flac", mixed(TIMETABLE[:2], 22), RATE)
    rows = [["dawn.wav", *span, f"sound {number}"] for number, span in enumerate(TIMETABLE)]
    rows += [["dusk.flac", *span, f"sound {number}"] for number, span in enumerate(TIMETABLE[:2])]
    rows += [["dusk.flac", 9, 4, "backwards"], ["dusk.flac", 20, 30, "too late"], ["gone.wav", 1, 2, "nothing"]]
    rows += [["dusk.flac", 5, 15, "overlaps others"]]
    with (root / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "start_s", "end_s", "caption"], *rows])

    catalog, plan = tmp_path / "test.parquet", tmp_path / "test.shards.parquet"
    index_audio.main(
        ["--dataset", "labeled", "--split", "test", "--adapter", "folder", "--root", str(root), "--labeled"]
        + ["--max-dropped-fraction", "0.5", "--clips-per-shard", "20", "--catalog", str(catalog), "--plan", str(plan)]
    )
    shard_audio.main(
        ["--catalog", str(catalog), "--plan", str(plan), "--sample-rate-hz", str(RATE), "--format", "wav"]
        + ["--shards", str(shards), "--done", str(shards / "parts" / "0-of-1.json")]
    )
    index_shards.main(
        ["--plan", str(plan), "--shards", str(shards), "--identities", str(shards / "identities.parquet")]
        + ["--manifest", str(shards / "manifest.parquet"), "--summary", str(shards / "manifest.json")]
        + ["--max-dropped-fraction", "0.5"]
    )
    for run in ("vanilla", "finetune"):
        out = tmp_path / run
        out.mkdir()
        embed.main(
            ["--model", str(tiny_study.pretrained), "--shards", str(shards), "--embeddings", str(out / "e.npz")]
            + ["--moments", str(catalog), "--threads", "1"]
        )
        run_evaluate(out, run, "--moments")
    metrics = read_json(tmp_path / "vanilla" / "metrics.json")
    assert (metrics["n_audio"], metrics["n_text"]) == (9, 9)  # the stretches are clips, too
    assert (metrics["moments"]["queries"], metrics["moments"]["recordings"], metrics["moments"]["lost"]) == (9, 2, 3)
    row = table_of(tmp_path).iloc[0]
    assert (row["n_text"], row["n_audio"], row["protocol"]) == (9, 2, "moments")
    assert 0 <= row["t2m_R1_70"] <= row["t2m_R1_50"] <= 100
