"""Paired bootstrap of the difference between a run and finetune on the same clips, for every figure.

Both runs answer the same queries. So a bootstrap sample draws clips, with all their captions, once for both (the paired
bootstrap of Koehn, EMNLP 2004, and for retrieval Sakai, SIGIR 2006). A figure is averaged over a run's seeds before the
difference is taken. Interval and p-value use the percentile method (Efron and Tibshirani, An Introduction to the
Bootstrap, chapters 13 and 15): if the interval excludes 0, p < 0.05. Both cover the choice of test clips for the
trained models. Student's paired t-test over the seeds covers the variation across seeds, for the test clips at hand.

Each row of a table is a separate test. So p is also given after Holm's step-down correction over the rows, for each
figure (Scandinavian Journal of Statistics 6, 1979).
"""

# R = compared runs, N = clips, F = figures, S = bootstrap samples

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.parquet import read_parquet
from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES, PROTOCOLS, QueryCounts, contributions, resampled, totals
from pipeline.evaluation.protocols import ALL_PROTOCOLS, OF_CLIPS, figures_of, query_counts
from pipeline.evaluation.ranking import Retrieval

SAMPLES = 10_000
"""Bootstrap samples: the smallest p, 2 / 10,001, stays below 0.05 after a correction over 200 rows."""
SIGNIFICANT_BELOW = 0.05
SIGNIFICANCE_NOTE = (
    "Differs from finetune on the same clips: paired bootstrap over clips, "
    f"p < {SIGNIFICANT_BELOW} after Holm's correction over the rows."
)
FOOTER = b"evaluation"
TEST_SET = ("target", "split", "windows")
CONTRIBUTIONS = pa.schema(
    [
        ("protocol", pa.string()),
        ("key", pa.string()),
        ("captions", pa.int64()),
        *((name, pa.float64()) for name in FIGURES),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The contribution of every clip to the figures of an evaluation under one protocol."""

    path: Path
    run: str
    seed: int
    test_set: dict[str, str]
    """The values of `TEST_SET`."""
    key: list[str]
    """(N,)"""
    captions_N: NDArray[np.int64]
    figures: tuple[str, ...]
    """(F,), those of the protocol."""
    queries: QueryCounts
    """The queries that the figures are averaged over."""
    contributions_NF: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of a figure to the baseline's, in percentage points."""

    difference: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    p: float
    """Two-sided."""
    p_holm: float
    """`p` corrected over all compared runs."""
    p_seeds: float = math.nan
    """Two-sided, over the seeds; NaN if fewer than two are common to both."""
    p_seeds_holm: float = math.nan

    @property
    def is_significant(self) -> bool:
        """Whether p stays below 0.05 after the correction."""
        return self.p_holm < SIGNIFICANT_BELOW


# --- contributions.parquet -------------------------------------------------------------------------------------------


def contributions_table(
    retrieval: Retrieval, keys: Sequence[str], identity: Mapping[str, object], more: Sequence[pa.Table] = ()
) -> pa.Table:
    """Return one row per protocol and clip: key, number of captions, and contribution to each figure.

    Args:
        retrieval: the ranks, for the protocols that follow from them alone.
        keys: of the clips.
        identity: run, seed and the values of `TEST_SET`, for the footer.
        more: tables of other protocols; their own columns are null in the other rows.
    """
    parts = []
    for protocol in PROTOCOLS:
        columns_FN = contributions(retrieval, protocol).T
        columns = {
            "protocol": [protocol] * len(keys),
            "key": keys,
            "captions": retrieval.captions_N,
            **dict(zip(FIGURES, columns_FN, strict=True)),
        }
        parts.append(pa.table(columns, schema=CONTRIBUTIONS))
    table = pa.concat_tables([*parts, *more], promote_options="default")
    return table.replace_schema_metadata({FOOTER: json.dumps(identity, sort_keys=True)})


def rows_of_protocol(
    protocol: str,
    keys: Sequence[str],
    columns: Mapping[str, NDArray[np.integer]],
    contributions_NF: NDArray[np.float64],
) -> pa.Table:
    """Return the contributions of one protocol: `columns` count the queries of each row, `captions` among them."""
    figures = dict(zip(figures_of(protocol), np.ascontiguousarray(contributions_NF.T), strict=True))
    return pa.table({"protocol": [protocol] * len(keys), "key": list(keys), **columns, **figures})


def no_contributions(identity: Mapping[str, object]) -> pa.Table:
    """Return the table of a run that was not evaluated: no rows, only the footer."""
    return CONTRIBUTIONS.empty_table().replace_schema_metadata({FOOTER: json.dumps(identity, sort_keys=True)})


def read_contributions(path: Path, protocol: str) -> Evaluation:
    """Return the evaluation in a contributions.parquet.

    Raises:
        PipelineError: The file is missing or damaged, or has no row of the protocol.
    """
    figures = figures_of(protocol)
    counted = {group.queries for group in ALL_PROTOCOLS[protocol]} - {OF_CLIPS} | {"captions"}
    columns = ["protocol", "key", *sorted(counted), *figures]
    table = read_parquet(path, "evaluate")
    footer = json.loads((table.schema.metadata or {}).get(FOOTER, b"{}"))
    missing = [name for name in columns if name not in table.column_names]
    missing += [name for name in ("run", "seed", *TEST_SET) if name not in footer]
    if missing:
        raise PipelineError(f"{path}: holds no {', '.join(missing)}; make it with the stage evaluate")
    rows = table.filter(pc.equal(table["protocol"], protocol))
    if rows.num_rows == 0:
        raise PipelineError(f"{path}: holds no clip under the protocol {protocol!r}; make it again with evaluate")
    contributions_NF = np.stack([rows[name].to_numpy() for name in figures], axis=1)
    if not np.isfinite(contributions_NF).all():
        clip, figure = np.argwhere(~np.isfinite(contributions_NF))[0]
        raise PipelineError(
            f"{path}: {figures[figure]} of clip {rows['key'][clip]} is no finite number; make it again with evaluate"
        )
    return Evaluation(
        path=path,
        run=footer["run"],
        seed=footer["seed"],
        test_set={name: footer[name] for name in TEST_SET},
        key=rows["key"].to_pylist(),
        captions_N=rows["captions"].to_numpy(),
        figures=figures,
        queries=query_counts(protocol, {name: rows[name].to_numpy() for name in counted}, rows.num_rows),
        contributions_NF=contributions_NF,
    )


# --- the comparison --------------------------------------------------------------------------------------------------


def check_same_clips(found: Evaluation, other: Evaluation) -> None:
    """Raise PipelineError unless two evaluations have the same clips and captions, embedded in the same way."""
    differences = [
        f"{name} {found.test_set[name]} and {other.test_set[name]}"
        for name in TEST_SET
        if found.test_set[name] != other.test_set[name]
    ]
    if not differences and len(found.key) != len(other.key):
        differences = [f"{len(found.key)} and {len(other.key)} clips"]
    if not differences:
        clips = zip(found.key, found.captions_N, other.key, other.captions_N, strict=True)
        differences = [
            f"clip {key} with {captions} captions and, at the same index, {key_of_other} with {captions_of_other}"
            for key, captions, key_of_other, captions_of_other in clips
            if (key, captions) != (key_of_other, captions_of_other)
        ][:1]
    if differences:
        raise PipelineError(
            f"{found.path} and {other.path} cannot be compared: {', '.join(differences)}; "
            "evaluate both runs on the same clips in the same way"
        )


def mean_over_seeds(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the contributions of a run, averaged over its seeds, with the path and seed of the first.

    Raises:
        PipelineError: The evaluations are of several runs or test sets, or two have the same seed.
    """
    first = evaluations[0]
    by_seed: dict[int, Path] = {}
    for evaluation in evaluations:
        if evaluation.run != first.run:
            raise PipelineError(f"{evaluation.path} is of the run {evaluation.run}, but {first.path} of {first.run}")
        if evaluation.seed in by_seed:
            raise PipelineError(
                f"{evaluation.path} and {by_seed[evaluation.seed]} are both of seed {evaluation.seed} of {first.run}"
            )
        by_seed[evaluation.seed] = evaluation.path
        check_same_clips(evaluation, first)
    mean_NF = np.mean([evaluation.contributions_NF for evaluation in evaluations], axis=0)
    return Evaluation(**{**vars(first), "contributions_NF": mean_NF})


def compare(
    runs: Sequence[Evaluation], baseline: Evaluation, *, seed: int = 0, samples: int = SAMPLES
) -> list[dict[str, Comparison]]:
    """Compare each run with the baseline, by figure; every run and figure uses the same draws of clips.

    p is twice the smaller share of samples on either side of 0, including the observed one. So a run that equals the
    baseline in every clip has p = 1. `p_holm` is corrected over these runs; `corrected` does it over more.
    """
    for run in runs:
        check_same_clips(run, baseline)
    if not runs:
        return []
    difference_RNF = np.stack([run.contributions_NF - baseline.contributions_NF for run in runs])
    total_RF = difference_RNF.sum(axis=1)
    queries_F = totals(baseline.queries)
    samples_RSF = resampled(difference_RNF, baseline.queries, seed, samples)
    # Rounding errors of 1e-17 instead of 0 would count for one side.
    samples_RSF = samples_RSF.round(12)
    low_RF, high_RF = np.percentile(samples_RSF, [2.5, 97.5], axis=1)
    below_RF, above_RF = (samples_RSF <= 0).sum(axis=1), (samples_RSF >= 0).sum(axis=1)
    p_RF = np.minimum(1.0, 2 * (1 + np.minimum(below_RF, above_RF)) / (1 + samples))
    return corrected(
        [
            {
                name: Comparison(
                    difference=100.0 * float(total_RF[r, f] / queries_F[f]),
                    low=100.0 * float(low_RF[r, f]),
                    high=100.0 * float(high_RF[r, f]),
                    p=float(p_RF[r, f]),
                    p_holm=float(p_RF[r, f]),
                )
                for f, name in enumerate(baseline.figures)
            }
            for r in range(len(runs))
        ]
    )


def p_over_seeds(run: Sequence[Evaluation], baseline: Sequence[Evaluation]) -> dict[str, float]:
    """Return the two-sided p of Student's paired t-test over the seeds that both have, by figure.

    A figure that is equal in every seed has p = 1. Fewer than two common seeds give NaN.
    """
    runs, baselines = ({one.seed: one for one in evaluations} for evaluations in (run, baseline))
    seeds = sorted(runs.keys() & baselines.keys())
    names = baseline[0].figures
    if len(seeds) < 2:
        return dict.fromkeys(names, math.nan)
    found, expected = (
        np.array([one[seed].contributions_NF.sum(axis=0) for seed in seeds]) for one in (runs, baselines)
    )
    difference_SF = (found - expected).round(9)  # rounding errors instead of 0 would count as a difference
    from scipy import stats  # here, because few stages that import this module need it: 0.6 s

    p_F = stats.ttest_1samp(difference_SF, 0, axis=0).pvalue
    return {name: float(p_F[f]) if difference_SF[:, f].any() else 1.0 for f, name in enumerate(names)}


def corrected(comparisons: Sequence[Mapping[str, Comparison]]) -> list[dict[str, Comparison]]:
    """Return the comparisons with `p_holm` and `p_seeds_holm` corrected over all of them, for each figure."""
    names = list(comparisons[0]) if comparisons else []
    p_holm = {name: holm([row[name].p for row in comparisons]) for name in names}
    p_seeds_holm = {name: holm([row[name].p_seeds for row in comparisons]) for name in names}
    return [
        {name: replace(row[name], p_holm=p_holm[name][r], p_seeds_holm=p_seeds_holm[name][r]) for name in names}
        for r, row in enumerate(comparisons)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: the i-th smallest of m (from 0) times m - i, non-decreasing, at most 1.

    NaN, a test that was not possible, stays NaN and does not count.
    """
    tested = [place for place, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for i, place in enumerate(sorted(tested, key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, p_values[place] * (len(tested) - i)))
        adjusted[place] = highest
    return adjusted
