"""How much sound an audio file holds and where, from its bytes alone, without decoding any.

libsndfile trusts a file's header. Where the header is missing, was never filled in or wrapped around, these functions
find what is there: chunks of WAV, AIFF, AU and CAF, frames of MP3 (ISO 11172-3), pages of Ogg (RFC 3533), FLAC.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

READ_BYTES = 1 << 20
_MAX_CHUNKS = 10_000  # a file of empty chunks must not take minutes
_UNKNOWN_BYTES = 0x7FFFF000  # from here on: what encoders that write to a pipe put as the length
_WRAP_BYTES = 1 << 32
_OGG_PAGE_BYTES = 27  # of a page's header, before its table of segments
_OGG_TAIL_BYTES = 2 * 65_307  # the largest page, whole wherever the file ends, and something after it
_OGG_FIRST_PAGE = b"OggS\x00\x02"


class AudioBytes:
    """Random access to the bytes of an open file, a megabyte in memory at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start, self._block = 0, b""
        self.size = file.seek(0, 2)

    def at(self, offset: int, count: int) -> bytes:
        """So many bytes from an offset on; fewer at the end of the file. Raises OSError."""
        count = max(0, min(count, self.size - offset))
        if count == 0:  # no file can be asked for an offset of 64 bits, which a damaged size leads to
            return b""
        first = offset - self._start
        if first < 0 or first + count > len(self._block):
            self._file.seek(offset)
            self._start, self._block, first = offset, self._file.read(max(count, READ_BYTES)), 0
        return self._block[first : first + count]

    def blocks(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to `end` in pieces of at most a megabyte. Raises OSError."""
        while start < end and (block := self.at(start, min(READ_BYTES, end - start))):
            yield block
            start += len(block)

    def tags_bytes(self) -> int:
        """The length of the tags at the start of the file."""
        start = 0
        while size := tag_bytes(self, start):
            start += size
        return start


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


_W64_FIRST_CHUNK = 40
_W64_CHUNK = struct.Struct("<16sQ")


@dataclass(frozen=True, slots=True)
class SoundData:
    """Where the samples of a WAV, W64, AIFF, AU or CAF file are."""

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
    """Where a WAV, W64, AIFF, AU or CAF file's samples are, and how many bytes of them; None for any other file.

    A 32-bit size that wrapped around is corrected. A size of 0, which a killed recorder leaves, stands for all that
    follows, unless chunks or zeros follow.
    """
    magic = data.at(0, 4)
    if magic in (b".snd", b"dns.") and data.size >= 24:
        order = ">" if magic == b".snd" else "<"
        start, announced = struct.unpack(f"{order}II", data.at(4, 8))
        return _measured(data, None, start, announced, order == ">")
    if magic == b"riff":
        return _w64_sound_data(data)
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


def _w64_sound_data(data: AudioBytes) -> SoundData | None:
    """The same of a W64 file: chunks of a GUID and 64 bits of size, which count the header, at multiples of 8."""
    offset = _W64_FIRST_CHUNK
    for _ in range(_MAX_CHUNKS):
        if len(header := data.at(offset, _W64_CHUNK.size)) < _W64_CHUNK.size:
            return None
        name, size = _W64_CHUNK.unpack(header)
        if name[:4] == b"data":
            start = offset + _W64_CHUNK.size
            rest, announced = max(0, data.size - start), size - _W64_CHUNK.size
            if announced <= 0:  # never filled in
                return SoundData(start, None, rest, 0, False)
            return SoundData(start, announced, min(announced, rest), 0, False)
        offset += max(_W64_CHUNK.size, -(-size // 8) * 8)
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
    while len(block := data.at(offset, READ_BYTES)) >= len(wanted):
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


# --- MP4 and AAC -----------------------------------------------------------------------------------------------------


def top_boxes(data: AudioBytes) -> list[tuple[bytes, int]]:
    """Name and end of the boxes at the top level of an MP4 or QuickTime file (ISO 14496-12, 4.2)."""
    offset, boxes = 0, []
    for _ in range(_MAX_CHUNKS):
        if len(header := data.at(offset, 16)) < 8:
            break
        size, name = struct.unpack_from(">I4s", header)
        if size == 1 and len(header) == 16:
            size = struct.unpack_from(">Q", header, 8)[0]
        if size < 8:  # up to the end of the file, or no box
            boxes.append((name, data.size))
            break
        offset += size
        boxes.append((name, offset))
    return boxes


def is_adts(data: AudioBytes, offset: int) -> bool:
    """True if AAC frames with ADTS headers (ISO 13818-7, 6.2) begin at an offset, one directly after another."""
    header = data.at(offset, 7)
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return False
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    following = data.at(offset + size, 2)
    return size > 7 and (
        following[:2] == header[:2] or offset + size >= data.size or tag_bytes(data, offset + size) > 0
    )
