"""Shards of WebDataset: tars of `KEY.flac` (or other audio) with `KEY.json` or `KEY.txt`.

The JSON is read as LAION's audio-dataset writes it (`text`: a caption or a list of them,
https://github.com/LAION-AI/audio-dataset/blob/main/data_preprocess/README.md) or as this project does (`captions`).
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.adapters.parquet import CAPTION_COLUMNS, START_COLUMNS, VIDEO_COLUMNS
from pipeline.data.adapters.sources import (
    AUDIO_EXTENSIONS,
    SourceRow,
    check_root,
    clean_captions,
    find_split_files,
    seconds,
)
from pipeline.data.containers import range_member, unreadable
from pipeline.errors import PipelineError

TAR_ERRORS = (tarfile.TarError, OSError, ValueError, OverflowError, EOFError)
"""What tarfile raises for a file that is damaged, cut off or no tar at all."""
SOURCE_ID_KEYS = ("source_id", *VIDEO_COLUMNS)
MAX_TEXT_BYTES = 1 << 24  # a caption file beyond it is none


@dataclass(slots=True)
class Sample:
    """The members of a tar that share a key."""

    audio: list[str] = field(default_factory=list)
    """Byte ranges; more than one is one too many."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The JSON."""
    text: str = ""


def read_webdataset(root: Path, split: str) -> Iterator[SourceRow]:
    """A clip a key of each tar of the split, named `TAR/KEY`; no audio is read.

    A key is a member's name without its last extension. A key with two audio files is `ambiguous_file`, one with none
    `missing_file`. Raises PipelineError for a tar that is damaged, compressed or cut off (even between two members),
    and for JSON that is not an object.
    """
    check_root(root)
    for path in find_split_files(root, split, ".tar"):
        stem = Path(path).relative_to(root).with_suffix("").as_posix()
        for key, sample in _samples(path).items():
            place = f"{path} {key}"
            reason = None
            if len(sample.audio) != 1:
                reason = "ambiguous_file" if sample.audio else "missing_file"
            source_id = _first_value(sample.facts, SOURCE_ID_KEYS)
            start = _first_value(sample.facts, START_COLUMNS)
            start_s = None if start is None else seconds(str(start), place)
            yield SourceRow(
                source_name=f"{stem}/{key}",
                path=path if reason is None else None,
                member=sample.audio[0] if reason is None else None,
                reason=reason,
                source_id=None if source_id is None else str(source_id),
                start_s=None if start_s is None or start_s < 0 else start_s,
                captions=_captions(sample, place),
            )


def _samples(path: str) -> dict[str, Sample]:
    """The samples of a tar by key, in its order."""
    samples: dict[str, Sample] = {}
    try:
        with tarfile.open(path, "r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # a tar of a million members would be kept in memory
                stem, extension = os.path.splitext(member.name)
                extension = extension.lower()
                if not member.isreg() or PurePosixPath(member.name).name.startswith("."):
                    continue
                if re.search("[\ud800-\udfff]", member.name):
                    raise PipelineError(f"{path}: the member name {member.name!a} is not UTF-8; make the tar again")
                if extension in AUDIO_EXTENSIONS:
                    samples.setdefault(stem, Sample()).audio.append(range_member(member.offset_data, member.size))
                elif extension in (".json", ".txt"):
                    _add_text(samples.setdefault(stem, Sample()), tar, member, path)
            _check_end(path, tar.offset)
    except TAR_ERRORS as error:
        raise unreadable(path, error) from error
    return samples


def _check_end(path: str, offset: int) -> None:
    """Raise PipelineError unless a tar has its end mark where the last member ends: tarfile takes a cut for the end."""
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise PipelineError(f"{path}: has no end mark after byte {offset}; is it cut off? Fetch it again")


def _add_text(sample: Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    """Read a JSON or text member into its sample."""
    file = tar.extractfile(member)
    if file is None or member.size > MAX_TEXT_BYTES:
        raise PipelineError(f"{path}: {member.name} of {member.size} bytes is no text of a clip")
    data = file.read()
    if len(data) < member.size:
        raise PipelineError(f"{path}: ends inside {member.name}; is it cut off? Fetch it again")
    text = data.decode("utf-8-sig", errors="replace")
    if member.name.lower().endswith(".txt"):
        sample.text = text
        return
    try:
        facts = json.loads(text)
        json.dumps(facts, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: {member.name} is not JSON ({error})") from error
    if not isinstance(facts, dict):
        raise PipelineError(f"{path}: {member.name} holds no JSON object but {type(facts).__name__}")
    sample.facts = facts


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
