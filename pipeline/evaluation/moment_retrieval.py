"""Moments of recordings by caption: what is asked, the windows that are ranked, and the figures of a model.

A split of captioned stretches of recordings asks: every caption of a recording is a query, and its stretches are the
true moments. A model answers with the windows of the whole recording, scored by their cosine with the caption and
merged by `merge_windows`.
"""

# R = recordings, Q = queries, T = true moments, W = windows, D = joint width, F = figures

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.catalogs import OK
from pipeline.data.parquet import open_parquet
from pipeline.data.unusable import TRUNCATED_BY_S
from pipeline.errors import PipelineError
from pipeline.evaluation.moment_metrics import moment_figures
from pipeline.evaluation.moments import merge_windows
from pipeline.evaluation.npz import read_npz
from pipeline.evaluation.vectors import check_vectors

_COLUMNS = ("source_name", "path", "member", "captions", "status", "segment_start_s", "segment_end_s")


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The captions of a split's recordings."""

    recording: list[str]
    """(R,), the publisher's names."""
    caption_Q: list[str]
    recording_Q: NDArray[np.int64]
    true_T2: NDArray[np.float64]
    """Start and end of each true moment, in seconds."""
    query_T: NDArray[np.int64]
    """Sorted."""
    lost: int
    """Captions of stretches that were dropped, end after their recording, or whose recording cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The windows of recordings, in any order."""

    recording_W: NDArray[np.int64]
    start_s_W: NDArray[np.float64]
    end_s_W: NDArray[np.float64]
    vector_WD: NDArray[np.float32]
    """At length 1."""


def read_queries(catalog: Path) -> tuple[Queries, list[Path]]:
    """Return the queries of a catalog with stretches of recordings, and the file of each recording (R,).

    Equal captions of a recording are one query with several true moments. A stretch with several captions is a true
    moment of each.

    Raises:
        PipelineError: The catalog has no captioned stretch of a file.
    """
    with open_parquet(catalog, "index_audio") as file:
        missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
        rows = [] if missing else file.read(columns=list(_COLUMNS)).to_pylist()
    true_of: dict[tuple[str, str], list[tuple[float, float]]] = {}
    names: dict[str, str] = {}
    lost = 0
    for row in rows:
        span = row["segment_start_s"], row["segment_end_s"]
        if row["status"] != OK or row["path"] is None or row["member"] is not None or None in span:
            lost += len(row["captions"])
            continue
        names[row["path"]] = row["source_name"]
        for caption in row["captions"]:
            true_of.setdefault((row["path"], caption), []).append(span)
    if not true_of:
        raise PipelineError(
            f"{catalog}: has no captioned stretch of a file; give a list with start_s, end_s and captions"
        )
    paths = sorted({path for path, _ in true_of})
    number = {path: index for index, path in enumerate(paths)}
    keys = sorted(true_of)
    queries = Queries(
        recording=[names[path] for path in paths],
        caption_Q=[caption for _, caption in keys],
        recording_Q=np.array([number[path] for path, _ in keys]),
        true_T2=np.array([span for key in keys for span in sorted(true_of[key])], np.float64),
        query_T=np.repeat(np.arange(len(keys)), [len(true_of[key]) for key in keys]),
        lost=lost,
    )
    return queries, [Path(path) for path in paths]


def within(queries: Queries, duration_s_R: NDArray[np.float64]) -> Queries:
    """Return the queries without the true moments that end after their recording, which has 0 s if it is unreadable.

    As for shards, a moment may end later by as little as a truncated file may lack.
    """
    duration_s_T = duration_s_R[queries.recording_Q[queries.query_T]]
    start_s_T, end_s_T = queries.true_T2.T
    is_inside_T = (start_s_T < duration_s_T) & (end_s_T <= duration_s_T + TRUNCATED_BY_S)
    kept_Q = np.unique(queries.query_T[is_inside_T])
    return replace(
        queries,
        caption_Q=[queries.caption_Q[query] for query in kept_Q],
        recording_Q=queries.recording_Q[kept_Q],
        true_T2=queries.true_T2[is_inside_T],
        query_T=np.searchsorted(kept_Q, queries.query_T[is_inside_T]),
        lost=queries.lost + int((~is_inside_T).sum()),
    )


def query_figures(queries: Queries, text_QD: NDArray[np.floating], windows: Windows) -> NDArray[np.float64]:
    """Return the figures of each query, those of `moment_figures` (Q, F); a recording without windows scores 0.

    Scores are cosines in float64, rounded to float32, so that equal windows tie.
    """
    figures_QF = np.zeros((len(queries.caption_Q), 5))
    unit_QD = text_QD / np.linalg.norm(text_QD.astype(np.float64), axis=1, keepdims=True)
    order_W = np.argsort(windows.recording_W, kind="stable")
    count_R = np.bincount(windows.recording_W, minlength=len(queries.recording))
    rows_of_recording = np.split(order_W, np.cumsum(count_R)[:-1])
    moments_of_query = np.split(queries.true_T2, np.searchsorted(queries.query_T, range(1, len(queries.caption_Q))))
    for recording, rows in enumerate(rows_of_recording):
        unit_WD = windows.vector_WD[rows].astype(np.float64)
        unit_WD /= np.linalg.norm(unit_WD, axis=1, keepdims=True)
        for query in np.flatnonzero(queries.recording_Q == recording):
            scores_W = (unit_WD @ unit_QD[query]).astype(np.float32)
            moments = merge_windows(windows.start_s_W[rows], windows.end_s_W[rows], scores_W)
            figures_QF[query] = moment_figures(moments, moments_of_query[query])
    return figures_QF


# --- the arrays of embeddings.npz ------------------------------------------------------------------------------------


def arrays_of(
    queries: Queries, text_QD: NDArray[np.floating], windows: Windows, window_s: float, hop_s: float
) -> dict[str, NDArray]:
    """Return the arrays that `read_moments` reads, by name."""
    return {
        "moments_recording": np.array(queries.recording),
        "moments_caption": np.array(queries.caption_Q),
        "moments_query_recording": queries.recording_Q,
        "moments_true_s": queries.true_T2,
        "moments_true_query": queries.query_T,
        "moments_lost": np.array(queries.lost),
        "moments_text": text_QD,
        "moments_window_recording": windows.recording_W,
        "moments_window_start_s": windows.start_s_W,
        "moments_window_end_s": windows.end_s_W,
        "moments_window": windows.vector_WD,
        "moments_window_s": np.array(window_s),
        "moments_hop_s": np.array(hop_s),
    }


@dataclass(frozen=True, kw_only=True)
class EmbeddedMoments:
    """The queries and windows of a split, embedded by a model."""

    queries: Queries
    text_QD: NDArray[np.float32]
    windows: Windows
    window_s: float
    """Length of a window."""
    hop_s: float
    """Time from the start of a window to that of the next."""


def read_moments(path: Path) -> EmbeddedMoments:
    """Return what `embed --moments` wrote.

    Raises:
        PipelineError: The file is missing or damaged, was made without `--moments`, or a vector has no direction.
    """
    names = tuple(f"moments_{name}" for name in _ARRAYS)
    arrays = {name.removeprefix("moments_"): array for name, array in read_npz(path, names, "embed --moments").items()}
    captions = arrays["caption"].tolist()
    recordings = arrays["recording"].tolist()
    found = EmbeddedMoments(
        queries=Queries(
            recording=recordings,
            caption_Q=captions,
            recording_Q=arrays["query_recording"],
            true_T2=arrays["true_s"],
            query_T=arrays["true_query"],
            lost=int(arrays["lost"]),
        ),
        text_QD=arrays["text"],
        windows=Windows(
            recording_W=arrays["window_recording"],
            start_s_W=arrays["window_start_s"],
            end_s_W=arrays["window_end_s"],
            vector_WD=arrays["window"],
        ),
        window_s=float(arrays["window_s"]),
        hop_s=float(arrays["hop_s"]),
    )
    windows = found.windows
    try:
        check_vectors(found.text_QD, lambda query: f"caption {captions[query]!r}")
        check_vectors(
            windows.vector_WD,
            lambda row: f"{recordings[windows.recording_W[row]]} from {windows.start_s_W[row]:g} s",
        )
    except PipelineError as error:
        raise PipelineError(f"{path}: {error}") from None
    return found


_ARRAYS = (
    *("recording", "caption", "query_recording", "true_s", "true_query", "lost", "text"),
    *("window_recording", "window_start_s", "window_end_s", "window", "window_s", "hop_s"),
)
