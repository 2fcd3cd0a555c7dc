"""Search in a folder of recordings of any format and length, by text or by sound: hits are moments of recordings.

Each recording is embedded in overlapping windows. Their vectors are kept in an index, which grows with the folder.
Neighbouring windows that score high are merged into one moment.
"""

# N = rows of the index, one per window, D = joint width

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.evaluation.folders.chance import reference_captions, standing_out
from pipeline.evaluation.folders.index import FolderIndex, IndexedFile
from pipeline.evaluation.folders.indexing import Unsearched, is_current, update_index
from pipeline.evaluation.folders.recordings import RecordingFile, WindowForm, find_recordings
from pipeline.evaluation.model import AudioTextModel, load
from pipeline.evaluation.moments import Moment, merge_windows
from pipeline.evaluation.search import checksum_of, embed_query, index_folders
from pipeline.evaluation.vectors import highest
from pipeline.models.clap import ClapModel

logger = logging.getLogger(__name__)

VERSION = "1"
"""Of the index; raise it when the vectors of the same windows change."""
HOP_SHARE = 0.5
"""Default hop, as a share of the model's window: a sound up to half a window long lies whole in one of the windows."""
_MEDIAN_WINDOWS = 100_000
"""Windows, evenly spaced, of which the median score is the baseline of all moments: for more it takes longer alone."""
_WINDOWS_PER_HIT = 4
"""Best windows that are looked at for each hit; more, if they make too few moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A moment of a recording that `search_folder` found."""

    rank: int
    """1 is the best."""
    score: float
    """The cosine of the query and the moment's best window."""
    file: str
    """Path of the recording relative to the folder; bytes that are not UTF-8 are surrogates, as in `os.fsdecode`."""
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderSearch:
    """The result of `search_folder`."""

    hits: list[Hit]
    """Best first; those of one recording do not overlap."""
    files: int
    """Recordings searched."""
    windows: int
    """Windows searched."""
    duration_s: float
    """Sum of the durations of the recordings searched."""
    unsearched: list[Unsearched]
    """Recordings that were not searched, or not to their end."""


def search_folder(
    query: str | Path,
    model: AudioTextModel | str | Path,
    folder: str | Path,
    *,
    top: int = 10,
    hop_s: float | None = None,
    like_chance: float | None = None,
    index: str | Path | None = None,
) -> FolderSearch:
    """Return the moments of a folder's recordings that are nearest to a text or to an audio file.

    Args:
        query: a text (`str`), or an audio file (`Path`).
        model: a model, or the folder of a saved one.
        folder: folder of recordings of any format and length, in subfolders too; hidden files are left out.
        top: maximum number of hits.
        hop_s: time between the starts of neighbouring windows. The default is half of the model's window.
        like_chance: keeps only hits that stand out, between 0 and 1: of texts whose sound is not in the folder, so many
            have any hit. See `pipeline.evaluation.folders.chance`.
        index: folder that keeps the embeddings for the next search. The default is the folder `index` of the model, or
            the user's cache folder if the model is an export or its folder is read-only.

    Raises:
        PipelineError: no such model, folder or file, no recording that can be searched, a blank text, embeddings
            without a direction, a damaged index, or `like_chance` with an audio file.

    Example:
        >>> import pipeline
        >>> model = pipeline.load("results/runs/clotho_composed_audioset/seed0")  # doctest: +SKIP
        >>> found = pipeline.search_folder("rain on a tent", model, "recordings", like_chance=0.01)  # doctest: +SKIP
        >>> [(hit.file, hit.start_s, hit.end_s) for hit in found.hits]  # doctest: +SKIP
    """
    if like_chance is not None:
        if not isinstance(query, str):
            raise PipelineError("like_chance compares a text with other texts; with an audio file give top instead")
        if not 0 < like_chance < 1:
            raise PipelineError(f"like_chance is {like_chance:g}; give a probability between 0 and 1")
    folder = Path(folder).expanduser()
    recordings = {file.name: file for file in find_recordings(folder)}
    if not isinstance(model, AudioTextModel):
        model = load(model)
    query_D = embed_query(query, model.network, model.network.channels)
    form = window_form(model.network, hop_s)
    with ExitStack() as stack:
        held = _open_index(model, folder, recordings, form, index, stack)
        unread = update_index(held, model.network, folder, recordings, form)
        searched = [file for name, file in held.files.items() if file.is_complete and file.is_of(recordings[name])]
        with_fault = [file for file in searched if file.reason is not None]
        unsearched = unread + [_unsearched(file, form) for file in with_fault]
        with_windows = [file for file in searched if file.rows]
        if not with_windows:
            first = unsearched[0]
            raise PipelineError(
                f"{folder}: none of {len(recordings)} audio files can be searched; the first, {first.file}, "
                f"is {first.reason.replace('_', ' ')} ({first.detail})"
            )
        stands_out = None
        if like_chance is not None:
            references_RD = model.embed_text(reference_captions())
            stands_out = partial(standing_out, query_D=query_D, references_RD=references_RD, like_chance=like_chance)
        hits = find_hits(held, with_windows, query_D, form, top, stands_out)
    return FolderSearch(
        hits=hits,
        files=len(with_windows),
        windows=sum(file.rows for file in with_windows),
        duration_s=sum(file.duration_s for file in with_windows),
        unsearched=unsearched,
    )


def window_form(network: ClapModel, hop_s: float | None) -> WindowForm:
    """Return how windows are taken for a model.

    Raises:
        PipelineError: The hop is longer than the model's window, or shorter than a hundredth of it.
    """
    least_s, most_s = network.window_s / 100, network.window_s
    if hop_s is None:
        hop_s = HOP_SHARE * network.window_s
    if not least_s <= hop_s <= most_s:
        raise PipelineError(f"a hop of {hop_s:g} s; give {least_s:g} to {most_s:g} s, which is the model's window")
    return WindowForm(
        sample_rate_hz=network.sample_rate_hz,
        channels=network.channels,
        window_frames=network.window_frames,
        hop_s=hop_s,
        short_clips=network.short_clips,
    )


def find_hits(
    index: FolderIndex,
    files: Sequence[IndexedFile],
    query_D: NDArray[np.float32],
    form: WindowForm,
    top: int,
    stands_out: Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.bool_]] | None = None,
) -> list[Hit]:
    """Return the best moments of some files of an index.

    stands_out: which windows may be the best of a moment, from the vectors (N, D) and from the rows that belong to a
        file (N,); the default is all.
    """
    vectors_ND, numbers_N = index.vectors(), index.numbers()
    scores_N = vectors_ND @ query_D
    owner_N = np.full(len(scores_N), -1, np.int32)
    for number, file in enumerate(files):
        for first, rows in file.extents:
            owner_N[first : first + rows] = number
    may_begin_N = owner_N >= 0
    sample = slice(None, None, max(1, len(scores_N) // _MEDIAN_WINDOWS))
    baseline = float(np.median(scores_N[sample][may_begin_N[sample]]))
    if stands_out is not None:
        may_begin_N &= stands_out(vectors_ND, may_begin_N)

    # A moment that is better than the last of the best windows has one of them, so the best moments are among theirs.
    peaks_N = np.where(may_begin_N, scores_N, np.float32(-np.inf))
    count = _WINDOWS_PER_HIT * top
    while True:
        rows_W, found_W = highest(peaks_N, count)
        rows_W = rows_W[np.isfinite(found_W)]
        is_best_N = np.zeros(len(peaks_N), bool)
        is_best_N[rows_W] = True
        moments: list[tuple[Moment, str]] = []
        for number in np.unique(owner_N[rows_W]):
            merged = _moments_of(files[number], scores_N, numbers_N, is_best_N, form, baseline)
            moments += [(moment, files[number].name) for moment in merged]
        if len(moments) >= top or len(rows_W) < count:
            break
        count *= 4
    moments.sort(key=lambda item: (-item[0].score, item[1], item[0].start_s))
    return [
        Hit(rank=rank, score=moment.score, file=name, start_s=moment.start_s, end_s=moment.end_s)
        for rank, (moment, name) in enumerate(moments[:top], start=1)
    ]


def _moments_of(
    file: IndexedFile,
    scores_N: NDArray[np.float32],
    numbers_N: NDArray[np.int64],
    may_begin_N: NDArray[np.bool_],
    form: WindowForm,
    baseline: float,
) -> list[Moment]:
    rows_W = np.concatenate([np.arange(first, first + rows) for first, rows in file.extents])
    starts_W = numbers_N[rows_W] * form.hop_s
    ends_W = np.minimum(starts_W + form.window_s, file.duration_s)
    return merge_windows(starts_W, ends_W, scores_N[rows_W], baseline=baseline, may_begin_W=may_begin_N[rows_W])


def _unsearched(file: IndexedFile, form: WindowForm) -> Unsearched:
    return Unsearched(
        file=file.name,
        reason=file.reason or "",
        detail=file.detail or "",
        searched_s=file.duration_s if file.rows else 0.0,
    )


def _open_index(
    model: AudioTextModel,
    folder: Path,
    recordings: Mapping[str, RecordingFile],
    form: WindowForm,
    requested: str | Path | None,
    stack: ExitStack,
) -> FolderIndex:
    """Return the index of a folder: the first that can be written or needs no change, else one that ends with `stack`.

    One that exists is preferred to those that could be made.
    """
    made_for = {
        "version": VERSION,
        "folder": hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest(),
        "model": checksum_of(model.folder),
        "hop_s": repr(form.hop_s),
    }
    name = f"folder-{made_for['folder'][:16]}-{made_for['model'][:16]}-{form.hop_s:g}"
    reasons = []
    places = [place / name for place in index_folders(model.folder, requested)]
    for place in sorted(places, key=lambda place: not place.is_dir()):
        try:
            place.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            reasons.append(f"{place}: {error.strerror}")
            if place.is_dir() and is_current(index := FolderIndex(place, model.embedding_dim, made_for), recordings):
                return index
        else:
            return FolderIndex(place, model.embedding_dim, made_for)
    logger.warning("the index cannot be kept (%s); give another folder with --index", "; ".join(reasons))
    temporary = stack.enter_context(tempfile.TemporaryDirectory())
    return FolderIndex(Path(temporary), model.embedding_dim, made_for)
