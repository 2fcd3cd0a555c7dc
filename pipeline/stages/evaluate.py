"""Compute the rank of every query of a split and the retrieval figures of every protocol from embeddings."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.parquet import write_parquet
from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import (
    PROTOCOLS,
    QueryCounts,
    central_95,
    contributions,
    figures,
    intervals,
    mean_over_captions,
    totals,
)
from pipeline.evaluation.moment_retrieval import query_figures, read_moments
from pipeline.evaluation.npz import read_npz
from pipeline.evaluation.outcomes import read_divergence
from pipeline.evaluation.protocols import DCASE2025, MOMENTS, figures_of, query_counts
from pipeline.evaluation.ranking import Retrieval, rank_embeddings
from pipeline.evaluation.relevance import Relevance, average_precisions, read_relevance
from pipeline.evaluation.vectors import check_vectors
from pipeline.files import sha256_of, write_json
from pipeline.results.comparisons import contributions_table, no_contributions, rows_of_protocol
from pipeline.stages import at_least, run

logger = logging.getLogger(__name__)

RANKS = pa.schema(
    [
        ("direction", pa.string()),
        ("query", pa.int64()),
        ("query_key", pa.string()),
        ("caption", pa.int64()),
        ("rank", pa.float64()),
        ("rank_one_caption", pa.float64()),
        ("top10", pa.list_(pa.int64())),
        ("top10_score", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The embeddings of a split. Vectors are finite and not zero; every text has a clip and every clip a text."""

    audio: NDArray[np.float32]
    """(N, D)"""
    audio_key: NDArray[np.str_]
    """(N,)"""
    text: NDArray[np.float32]
    """(M, D), sorted by clip, then by caption."""
    audio_of_text: NDArray[np.int64]
    """(M,), the row of `audio` for each text."""
    caption: NDArray[np.str_]
    """(M,)"""
    windows: str
    """The setting `windows` of the stage embed."""


def read_embeddings(path: Path) -> Embeddings:
    """Return the embeddings that the stage embed wrote; PipelineError for a damaged or unusable file, with the clip."""
    names = ("audio", "audio_key", "text", "audio_of_text", "caption", "windows")
    arrays = read_npz(path, names, "embed")
    embeddings = Embeddings(**{**arrays, "windows": str(arrays["windows"])})
    try:
        _check(embeddings)
    except PipelineError as error:
        raise PipelineError(f"{path}: {error}") from None
    return embeddings


def _check(found: Embeddings) -> None:
    n_audio, n_text = len(found.audio_key), len(found.caption)
    if n_audio == 0 or n_text == 0:
        raise PipelineError(f"{n_audio} clips and {n_text} texts; a split needs at least one of each")
    shapes = (found.audio.shape, found.text.shape, found.audio_of_text.shape)
    width = found.audio.shape[-1]
    if shapes != ((n_audio, width), (n_text, width), (n_text,)):
        raise PipelineError(
            f"{n_audio} clips and {n_text} texts do not fit audio, text and audio_of_text of shapes {shapes}"
        )
    keys, counts = np.unique(found.audio_key, return_counts=True)
    if (counts > 1).any():
        raise PipelineError(f"clip {keys[counts > 1][0]} occurs {counts[counts > 1][0]} times")
    for text in np.flatnonzero((found.audio_of_text < 0) | (found.audio_of_text >= n_audio))[:1]:
        raise PipelineError(
            f"caption {str(found.caption[text])!r} (text {text}) belongs to clip {found.audio_of_text[text]}, "
            f"but the clips are 0 to {n_audio - 1}"
        )
    if (np.diff(found.audio_of_text) < 0).any():
        raise PipelineError("the texts are not sorted by clip; make the file again with the stage embed")
    for clip in np.flatnonzero(np.bincount(found.audio_of_text, minlength=n_audio) == 0)[:1]:
        raise PipelineError(f"clip {found.audio_key[clip]} has no caption")
    check_vectors(found.audio, lambda clip: f"clip {found.audio_key[clip]}")
    check_vectors(
        found.text,
        lambda text: f"caption {str(found.caption[text])!r} of clip {found.audio_key[found.audio_of_text[text]]}",
    )


def ranks_table(retrieval: Retrieval, found: Embeddings) -> pa.Table:
    """Return one row per query: every text among the clips, then every clip among all texts.

    `rank` is the expected place, from 1, of the text's clip or of the clip's best caption. `rank_one_caption` is the
    place of the clip's first caption among the first captions of all clips, for the protocol `paper`. `top10` lists
    clips for a text and texts for a clip, as rows of the embeddings.
    """
    n_text, n_audio = len(found.caption), len(found.audio_key)
    texts, clips = np.arange(n_text), np.arange(n_audio)
    caption = texts - retrieval.text_of_audio_NC[found.audio_of_text, 0]
    tops = retrieval.t2a_top, retrieval.a2t_top
    return pa.table(
        {
            "direction": ["t2a"] * n_text + ["a2t"] * n_audio,
            "query": np.concatenate([texts, clips]),
            "query_key": [*found.audio_key[found.audio_of_text].tolist(), *found.audio_key.tolist()],
            "caption": np.concatenate([caption, np.full(n_audio, -1)]),
            "rank": np.concatenate([retrieval.t2a_M.rank(), retrieval.best_a2t_N().best_rank()]),
            "rank_one_caption": [*[None] * n_text, *retrieval.a2t_CN[0].rank()],
            "top10": [row for top in tops for row in top.place],
            "top10_score": [row for top in tops for row in top.score],
        },
        schema=RANKS,
    )


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A protocol that needs more than the scores of clips and captions."""

    protocol: str
    keys: list[str]
    """Of the rows of the contributions (N,): clips or recordings."""
    columns: dict[str, NDArray[np.int64]]
    """The columns of the contributions that count queries."""
    contributions_NF: NDArray[np.float64]
    facts: dict[str, Any]
    """Entries of metrics.json."""

    @property
    def queries(self) -> QueryCounts:
        """The queries that the figures are averaged over."""
        return query_counts(self.protocol, self.columns, len(self.keys))

    def figures(self) -> dict[str, float]:
        """Return the figures in percent."""
        means = 100 * self.contributions_NF.sum(axis=0) / totals(self.queries)
        return dict(zip(figures_of(self.protocol), means.tolist(), strict=True))


def several_relevant(retrieval: Retrieval, found: Embeddings, relevance: Relevance) -> Extra:
    """Return the protocol `dcase2025`."""
    precision_Q = average_precisions(found.text, found.audio, relevance.text_Q, relevance.is_relevant_QN)
    clip_Q, clips = found.audio_of_text[relevance.text_Q], len(found.audio_key)
    return Extra(
        protocol=DCASE2025,
        keys=found.audio_key.tolist(),
        columns={"captions": retrieval.captions_N, "queries": np.bincount(clip_Q, minlength=clips)},
        contributions_NF=np.column_stack(
            [contributions(retrieval, "dcase")[:, :4], np.bincount(clip_Q, precision_Q, clips)]
        ),
        facts={
            "relevance": {
                "sha256": sha256_of(relevance.path),
                "queries": len(relevance.text_Q),
                "relevant": int(relevance.is_relevant_QN.sum()),
                "repeated": relevance.repeated,
                "without_clip": relevance.without_clip,
                "unusable_queries": relevance.unusable_queries,
                "unusable_clips": relevance.unusable_clips,
                "note": relevance.note,
            }
        },
    )


def moment_retrieval(path: Path) -> Extra:
    """Return the protocol `moments`, from embeddings with the windows of recordings."""
    found = read_moments(path)
    queries = found.queries
    asked_R = np.bincount(queries.recording_Q, minlength=len(queries.recording))
    is_asked_R = asked_R > 0
    total_RF = np.zeros((len(asked_R), len(figures_of(MOMENTS))))
    np.add.at(total_RF, queries.recording_Q, query_figures(queries, found.text_QD, found.windows))
    recordings = [name for name, is_asked in zip(queries.recording, is_asked_R, strict=True) if is_asked]
    lost = f" Left out: {queries.lost:,} captions without a usable stretch or recording." if queries.lost else ""
    windows = f"{found.window_s:g} s every {found.hop_s:g} s"
    return Extra(
        protocol=MOMENTS,
        keys=recordings,
        columns={"captions": asked_R[is_asked_R]},
        contributions_NF=total_RF[is_asked_R],
        facts={
            "moments": {
                "queries": len(queries.caption_Q),
                "true_moments": len(queries.true_T2),
                "recordings": len(recordings),
                "windows": windows,
                "lost": queries.lost,
                "note": f"{len(queries.true_T2):,} true moments. Windows of {windows}, merged into moments.{lost}",
            }
        },
    )


def metrics_of(retrieval: Retrieval, extras: Sequence[Extra]) -> dict[str, Any]:
    """Return the figures of metrics.json, in percent."""
    found: dict[str, Any] = {
        "protocols": {protocol: figures(retrieval, protocol) for protocol in PROTOCOLS},
        "intervals_95": {protocol: intervals(retrieval, protocol) for protocol in PROTOCOLS},
        "paper_mean_over_captions": mean_over_captions(retrieval),
    }
    for extra in extras:
        found["protocols"][extra.protocol] = extra.figures()
        names = figures_of(extra.protocol)
        found["intervals_95"][extra.protocol] = central_95(extra.contributions_NF, extra.queries, names)
        found |= extra.facts
    return found


def write_divergence(divergence: str, args: argparse.Namespace, identity: dict[str, Any]) -> None:
    """Write empty tables and the metrics of a training that diverged; its embeddings are not read."""
    write_parquet(RANKS.empty_table(), args.ranks)
    write_parquet(no_contributions(identity), args.contributions)
    write_json({**identity, "diverged": divergence}, args.metrics)
    logger.info("%s seed %d diverged: %s", args.run, args.seed, divergence)


def write_evaluation(found: Embeddings, args: argparse.Namespace, identity: dict[str, Any]) -> None:
    """Rank the queries; write ranks, contributions and metrics."""
    n_text, n_audio = len(found.caption), len(found.audio_key)
    retrieval = rank_embeddings(found.text, found.audio, found.audio_of_text)
    extras = []
    if args.relevance:
        texts, keys = found.caption.tolist(), found.audio_key.tolist()
        relevance = read_relevance(args.relevance, args.shards, captions=texts, keys=keys)
        extras.append(several_relevant(retrieval, found, relevance))
    if args.moments:
        extras.append(moment_retrieval(args.embeddings))
    metrics = metrics_of(retrieval, extras)
    identity = {**identity, "windows": found.windows}
    write_parquet(ranks_table(retrieval, found), args.ranks)
    rows = [rows_of_protocol(extra.protocol, extra.keys, extra.columns, extra.contributions_NF) for extra in extras]
    write_parquet(contributions_table(retrieval, found.audio_key.tolist(), identity, rows), args.contributions)
    write_json(
        {**identity, "n_text": n_text, "n_audio": n_audio, "n_audio_expected": args.n_audio_expected, **metrics},
        args.metrics,
    )
    logger.info(
        "%s seed %d on %s/%s, %d texts and %d clips: %s",
        args.run, args.seed, args.target, args.split, n_text, n_audio,
        ", ".join(f"{name} {value:.2f}" for name, value in metrics["protocols"]["paper"].items()),
    )  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embeddings", type=Path, required=True, help="npz file of the stage embed")
    parser.add_argument("--outcome", type=Path, help="outcome.txt of the training; after divergence nothing is ranked")
    parser.add_argument("--run", required=True, help="name of the run, recorded in the outputs")
    parser.add_argument("--seed", type=at_least(0), required=True, help="seed of the run, recorded in the outputs")
    parser.add_argument("--target", required=True, help="dataset of the split, recorded in the outputs")
    parser.add_argument("--split", required=True, help="name of the split, recorded in the outputs")
    parser.add_argument("--n-audio-expected", type=at_least(1), help="number of clips in the publisher's split")
    parser.add_argument(
        "--relevance", type=Path, help="CSV file with several relevant clips per caption; adds the protocol dcase2025"
    )
    parser.add_argument(
        "--shards", type=Path, help="with --relevance: folder of the split's shards, for the names of its clips"
    )
    parser.add_argument(
        "--moments",
        action="store_true",
        help="add the protocol moments, for embeddings of embed --moments",
    )
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--ranks", type=Path, required=True, help="Parquet file to write the rank of every query to")
    parser.add_argument(
        "--contributions", type=Path, required=True, help="Parquet file to write each clip's share of the figures to"
    )
    return parser


def main(argv: list[str]) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.relevance and not args.shards:
        parser.error("--relevance needs --shards")
    identity = {"run": args.run, "seed": args.seed, "target": args.target, "split": args.split}
    if divergence := read_divergence(args.outcome) if args.outcome else None:
        write_divergence(divergence, args, identity)
        return

    found = read_embeddings(args.embeddings)
    n_audio = len(found.audio_key)
    if args.n_audio_expected is not None and n_audio != args.n_audio_expected:
        logger.warning(
            "%s/%s: %d of %d clips; figures are higher with fewer clips",
            args.target, args.split, n_audio, args.n_audio_expected,
        )  # fmt: skip
    write_evaluation(found, args, identity)


if __name__ == "__main__":
    run(main)
