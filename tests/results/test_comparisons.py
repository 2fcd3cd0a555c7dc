"""Two evaluations of the same clips in, differences with interval and p-value out."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.parquet import write_parquet
from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES, PROTOCOLS, figures, intervals
from pipeline.evaluation.protocols import query_counts
from pipeline.evaluation.ranking import Retrieval, rank_embeddings
from pipeline.files import sha256_of
from pipeline.results.comparisons import (
    Evaluation,
    compare,
    contributions_table,
    holm,
    mean_over_seeds,
    p_over_seeds,
    read_contributions,
)
from pipeline.results.table.differences import read_comparisons
from pipeline.stages import compare as stage

CLIPS, CAPTIONS, WIDTH = 60, 3, 16


def evaluation(contributions_NF: np.ndarray, captions_N: list[int] | None = None, **facts) -> Evaluation:
    n = len(contributions_NF)
    values = {
        "path": Path("contributions.parquet"),
        "run": "run",
        "seed": 0,
        "test_set": {"target": "clotho", "split": "evaluation", "windows": "mean"},
        "key": [f"clip_{clip}" for clip in range(n)],
        "captions_N": np.array(captions_N or [1] * n),
        "figures": FIGURES,
        "queries": query_counts("paper", {"captions": np.array(captions_N or [1] * n)}, n),
        "contributions_NF": np.asarray(contributions_NF, float),
    }
    return Evaluation(**{**values, **facts})


def one_figure(values: list[float]) -> np.ndarray:
    """(N, F), the values for every figure."""
    return np.repeat(np.array(values, float)[:, None], len(FIGURES), axis=1)


def test_two_clips_by_hand():
    """The run wins clip 0 and ties on clip 1. Of two draws, clip 1 is drawn twice with probability 1/4, once with 1/2.

    So the difference is 0, 1/2 or 1 with these chances: its interval is [0, 1], and half of p is P(0) = 1/4.
    """
    (found,) = compare([evaluation(one_figure([1, 0]))], evaluation(one_figure([0, 0])))
    for comparison in found.values():
        assert (comparison.difference, comparison.low, comparison.high) == (50, 0, 100)
        assert comparison.p == pytest.approx(0.5, abs=0.02)


def test_captions_of_a_clip_stay_together():
    """The run wins clip 0, one caption, and ties on clip 1, three captions: 1/4, and in two draws 2/2, 1/4 or 0/6."""
    captions = [1, 3]
    baseline = evaluation(one_figure([0, 0]), captions)
    (found,) = compare([evaluation(one_figure([1, 0]), captions)], baseline, samples=4000)
    assert found["t2a_R1"].difference == 25
    assert (found["t2a_R1"].low, found["t2a_R1"].high) == (0, 100)
    assert found["a2t_R1"].difference == 50
    # Draws of single captions would leave a difference of 1 with a chance of 1/256, outside of the interval.


def test_run_that_equals_the_baseline_has_p_1():
    values = np.random.default_rng(0).random((40, len(FIGURES)))
    (found,) = compare([evaluation(values)], evaluation(values.copy()))
    for comparison in found.values():
        assert (comparison.difference, comparison.low, comparison.high, comparison.p) == (0, 0, 0, 1)
        assert not comparison.is_significant


def test_exchange_of_run_and_baseline_changes_only_the_sign():
    generator = np.random.default_rng(1)
    one, other = (evaluation(generator.random((40, len(FIGURES)))) for _ in range(2))
    (forth,), (back,) = compare([one], other), compare([other], one)
    for name in FIGURES:
        assert back[name].difference == -forth[name].difference
        assert (back[name].low, back[name].high) == pytest.approx((-forth[name].high, -forth[name].low))
        assert back[name].p == forth[name].p


def hits(generator: np.random.Generator, clips: int, baseline: float, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Correlated hits and misses of a baseline and a run that hits `gain` more often, one query per clip and figure."""
    level = generator.random((clips, len(FIGURES)))
    noise = generator.random((2, clips, len(FIGURES))) - 0.5
    wanted = baseline, baseline + gain
    run_share = [np.quantile(level + 0.5 * noise[side], wanted[side]) for side in (0, 1)]
    return tuple((level + 0.5 * noise[side] <= run_share[side]).astype(float) for side in (0, 1))


def simulated(gain: float, repetitions: int = 60, clips: int = 150) -> list[dict]:
    """Comparisons of random test sets drawn from a large population whose difference is `gain`."""
    generator = np.random.default_rng(7)
    population = hits(generator, 100_000, 0.3, gain)
    found = []
    for _ in range(repetitions):
        drawn = generator.integers(0, 100_000, clips)
        found += compare([evaluation(population[1][drawn])], evaluation(population[0][drawn]), samples=500)
    return found


def test_95_percent_of_intervals_contain_the_true_difference():
    """8 figures x 60 test sets: 480 intervals, of which 456 +- 5 should contain it; the test allows +- 18."""
    held = [row[name].low <= 8.0 <= row[name].high for row in simulated(0.08) for name in FIGURES]
    assert len(held) == 480
    assert 0.91 <= np.mean(held) <= 0.985


def test_without_a_difference_5_percent_are_significant():
    p = np.array([row[name].p for row in simulated(0.0) for name in FIGURES])
    assert 0.015 <= np.mean(p < 0.05) <= 0.09
    assert 0.4 <= np.mean(p < 0.5) <= 0.6


def test_p_and_interval_agree():
    for row in simulated(0.08, repetitions=20):
        for found in row.values():
            if abs(found.p - 0.05) > 0.02:  # the percentile lies between two samples, p counts them
                assert (found.low > 0 or found.high < 0) == (found.p < 0.05)


def test_holm_by_hand():
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06, 0.2 x 1; none below the one before.
    assert holm([0.2, 0.01, 0.03, 0.02]) == pytest.approx([0.2, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_seeds_are_averaged_before_the_difference():
    seeds = [evaluation(one_figure(values), seed=seed) for seed, values in enumerate([[1, 0, 0], [1, 1, 0]])]
    mean = mean_over_seeds(seeds)
    assert mean.contributions_NF[:, 0].tolist() == [1, 0.5, 0]
    (found,) = compare([mean], evaluation(one_figure([0, 0, 0]), run="finetune"))
    assert found["a2t_mAP10"].difference == pytest.approx(50)


# --- files -----------------------------------------------------------------------------------------------------------


def retrieval_of(noise: float, clips: int = CLIPS, seed: int = 0) -> Retrieval:
    """Retrieval among random clips by captions that differ by `noise`, with some equal clips, so that ranks tie."""
    audio = np.random.default_rng(1).standard_normal((CLIPS, WIDTH)).astype(np.float32)[:clips]
    audio[1::7] = audio[0]
    owners = np.repeat(np.arange(clips), CAPTIONS)[: clips * CAPTIONS - 2]
    text = audio[owners] + noise * np.random.default_rng(seed).standard_normal((len(owners), WIDTH)).astype(np.float32)
    return rank_embeddings(text, audio, owners)


def write(path: Path, retrieval: Retrieval, *, keys: list[str] | None = None, **facts) -> str:
    keys = keys or [f"clip_{clip}" for clip in range(len(retrieval.captions_N))]
    known = {"run": path.stem, "seed": 0, "target": "clotho", "split": "evaluation", "windows": "mean"}
    write_parquet(contributions_table(retrieval, keys, {**known, **facts}), path)
    return str(path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_figures_and_intervals_follow_exactly_from_the_file(tmp_path, protocol):
    retrieval = retrieval_of(1.0)
    found = read_contributions(Path(write(tmp_path / "a.parquet", retrieval)), protocol)
    zero = evaluation(np.zeros_like(found.contributions_NF), found.captions_N.tolist())
    (row,) = compare([found], zero, samples=1000)
    expected, spread = figures(retrieval, protocol), intervals(retrieval, protocol)
    for name in FIGURES:
        assert row[name].difference == pytest.approx(expected[name], abs=1e-12)
        assert (row[name].low, row[name].high) == pytest.approx(spread[name], abs=1e-9)


def test_file_is_small_and_has_the_same_bytes(tmp_path):
    sizes = []
    for name in ("one.parquet", "two.parquet"):
        write(tmp_path / name, retrieval_of(1.0), run="a")
        sizes.append(sha256_of(tmp_path / name))
    assert sizes[0] == sizes[1]
    assert (tmp_path / "one.parquet").stat().st_size < 30 * 3 * CLIPS + 12_000


def run_stage(folder: Path, *rows: tuple[str, list[str]], flags: tuple[str, ...] = ()) -> list[dict[str, str]]:
    arguments = [word for spec, paths in rows for word in ("--row", spec, *paths)]
    stage.main(
        [*arguments, "--datasets", "clotho", "audioset", "--protocol", "paper", "--samples", "500", *flags]
        + ["--csv", str(folder / "table.csv")]
    )
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_p_over_seeds_by_hand():
    """Differences of 1, 2 and 3 queries: t = 2 / (1 / sqrt(3)), of 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2)."""
    runs = [evaluation(one_figure([1, 1, 1]), seed=seed) for seed in (0, 1, 2)]
    baseline = [evaluation(one_figure([1] * seed + [0] * (3 - seed)), seed=seed) for seed in (2, 1, 0, 7)]
    expected = 1 - math.sqrt(12) / math.sqrt(14)
    assert p_over_seeds(runs, baseline) == pytest.approx(dict.fromkeys(FIGURES, expected))
    assert p_over_seeds(baseline, runs) == pytest.approx(dict.fromkeys(FIGURES, expected)), "two-sided"
    assert p_over_seeds(runs, runs) == dict.fromkeys(FIGURES, 1.0)


def test_one_common_seed_has_no_p_over_seeds():
    runs = [evaluation(one_figure([1, 0]), seed=seed) for seed in (0, 1)]
    found = p_over_seeds(runs, [evaluation(one_figure([0, 0]), seed=seed) for seed in (1, 2)])
    assert all(math.isnan(p) for p in found.values())


def test_holm_leaves_out_tests_that_were_not_possible():
    assert holm([0.04, math.nan, 0.01]) == pytest.approx([0.04, math.nan, 0.02], nan_ok=True)


def test_rows_are_compared_with_the_finetune_row_of_their_target(tmp_path):
    worse = [write(tmp_path / f"f{seed}.parquet", retrieval_of(1.4, seed=seed), seed=seed, run="f") for seed in (0, 1)]
    better = [write(tmp_path / f"c{seed}.parquet", retrieval_of(0.6, seed=seed), seed=seed, run="c") for seed in (0, 1)]
    equal = write(tmp_path / "equal.parquet", retrieval_of(1.4))
    alone = write(tmp_path / "alone.parquet", retrieval_of(1.0), target="audiocaps")
    rows = [
        ("clotho|vanilla|-|-", [write(tmp_path / "v.parquet", retrieval_of(5))]),
        ("clotho|finetune|A+T|-", worse),
        ("clotho|composed|A+T|A", better),
        ("audiocaps|composed|A|-", [alone]),
    ]
    lines = run_stage(tmp_path, *rows)
    assert [(line["method"], line["figure"]) for line in lines] == [
        (method, name) for method in ("vanilla", "composed") for name in FIGURES
    ]
    assert {(line["seeds"], line["baseline_seeds"], line["n_audio"]) for line in lines} == {
        ("1", "2", "60"),
        ("2", "2", "60"),
    }
    found = {str(row): figures for row, figures in read_comparisons(tmp_path / "table.csv").figures.items()}
    assert list(found) == ["clotho|vanilla|-|-", "clotho|composed|A+T|A"]
    gain = found["clotho|composed|A+T|A"]["t2a_R1"]
    means = [np.mean([figures(retrieval_of(noise, seed=s), "paper")["t2a_R1"] for s in (0, 1)]) for noise in (0.6, 1.4)]
    assert gain.difference == pytest.approx(means[0] - means[1], abs=0.005)
    assert gain.is_significant and gain.low > 0
    assert found["clotho|vanilla|-|-"]["t2a_R1"].high < 0
    assert gain.p_holm >= gain.p
    over_seeds = {line["method"]: line["p_seeds"] for line in lines if line["figure"] == "t2a_R1"}
    assert over_seeds["vanilla"] == "", "one seed"
    assert 0 < float(over_seeds["composed"]) < 1
    digest = sha256_of(tmp_path / "table.csv")
    run_stage(tmp_path, *rows)
    assert sha256_of(tmp_path / "table.csv") == digest
    (same,) = {line["p"] for line in run_stage(tmp_path, ("clotho|finetune|A+T|-", worse[:1]), (rows[2][0], [equal]))}
    assert float(same) == 1


def test_rows_of_finetune_with_a_label_are_compared_with_the_one_without(tmp_path):
    plain = write(tmp_path / "plain.parquet", retrieval_of(1.4))
    other = write(tmp_path / "other.parquet", retrieval_of(0.6), run="other")
    lines = run_stage(tmp_path, ("clotho|finetune|A+T|-|longer", [other]), ("clotho|finetune|A+T|-", [plain]))
    assert {(line["method"], line["label"]) for line in lines} == {("finetune", "longer")}
    assert list(map(str, read_comparisons(tmp_path / "table.csv").figures)) == ["clotho|finetune|A+T|-|longer"]


def test_rows_are_compared_with_the_row_of_another_method(tmp_path):
    rows = [
        ("clotho|finetune|A+T|-", [write(tmp_path / "f.parquet", retrieval_of(1.4))]),
        ("clotho|composed|A+T|A", [write(tmp_path / "c.parquet", retrieval_of(0.6))]),
        ("clotho|composed|A+T|A|longer", [write(tmp_path / "l.parquet", retrieval_of(0.3))]),
    ]
    (forth,) = [line for line in run_stage(tmp_path, *rows[:2]) if line["figure"] == "t2a_R1"]
    lines = run_stage(tmp_path, *rows, flags=("--baseline", "composed"))
    assert {(line["method"], line["label"]) for line in lines} == {("finetune", ""), ("composed", "longer")}
    (back,) = [line for line in lines if line["figure"] == "t2a_R1" and line["method"] == "finetune"]
    assert float(back["difference"]) == -float(forth["difference"]) < 0
    again = ("clotho|composed|A+T|-", rows[1][1])
    with pytest.raises(PipelineError, match=r"clotho has 2 rows of composed .* give a label to all but the one"):
        run_stage(tmp_path, *rows, again, flags=("--baseline", "composed"))


def test_table_without_finetune_has_no_comparison(tmp_path):
    assert run_stage(tmp_path, ("clotho|vanilla|-|-", [write(tmp_path / "v.parquet", retrieval_of(1))])) == []
    assert read_comparisons(tmp_path / "table.csv").figures == {}


MISTAKES = {
    "fewer clips": (lambda p: write(p, retrieval_of(1, clips=50)), "60 and 50 clips|50 and 60 clips"),
    "another split": (lambda p: write(p, retrieval_of(1), split="validation"), "split validation and evaluation"),
    "other windows": (lambda p: write(p, retrieval_of(1), windows="first"), "windows first and mean"),
    "other clips": (
        lambda p: write(p, retrieval_of(1), keys=[f"clip_{clip}" for clip in [*range(59), 99]]),
        "clip clip_99 with 1 captions and, at the same index, clip_59 with 1",
    ),
    "another target": (lambda p: write(p, retrieval_of(1), target="audiocaps"), "is of the target audiocaps"),
    "no clips": (lambda p: p.write_bytes(b"PAR1"), "cannot be read"),
    "missing": (lambda p: None, "not found; make it with evaluate"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_evaluations_that_cannot_be_compared_are_named(tmp_path, mistake):
    make, message = MISTAKES[mistake]
    path = tmp_path / "composed.parquet"
    make(path)
    finetune = write(tmp_path / "finetune.parquet", retrieval_of(1))
    with pytest.raises(PipelineError, match=message) as error:
        run_stage(tmp_path, ("clotho|finetune|A+T|-", [finetune]), ("clotho|composed|A+T|A", [str(path)]))
    assert "composed.parquet" in str(error.value)
    assert not (tmp_path / "table.csv").exists()


def test_seeds_that_do_not_belong_together_are_named(tmp_path):
    first = write(tmp_path / "first.parquet", retrieval_of(1), run="a")
    again = write(tmp_path / "again.parquet", retrieval_of(1), run="a")
    other = write(tmp_path / "other.parquet", retrieval_of(1), run="b", seed=1)
    with pytest.raises(PipelineError, match=r"again\.parquet and .*first\.parquet are both of seed 0 of a"):
        run_stage(tmp_path, ("clotho|finetune|A+T|-", [first, again]))
    with pytest.raises(PipelineError, match=r"other\.parquet is of the run b, but .*first\.parquet of a"):
        run_stage(tmp_path, ("clotho|finetune|A+T|-", [first, other]))
    with pytest.raises(PipelineError, match="clotho has 2 rows of finetune"):
        run_stage(tmp_path, ("clotho|finetune|A+T|-", [first]), ("clotho|finetune|A+T|A", [first]))


def test_contribution_that_is_not_finite_is_named(tmp_path):
    retrieval = retrieval_of(1)
    table = contributions_table(retrieval, [f"clip_{clip}" for clip in range(CLIPS)], {})
    values = table["t2a_R5"].to_numpy().copy()
    values[7] = math.nan
    broken = table.set_column(table.column_names.index("t2a_R5"), "t2a_R5", [values])
    facts = {name: "x" for name in ("run", "seed", "target", "split", "windows")}
    write_parquet(broken.replace_schema_metadata({b"evaluation": json.dumps(facts)}), tmp_path / "a.parquet")
    with pytest.raises(PipelineError, match=r"a\.parquet: t2a_R5 of clip clip_7 is no finite number"):
        read_contributions(tmp_path / "a.parquet", "paper")
    write_parquet(broken, tmp_path / "a.parquet")
    with pytest.raises(PipelineError, match=r"a\.parquet: holds no run, seed, target, split, windows"):
        read_contributions(tmp_path / "a.parquet", "paper")


def test_damaged_comparisons_are_named(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(PipelineError, match="not found; make it with compare"):
        read_comparisons(path)
    path.write_text("target,method\n")
    with pytest.raises(PipelineError, match="has no column label, figure, difference"):
        read_comparisons(path)
    path.write_text(
        "target,method,label,figure,difference,low,high,p,p_holm\nclotho,composed,,t2a_R1,1.0,,2.0,0.1,0.1\n"
    )
    with pytest.raises(PipelineError, match="line 2: a number is missing"):
        read_comparisons(path)
