"""Mirrors on the Hugging Face hub: Parquet files with the encoded audio in a column.

Read are, by the names of their columns, OpenSound/AudioCaps (audiocap_id, youtube_id, start_time, caption, audio),
agkphysics/AudioSet (video_id, audio, labels, human_labels) and whatever else has such columns. Of the audio no byte is
read here: `pipeline.data.containers` does when a shard is made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.adapters.sources import (
    CAPTION_COLUMN,
    SourceRow,
    VideoClip,
    check_root,
    clean_captions,
    find_split_files,
    seconds,
)
from pipeline.data.containers import PARQUET_ERRORS, open_parquet, row_member, unreadable
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

AUDIO_COLUMNS = ("audio", "wav", "flac", "mp3", "bytes")
VIDEO_COLUMNS = ("youtube_id", "video_id", "ytid")
START_COLUMNS = ("start_time", "start_seconds", "start_s")
NAME_COLUMNS = ("file_name", "filename", "fname", "id")
NUMBER_COLUMNS = ("audiocap_id",)
CAPTION_COLUMNS = ("captions", "caption", "text")
"""Known names of columns; of several the first counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns of a Parquet file hold what; None where it has none."""

    audio: str
    """Dotted path of the column of encoded audio."""
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
    audio = [field for field in schema if _is_binary(_bytes_type(field.type))]
    named = [field for name in AUDIO_COLUMNS for field in audio if field.name == name]
    if not named and len(audio) != 1:
        raise PipelineError(
            f"{path}: {'no' if not audio else 'more than one'} column of audio; found "
            f"{', '.join(f'{field.name} ({field.type})' for field in schema)}; expected a binary column, or a struct "
            f"with a binary field bytes, named {' or '.join(AUDIO_COLUMNS)}"
        )
    field = (named or audio)[0]
    is_struct = pa.types.is_struct(field.type)
    has_path = is_struct and field.type.get_field_index("path") >= 0
    numbered = sorted((int(match[1]), name) for name in schema.names if (match := CAPTION_COLUMN.fullmatch(name)))
    captions = tuple(name for _, name in numbered) or tuple(_first(schema, CAPTION_COLUMNS))
    for name in captions:
        if not _is_text(schema.field(name).type):
            raise PipelineError(
                f"{path}: column {name} holds {schema.field(name).type}; captions are text or lists of text"
            )
    return Columns(
        audio=f"{field.name}.bytes" if is_struct else field.name,
        audio_path=f"{field.name}.path" if has_path else None,
        video=next(_first(schema, VIDEO_COLUMNS), None),
        start=next(_first(schema, START_COLUMNS), None),
        name=next(_first(schema, NAME_COLUMNS), None),
        number=next(_first(schema, NUMBER_COLUMNS), None),
        captions=captions,
    )


def _first(schema: pa.Schema, names: Sequence[str]) -> Iterator[str]:
    """The first of the names that is a column, if any."""
    yield from [name for name in names if schema.get_field_index(name) >= 0][:1]


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    """The type of a struct's field `bytes`, or the type itself."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return kind.field("bytes").type
    return kind


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def read_parquet(root: Path, split: str) -> Iterator[SourceRow]:
    """The rows of the split's Parquet files; rows of the same video and start, or name, are captions of one clip.

    A row that repeats an audiocap_id, or without one all captions of its clip, is a duplicate. Clips are named after
    the file and the row, so that their keys sort as they lie in the files and a shard reads few row groups. Raises
    PipelineError for a file that is damaged or has no column of audio.
    """
    check_root(root)
    clips: dict[Any, SourceRow] = {}
    told: dict[Any, set[Any]] = {}
    for path in find_split_files(root, split, ".parquet"):
        with open_parquet(path) as file:
            columns = find_columns(file.schema_arrow, path)
            logger.info(
                "%s: audio in %s; read with it: %s", path, columns.audio, ", ".join(columns.listed) or "nothing"
            )
            stem = Path(path).relative_to(root).with_suffix("").as_posix()
            for row, fields in _rows(file, columns.listed, path):
                clip, identity, number = _clip_of(fields, columns, path, row, stem)
                known = clips.setdefault(identity, clip)
                if known is clip:
                    told[identity] = {number, *clip.captions}
                elif (number in told[identity]) if number is not None else (told[identity] >= set(clip.captions)):
                    clips[path, row] = replace(clip, reason="duplicate")
                else:
                    clips[identity] = replace(known, captions=known.captions + clip.captions)
                    told[identity] |= {number, *clip.captions}
    yield from clips.values()


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


def _clip_of(
    fields: dict[str, Any], columns: Columns, path: str, row: int, stem: str
) -> tuple[SourceRow, Any, str | None]:
    """A row as a clip, what tells it from other clips, and the publisher's number of its caption."""

    def text(column: str | None) -> str | None:
        value = None if column is None else fields[column]
        return None if value is None or str(value) == "" else str(value)

    video, start, name, number = text(columns.video), text(columns.start), text(columns.name), text(columns.number)
    start_s = None if start is None else seconds(start, f"{path} row {row}")
    audio_path = None
    if columns.audio_path is not None:
        audio_path = (fields[columns.audio_path.removesuffix(".path")] or {}).get("path")
    if video is not None and start_s is not None:
        label = VideoClip(youtube_id=video, start_s=start_s, row=row).name
    else:
        label = video or name or audio_path or ""
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
    identity = (video, start_s, name) if video is not None or name is not None else (path, row)
    return clip, identity, number
