"""Stretches of a long recording are those of files that hold them alone, in any format, in bounded memory."""

from __future__ import annotations

import functools
import struct
import tempfile
import tracemalloc
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import noise, tones, with_bytes, write_audio
from numpy.typing import NDArray

from pipeline.data.audio import UnusableAudio, read_recording
from pipeline.data.decoding import open_audio
from pipeline.data.stretches import Piece, Stretch, grid, read_stretches, read_windows

SOURCE_HZ, RATE = 48_000, 16_000
FORMATS = {
    "a.wav": {"subtype": "PCM_16"},
    "float.wav": {"subtype": "FLOAT"},
    "a.w64": {"format": "W64", "subtype": "PCM_16"},
    "rf64.wav": {"format": "RF64", "subtype": "PCM_16"},
    "a.flac": {},
    "a.aiff": {},
    "a.ogg": {},
    "a.opus": {"format": "OGG", "subtype": "OPUS"},
    "a.mp3": {},
}
SEEKABLE = ("a.wav", "float.wav", "a.w64", "rf64.wav", "a.flac", "a.aiff")


@functools.cache
def encoded(name: str, duration_s: float) -> bytes:
    samples_SC = np.stack([tones(duration_s, rate=SOURCE_HZ), noise(duration_s, 0, SOURCE_HZ)], 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        with soundfile.SoundFile(path, "w", SOURCE_HZ, 2, **FORMATS[name]) as file:
            for first in range(0, len(samples_SC), SOURCE_HZ):  # libVorbis encodes no minute at once
                file.write(samples_SC[first : first + SOURCE_HZ])
        return path.read_bytes()


def recording(folder: Path, name: str = "a.wav", duration_s: float = 15.0) -> Path:
    """Tones and noise in two channels."""
    path = folder / name
    path.write_bytes(encoded(name, duration_s))
    return path


def cut_out(path: Path, stretch: Stretch) -> NDArray[np.int16]:
    """The stretch as a file of its own is read."""
    samples_SC, rate = soundfile.read(path, dtype="float32")
    first, end = (round(second * rate) for second in (stretch.start_s, stretch.end_s))
    alone = write_audio(path.with_name("alone.wav"), samples_SC[first:end], rate, subtype="FLOAT")
    return read_recording(alone, sample_rate_hz=RATE, min_duration_s=0).samples_S


def read(path: Path, *stretches: tuple[float, float]) -> list[Piece]:
    return list(read_stretches(path, [Stretch(*stretch) for stretch in stretches], sample_rate_hz=RATE))


@pytest.mark.parametrize("name", FORMATS)
def test_a_stretch_has_the_samples_of_a_file_that_holds_it_alone(tmp_path: Path, name: str) -> None:
    path = recording(tmp_path, name)
    pieces = read(path, (0, 2.5), (1.25, 5.00001), (5.00001, 5.5), (10.8, 12), (14, 15))
    assert len(pieces) == 5
    for piece in pieces:
        assert piece.missing == 0
        assert np.array_equal(piece.clip.recording().samples_S, cut_out(path, piece.stretch)), piece.stretch


@pytest.mark.parametrize("name", FORMATS)
def test_a_stretch_does_not_depend_on_those_before_it(tmp_path: Path, name: str) -> None:
    path = recording(tmp_path, name)
    stretches = [stretch for stretch in takewhile(lambda stretch: stretch.end_s < 15, grid(2.0, 1.7))]
    together = list(read_stretches(path, stretches, sample_rate_hz=RATE))
    for piece in together:
        [alone] = read(path, (piece.stretch.start_s, piece.stretch.end_s))
        assert np.array_equal(alone.clip.recording().samples_S, piece.clip.recording().samples_S)


def test_a_whole_recording_as_one_stretch_is_the_recording(tmp_path: Path) -> None:
    path = recording(tmp_path)
    whole = read_recording(path, sample_rate_hz=RATE, min_duration_s=0.1)
    [piece] = read(path, (0, 15))
    assert piece.clip.recording() == whole


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_gaps_are_seeked_over(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, decoded = recording(tmp_path, name, 120), []
    original = soundfile.SoundFile.read

    def counted(self: soundfile.SoundFile, *args: object, **options: object) -> NDArray[np.float32]:
        block: NDArray[np.float32] = original(self, *args, **options)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    read(path, (100, 101), (110, 111))
    assert sum(decoded) < 20 * SOURCE_HZ


def test_windows_cover_a_recording_of_unknown_length_to_its_end(tmp_path: Path) -> None:
    path = recording(tmp_path, "a.ogg", 10.5)
    windows = list(read_windows(path, length_s=4, hop_s=2, sample_rate_hz=RATE))
    assert [(window.start_s, window.end_s) for window in windows] == [
        *((start, start + 4.0) for start in (0.0, 2.0, 4.0, 6.0)),
        (8.0, 10.5),
        (10.0, 10.5),
    ]
    assert [len(window.samples_S) for window in windows] == [4 * RATE] * 4 + [2.5 * RATE, 0.5 * RATE]


def test_stretches_behind_the_end_are_not_yielded(tmp_path: Path) -> None:
    path = recording(tmp_path, duration_s=5)
    found = read(path, (4, 6), (5, 6), (1000, 1001))
    assert [(piece.stretch.start_s, piece.missing) for piece in found] == [(4, SOURCE_HZ)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a.wav", "truncated"), ("a.flac", "undecodable"), ("a.ogg", "truncated"), ("a.mp3", "truncated")],
)
def test_a_recording_that_is_cut_off_is_read_up_to_the_break(tmp_path: Path, name: str, reason: str) -> None:
    path = recording(tmp_path, name, 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found: list[float] = []
    with pytest.raises(UnusableAudio) as caught:
        for piece in read_stretches(path, grid(5, 5), sample_rate_hz=RATE):
            assert piece.missing == 0
            found.append(piece.stretch.start_s)
    assert caught.value.reason == reason
    assert len(found) >= 4
    assert found == [5.0 * number for number in range(len(found))]


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_memory_does_not_grow_with_the_recording(tmp_path: Path, name: str) -> None:
    minute_S = noise(60, 0, RATE)
    peaks = []
    for minutes in (2, 20):
        with soundfile.SoundFile(tmp_path / name, "w", RATE, 1) as file:
            for _ in range(minutes):
                file.write(minute_S)
        tracemalloc.start()
        pieces = sum(1 for _ in read_stretches(tmp_path / name, islice(grid(5, 2), 30 * minutes), sample_rate_hz=RATE))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pieces == 30 * minutes
    assert peaks[1] < 1.05 * peaks[0]


def test_samples_that_are_not_finite_spoil_their_own_stretch_alone(tmp_path: Path) -> None:
    samples_S = noise(6, seed=1)
    samples_S[RATE * 3] = np.nan
    path = write_audio(tmp_path / "a.wav", samples_S, subtype="FLOAT")
    pieces = read(path, (0, 2), (2, 4), (4, 6))
    assert [piece.error and piece.error.reason for piece in pieces] == [None, "not_finite", None]
    starts = [window.start_s for window in read_windows(path, length_s=2, hop_s=2, sample_rate_hz=RATE)]
    assert starts == [0, 4]


def test_an_open_file_is_read_as_its_path_is(tmp_path: Path) -> None:
    for name in FORMATS:
        path = recording(tmp_path, name, 3)
        with path.open("rb") as file:
            [inner] = read_stretches(file, [Stretch(1, 2)], sample_rate_hz=RATE)
            assert not file.closed
        [outer] = read(path, (1, 2))
        assert np.array_equal(inner.clip.recording().samples_S, outer.clip.recording().samples_S)


# --- files over 4 GB -------------------------------------------------------------------------------------------------

HOURS = 24
FRAMES = HOURS * 3600 * SOURCE_HZ
DATA_BYTES = 4 * FRAMES
PCM = struct.pack("<HHIIHH", 1, 2, SOURCE_HZ, 4 * SOURCE_HZ, 4, 16)


def long_header(kind: str) -> bytes:
    """The header of 24 hours of stereo, 16.6 GB."""
    if kind == "W64":
        riff = bytes.fromhex("726966662e91cf11a5d628db04c10000")
        wave, form, samples = (name + bytes.fromhex("f3acd3118cd100c04f8edb8a") for name in (b"wave", b"fmt ", b"data"))
        size = struct.pack("<Q", 104 + DATA_BYTES)
        return riff + size + wave + form + struct.pack("<Q", 40) + PCM + samples + struct.pack("<Q", 24 + DATA_BYTES)
    if kind == "RF64":
        sizes = struct.pack("<IQQQI", 28, 72 + DATA_BYTES, DATA_BYTES, FRAMES, 0)
        start, size = b"RF64" + b"\xff" * 4 + b"WAVEds64" + sizes, 0xFFFFFFFF
    else:  # a recorder whose counter of 32 bits wrapped around, or stayed at its highest value
        size = DATA_BYTES % (1 << 32) if kind == "wrapped" else 0xFFFFFFFF
        start = b"RIFF" + struct.pack("<I", (size + 36) % (1 << 32)) + b"WAVE"
    return start + b"fmt " + struct.pack("<I", 16) + PCM + b"data" + struct.pack("<I", size)


@pytest.mark.parametrize("kind", ["RF64", "W64", "wrapped", "highest"])
def test_a_day_in_one_file_is_read_at_any_place(tmp_path: Path, kind: str) -> None:
    second = np.random.default_rng(0).normal(0, 3000, (SOURCE_HZ, 2)).astype("<i2").tobytes()
    header = long_header(kind)
    with (tmp_path / "day.wav").open("wb") as file:
        file.write(header)
        for start_s in (5, 4 * 3600, HOURS * 3600 - 1):
            file.seek(len(header) + start_s * SOURCE_HZ * 4)
            file.write(second)
        for tail_bytes in range(1 << 24, DATA_BYTES, 1 << 32):  # zeros to the end would be searched for chunks
            file.seek(len(header) + tail_bytes)
            file.write(b"\1")
    pieces = read(tmp_path / "day.wav", (5, 6), (4 * 3600, 4 * 3600 + 1), (HOURS * 3600 - 1, HOURS * 3600))
    sounds = [piece.clip.recording().samples_S for piece in pieces]
    assert [piece.missing for piece in pieces] == [0, 0, 0]
    assert np.array_equal(sounds[0], sounds[1]) and np.array_equal(sounds[0], sounds[2])
    with open_audio(tmp_path / "day.wav") as audio:
        assert audio.frames == FRAMES


def test_a_w64_file_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    path = recording(tmp_path, "a.w64")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnusableAudio, match="of 720000 frames") as caught:
        read_recording(path, sample_rate_hz=RATE, min_duration_s=0.1)
    assert caught.value.reason == "truncated"


def test_a_w64_chunk_of_an_impossible_size_is_a_reason(tmp_path: Path) -> None:
    header = long_header("W64")
    size_at = header.index(b"fmt ") + 16
    data = with_bytes(header, size_at, (1 << 63).to_bytes(8, "little")) + bytes(1000)
    with pytest.raises(UnusableAudio) as caught:
        read_recording(data, sample_rate_hz=RATE, min_duration_s=0.1)
    assert caught.value.reason == "undecodable"
