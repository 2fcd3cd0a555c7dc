"""Write a shard: a WebDataset tar of mono 16-bit audio, and one manifest row per clip."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data.audio import WAV_HEADER_BYTES, Recording, UnusableAudio, flac_of, read_recording
from pipeline.data.catalogs import OK, REASONS, SEGMENT_COLUMNS
from pipeline.data.containers import Members, place_of
from pipeline.data.shards.settings import AudioSettings
from pipeline.data.shards.stretch_reader import StretchReader

logger = logging.getLogger(__name__)

COPIED = ("key", "dataset", "split", "status", "reason", "source_id", "source_name", "start_s", "captions")


def write_clips(
    clips: Sequence[Mapping[str, Any]],
    tar: tarfile.TarFile,
    members: Members,
    stretches: StretchReader,
    *,
    shard: str,
    settings: AudioSettings,
) -> list[dict[str, Any]]:
    """Append the clips to a tar and return their manifest rows, with a reason for unusable audio.

    members: gives the bytes of clips that are whole members of larger files. stretches: gives those that are stretches
    of a file.
    """
    rows = []
    for clip in clips:
        row = {name: clip[name] for name in (*COPIED, *SEGMENT_COLUMNS) if name in clip} | {"shard": shard}
        is_stretch = clip.get(SEGMENT_COLUMNS[0]) is not None
        rows.append(row)
        if clip["status"] != OK:
            continue
        try:
            recording = stretches.read(clip) if is_stretch else _whole(clip, members, settings)
        except UnusableAudio as error:
            status, wording = REASONS[error.reason]
            row |= {"status": status, "reason": error.reason}
            if not is_stretch:  # StretchReader logs those of a recording together
                logger.warning("%s %s: %s (%s)", place_of(clip), wording, error, clip["key"])
            continue
        row |= add_clip(tar, clip, recording, settings)
    return rows


def _whole(clip: Mapping[str, Any], members: Members, settings: AudioSettings) -> Recording:
    source = clip["path"] if clip["member"] is None else members.read(clip["path"], clip["member"])
    if source is None:
        raise UnusableAudio("missing_file", "the row holds no bytes")
    return read_recording(
        source,
        sample_rate_hz=settings.sample_rate_hz,
        min_duration_s=settings.min_duration_s,
        channels=settings.channels,
    )


def add_clip(
    tar: tarfile.TarFile, clip: Mapping[str, Any], recording: Recording, settings: AudioSettings
) -> dict[str, Any]:
    """Append one clip to a tar and return its manifest columns: offsets, sizes, levels and checksum."""
    is_wav = settings.audio_format == "wav"
    audio = recording.wav if is_wav else flac_of(recording)
    frames = len(recording.samples_S)
    description = {  # the same names and types in every sample, none null, for Hugging Face datasets
        "captions": clip["captions"],
        "dataset": clip["dataset"],
        "split": clip["split"],
        "source_name": clip["source_name"],
        "source_id": clip["source_id"] or "",
        "start_s": -1.0 if clip["start_s"] is None else clip["start_s"],
        "frames": frames,
        "sample_rate_hz": settings.sample_rate_hz,
        **{name: -1.0 if clip[name] is None else clip[name] for name in SEGMENT_COLUMNS if name in clip},
    }
    offset = add_sample(tar, clip["key"], settings.audio_format, audio, description)
    return {
        "data_offset": offset,
        "data_size": len(audio),
        "pcm_offset": offset + WAV_HEADER_BYTES if is_wav else None,
        "frames": frames,
        "sample_rate_hz": settings.sample_rate_hz,
        "source_sample_rate_hz": recording.source_sample_rate_hz,
        "source_channels": recording.source_channels,
        "peak_dbfs": recording.peak_dbfs,
        "rms_dbfs": recording.rms_dbfs,
        "sha256": hashlib.sha256(audio).hexdigest(),
    }


def add_sample(tar: tarfile.TarFile, key: str, extension: str, audio: bytes, facts: Mapping[str, Any]) -> int:
    """Append `KEY.wav` or `KEY.flac`, then `KEY.json`, to a USTAR archive and return the offset of the audio in it.

    The bytes equal those of webdataset's TarWriter with mtime 0. Importing webdataset would import torch: 2.6 s in a
    job that takes two.
    """
    offset = tar.offset + tarfile.BLOCKSIZE  # a USTAR header is one block
    for name, data in ((f"{key}.{extension}", audio), (f"{key}.json", json.dumps(facts, ensure_ascii=False).encode())):
        member = tarfile.TarInfo(name)
        member.size = len(data)
        member.mode = 0o444
        member.uname = member.gname = "bigdata"
        tar.addfile(member, io.BytesIO(data))
    return offset
