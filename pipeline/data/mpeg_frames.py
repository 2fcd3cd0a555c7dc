"""The frames of MP3 and MP2 files (ISO 11172-3, 13818-3): how much sound they hold and where, without decoding any."""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.data.layouts import READ_BYTES, AudioBytes, end_of_sound, tag_bytes

_MAX_JUNK_BYTES = 1 << 16  # before the first frame, as libmpg123 has it
_HEAD_BYTES = 4 + 32 + 12  # of a frame: header, side information, the start of a Xing header
_BITRATES_KBPS = {  # by MPEG 1 or not, and layer
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_SECOND = bytes(byte for byte in range(0xE0, 0x100) if (byte >> 3) & 3 != 1 and (byte >> 1) & 3)
_THIRD = bytes(byte for byte in range(0x10, 0xF0) if (byte >> 2) & 3 != 3)
_MPEG_HEADER = re.compile(b"\xff[" + re.escape(_SECOND) + b"][" + re.escape(_THIRD) + b"]", re.DOTALL)


_INFO = (b"Xing", b"Info")


class _Frame(NamedTuple):
    """The header of an MPEG audio frame."""

    size: int
    samples: int
    kind: tuple[int, int, int]
    """Version, layer, rate: the same in all frames of a stream."""
    channels: int


@functools.lru_cache(maxsize=4096)
def _frame(header: bytes) -> _Frame | None:
    """The frame that a header announces; None for other bytes and for frames of a free bit rate."""
    if len(header) < 4 or not _MPEG_HEADER.match(header):
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    is_first = version == 3
    rate_hz = _MPEG_RATES_HZ[version][header[2] >> 2 & 3]
    bits_per_s = 1000 * _BITRATES_KBPS[is_first, layer][header[2] >> 4]
    padding = header[2] >> 1 & 1
    if layer == 1:
        size, samples = (12 * bits_per_s // rate_hz + padding) * 4, 384
    else:
        samples = 1152 if layer == 2 or is_first else 576
        size = samples // 8 * bits_per_s // rate_hz + padding
    return _Frame(size, samples, (version, layer, rate_hz), 1 if header[3] >> 6 == 3 else 2)


@dataclass(slots=True)
class MpegPart:
    """A run of MPEG audio frames of one rate and number of channels; an Info header begins a new one."""

    sample_rate_hz: int
    channels: int
    announced_frames: int | None
    """By the Xing or Info header; None without one, or where it leaves that open."""
    info_bytes: int
    """Size of the frame that holds that header and no sound; 0 without one."""
    frame_samples: int
    frames: int = 0
    """In the file, without the Info header."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """Starts and ends of its bytes, the Info header first; neither tags nor what is no frame is among them."""
    gap_bytes: int = 0
    """Between its frames, and neither frame nor tag."""

    def add(self, start: int, end: int) -> None:
        """Append a range of bytes, which may continue the last one."""
        if self.ranges and self.ranges[-1][1] == start:
            start = self.ranges.pop()[0]
        self.ranges.append((start, end))

    @property
    def samples(self) -> int:
        """Of all its frames."""
        return self.frames * self.frame_samples

    @property
    def gap_s(self) -> float:
        """How long the sound was, roughly, of which other bytes have taken the place."""
        size = sum(end - start for start, end in self.ranges) - self.info_bytes
        return self.gap_bytes * self.samples / max(1, size) / self.sample_rate_hz


def mpeg_parts(data: AudioBytes, start: int) -> list[MpegPart]:
    """The parts of an MP3 (or MP2) file from an offset on; none where no frames are found.

    Tags are left out wherever they are, and so are other bytes, of which a frame begins only where another follows.
    """
    end = end_of_sound(data)
    parts: list[MpegPart] = []
    kind: tuple[int, int, int] | None = None
    offset, gap = start, 0
    limit: int | None = start + _MAX_JUNK_BYTES
    while offset < end:
        head = data.at(offset, _HEAD_BYTES)
        frame = _frame(head[:4])
        if frame is not None and (frame.kind == kind or _is_followed(data, offset, frame, end)):
            if offset + frame.size > end:
                break  # cut off
            part = parts[-1] if parts else None
            info, announced = _info_header(head, frame)
            if info or part is None or (part.sample_rate_hz, part.channels) != (frame.kind[2], frame.channels):
                part = MpegPart(frame.kind[2], frame.channels, announced, frame.size if info else 0, frame.samples)
                parts.append(part)
                gap = 0
            part.frames += not info
            part.gap_bytes += gap
            kind, gap, limit = frame.kind, 0, None
            after, alike = _frames_alike(data, offset + frame.size, frame, end)
            part.add(offset, after)
            part.frames += alike
            offset = after
        elif size := tag_bytes(data, offset):
            offset += size
            limit = limit and offset + _MAX_JUNK_BYTES
        else:
            found = _next_header(data, offset + 1, end if limit is None else min(end, limit))
            gap += found - offset
            offset = found
            if limit is not None and offset >= limit:
                break
    return [part for part in parts if part.frames]


def _frames_alike(data: AudioBytes, offset: int, frame: _Frame, end: int) -> tuple[int, int]:
    """Return where the frames like `frame` end that follow from an offset on without a gap, and how many they are.

    An Info header ends them. A day of sound has 3.6 million frames, so each costs no more than a slice and a lookup.
    """
    at_info = 4 + _side_bytes(frame)
    sizes: dict[bytes, int] = {}
    count, most_bytes = 0, 1 << 12  # and more each time: where runs are short, a long block would be read for each
    while len(block := data.at(offset, min(most_bytes, end - offset))) >= _HEAD_BYTES:
        most_bytes = min(READ_BYTES, 2 * most_bytes)
        place, last = 0, len(block) - _HEAD_BYTES
        while place <= last:
            header = block[place : place + 4]
            if (size := sizes.get(header)) is None:
                found = _frame(header)
                is_alike = found is not None and (found.kind, found.channels) == (frame.kind, frame.channels)
                size = sizes[header] = found.size if found is not None and is_alike else 0
            is_info = block.startswith(_INFO, place + at_info) or block.startswith(b"VBRI", place + 36)
            if size == 0 or is_info or offset + place + size > end:
                return offset + place, count
            place += size
            count += 1
        offset += place
    return offset, count


def _side_bytes(frame: _Frame) -> int:
    """The size of a layer 3 frame's side information."""
    if frame.kind[0] == 3:
        return 32 if frame.channels == 2 else 17
    return 17 if frame.channels == 2 else 9


def _is_followed(data: AudioBytes, offset: int, frame: _Frame, end: int) -> bool:
    """True if another frame of the same kind, a tag or the end of the file comes after a frame."""
    after = offset + frame.size
    following = _frame(data.at(after, 4))
    return after == end or (following is not None and following.kind == frame.kind) or tag_bytes(data, after) > 0


def _next_header(data: AudioBytes, offset: int, end: int) -> int:
    """Where the next bytes are that look like a frame's header or a tag; `end` if none are."""
    while offset < end:
        block = data.at(offset, min(READ_BYTES, end - offset))
        places = [block.find(b"ID3"), block.find(b"APETAGEX")]
        if match := _MPEG_HEADER.search(block):
            places.append(match.start())
        if places := [place for place in places if place >= 0]:
            return offset + min(places)
        offset += max(1, len(block) - 8)
    return end


def _info_header(head: bytes, frame: _Frame) -> tuple[bool, int | None]:
    """True if a frame holds a Xing, Info or VBRI header and no sound, and how many frames that announces.

    head: the first `_HEAD_BYTES` of the frame.
    """
    if frame.kind[1] != 3:
        return False, None
    side_bytes = _side_bytes(frame)
    found = head[4 + side_bytes : 16 + side_bytes]
    if found[:4] in _INFO and len(found) == 12:
        flags, frames = struct.unpack(">II", found[4:])
        return True, frames if flags & 1 and frames else None
    return head[36:40] == b"VBRI", None
