"""How much sound an audio file holds and where, from its bytes alone, without decoding any.

libsndfile trusts a file's header. Where the header is missing, was never filled in or wrapped around, these functions
find what is there: chunks of WAV, AIFF, AU and CAF, frames of MP3 (ISO 11172-3), pages of Ogg (RFC 3533), FLAC.
"""

from __future__ import annotations

import functools
import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

_READ_BYTES = 1 << 20
_MAX_CHUNKS = 10_000  # a file of empty chunks must not take minutes
_UNKNOWN_BYTES = 0x7FFFF000  # from here on: what encoders that write to a pipe put as the length
_WRAP_BYTES = 1 << 32
_OGG_PAGE_BYTES = 27  # of a page's header, before its table of segments
_OGG_TAIL_BYTES = 2 * 65_307  # the largest page, whole wherever the file ends, and something after it
_OGG_FIRST_PAGE = b"OggS\x00\x02"
_MAX_JUNK_BYTES = 1 << 16  # before the first MP3 frame, as libmpg123 has it


class AudioBytes:
    """Random access to the bytes of an open file, a megabyte in memory at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start, self._block = 0, b""
        self.size = file.seek(0, 2)

    def at(self, offset: int, count: int) -> bytes:
        """So many bytes from an offset on; fewer at the end of the file. Raises OSError."""
        count = max(0, min(count, self.size - offset))
        first = offset - self._start
        if first < 0 or first + count > len(self._block):
            self._file.seek(offset)
            self._start, self._block, first = offset, self._file.read(max(count, _READ_BYTES)), 0
        return self._block[first : first + count]

    def blocks(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to `end` in pieces of at most a megabyte. Raises OSError."""
        while start < end and (block := self.at(start, min(_READ_BYTES, end - start))):
            yield block
            start += len(block)


# --- tags ------------------------------------------------------------------------------------------------------------


def tag_bytes(data: AudioBytes, offset: int) -> int:
    """The length of the ID3, APE or Lyrics3 tag that begins at an offset; 0 where there is none."""
    head = data.at(offset, 32)
    if len(head) >= 10 and head[:3] == b"ID3" and max(head[6:10]) < 0x80:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        return 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:3] == b"TAG" and offset + 128 <= data.size:
        return 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        size, _, flags = struct.unpack_from("<III", head, 12)
        return 32 if not flags & 1 << 29 else 32 + size  # a footer alone, or a header, its items and their footer
    if head[:11] == b"LYRICSBEGIN":
        rest = data.at(offset, 1 << 16)
        end = max(rest.find(b"LYRICS200"), rest.find(b"LYRICSEND"))
        return end + 9 if end > 0 else 0
    return 0


def end_of_sound(data: AudioBytes) -> int:
    """Where the ID3 and APE tags at a file's end begin; the file's size without such tags."""
    end = data.size
    if end >= 128 and data.at(end - 128, 3) == b"TAG":
        end -= 128
    footer = data.at(end - 32, 32) if end >= 32 else b""
    if footer[:8] == b"APETAGEX":
        size, _, flags = struct.unpack_from("<III", footer, 12)
        end -= size + (32 if flags >> 31 else 0)
    return max(end, 0)


# --- WAV, AIFF, AU, CAF ----------------------------------------------------------------------------------------------


class _Container(NamedTuple):
    """How a container of chunks is laid out."""

    first_chunk: int
    """Offset."""
    chunk_header: struct.Struct
    """Of a chunk's name and size."""
    sound: bytes
    """Name of the chunk that holds the samples."""
    before_samples: int
    """Bytes of that chunk before the samples."""


_CONTAINERS = {
    b"RIFF": _Container(12, struct.Struct("<4sI"), b"data", 0),
    b"RF64": _Container(12, struct.Struct("<4sI"), b"data", 0),
    b"RIFX": _Container(12, struct.Struct(">4sI"), b"data", 0),
    b"FORM": _Container(12, struct.Struct(">4sI"), b"SSND", 8),
    b"caff": _Container(8, struct.Struct(">4sq"), b"data", 4),
}


@dataclass(frozen=True, slots=True)
class SoundData:
    """Where the samples of a WAV, AIFF, AU or CAF file are."""

    start: int
    """Offset of the first sample."""
    announced: int | None
    """Bytes of samples by the header; None where it leaves that open, as an encoder does that writes to a pipe."""
    held: int
    """Bytes of samples in the file."""
    unexplained: int
    """Bytes after the samples that are no chunk, tag or padding."""
    is_big_endian: bool


def sound_data(data: AudioBytes) -> SoundData | None:
    """Where a WAV, AIFF, AU or CAF file's samples are, and how many bytes of them; None for any other file.

    A 32-bit size that wrapped around is corrected. A size of 0, which a killed recorder leaves, stands for all that
    follows, unless chunks or zeros follow.
    """
    magic = data.at(0, 4)
    if magic in (b".snd", b"dns.") and data.size >= 24:
        order = ">" if magic == b".snd" else "<"
        start, announced = struct.unpack(f"{order}II", data.at(4, 8))
        return _measured(data, None, start, announced, order == ">")
    if (container := _CONTAINERS.get(magic)) is None:
        return None
    wide_size = None
    for offset, name, size in _chunks(data, container, container.first_chunk):
        body = offset + container.chunk_header.size
        if name == b"ds64" and magic == b"RF64" and len(sizes := data.at(body, 16)) == 16:
            wide_size = struct.unpack("<QQ", sizes)[1]
        elif name == container.sound:
            announced = size - container.before_samples
            if wide_size is not None and size == 0xFFFFFFFF:
                announced = wide_size
            start = body + container.before_samples
            return _measured(data, container, start, announced, container.chunk_header.format[0] == ">")
    return None


def _measured(
    data: AudioBytes, container: _Container | None, start: int, announced: int, is_big_endian: bool
) -> SoundData:
    """The sound data that begin at `start`, held against the file's size. container: None where no chunks follow."""
    rest = max(0, data.size - start)
    is_open = announced <= 0 or _UNKNOWN_BYTES <= announced < _WRAP_BYTES
    if is_open and announced >= rest:
        return SoundData(start, None, rest, 0, is_big_endian)
    if announced >= rest:
        return SoundData(start, announced, rest, 0, is_big_endian)
    announced = max(0, announced)
    wraps = (rest - announced) // _WRAP_BYTES  # no chunk after the samples is as long as 4 GiB
    held = announced + wraps * _WRAP_BYTES
    unexplained = _unexplained(data, container, start + held)
    if is_open and unexplained:
        return SoundData(start, None, rest, 0, is_big_endian)
    return SoundData(start, held, held, unexplained, is_big_endian)


def _chunks(data: AudioBytes, container: _Container, offset: int) -> Iterator[tuple[int, bytes, int]]:
    """Offset, name and size of the chunks from an offset on, up to what is no chunk."""
    header = container.chunk_header
    for _ in range(_MAX_CHUNKS):
        if len(found := data.at(offset, header.size)) < header.size:
            return
        name, size = header.unpack(found)
        if not all(0x20 <= letter < 0x7F for letter in name):
            return
        yield offset, name, size
        offset += header.size + max(0, size)
        if size % 2 and header.size == 8 and data.at(offset, 1) == b"\0":
            offset += 1  # to an even size; some writers leave that out


def _unexplained(data: AudioBytes, container: _Container | None, offset: int) -> int:
    """How many of the bytes from an offset on are neither chunks nor tags, nor zeros up to the end."""
    if container is not None:
        offset += data.at(offset, 1) == b"\0" and offset % 2
        for start, name, size in _chunks(data, container, offset):
            end = start + container.chunk_header.size + max(0, size)
            if name in _CONTAINERS or end > data.size + 1:  # another file, or no chunk after all
                break
            offset = end + (size % 2 and data.at(end, 1) == b"\0")
    while offset < data.size and (size := tag_bytes(data, offset)):
        offset += size
    if not any(block.strip(b"\0") for block in data.blocks(offset, data.size)):
        return 0
    return max(0, data.size - offset)


# --- Ogg -------------------------------------------------------------------------------------------------------------


def ogg_links(data: AudioBytes) -> list[tuple[int, int]]:
    """The start and end of every link of a chained Ogg file (RFC 3533, 4); one for a file that is not chained."""
    starts = []
    end_of_group = -1  # streams that run side by side begin with one page each, one after another
    for offset in _found(data, _OGG_FIRST_PAGE):
        if offset != end_of_group:
            starts.append(offset)
        table = data.at(offset + _OGG_PAGE_BYTES, (data.at(offset, _OGG_PAGE_BYTES) or b"\0")[-1])
        end_of_group = offset + _OGG_PAGE_BYTES + len(table) + sum(table)
    return list(itertools.pairwise([*starts, data.size]))


def _found(data: AudioBytes, wanted: bytes) -> Iterator[int]:
    """The offsets at which some bytes occur."""
    offset = 0
    while len(block := data.at(offset, _READ_BYTES)) >= len(wanted):
        place = -1
        while (place := block.find(wanted, place + 1)) >= 0:
            yield offset + place
        offset += len(block) - len(wanted) + 1


def ogg_ends(data: AudioBytes, start: int, end: int) -> bool:
    """True if the end of a link holds a whole page that is marked as the end of a stream (RFC 3533, 6).

    libsndfile decodes what is left of a file that was cut off, without an error. Encoders set the mark; a recorder that
    was killed does not, and its files count as cut off, too.
    """
    first = max(start, end - _OGG_TAIL_BYTES)
    tail = data.at(first, end - first)
    place = len(tail)
    while (place := tail.rfind(b"OggS", 0, place)) >= 0:
        header = tail[place : place + _OGG_PAGE_BYTES]
        if len(header) == _OGG_PAGE_BYTES and header[5] & 4:
            table = tail[place + _OGG_PAGE_BYTES : place + _OGG_PAGE_BYTES + header[26]]
            if len(table) == header[26] and place + _OGG_PAGE_BYTES + len(table) + sum(table) <= len(tail):
                return True
    return False


# --- FLAC ------------------------------------------------------------------------------------------------------------


def flac_first_sample(data: AudioBytes, offset: int) -> int:
    """The number of a FLAC stream's first sample (RFC 9639, 9.1): above 0 in a segment cut out of a longer stream.

    ffmpeg's last segment announces the samples of all segments together.
    """
    offset += 4
    block_samples = struct.unpack(">H", data.at(offset + 6, 2) or b"\0\0")[0]  # STREAMINFO's largest block
    for _ in range(_MAX_CHUNKS):
        if len(header := data.at(offset, 4)) < 4:
            return 0
        offset += 4 + int.from_bytes(header[1:], "big")
        if header[0] & 0x80:
            break
    frame = data.at(offset, 11)
    if len(frame) < 11 or frame[0] != 0xFF or frame[1] & 0xFE != 0xF8:
        return 0
    first = frame[4]
    if first < 0x80:
        number = first
    else:  # as UTF-8, of up to seven bytes
        length = 8 - (~first & 0xFF).bit_length()
        number = first & (0x7F >> length)
        for byte in frame[5 : 4 + length]:
            number = number << 6 | byte & 0x3F
    return number if frame[1] & 1 else number * block_samples


# --- MP3 -------------------------------------------------------------------------------------------------------------

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


class _Frame(NamedTuple):
    """What the four bytes before an MPEG audio frame say."""

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
        frame = _frame(data.at(offset, 4))
        if frame is not None and (frame.kind == kind or _is_followed(data, offset, frame, end)):
            if offset + frame.size > end:
                break  # cut off
            part = parts[-1] if parts else None
            info, announced = _info_header(data, offset, frame)
            if info or part is None or (part.sample_rate_hz, part.channels) != (frame.kind[2], frame.channels):
                part = MpegPart(frame.kind[2], frame.channels, announced, frame.size if info else 0, frame.samples)
                parts.append(part)
                gap = 0
            part.add(offset, offset + frame.size)
            part.frames += not info
            part.gap_bytes += gap
            kind, gap, limit = frame.kind, 0, None
            offset += frame.size
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


def _is_followed(data: AudioBytes, offset: int, frame: _Frame, end: int) -> bool:
    """True if another frame of the same kind, a tag or the end of the file comes after a frame."""
    after = offset + frame.size
    following = _frame(data.at(after, 4))
    return after == end or (following is not None and following.kind == frame.kind) or tag_bytes(data, after) > 0


def _next_header(data: AudioBytes, offset: int, end: int) -> int:
    """Where the next bytes are that look like a frame's header or a tag; `end` if none are."""
    while offset < end:
        block = data.at(offset, min(_READ_BYTES, end - offset))
        places = [block.find(b"ID3"), block.find(b"APETAGEX")]
        if match := _MPEG_HEADER.search(block):
            places.append(match.start())
        if places := [place for place in places if place >= 0]:
            return offset + min(places)
        offset += max(1, len(block) - 8)
    return end


def _info_header(data: AudioBytes, offset: int, frame: _Frame) -> tuple[bool, int | None]:
    """True if a frame holds a Xing, Info or VBRI header and no sound, and how many frames that announces."""
    version, layer, _ = frame.kind
    if layer != 3:
        return False, None
    side_bytes = (32 if frame.channels == 2 else 17) if version == 3 else (17 if frame.channels == 2 else 9)
    found = data.at(offset + 4 + side_bytes, 12)
    if found[:4] in (b"Xing", b"Info") and len(found) == 12:
        flags, frames = struct.unpack(">II", found[4:])
        return True, frames if flags & 1 and frames else None
    return data.at(offset + 36, 4) == b"VBRI", None
