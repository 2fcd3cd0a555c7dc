"""Mirrors on the Hugging Face hub: Parquet files with the encoded audio in a column.

Read are, by the names of their columns, OpenSound/AudioCaps (audiocap_id, youtube_id, start_time, caption, audio),
agkphysics/AudioSet (video_id, audio, labels, human_labels) and other files with such columns. Audio is read here only
where rows share a name, to see whether they are captions of one clip: otherwise `pipeline.data.containers` does when a
shard is made.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.adapters.rows import CAPTION_COLUMN, CAPTION_COLUMNS, SourceRow, clean_captions, seconds
from pipeline.data.adapters.split_files import find_split_files
from pipeline.data.adapters.walking import check_root
from pipeline.data.adapters.youtube import VideoClip
from pipeline.data.containers import PARQUET_ERRORS, open_parquet, read_values, row_member, unreadable
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

AUDIO_COLUMNS = ("audio", "wav", "flac", "mp3", "bytes")
VIDEO_COLUMNS = ("youtube_id", "video_id", "ytid")
START_COLUMNS = ("start_time", "start_seconds", "start_s")
NAME_COLUMNS = ("file_name", "filename", "fname", "id")
NUMBER_COLUMNS = ("audiocap_id",)
"""Known names of columns; of several the first counts."""


# --- columns ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns of a Parquet file hold what; None where it has none."""

    audio: str
    """Column of encoded audio, or `COLUMN.bytes` for a field of a struct."""
    audio_path: str | None
    video: str | None
    start: str | None
    name: str | None
    number: str | None
    captions: tuple[str, ...]

    @property
    def listed(self) -> list[str]:
        """All of them but the audio."""
        columns = (self.audio_path, self.video, self.start, self.name, self.number, *self.captions)
        return [column for column in columns if column is not None]


def find_columns(schema: pa.Schema, path: str) -> Columns:
    """The meaning of a file's columns, from their names and types; PipelineError, naming them, if none is audio."""
    field = _audio_field(schema, path)
    is_struct = pa.types.is_struct(field.type)
    container = field.name if is_struct else field.name.removesuffix(".bytes")
    audio_path = f"{container}.path"
    has_path = field.type.get_field_index("path") >= 0 if is_struct else audio_path in schema.names
    numbered = sorted((int(match[1]), name) for name in schema.names if (match := CAPTION_COLUMN.fullmatch(name)))
    captions = tuple(name for _, name in numbered) or tuple(_first(schema, CAPTION_COLUMNS))
    columns = Columns(
        audio=f"{field.name}.bytes" if is_struct else field.name,
        audio_path=audio_path if has_path and audio_path != field.name else None,
        video=next(_first(schema, VIDEO_COLUMNS), None),
        start=next(_first(schema, START_COLUMNS), None),
        name=next(_first(schema, NAME_COLUMNS), None),
        number=next(_first(schema, NUMBER_COLUMNS), None),
        captions=captions,
    )
    for name in (field.name, *columns.listed):
        if schema.names.count(name) > 1:
            raise PipelineError(f"{path}: two columns are named {name}; rename or remove one of them")
    for name in captions:
        if not _is_text(schema.field(name).type):
            raise PipelineError(
                f"{path}: column {name} holds {schema.field(name).type}; captions are text or lists of text"
            )
    return columns


def _audio_field(schema: pa.Schema, path: str) -> pa.Field:
    """The column of audio: the one with a known name, or else the only one with bytes."""
    audio = [field for field in schema if _is_binary(_bytes_type(field.type))]
    named = [field for name in AUDIO_COLUMNS for field in audio if field.name in (name, f"{name}.bytes")]
    if not named and len(audio) != 1:
        raise PipelineError(
            f"{path}: {'no' if not audio else 'more than one'} column of audio; found "
            f"{', '.join(f'{field.name} ({field.type})' for field in schema)}; expected a binary column, or a struct "
            f"with a binary field bytes, named {' or '.join(AUDIO_COLUMNS)}"
        )
    return (named or audio)[0]


def _first(schema: pa.Schema, names: Sequence[str]) -> Iterator[str]:
    """The first of the names that is a column, if any."""
    yield from [name for name in names if name in schema.names][:1]


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    """The type of a struct's field `bytes`, or the type itself."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return kind.field("bytes").type
    return kind


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    if any(is_list(kind) for is_list in lists):
        kind = kind.value_type
    if types.is_dictionary(kind):  # categories of pandas and polars
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _ListedRow:
    """A row of a Parquet file."""

    clip: SourceRow
    row: int
    column: str
    """Of the audio."""
    identity: tuple[Any, ...]
    """Differs from that of every other clip."""
    number: str | None
    """The publisher's number of its caption."""
    is_known_id: bool
    """True for a video and a start. Other ids may repeat: a column `id` often begins at 0 in every file."""


def read_parquet(root: Path, split: str) -> Iterator[SourceRow]:
    """The rows of the split's Parquet files; rows of the same video and start, or name, are captions of one clip.

    Rows of the same name are so only if their audio is the same, too. A row that repeats an audiocap_id, or without one
    all captions of its clip, is a duplicate. Clips are named after the file and the row, so that their keys sort as
    they lie in the files and a shard reads few row groups. Raises PipelineError for a file that is damaged or has no
    column of audio.
    """
    check_root(root)
    rows: list[_ListedRow] = []
    for path in find_split_files(root, split, ".parquet"):
        with open_parquet(path) as file:
            columns = find_columns(file.schema_arrow, path)
            logger.info(
                "%s: audio in %s; read with it: %s", path, columns.audio, ", ".join(columns.listed) or "nothing"
            )
            stem = Path(path).relative_to(root).with_suffix("").as_posix()
            for row, fields in _rows(file, columns.listed, path):
                rows.append(_listed_row(fields, columns, path, row, stem))
    return _clips(_separated(rows))


def _rows(file: pq.ParquetFile, columns: list[str], path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number from 0 and values of every row of some columns, in bounded memory."""
    if not columns:
        yield from ((row, {}) for row in range(file.metadata.num_rows))
        return
    row = 0
    try:
        for batch in file.iter_batches(1024, columns=columns, use_threads=False):
            for fields in batch.to_pylist():
                yield row, fields
                row += 1
    except PARQUET_ERRORS as error:
        raise unreadable(path, error) from error
    if row != file.metadata.num_rows:
        raise PipelineError(f"{path}: {row} rows of {file.metadata.num_rows}; is it cut off? Fetch it again")


def _listed_row(fields: dict[str, Any], columns: Columns, path: str, row: int, stem: str) -> _ListedRow:
    """A row with the clip that it lists."""

    def text(column: str | None) -> str | None:
        value = None if column is None else fields[column]
        return None if value is None or str(value) == "" else str(value)

    video, start, name, number = text(columns.video), text(columns.start), text(columns.name), text(columns.number)
    start_s = None if start is None else seconds(start, f"{path} row {row}")
    if video is not None and start_s is not None:
        label = VideoClip(youtube_id=video, start_s=start_s, row=row).name
    else:
        label = video or name or _audio_path(fields, columns.audio_path) or ""
    captions: list[str] = []
    for column in columns.captions:
        value = fields[column]
        captions += [value] if isinstance(value, str) else [text for text in value or [] if text is not None]
    clip = SourceRow(
        source_name=f"{stem} {row:06d} {label.rpartition('/')[2]}".rstrip(),
        path=path,
        member=row_member(columns.audio, row),
        source_id=video,
        start_s=start_s,
        captions=clean_captions(captions),
    )
    return _ListedRow(
        clip=clip,
        row=row,
        column=columns.audio,
        identity=(video, start_s, name) if video is not None or name is not None else (path, row),
        number=number,
        is_known_id=video is not None and start_s is not None,
    )


def _audio_path(fields: dict[str, Any], column: str | None) -> str | None:
    """The value of a column `audio.path`, or of the field `path` of a struct."""
    if column is None or column in fields:
        return fields.get(column or "")
    return (fields[column.removesuffix(".path")] or {}).get("path")


def _separated(rows: list[_ListedRow]) -> list[_ListedRow]:
    """The rows, with the audio as part of the identity where others have the same and it is no known id."""
    counts = Counter(row.identity for row in rows)
    shared: dict[tuple[str, str], list[_ListedRow]] = defaultdict(list)
    for listed in rows:
        if not listed.is_known_id and counts[listed.identity] > 1:
            shared[listed.clip.path or "", listed.column].append(listed)
    audio_of_row: dict[tuple[str, int], bytes] = {}
    first_audio: dict[tuple[Any, ...], bytes] = {}
    for (path, column), alike in shared.items():
        identities = {listed.row: listed.identity for listed in alike}
        for row, data in read_values(path, column, identities):
            if data is not None:  # a row without audio adds captions to the first clip of its name
                digest = hashlib.sha256(data).digest()
                audio_of_row[path, row] = digest
                first_audio.setdefault(identities[row], digest)
    separated = []
    others: set[tuple[Any, ...]] = set()
    for listed in rows:
        digest = audio_of_row.get((listed.clip.path or "", listed.row), b"")
        if digest and digest != first_audio[listed.identity]:
            listed = replace(listed, identity=(*listed.identity, digest))
            others.add(listed.identity)
        separated.append(listed)
    if others:
        logger.warning("%d clips share a name with other clips but have other audio", len(others))
    return separated


def _clips(rows: Sequence[_ListedRow]) -> Iterator[SourceRow]:
    """One clip per identity with the captions of its rows, and the rows that are duplicates."""
    clips: dict[tuple[Any, ...], SourceRow] = {}
    known: dict[tuple[Any, ...], set[str | None]] = {}
    """Numbers and captions of a clip."""
    for listed in rows:
        identity, number, clip = listed.identity, listed.number, listed.clip
        first = clips.setdefault(identity, clip)
        if first is clip:
            known[identity] = {number, *clip.captions}
        elif (number in known[identity]) if number is not None else (known[identity] >= set(clip.captions)):
            clips[clip.path, listed.row] = replace(clip, reason="duplicate")
        else:
            clips[identity] = replace(first, captions=first.captions + clip.captions)
            known[identity] |= {number, *clip.captions}
    yield from clips.values()
