"""All the sound that a file holds is decoded, or the clip ends with a reason: headers are not believed."""

from __future__ import annotations

import io
import os
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import noise, of_unknown_length, tones, with_bytes, without_header
from numpy.typing import NDArray

from pipeline.data import layouts
from pipeline.data.audio import UnusableAudio, read_recording
from pipeline.data.decoding import open_audio
from pipeline.errors import PipelineError

RATE = 44_100


def encoded(samples: NDArray, form: str, subtype: str | None = None, rate: int = RATE, **kind: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype, **kind)
    return file.getvalue()


@cache
def mp3(seconds: float, first_hz: float = 400, bitrate_mode: str = "VARIABLE", channels: int = 1) -> bytes:
    """An MP3 with the Info header that LAME writes."""
    samples = np.repeat(tones(seconds, first_hz)[:, None], channels, axis=1)
    return encoded(samples, "MP3", "MPEG_LAYER_III", bitrate_mode=bitrate_mode, compression_level=0.3)


def decoded(source: bytes | Path, rate: int = RATE) -> NDArray[np.int16]:
    return read_recording(source, sample_rate_hz=rate, min_duration_s=0).samples_S


def tones_of(samples_S: NDArray[np.int16]) -> list[int]:
    """The loudest frequency of every whole second, to the nearest 50 Hz; `tones` has another in each."""
    whole = samples_S[: len(samples_S) // RATE * RATE].reshape(-1, RATE)[:, RATE // 4 : 3 * RATE // 4]
    return [round(2 * int(np.abs(np.fft.rfft(second)).argmax()) / 50) * 50 for second in whole]


def assert_holds(source: bytes | Path, seconds: float, *hertz: int, tolerance_s: float = 0.06) -> None:
    """The file is decoded to so many seconds, whose tones are these, or begin with them."""
    samples_S = decoded(source)
    assert abs(len(samples_S) / RATE - seconds) <= tolerance_s
    assert tuple(tones_of(samples_S)[: len(hertz)]) == hertz


def assert_unusable(source: bytes | Path, reason: str, *words: str) -> None:
    with pytest.raises(UnusableAudio) as caught:
        decoded(source)
    assert caught.value.reason == reason
    for word in words:
        assert word in str(caught.value)


def shell(folder: Path, command: str, *programs: str) -> None:
    """Run a command, or skip the test where a program that it needs is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    subprocess.run(["bash", "-ec", command], cwd=folder, check=True, timeout=60)


# --- MP3 -------------------------------------------------------------------------------------------------------------

APE_ITEMS = b"\x05\0\0\0\0\0\0\0Title\0a dog"


def ape_tag() -> bytes:
    fields = [struct.pack("<IIII8x", 2000, len(APE_ITEMS) + 32, 1, flags) for flags in (0xA0000000, 0x80000000)]
    return b"APETAGEX" + fields[0] + APE_ITEMS + b"APETAGEX" + fields[1]


def id3_tag(size: int = 300_000) -> bytes:
    """An ID3 tag with a cover, which holds what looks like MP3 frames."""
    cover = (b"\xff\xfb\x90\x64" * (size // 4 + 1))[:size]
    return b"ID3\x03\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + cover


@pytest.mark.parametrize("bitrate_mode", ["VARIABLE", "CONSTANT", "AVERAGE"])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_without_a_header_is_read_to_its_end(bitrate_mode: str, channels: int) -> None:
    data = without_header(mp3(8.0, bitrate_mode=bitrate_mode, channels=channels))
    assert b"Info" not in data[:500] and b"Xing" not in data[:500]
    assert_holds(data, 8.0, 400, 550, 700, 850, 1000, 1150, 1300)


def test_an_mp3_header_of_no_frames_is_not_believed() -> None:
    data = mp3(8.0)
    place = max(data.find(b"Xing"), data.find(b"Info"))
    for frames in (0, 100):
        assert_holds(with_bytes(data, place + 8, struct.pack(">I", frames)), 8.0, 400, 550, 700, 850, 1000)


@pytest.mark.parametrize("is_headless", [False, True])
def test_tags_around_an_mp3_are_no_sound(is_headless: bool) -> None:
    data = without_header(mp3(3.0)) if is_headless else mp3(3.0)
    plain = decoded(data)
    id3v1 = b"TAG" + bytes(125)
    for before, after in [
        (id3_tag(), b""), (b"", id3v1), (b"", ape_tag()), (ape_tag(), ape_tag() + id3v1),
        (id3_tag(100) + id3_tag(), id3v1), (b"", bytes(40_000)), (bytes(5_000), b""),
    ]:  # fmt: skip
        assert np.array_equal(decoded(before + data + after), plain)


def test_joined_mp3s_are_read_whole() -> None:
    first, second = mp3(2.0, 400), mp3(3.0, 1000)
    assert_holds(first + second, 5.0, 400, 550, 1000, 1150, 1300, tolerance_s=0)
    assert_holds(first + id3_tag() + second + b"TAG" + bytes(125), 5.0, 400, 550, 1000, 1150, 1300, tolerance_s=0)
    assert_holds(without_header(first) + second, 5.0, 400, 550, tolerance_s=0.1)
    assert_holds(first + without_header(second), 5.0, 400, 550, tolerance_s=0.1)


def test_joined_mp3s_of_other_channels_have_a_reason() -> None:
    assert_unusable(mp3(2.0) + mp3(2.0, channels=2), "changes_format", "2 channels after 44100 Hz and 1")


@pytest.mark.parametrize("is_headless", [False, True])
def test_an_mp3_with_other_bytes_between_its_frames_is_damaged(is_headless: bool) -> None:
    data = without_header(mp3(8.0)) if is_headless else mp3(8.0)
    half = len(data) // 2
    assert_unusable(with_bytes(data, half, b"<html>  " * (len(data) // 80)), "damaged", "are no MP3")
    decoded(with_bytes(data, half, bytes(50)))


def test_an_mp3_cut_off_is_truncated() -> None:
    data = mp3(8.0)
    assert_unusable(data[: len(data) // 2], "truncated", "MP3 frames")


def test_mp3_of_lame_through_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(tones(30), "WAV"))
    shell(tmp_path, "lame --quiet -V 2 - - < a.wav > vbr.mp3; lame --quiet -b 64 - - < a.wav > cbr.mp3", "lame")
    shell(
        tmp_path,
        "ffmpeg -v error -i a.wav -q:a 2 -f mp3 - > v.mp3; ffmpeg -v error -i a.wav -f mp3 - > c.mp3",
        "ffmpeg",
    )
    for path in tmp_path.glob("*.mp3"):
        assert_holds(path, 30.0, 400, 550, 700, 850, 1000, 1150, 1300, 1450)


def test_mp2_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(tones(3), "WAV"))
    shell(tmp_path, "ffmpeg -v error -i a.wav a.mp2", "ffmpeg")
    assert_holds(tmp_path / "a.mp2", 3.0, 400, 550, 700)


# --- Ogg -------------------------------------------------------------------------------------------------------------


def ogg(seconds: float, first_hz: float = 400, subtype: str = "VORBIS", channels: int = 1) -> bytes:
    rate = RATE if subtype == "VORBIS" else 48_000
    samples = tones(seconds, first_hz, rate)
    return encoded(np.repeat(samples[:, None], channels, axis=1), "OGG", subtype, rate)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_every_link_of_a_chained_ogg_is_read(subtype: str) -> None:
    links = [ogg(2, 400, subtype), ogg(3, 1000, subtype), ogg(1, 2000, subtype)]
    assert_holds(b"".join(links), 6.0, 400, 550, 1000, 1150, 1300, 2000, tolerance_s=0.001)


def test_links_of_another_rate_or_number_of_channels_have_a_reason() -> None:
    for other in (ogg(2, subtype="OPUS"), ogg(2, channels=2)):
        assert_unusable(ogg(2) + other, "changes_format", "after 44100 Hz and 1")


def test_a_chained_ogg_with_a_link_cut_off_is_truncated() -> None:
    first, second = ogg(2), ogg(3, 1000)
    assert_unusable(first[:-100] + second, "truncated")
    assert_unusable(first + second[:-1], "truncated")


def test_links_of_other_encoders_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(tones(2), "WAV"))
    (tmp_path / "b.wav").write_bytes(encoded(tones(3, 1000), "WAV"))
    shell(tmp_path, "for x in a b; do oggenc -Q $x.wav; opusenc --quiet $x.wav $x.opus; done", "oggenc", "opusenc")
    for extension in ("ogg", "opus"):
        links = [(tmp_path / f"{name}.{extension}").read_bytes() for name in "ab"]
        assert_holds(b"".join(links), 5.0, 400, 550, 1000, 1150, 1300, tolerance_s=0.01)


# --- FLAC ------------------------------------------------------------------------------------------------------------


def test_flac_of_unknown_length_is_read_to_its_end() -> None:
    samples = (tones(15) * 32_767).astype(np.int16)
    data = encoded(samples, "FLAC", "PCM_16")
    for source in (data, of_unknown_length(data), data + b"TAG" + bytes(125), of_unknown_length(data) + ape_tag()):
        assert np.array_equal(decoded(source), samples)


def test_flac_of_unknown_length_cut_off_is_undecodable() -> None:
    data = of_unknown_length(encoded(noise(3, seed=0, rate=RATE), "FLAC", "PCM_16"))
    assert_unusable(data[: len(data) // 2], "undecodable")


def test_flac_segments_of_ffmpeg_are_read(tmp_path: Path) -> None:
    samples = (tones(30) * 32_767).astype(np.int16)
    (tmp_path / "a.wav").write_bytes(encoded(samples, "WAV", "PCM_16"))
    shell(tmp_path, "ffmpeg -v error -i a.wav -f segment -segment_time 13 %d.flac", "ffmpeg")
    parts = [decoded(tmp_path / f"{number}.flac") for number in range(3)]
    assert np.array_equal(np.concatenate(parts), samples)


@pytest.mark.parametrize(
    ("header", "number"),
    [
        (b"\xff\xf8\xc9\x18\x05", 5 * 4096),
        (b"\xff\xf8\xc9\x18\xc4\x80", 256 * 4096),  # as UTF-8: two bytes
        (b"\xff\xf9\xc9\x18\xe2\x82\xac", 0x20AC),  # blocks of other lengths: the sample's own number
        (b"not a frame", 0),
    ],
)
def test_the_first_sample_of_a_flac_is_that_of_its_first_frame(header: bytes, number: int) -> None:
    streaminfo = b"\x80\0\0\x22" + struct.pack(">HH", 4096, 4096) + bytes(30)
    data = layouts.AudioBytes(io.BytesIO(b"fLaC" + streaminfo + header + bytes(11)))
    assert layouts.flac_first_sample(data, 0) == number


# --- WAV, AIFF, AU ---------------------------------------------------------------------------------------------------


def size_of_data(data: bytes, size: int) -> bytes:
    return with_bytes(data, data.index(b"data") + 4, struct.pack("<I", size))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_of_a_killed_recorder_is_read_to_its_end(subtype: str, size: int) -> None:
    data = encoded(np.stack([tones(2), tones(2, 1000)], axis=1), "WAV", subtype)
    killed = size_of_data(with_bytes(data, 4, bytes(4)), size)
    assert np.array_equal(decoded(killed), decoded(data))


def test_an_aiff_or_au_without_sizes_is_read_to_its_end() -> None:
    samples = tones(2)
    aiff = encoded(samples, "AIFF", "PCM_16")
    for place in (4, aiff.index(b"COMM") + 10, aiff.index(b"SSND") + 4):
        aiff = with_bytes(aiff, place, bytes(4))
    au = encoded(samples, "AU", "PCM_16")
    expected = decoded(encoded(samples, "WAV", "PCM_16"))
    for data in (aiff, with_bytes(au, 8, bytes(4)), with_bytes(au, 8, b"\xff" * 4)):
        assert np.array_equal(decoded(data), expected)


@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU"])
def test_a_size_that_wrapped_around_is_corrected(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """The size wraps around at 64 KiB here instead of 4 GiB."""
    monkeypatch.setattr(layouts, "_WRAP_BYTES", 1 << 16)
    monkeypatch.setattr(layouts, "_UNKNOWN_BYTES", 1 << 16)
    data = encoded(tones(2), form, "PCM_16")
    place, order = {"WAV": (40, "<"), "AIFF": (data.find(b"SSND") + 4, ">"), "AU": (8, ">")}[form]
    size = struct.unpack_from(f"{order}I", data, place)[0] % (1 << 16)
    wrapped = with_bytes(data, place, struct.pack(f"{order}I", size))
    if form == "AIFF":
        frames = data.index(b"COMM") + 10
        wrapped = with_bytes(wrapped, frames, struct.pack(">I", (size - 8) // 2))
    assert np.array_equal(decoded(wrapped), decoded(data))


def test_the_samples_of_a_wav_over_4_gib_are_all_found(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    size = (1 << 32) + 10 * RATE * 4
    head = b"RIFF" + struct.pack("<I", (size + 36) % (1 << 32)) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 1, 2, RATE, RATE * 4, 4, 16) + b"data" + struct.pack("<I", size % (1 << 32))
    with path.open("wb") as file:  # sparse
        file.write(head + b"\1\2" * 100)
        file.seek(44 + size - 2)
        file.write(b"\1\2")
    with path.open("rb") as file:
        found = layouts.sound_data(layouts.AudioBytes(file))
    assert found == layouts.SoundData(44, size, size, 0, False)


@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU"])
def test_more_samples_than_the_header_announces_have_a_reason(form: str) -> None:
    data = encoded(tones(2), form, "PCM_16")
    place, order = {"WAV": (40, "<"), "AIFF": (data.find(b"SSND") + 4, ">"), "AU": (8, ">")}[form]
    assert_unusable(with_bytes(data, place, struct.pack(f"{order}I", RATE)), "inconsistent", "follow the samples")


def test_chunks_tags_and_zeros_after_the_samples_of_a_wav_are_no_sound() -> None:
    data = encoded(tones(2), "WAV", "PCM_16")
    chunk = b"LIST" + struct.pack("<I", 40_001) + b"INFO" + b"\x11" * 39_997
    for after in (chunk, chunk + b"\0" + chunk, bytes(50_000), id3_tag(), chunk + bytes(9), b"TAG" + bytes(125)):
        assert np.array_equal(decoded(data + after), decoded(data))


def test_a_wav_that_holds_no_samples_is_empty() -> None:
    data = encoded(np.zeros(0, np.float32), "WAV", "PCM_16")
    assert_unusable(data, "empty")
    assert_unusable(data + b"LIST\4\0\0\0INFO", "empty")


def test_a_compressed_wav_without_a_size_has_a_reason() -> None:
    assert_unusable(size_of_data(encoded(tones(2), "WAV", "IMA_ADPCM"), 0), "inconsistent", "IMA_ADPCM")


# --- levels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [RATE, 16_000])
@pytest.mark.parametrize("scale", [32_768, 2**31])
def test_float_samples_at_another_scale_are_clipped(scale: int, rate: int) -> None:
    data = encoded(noise(2, seed=0, rate=RATE) * scale, "WAV", "FLOAT")
    with pytest.raises(UnusableAudio, match=r"9\d% of the samples are at full scale|100%") as caught:
        decoded(data, rate)
    assert caught.value.reason == "clipped"


def test_zeros_do_not_hide_samples_at_another_scale() -> None:
    samples = noise(4, seed=0, rate=RATE) * 32_768
    samples[RATE // 2 :] = 0
    assert_unusable(encoded(samples, "WAV", "FLOAT"), "clipped")


def test_loud_and_overdriven_sounds_are_kept() -> None:
    music = np.random.default_rng(0).laplace(0, 0.1, 2 * RATE)  # samples of music are distributed like this
    alarm = np.sin(2 * np.pi * 880 * np.arange(2 * RATE) / RATE)
    for samples in (2 * music, 16 * music, 4 * alarm):
        decoded(encoded(np.clip(samples, -1, 1), "WAV", "PCM_16"))
        decoded(encoded(samples, "WAV", "FLOAT"))


@pytest.mark.parametrize("rate", [RATE, 16_000])
def test_stereo_out_of_phase_has_a_reason_and_a_way_out(rate: int) -> None:
    data = encoded(np.stack([tones(2), -tones(2)], axis=1), "WAV", "PCM_16")
    with pytest.raises(UnusableAudio, match=r"shards\.channels: first keeps one") as caught:
        decoded(data, rate)
    assert caught.value.reason == "out_of_phase"
    assert len(read_recording(data, sample_rate_hz=rate, min_duration_s=0, channels="first").samples_S) == 2 * rate
    assert_unusable(encoded(np.zeros((RATE, 2)), "WAV", "PCM_16"), "silent")


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    assert_unusable(tmp_path / "a.wav", "undecodable", "not a regular file")
    assert_unusable(tmp_path, "undecodable", "not a regular file")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\0\0\0\x20ftypM4A ", "as QuickTime / MOV; is it cut off?"),
        (b"\x1aE\xdf\xa3", "as Matroska / WebM; is it cut off?"),
        (b"<!DOCTYPE html>", "a text file, which is not read; WAV, FLAC"),
        (b"MAC \x96\x0f", "a Monkey's Audio file, which is not read; WAV, FLAC"),
    ],
)
def test_another_format_under_the_name_of_an_mp3_is_named(tmp_path: Path, head: bytes, words: str) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(head + bytes(1_000))
    assert_unusable(path, "undecodable", words)


def test_what_cannot_be_decoded_comes_with_the_command_that_converts_it() -> None:
    assert_unusable(b"no sound" * 99, "undecodable", 'ffmpeg -i "$f" "${f%.*}.flac"; done converts a folder')


def test_libmpg123_writes_nothing_to_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    data = mp3(4.0)
    for place in range(2_000, len(data), 3_000):
        data = with_bytes(data, place, b"\xff\xfb\x13\x77")
    for source in (data, data[:9_000], b"ID3" + data[3:], b"\xff\xfb" + noise(1, seed=0).tobytes()):
        try:
            decoded(source)
        except UnusableAudio as error:
            assert error.reason in ("damaged", "truncated", "undecodable")
    assert capfd.readouterr().err == ""


def test_a_disk_that_fails_is_not_the_clips_fault() -> None:
    """Reading the first page of a process's memory, which is a regular file, is an I/O error."""
    with pytest.raises(PipelineError, match=r"/proc/self/mem: cannot be (read|opened) \("):
        decoded(Path("/proc/self/mem"))


def test_too_few_open_files_are_no_fault_of_the_clip(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tones(1), "WAV"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.open(path, os.O_RDONLY)
    os.close(highest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, limits[1]))
    try:
        with pytest.raises(PipelineError, match=r"a\.wav: too many files are open; raise the limit"):
            decoded(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_too_little_memory_ends_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with soundfile.SoundFile(path, "w", 48_000, 1, "PCM_U8") as file:
        for _ in range(60):
            file.write(np.tile(tones(1, rate=48_000), 60))
    script = """
import resource, sys
from pipeline.data.audio import read_recording
from pipeline.errors import PipelineError
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 100_000_000,) * 2)
try:
    read_recording(sys.argv[1], sample_rate_hz=48_000, min_duration_s=0)
except PipelineError as error:
    sys.exit(str(error))
"""
    finished = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1
    assert finished.stderr == f"{path}: memory ran out while it was decoded; give the job more memory\n"


def test_a_stream_that_is_not_read_to_its_end_leaves_no_thread_and_no_open_file() -> None:
    data = without_header(mp3(30.0)) * 3
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    samples = tones(40)
    samples[5] = np.nan
    with pytest.raises(RuntimeError), open_audio(data):
        raise RuntimeError("no block was read")
    with pytest.raises(UnusableAudio):
        decoded(encoded(samples, "WAV", "FLOAT"))
    deadline = time.monotonic() + 5
    while threading.active_count() > before[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
