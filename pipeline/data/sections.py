"""The stretches of a file that libsndfile decodes, so that all the sound in it is read.

libsndfile reads as much as a header says. Where the file holds more, a section gives libsndfile that part of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO

import soundfile

from pipeline.data import layouts
from pipeline.data.layouts import AudioBytes, SoundData
from pipeline.data.mpeg_frames import MpegPart, mpeg_parts
from pipeline.data.sound_files import Stream, byte_range, streamed, whole
from pipeline.data.unusable import TRUNCATED_BY_S, UnusableAudio

UNKNOWN_FRAMES = 1 << 48
"""From here on: the number of frames that libsndfile gives for FLAC and MP3 of unknown length."""
_SAMPLE_BYTES = {
    "PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a file that libsndfile decodes as one."""

    open: Callable[[], AbstractContextManager[soundfile.SoundFile]]
    held_frames: int | None = None
    """Frames that the section should have; None where libsndfile's own count is right, 0 where nothing says it."""
    fault: UnusableAudio | None = None
    """Why the section is cut off, by its headers; what is left of it can be decoded."""
    is_seekable: bool = False
    """Whether decoding from any frame on gives the samples that decoding from the beginning gives, if the number of
    frames is known."""


def sections_of(file: BinaryIO, data: AudioBytes) -> list[Section]:
    """The stretches of a file, at least one, that are decoded one after another."""
    start = data.tags_bytes()
    magic = data.at(start, 4)
    if magic == b"OggS":
        return _ogg_sections(file, data)
    if magic == b"fLaC":
        return [_flac_section(file, data, start)]
    if (sound := layouts.sound_data(data)) is not None:
        return [_sound_data_section(file, data, sound)]
    if parts := mpeg_parts(data, start):
        return _mpeg_sections(file, parts, start)
    return [Section(lambda: whole(file))]


def _ogg_sections(file: BinaryIO, data: AudioBytes) -> list[Section]:
    links = layouts.ogg_links(data)
    faults = [
        None
        if layouts.ogg_ends(data, *link)
        else UnusableAudio("truncated", "its last page is not marked as the end of the stream")
        for link in links
    ]
    if len(links) < 2:
        return [Section(lambda: whole(file), fault=next(iter(faults), None))]
    return [
        Section(lambda part=link: soundfile.SoundFile(byte_range(file, *part)), fault=fault)  # type: ignore[misc]
        for link, fault in zip(links, faults, strict=True)
    ]


def _flac_section(file: BinaryIO, data: AudioBytes, start: int) -> Section:
    """The FLAC stream without the tags after it, at which libFLAC would lose its way."""
    end = layouts.end_of_sound(data)
    first_sample = layouts.flac_first_sample(data, start)

    def opened() -> soundfile.SoundFile:
        return whole(file, Stream) if end == data.size else Stream(byte_range(file, 0, end))

    if first_sample == 0:
        return Section(opened, is_seekable=True)
    with opened() as sound:
        return Section(opened, max(0, sound.frames - first_sample) if sound.frames < UNKNOWN_FRAMES else 0)


def _sound_data_section(file: BinaryIO, data: AudioBytes, place: SoundData) -> Section:
    """A WAV, AIFF, AU or CAF file; from the first sample on as raw samples, where its header says too little."""
    with whole(file) as sound:
        rate_hz, channels, subtype, endian = sound.samplerate, sound.channels, sound.subtype, sound.endian
        frames = sound.frames
    if subtype in _SAMPLE_BYTES:
        frame_bytes = float(_SAMPLE_BYTES[subtype] * channels)
    else:
        frame_bytes = place.held / frames if frames else 1.0  # compressed in blocks
    tolerated = TRUNCATED_BY_S * rate_hz * frame_bytes
    if place.unexplained > tolerated:
        raise UnusableAudio("inconsistent", f"{place.unexplained} bytes follow the samples that its header announces")
    fault, held_frames = None, None
    if place.announced is not None and place.held and place.announced - place.held > tolerated:
        held_frames = round(place.announced / frame_bytes)
        fault = UnusableAudio("truncated", f"{round(place.held / frame_bytes)} of {held_frames} frames")
    if place.held - frames * frame_bytes <= tolerated:
        return Section(lambda: whole(file), held_frames, fault, is_seekable=subtype in _SAMPLE_BYTES)
    if subtype not in _SAMPLE_BYTES:
        raise UnusableAudio("inconsistent", f"{place.held} bytes of {subtype} where its header announces none")
    if endian == "FILE":
        endian = "BIG" if place.is_big_endian else "LITTLE"
    there = int(place.held // frame_bytes)

    def opened() -> soundfile.SoundFile:
        end = place.start + there * int(frame_bytes)
        raw = byte_range(file, place.start, end)
        return soundfile.SoundFile(raw, "r", rate_hz, channels, subtype, endian, "RAW")

    return Section(opened, held_frames or there, fault, is_seekable=True)


def _mpeg_sections(file: BinaryIO, parts: Sequence[MpegPart], start: int) -> list[Section]:
    """An MP3 file: whole if libmpg123 finds all that it holds, otherwise by parts, as streams of frames.

    start: where its tags end.
    """
    faults: list[UnusableAudio | None] = []
    for part in parts:
        if part.gap_s > TRUNCATED_BY_S:
            raise UnusableAudio("damaged", f"{part.gap_bytes} bytes between its frames are no MP3")
        if (part.sample_rate_hz, part.channels) != (parts[0].sample_rate_hz, parts[0].channels):
            found = f"{part.sample_rate_hz} Hz and {part.channels} channels after {parts[0].sample_rate_hz} Hz"
            raise UnusableAudio("changes_format", f"{found} and {parts[0].channels}")
        tolerated = TRUNCATED_BY_S * part.sample_rate_hz
        missing = ((part.announced_frames or 0) - part.frames) * part.frame_samples
        is_cut = missing > tolerated
        detail = f"{part.frames} of {part.announced_frames} MP3 frames"
        faults.append(UnusableAudio("truncated", detail) if is_cut else None)
        if -missing > tolerated:
            part.announced_frames = None  # one without a header was joined, or the header was never filled in
    only = parts[0] if len(parts) == 1 else None
    if only is not None and len(only.ranges) == 1 and only.ranges[0][0] == start:
        held = only.samples if only.announced_frames is None else 0
        with contextlib.suppress(soundfile.LibsndfileError), whole(file) as sound:  # it knows no APE tag at the start
            if held <= sound.frames:
                return [Section(lambda: whole(file), held or None, faults[0])]
    return [_mpeg_section(file, part, fault) for part, fault in zip(parts, faults, strict=True)]


def _mpeg_section(file: BinaryIO, part: MpegPart, fault: UnusableAudio | None) -> Section:
    """A part as a stream, of which libmpg123 estimates no length."""
    if part.announced_frames is not None:
        return Section(lambda: streamed(file, part.ranges), fault=fault)
    (start, end), *others = part.ranges
    ranges = [(start + part.info_bytes, end), *others]
    return Section(lambda: streamed(file, ranges), part.samples)
