"""Several relevant clips per caption, from a relevance file, and mAP@16 by them: the protocol `dcase2025`.

The file is the one that task 6 of the DCASE 2025 challenge publishes for Clotho: a CSV with the columns `query`, the
text of a caption, and `audio_filenames`, the list of its relevant clips in Python's or JSON's notation. The clip that
the caption was written for is relevant only if it is listed.

A caption's average precision is the sum of i / rank over its relevant clips within rank 16, i counting them. It is
divided by the number of relevant clips, even if they are more than 16, as in the challenge's baseline. Under ties it is
the expectation over all orders.
"""

# M = texts, N = clips, Q = queries

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.adapters.audio_files import unescaped
from pipeline.data.adapters.lists import read_table
from pipeline.data.catalogs import OK
from pipeline.data.shards.format import read_manifest
from pipeline.errors import PipelineError
from pipeline.evaluation.ranking import rank_relevant

DEPTH = 16
COLUMNS = ("query", "audio_filenames")
_UNUSABLE, _SEVERAL = "", "*"
"""Stand for the key of a clip that the split lists and cannot use, and for the keys of several clips of one file."""


@dataclass(frozen=True, kw_only=True)
class Relevance:
    """The captions of a relevance file that have a relevant clip, and what was left out of it."""

    path: Path
    text_Q: NDArray[np.int64]
    """The text of each query."""
    is_relevant_QN: NDArray[np.bool_]
    repeated: int
    """Rows that repeat another."""
    without_clip: int
    """Queries for which no clip is relevant."""
    unusable_queries: int
    """Captions of clips that the split cannot use, and captions all of whose relevant clips it cannot use."""
    unusable_clips: int
    """Relevant clips, of all queries together, that the split cannot use."""

    @property
    def note(self) -> str:
        """The numbers of queries that are evaluated and left out, as sentences."""
        relevant = self.is_relevant_QN.sum() / len(self.text_Q)
        losses = {
            "rows that repeat another": self.repeated,
            "queries without a relevant clip": self.without_clip,
            "queries whose clips cannot be used": self.unusable_queries,
            "relevant clips that cannot be used": self.unusable_clips,
        }
        lost = ", ".join(f"{count:,} {what}" for what, count in losses.items() if count)
        text = f"mAP@16: {len(self.text_Q):,} queries of the relevance file, {relevant:.1f} relevant clips each."
        return f"{text} Left out: {lost}." if lost else text


def read_relevance(path: Path, shards: Path, *, captions: Sequence[str], keys: Sequence[str]) -> Relevance:
    """Return the relevant clips of the captions in a relevance file.

    Args:
        path: the relevance file.
        shards: folder of the split's shards, whose manifest has the publisher's names of the clips.
        captions: (M,), the texts. Of equal ones, the first asks.
        keys: (N,), of the clips.

    Raises:
        PipelineError: A row is damaged, names a caption or clip that the split does not list, or contradicts another
            row; or no query is left.
    """
    text_of = {caption: text for text, caption in reversed(list(enumerate(captions)))}
    key_of_name, unusable_captions = _listed(shards, keys)
    clip_of_key = {key: clip for clip, key in enumerate(keys)}

    first_row: dict[str, tuple[int, frozenset[str]]] = {}
    queries: dict[int, list[int]] = {}
    repeated = without_clip = unusable_queries = unusable_clips = 0
    for row, query, names in _rows(path):
        place = f"{path} row {row}"
        if query not in text_of and query not in unusable_captions:
            raise PipelineError(f"{place}: no clip of the split has the caption {query!r}; correct or remove the row")
        wanted = frozenset(_key(name, key_of_name, place) for name in names)
        other, other_names = first_row.setdefault(query, (row, frozenset(names)))
        if other != row:
            if other_names != frozenset(names):
                raise PipelineError(f"{place}: lists other clips for {query!r} than row {other}; remove one of them")
            repeated += 1
            continue
        unusable_clips += sum(key_of_name[unescaped(name).strip()] == _UNUSABLE for name in set(names))
        clips = [clip_of_key[key] for key in wanted - {_UNUSABLE}]
        if not names:
            without_clip += 1
        elif query not in text_of or not clips:
            unusable_queries += 1
        else:
            queries[text_of[query]] = clips
    if not queries:
        raise PipelineError(f"{path}: no query with a relevant clip of the split is left; give the file of this split")

    is_relevant_QN = np.zeros((len(queries), len(keys)), bool)
    for number, clips in enumerate(queries.values()):
        is_relevant_QN[number, clips] = True
    return Relevance(
        path=path,
        text_Q=np.array(list(queries)),
        is_relevant_QN=is_relevant_QN,
        repeated=repeated,
        without_clip=without_clip,
        unusable_queries=unusable_queries,
        unusable_clips=unusable_clips,
    )


def average_precisions(
    text: NDArray[np.floating],
    audio: NDArray[np.floating],
    text_Q: NDArray[np.int64],
    is_relevant_QN: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the average precision at 16 of each query, between 0 and 1, by the cosines of embeddings.

    Args:
        text: (M, D)
        audio: (N, D)
        text_Q: the texts that ask.
        is_relevant_QN: the clips that are relevant for them.
    """
    relevant_Q = is_relevant_QN.sum(axis=1)
    precisions = rank_relevant(text, audio, text_Q, is_relevant_QN).precision(DEPTH)
    return np.bincount(np.repeat(np.arange(len(text_Q)), relevant_Q), precisions, len(text_Q)) / relevant_Q


def _rows(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield row number, caption and names of the relevant clips."""
    for row, fields in read_table(path, COLUMNS, "DCASE 2025's query, audio_filenames"):
        try:
            names = ast.literal_eval(fields["audio_filenames"].strip() or "[]")
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            raise PipelineError(
                f"{path} row {row}: audio_filenames is {fields['audio_filenames'][:60]!r}; "
                "give a list of file names, such as ['Rain.wav', 'Storm 1.wav']"
            )
        yield row, " ".join(fields["query"].split()), names


def _listed(shards: Path, keys: Sequence[str]) -> tuple[dict[str, str], frozenset[str]]:
    """Return the key of each clip by its publisher's name, `_UNUSABLE` for those not in `keys`, and their captions."""
    columns = ("key", "source_name", "captions", "status")
    manifest = read_manifest(shards / "manifest.parquet").select(columns).to_pydict()
    known, unusable_captions = set(keys), set()
    key_of_name: dict[str, str] = {}
    for key, name, captions, status in zip(*(manifest[column] for column in columns), strict=True):
        plain = unescaped(name).strip()
        if status == OK and key in known:
            is_repeated = key_of_name.get(plain, _UNUSABLE) != _UNUSABLE  # stretches of one file
            key_of_name[plain] = _SEVERAL if is_repeated else key
        else:
            key_of_name.setdefault(plain, _UNUSABLE)  # or a repeated row of a usable clip
            unusable_captions.update(captions)
    return key_of_name, frozenset(unusable_captions)


def _key(name: str, key_of_name: Mapping[str, str], place: str) -> str:
    plain = unescaped(name).strip()
    if plain not in key_of_name:
        raise PipelineError(f"{place}: the split lists no clip {name!r}; correct the name, or give this split's file")
    if key_of_name[plain] == _SEVERAL:
        raise PipelineError(f"{place}: {name!r} is the file of several clips; dcase2025 needs one clip per file")
    return key_of_name[plain]
