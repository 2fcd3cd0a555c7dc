"""Several relevant clips per caption: a relevance file in, mAP@16 out."""

from __future__ import annotations

import csv
import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.data.parquet import write_parquet
from pipeline.data.shards.format import read_manifest, rows_table
from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES
from pipeline.evaluation.relevance import average_precisions, read_relevance
from pipeline.files import read_json
from pipeline.results.curves import draw_points, shown_in
from pipeline.results.page.sections import difference_plots, read_table
from pipeline.stages import compare, embed, evaluate, tabulate

NAMES = ["Rain .wav", "Chuck-will&#39;s-widow.wav", "Train 1.wav", "street/Bus.wav", "lost.wav"]
CAPTIONS = ["rain falls", "a bird calls", "a bird  calls", "a train passes", "a bus stops", "a lost sound"]
"""The last is the unusable clip's; the second and third are equal but for a space."""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The manifest of five clips, of which the last cannot be used and the first is listed twice."""
    captions = [[CAPTIONS[0]], [CAPTIONS[1]], [CAPTIONS[3]], [CAPTIONS[4]], [CAPTIONS[5]]]
    rows = [
        {"key": f"k{n}", "dataset": "d", "split": "s", "status": "ok", "source_name": name, "captions": captions[n]}
        for n, name in enumerate(NAMES)
    ]
    rows[4] |= {"status": "failed", "reason": "undecodable"}
    again = {**rows[0], "key": "k9", "status": "dropped", "reason": "duplicate"}
    (tmp_path / "shards").mkdir()
    write_parquet(
        rows_table([{"shard": "a.tar", **row} for row in [*rows, again]]), tmp_path / "shards/manifest.parquet"
    )
    return tmp_path / "shards"


def write_file(folder: Path, rows: list[tuple[str, object]], header: str = "query,audio_filenames") -> Path:
    """A file as DCASE 2025 publishes it: pandas writes a list as Python's own text."""
    path = folder / "metadata_eval.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *((query, str(names)) for query, names in rows)])
    return path


def read(path: Path, shards: Path):
    return read_relevance(path, shards, captions=CAPTIONS[:2] + CAPTIONS[3:5], keys=["k0", "k1", "k2", "k3"])


# --- the figure ------------------------------------------------------------------------------------------------------


def plain_ap(order: list[int], relevant: set[int]) -> float:
    """Average precision at 16 of a ranking, by its definition."""
    hits, total = 0, 0.0
    for place, clip in enumerate(order[:16], start=1):
        if clip in relevant:
            hits += 1
            total += hits / place
    return total / len(relevant)


def vectors_with_scores(scores_QN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texts (Q, Q + 1) and clips (N, Q + 1) of length 1, whose products are the scores, at most 1 / Q."""
    rest = np.sqrt(1 - (scores_QN**2).sum(axis=0))
    return np.eye(len(scores_QN), len(scores_QN) + 1), np.column_stack([scores_QN.T, rest])


def test_two_queries_by_hand():
    """The relevant clips of the first come first and third: (1/1 + 2/3) / 2. That of the second comes second: 1/2."""
    text, audio = vectors_with_scores(np.array([[0.5, 0.4, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]]))
    relevant = np.array([[True, False, True, False], [False, False, True, False]])
    assert average_precisions(text, audio, np.array([0, 1]), relevant) == pytest.approx([5 / 6, 1 / 2])


def test_rankings_without_ties_match_the_definition():
    generator = np.random.default_rng(0)
    text, audio = generator.standard_normal((300, 12)), generator.standard_normal((60, 12))
    relevant = generator.random((300, 60)) < generator.choice([0.02, 0.1, 0.5], (300, 1))
    relevant[np.arange(300), generator.integers(0, 60, 300)] = True
    assert relevant.sum(axis=1).max() > 16
    cosine = text @ (audio / np.linalg.norm(audio, axis=1, keepdims=True)).T
    texts = generator.permutation(300)
    expected = [
        plain_ap(np.argsort(-cosine[row]).tolist(), set(np.flatnonzero(mask)))
        for row, mask in zip(texts, relevant, strict=True)
    ]
    assert average_precisions(text, audio, texts, relevant) == pytest.approx(expected)


def test_ties_give_the_mean_over_all_orders():
    generator = np.random.default_rng(1)
    for _ in range(60):
        scores = generator.integers(0, 3, 6) / 4
        relevant = generator.random(6) < 0.5
        relevant[0] = True
        text, audio = vectors_with_scores(scores[None])
        orders = [order for order in itertools.permutations(range(6)) if (np.diff(scores[list(order)]) <= 0).all()]
        expected = np.mean([plain_ap(list(order), set(np.flatnonzero(relevant))) for order in orders])
        assert average_precisions(text, audio, np.array([0]), relevant[None]) == pytest.approx([expected])


def test_a_collapsed_model_scores_as_chance():
    """Of 40 equal clips, 3 relevant: the mean over random orders, and far from 1."""
    generator = np.random.default_rng(2)
    relevant = np.zeros((1, 40), bool)
    relevant[0, [5, 11, 30]] = True
    found = average_precisions(np.ones((1, 7)), np.ones((40, 7)), np.array([0]), relevant)[0]
    drawn = [plain_ap(generator.permutation(40).tolist(), {5, 11, 30}) for _ in range(20_000)]
    assert found == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(20_000))
    assert found < 0.15


# --- the file --------------------------------------------------------------------------------------------------------


def test_names_and_captions_are_found_as_they_are_published(tmp_path, shards):
    names = ["Chuck-will's-widow.wav", "Rain .wav"]  # with the entity resolved, and with its space
    found = read(write_file(tmp_path, [("a bird  calls", names), ("rain falls", ["street/Bus.wav"])]), shards)
    assert found.text_Q.tolist() == [1, 0]
    assert found.is_relevant_QN.tolist() == [[True, True, False, False], [False, False, False, True]]
    assert found.note == "mAP@16: 2 queries of the relevance file, 1.5 relevant clips each."


def test_a_list_in_json_is_read(tmp_path, shards):
    assert read(write_file(tmp_path, [("rain falls", '["Train 1.wav"]')]), shards).is_relevant_QN.sum() == 1


def test_what_cannot_be_evaluated_is_counted(tmp_path, shards):
    rows = [
        ("rain falls", ["Rain .wav", "Rain .wav", "lost.wav"]),
        ("rain falls", ["lost.wav", "Rain .wav"]),  # repeats the row above
        ("a bird calls", []),
        ("a train passes", ""),
        ("a bus stops", ["lost.wav"]),
        ("a lost sound", ["Train 1.wav"]),
    ]
    found = read(write_file(tmp_path, rows), shards)
    assert found.text_Q.tolist() == [0]
    assert found.is_relevant_QN.tolist() == [[True, False, False, False]]
    assert (found.repeated, found.without_clip, found.unusable_queries, found.unusable_clips) == (1, 2, 2, 2)
    assert found.note == (
        "mAP@16: 1 queries of the relevance file, 1.0 relevant clips each. Left out: 1 rows that repeat another, "
        "2 queries without a relevant clip, 2 queries whose clips cannot be used, 2 relevant clips that cannot be used."
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("rain falls", ["Rain.wav"])], r"row 2: the split lists no clip 'Rain\.wav'; correct the name"),
        ([("rain falls", ["lost.wav"]), ("snow", ["lost.wav"])], r"row 3: no clip of the split has the caption 'snow'"),
        ([(" ", ["Rain .wav"])], r"row 2: no query"),
        ([("rain falls", "Rain .wav")], r"row 2: audio_filenames is 'Rain \.wav'; give a list"),
        ([("rain falls", ["Rain .wav", " "])], r"row 2: audio_filenames is .*; give a list"),
        ([("rain falls", [3])], r"row 2: audio_filenames is '\[3\]'; give a list"),
        ([("rain falls", "[" * 5000)], r"row 2: audio_filenames is .*; give a list"),
        ([("rain falls", ["Rain .wav"]), ("rain falls", ["Train 1.wav"])], r"row 3: lists other clips .* than row 2"),
        ([("rain falls", ["lost.wav"])], r"no query with a relevant clip of the split is left"),
        ([], r"no query with a relevant clip of the split is left"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, shards, rows, message):
    with pytest.raises(PipelineError, match=r"metadata_eval\.csv.*" + message):
        read(write_file(tmp_path, rows), shards)


def test_a_missing_column_is_named(tmp_path, shards):
    with pytest.raises(PipelineError, match="no column audio_filenames; found query, files"):
        read(write_file(tmp_path, [], "query,files"), shards)


# --- from the file to the table --------------------------------------------------------------------------------------


def run_evaluate(folder: Path, run: str, relevance: Path, shards: Path) -> None:
    out = folder / run
    out.mkdir()
    evaluate.main(
        [
            *f"--embeddings {folder}/e.npz --run {run} --seed 0 --target labeled --split train".split(),
            *("--relevance", str(relevance), "--shards", str(shards), "--metrics", str(out / "metrics.json")),
            *("--ranks", str(out / "ranks.parquet"), "--contributions", str(out / "contributions.parquet")),
        ]
    )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, tiny_study) -> tuple[Path, dict[str, list[str]]]:
    """Two evaluations of a random model with a relevance file, which calls clips with the same caption relevant."""
    folder = tmp_path_factory.mktemp("evaluated")
    shards = tiny_study.shards / "labeled" / "train"
    embed.main(["--model", str(tiny_study.pretrained), "--shards", str(shards), "--embeddings", str(folder / "e.npz")])
    relevant: dict[str, list[str]] = {}
    for row in read_manifest(shards / "manifest.parquet").to_pylist():
        for caption in row["captions"]:
            relevant.setdefault(caption, []).append(row["source_name"])
    path = write_file(folder, list(relevant.items()))
    for run in ("vanilla", "finetune"):
        run_evaluate(folder, run, path, shards)
    return folder, relevant


def table_of(folder: Path, *more: str) -> Path:
    rows = [("--row", f"labeled|{run}|-", str(folder / run / "metrics.json")) for run in ("vanilla", "finetune")]
    outputs = {flag: folder / f"table.{kind}" for flag, kind in (("csv", "csv"), ("tex", "tex"), ("markdown", "md"))}
    tabulate.main(
        [word for row in rows for word in row]
        + [*["--datasets", "labeled", "--protocol", "dcase2025", "--study-name", "tiny"], *more]
        + [word for flag, path in outputs.items() for word in (f"--{flag}", str(path))]
    )
    return outputs["csv"]


def test_metrics_hold_the_protocol_of_the_file(evaluated):
    folder, relevant = evaluated
    metrics = read_json(folder / "vanilla" / "metrics.json")
    assert metrics["relevance"]["queries"] == len(relevant)
    found = metrics["protocols"]["dcase2025"]
    assert set(found) == {*FIGURES[:4], "t2a_mAP16"}
    for name in FIGURES[:4]:
        assert found[name] == pytest.approx(metrics["protocols"]["dcase"][name])
    low, high = metrics["intervals_95"]["dcase2025"]["t2a_mAP16"]
    assert low <= found["t2a_mAP16"] <= high
    with np.load(folder / "e.npz") as arrays:
        cosine = arrays["text"] @ (arrays["audio"] / np.linalg.norm(arrays["audio"], axis=1, keepdims=True)).T
        captions, owners = arrays["caption"].tolist(), arrays["audio_of_text"]
    expected = [
        plain_ap(
            np.argsort(-cosine[captions.index(caption)], kind="stable").tolist(),
            {int(owners[row]) for row, other in enumerate(captions) if other == caption},
        )
        for caption in relevant
    ]
    assert found["t2a_mAP16"] == pytest.approx(100 * np.mean(expected), abs=0.1)


def test_the_table_shows_the_protocol_with_its_queries(evaluated):
    folder, relevant = evaluated
    row = pd.read_csv(table_of(folder)).iloc[0]
    found = read_json(folder / "vanilla" / "metrics.json")["protocols"]["dcase2025"]
    assert (row["protocol"], row["n_queries"]) == ("dcase2025", len(relevant))
    assert row["t2a_mAP16"] == pytest.approx(found["t2a_mAP16"], abs=0.005)
    assert "a2t_R1" not in row
    markdown, latex = ((folder / f"table.{kind}").read_text() for kind in ("md", "tex"))
    assert "| t2a mAP10 | t2a mAP16 |" in markdown
    assert "Protocol `dcase2025`: every caption ranks all clips" in markdown
    assert f"mAP@16: {len(relevant)} queries of the relevance file" in markdown
    assert r"\multicolumn{5}{c}{text $\rightarrow$ audio retrieval}" in latex
    assert r"mAP@10 & mAP@16 \\" in latex
    assert f"mAP@16: {len(relevant)} queries of the relevance file" in latex


def test_runs_are_compared_under_the_protocol(evaluated):
    folder, _ = evaluated
    rows = [
        ("--row", f"labeled|{run}|-", str(folder / run / "contributions.parquet")) for run in ("vanilla", "finetune")
    ]
    compare.main(
        [word for row in rows for word in row]
        + [
            *["--datasets", "labeled", "--protocol", "dcase2025", "--samples", "50", "--csv"],
            str(folder / "compared.csv"),
        ]
    )
    table = pd.read_csv(folder / "compared.csv")
    assert table["figure"].tolist() == ["t2a_R1", "t2a_R5", "t2a_R10", "t2a_mAP10", "t2a_mAP16"]
    assert (table["difference"] == 0).all()  # the same embeddings
    assert (table["p"] == 1).all()
    (plot,) = difference_plots(folder / "compared.csv")
    assert plot.svg.count("mAP@1") > 1
    assert "n_queries" in table_of(folder, "--comparisons", str(folder / "compared.csv")).read_text()


def test_the_page_shows_the_figures_of_the_protocol(evaluated):
    folder, _ = evaluated
    shown = read_table(table_of(folder))
    assert [column.name for column in shown.columns if "text" in column.group] == [
        *("R@1", "R@5", "R@10", "mAP@10", "mAP@16")
    ]
    assert "queries" in [column.name for column in shown.columns]


def test_published_figures_of_the_protocol_stand_below_ours(evaluated, tmp_path):
    folder, _ = evaluated
    head = "target,method,labeled,t2a_R1,t2a_R5,t2a_R10,t2a_mAP10,t2a_mAP16"
    (tmp_path / "published.csv").write_text(f"{head}\nlabeled,finetune,-,16.95,42.46,55.8,27.83,32.82\n")
    table = pd.read_csv(table_of(folder, "--published", str(tmp_path / "published.csv")))
    assert table["published_t2a_mAP16"].iloc[1] == 32.82
    assert table["difference_t2a_mAP16"].iloc[1] == pytest.approx(table["t2a_mAP16"].iloc[1] - 32.82)
    with pytest.raises(PipelineError, match=r"paper_table1\.csv: has no column t2a_mAP16"):
        table_of(folder, "--published", str(Path(__file__).parents[2] / "data" / "paper_table1.csv"))


def test_curves_show_the_figures_that_the_protocol_has(evaluated, tiny_study):
    folder, _ = evaluated
    runs = [("finetune", [tiny_study.pairs("finetune")], [folder / "finetune" / "contributions.parquet"])]
    points = draw_points(runs, "labeled_clips", "dcase2025", samples=20)
    assert points["figure"].tolist() == ["t2a_R1"]
    assert shown_in(points) == {"t2a_R1": "text \N{RIGHTWARDS ARROW} audio"}


def test_rows_by_other_relevance_files_are_no_table(evaluated, tmp_path, tiny_study):
    folder = Path(shutil.copytree(evaluated[0], tmp_path / "copy"))
    shutil.rmtree(folder / "finetune")
    lines = (folder / "metadata_eval.csv").read_text().splitlines()
    other = folder / "other" / "metadata_eval.csv"
    other.parent.mkdir()
    other.write_text("\n".join(lines[:-1]) + "\n")
    run_evaluate(folder, "finetune", other, tiny_study.shards / "labeled" / "train")
    with pytest.raises(PipelineError, match=r"not comparable: n_queries 3 and 4, relevance"):
        table_of(folder)


def test_files_without_the_protocol_are_named(evaluated, tmp_path):
    folder = Path(shutil.copytree(evaluated[0], tmp_path / "copy"))
    arguments = f"--embeddings {folder}/e.npz --run vanilla --seed 0 --target labeled --split train".split()
    names = {"metrics": "metrics.json", "ranks": "ranks.parquet", "contributions": "contributions.parquet"}
    evaluate.main([*arguments, *(word for n, f in names.items() for word in (f"--{n}", str(folder / "vanilla" / f)))])
    with pytest.raises(PipelineError, match=r"has no protocol 'dcase2025', only best-of-5, dcase, paper"):
        table_of(folder)
    with pytest.raises(PipelineError, match=r"contributions\.parquet: holds no queries, t2a_mAP16"):
        compare.main(
            ["--row", "labeled|vanilla|-", str(folder / "vanilla" / "contributions.parquet")]
            + [*["--datasets", "labeled", "--protocol", "dcase2025", "--csv"], str(folder / "compared.csv")]
        )
