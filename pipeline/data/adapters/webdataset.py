"""Shards of WebDataset: tars of `KEY.flac` (or other audio) with `KEY.json` or `KEY.txt`.

The JSON is read as LAION's audio-dataset writes it (`text`: a caption or a list of them,
https://github.com/LAION-AI/audio-dataset/blob/main/data_preprocess/README.md) or as this project does (`captions`).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pipeline.data.adapters.lists import decode
from pipeline.data.adapters.parquet import START_COLUMNS, VIDEO_COLUMNS
from pipeline.data.adapters.rows import CAPTION_COLUMNS, SourceRow, clean_captions, seconds
from pipeline.data.adapters.split_files import find_split_files
from pipeline.data.adapters.tars import Archive, read_archives
from pipeline.data.adapters.walking import AUDIO_EXTENSIONS, COMMON_EXTENSIONS, check_root
from pipeline.data.containers import range_size, read_range, unreadable
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

SOURCE_ID_KEYS = ("source_id", *VIDEO_COLUMNS)
READ_KEYS = (*CAPTION_COLUMNS, *SOURCE_ID_KEYS, *START_COLUMNS)
MAX_TEXT_BYTES = 1 << 24  # a caption file beyond it is none


@dataclass(slots=True)
class Sample:
    """The members of a tar that share a key."""

    audio: list[tuple[str, str | None]] = field(default_factory=list)
    """Extension and byte ranges; more than one is one too many."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The JSON."""
    text: str = ""

    def member(self) -> tuple[str | None, str | None]:
        """The byte ranges of the audio, or the reason why there is none."""
        audio = [(extension, place) for extension, place in self.audio if place is not None]
        audio = [(extension, place) for extension, place in audio if extension in COMMON_EXTENSIONS] or audio
        if len(audio) == 1:
            return audio[0][1], None
        return None, "ambiguous_file" if audio else "missing_file"


def read_webdataset(root: Path, split: str) -> Iterator[SourceRow]:
    """A clip per key of each tar of the split, named `TAR/KEY`; no audio is read.

    A key is a member's name without its last extension. A key with two audio files is `ambiguous_file`, one with none,
    or with a link that leads out of the tar, `missing_file`. Clips of the archives that were joined to a tar are named
    `TAR part 2/KEY` and so on.

    Raises:
        PipelineError: a tar is damaged, compressed or cut off, or a JSON is no object or has one key twice.
    """
    check_root(root)
    for path in find_split_files(root, split, ".tar"):
        stem = Path(path).relative_to(root).with_suffix("").as_posix()
        for part, archive in enumerate(read_archives(path), 1):
            tar = stem if part == 1 else f"{stem} part {part}"
            for key, sample in _samples(path, archive).items():
                place = f"{path} {key}"
                member, reason = sample.member()
                source_id = _first_value(sample.facts, SOURCE_ID_KEYS)
                start = _first_value(sample.facts, START_COLUMNS)
                start_s = None if start is None else seconds(str(start), place)
                yield SourceRow(
                    source_name=f"{tar}/{key}",
                    path=path if reason is None else None,
                    member=member,
                    reason=reason,
                    source_id=None if source_id is None else str(source_id),
                    start_s=None if start_s is None or start_s < 0 else start_s,
                    captions=_captions(sample, place),
                )


def _samples(path: str, archive: Archive) -> dict[str, Sample]:
    """The samples of an archive by key, in its order."""
    samples: dict[str, Sample] = {}
    guessed = []
    try:
        with open(path, "rb") as file:
            for name, place in archive:
                stem, extension = os.path.splitext(name)
                extension = extension.lower()
                if PurePosixPath(name).name.startswith("."):
                    continue
                if re.search("[\ud800-\udfff]", name):
                    raise PipelineError(f"{path}: the member name {name!a} is not UTF-8; make the tar again")
                if extension in AUDIO_EXTENSIONS:
                    samples.setdefault(stem, Sample()).audio.append((extension, place))
                elif extension in (".json", ".txt"):
                    is_utf8 = _add_text(samples.setdefault(stem, Sample()), file, name, place, path)
                    guessed += [] if is_utf8 else [name]
    except OSError as error:
        raise unreadable(path, error) from error
    if guessed:
        logger.warning(
            "%s: %d texts are not UTF-8, the first is %s: they are read as Windows-1252", path, len(guessed), guessed[0]
        )
    return samples


def _add_text(sample: Sample, file: BinaryIO, name: str, place: str | None, path: str) -> bool:
    """Read a JSON or text member into its sample; False if it is not UTF-8."""
    if place is None:
        raise PipelineError(f"{path}: {name} is a link to a file that is not in the tar; make the tar again")
    if range_size(place) > MAX_TEXT_BYTES:
        raise PipelineError(f"{path}: {name} of {range_size(place)} bytes is no text of a clip")
    data = read_range(file, place)
    if len(data) < range_size(place):
        raise PipelineError(f"{path}: ends inside {name}; is it cut off? Fetch it again")
    text, unfit_line = decode(data)
    if name.lower().endswith(".txt"):
        sample.text = text
        return unfit_line is None
    try:
        facts = json.loads(text, object_pairs_hook=_object)
        json.dumps(facts, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: {name} is not JSON ({error})") from error
    if not isinstance(facts, dict):
        raise PipelineError(f"{path}: {name} holds no JSON object but {type(facts).__name__}")
    sample.facts = facts
    return unfit_line is None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for one with two values of a key that is read, of which the last would win."""
    value = dict(pairs)
    if len(value) < len(pairs):
        for key, other in pairs:
            if key in READ_KEYS and other != value[key]:
                raise ValueError(f"the key {key} has two values")
    return value


def _captions(sample: Sample, place: str) -> tuple[str, ...]:
    """The captions of the JSON, or else of the text."""
    value = _first_value(sample.facts, CAPTION_COLUMNS)
    if value is None:
        return clean_captions([sample.text])
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(caption is None or isinstance(caption, str) for caption in captions):
        raise PipelineError(f"{place}: captions are text or a list of text, found {str(value)[:80]!r}")
    return clean_captions(caption for caption in captions if caption is not None)


def _first_value(facts: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of the first key that has one."""
    return next((facts[key] for key in keys if facts.get(key) not in (None, "", [])), None)
