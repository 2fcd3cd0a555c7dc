"""Formats that libsndfile does not read are decoded by FFmpeg, whole, or end with a reason."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from audio_files import noise, tones
from hypothesis import given
from hypothesis import strategies as st
from test_damaged_audio import FEWER, decoded
from test_decoding import assert_holds, assert_unusable, encoded, tones_of

from pipeline.data import ffmpeg
from pipeline.data.audio import Recording, UnusableAudio, read_recording
from pipeline.errors import PipelineError

RATE = 44_100
KINDS = {  # container and encoder
    "m4a": ("mp4", "aac"),
    "alac": ("mp4", "alac"),
    "mov": ("mov", "aac"),
    "aac": ("adts", "aac"),
    "webm": ("webm", "libopus"),
    "mka": ("matroska", "flac"),
    "mkv": ("matroska", "aac"),
    "wma": ("asf", "wmav2"),
    "wv": ("wv", "wavpack"),
    "amr": ("amr", "libopencore_amrnb"),
}
LOSSLESS = ("alac", "mka", "wv")


def encode(samples_SC: np.ndarray, kind: str, tracks: int = 1, video: bool = False, **options: str) -> bytes:
    """Samples of full scale 1 in a format, with FFmpeg's own encoders."""
    container_name, encoder = KINDS[kind]
    rate = {"libopus": 48_000, "libopencore_amrnb": 8_000}.get(encoder, RATE)
    file = io.BytesIO()
    with av.open(file, "w", format=container_name, options=options) as container:
        layout = "mono" if samples_SC.shape[1] == 1 else "stereo"
        streams = [container.add_stream(encoder, rate=rate, layout=layout) for _ in range(tracks)]
        for stream in streams:
            if encoder == "wmav2":
                stream.bit_rate = 128_000
            if encoder == "wavpack":
                stream.format = "s16p"
        pictures = container.add_stream("mpeg4", rate=10) if video else None
        if pictures is not None:
            pictures.width = pictures.height = 64
            for number in range(20):
                picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 9 * number, np.uint8), format="rgb24")
                container.mux(pictures.encode(picture))
            container.mux(pictures.encode(None))
        for stream in streams:
            frame = av.AudioFrame.from_ndarray(
                (samples_SC * 32_767).astype(np.int16).reshape(1, -1), format="s16", layout=layout
            )
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return file.getvalue()


@cache
def whole(kind: str, seconds: float = 4.0) -> bytes:
    return encode(tones(seconds)[:, None], kind)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_to_its_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.mp3"  # the name does not matter
    path.write_bytes(whole(kind))
    assert_holds(path, 4.0, 400, 550, 700)
    assert np.array_equal(read_recording(path, sample_rate_hz=RATE, min_duration_s=0).samples_S, _samples(whole(kind)))


def _samples(data: bytes) -> np.ndarray:
    found = decoded(data, rate=RATE)
    assert isinstance(found, Recording), found
    return found.samples_S


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_samples_back(kind: str) -> None:
    samples_SC = np.stack([noise(3, seed=0, rate=RATE), noise(3, seed=1, rate=RATE)], axis=1)
    wav = encoded((samples_SC * 32_767).astype(np.int16), "WAV", "PCM_16")
    assert np.array_equal(_samples(encode(samples_SC, kind)), _samples(wav))


@pytest.mark.parametrize("kind", ["m4a", "mov", "webm"])
def test_the_delay_of_an_encoder_is_cut_off(kind: str) -> None:
    click = np.zeros((RATE, 1), np.float32)
    click[RATE // 2] = 0.9
    assert abs(int(np.abs(_samples(encode(click, kind)).astype(int)).argmax()) - RATE // 2) <= 1


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_formats_that_both_read_are_the_same_sound(form: str) -> None:
    data = encoded(tones(4), form)
    by_ffmpeg = []
    with ffmpeg.open_track(io.BytesIO(data), form.lower()) as (track, blocks):
        by_ffmpeg = np.concatenate([block[:, 0].copy() for block in blocks])
        assert (track.sample_rate_hz, track.channels) == (RATE, 1)
    by_libsndfile, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    assert len(by_ffmpeg) == len(by_libsndfile)
    assert np.abs(by_ffmpeg - by_libsndfile).max() < 1e-5


def test_the_sound_of_a_video_is_read() -> None:
    for kind in ("m4a", "mkv", "mov"):
        assert_holds(encode(tones(2)[:, None], kind, video=True), 2.0, 400, 550)


def test_a_video_without_sound_has_a_reason() -> None:
    assert_unusable(encode(tones(2)[:, None], "m4a", tracks=0, video=True), "undecodable", "no audio track")


def test_several_tracks_have_a_reason_and_a_way_out() -> None:
    assert_unusable(encode(tones(2)[:, None], "m4a", tracks=2), "undecodable", "2 audio tracks", "-map 0:a:0 -c copy")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("aac", "amr")])
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_file_that_is_cut_off_has_a_reason(kind: str, share: float) -> None:
    with pytest.raises(UnusableAudio) as caught:
        _samples_or_raise(cut(whole(kind), share))
    assert caught.value.reason == "truncated"


def _samples_or_raise(data: bytes) -> np.ndarray:
    return read_recording(data, sample_rate_hz=RATE, min_duration_s=0).samples_S


def test_fragments_of_mp4_are_read_and_a_cut_is_seen() -> None:
    data = encode(tones(4)[:, None], "m4a", movflags="empty_moov+frag_keyframe", frag_duration="500000")
    assert_holds(data, 4.0, 400, 550, 700, 850)
    assert_unusable(cut(data, 0.6), "truncated")


@pytest.mark.parametrize("kind", ["m4a", "mov", "aac", "webm", "wma", "wv"])
def test_a_file_with_other_bytes_inside_is_damaged(kind: str) -> None:
    data = bytearray(encode(noise(4, seed=0, rate=RATE)[:, None], kind))
    middle, length = len(data) // 2, len(data) // 4
    data[middle : middle + length] = np.random.default_rng(0).bytes(length)
    with pytest.raises(UnusableAudio) as caught:
        _samples_or_raise(bytes(data))
    assert caught.value.reason in ("damaged", "truncated")


@pytest.mark.parametrize("kind", ["m4a", "wma", "wv"])
def test_joined_files_are_not_read_by_half(kind: str) -> None:
    with pytest.raises(UnusableAudio) as caught:
        _samples_or_raise(whole(kind) * 2)
    assert caught.value.reason in ("inconsistent", "truncated")


@pytest.mark.parametrize("kind", ["aac", "webm"])
def test_joined_files_that_ffmpeg_reads_are_read_whole(kind: str) -> None:
    assert tones_of(_samples(whole(kind) * 2))[:3] == [400, 550, 700]
    assert abs(len(_samples(whole(kind) * 2)) / RATE - 8) < 0.1


def test_tags_around_aac_are_no_sound() -> None:
    id3 = b"ID3\3\0\0\0\0\0\x14" + bytes(20)
    assert np.array_equal(_samples(id3 + whole("aac") + b"TAG" + bytes(125)), _samples(whole("aac")))


@pytest.mark.parametrize("kind", KINDS)
@FEWER
@given(share=st.floats(0, 1, exclude_max=True), wrong=st.binary(max_size=8), is_cut=st.booleans())
def test_any_damage_gives_a_clip_or_a_reason(kind: str, share: float, wrong: bytes, is_cut: bool) -> None:
    data = bytearray(whole(kind, 1.0))
    place = int(share**3 * len(data))  # more often in the headers
    data[place : place + len(wrong)] = wrong
    decoded(bytes(data[: int(share * len(data))] if is_cut else data))


def test_ffmpeg_writes_nothing_to_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        data = bytearray(whole(kind))
        data[len(data) // 2 : len(data) // 2 + 300] = bytes(range(150)) * 2
        decoded(bytes(data))
    assert capfd.readouterr().err == ""


class _FailingDisk(io.BytesIO):
    """A file of which the second half cannot be read."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > len(self.getvalue()) // 2:
            raise OSError(5, os.strerror(5))
        return super().read(size)


def test_a_disk_that_fails_is_not_the_clips_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.data import decoding

    monkeypatch.setattr(decoding, "_opened", lambda source: _FailingDisk(whole("webm", 60.0)))
    with pytest.raises(PipelineError, match=r"a clip: cannot be read \(Input/output error\)"):
        decoded(b"")


def test_an_hour_needs_no_more_memory_than_it_fills(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8_000, layout="stereo")
        for _ in range(60):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 60 * 8_000), np.int16), format="s16", layout="stereo")
            frame.sample_rate = 8_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    script = """
import resource, sys
from pipeline.data.decoding import open_audio
peaks = []
with open_audio(sys.argv[1]) as audio:
    for block in audio.blocks:
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
assert len(peaks) > 50, len(peaks)
print(peaks[-1] - peaks[5])
"""
    finished = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) < 20_000, "kilobytes; the samples of an hour are 230 MB"
