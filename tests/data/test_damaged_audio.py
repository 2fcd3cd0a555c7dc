"""Whatever a file or a list holds, it ends as a clip, as a loss with a reason, or as an error that names it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import (
    RATE,
    noise,
    of_unknown_length,
    shard_arguments,
    tone,
    with_bytes,
    without_header,
    write_audio,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.adapters import ADAPTERS
from pipeline.data.audio import Recording, UnusableAudio, read_recording
from pipeline.data.catalogs import REASONS, catalog_of
from pipeline.data.shards.format import read_rows
from pipeline.errors import PipelineError
from pipeline.stages import index_audio, shard_audio

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))  # a deeper search by hand
QUICK = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FEWER = settings(QUICK, max_examples=max(1, EXAMPLES // 4))
KINDS = {
    "wav": ("WAV", "PCM_16"),
    "24 bits": ("WAV", "PCM_24"),
    "float": ("WAV", "FLOAT"),
    "extensible": ("WAVEX", "PCM_32"),
    "rf64": ("RF64", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
}
VARIANTS: dict[str, Callable[[], bytes]] = {
    "mp3 without header": lambda: without_header(whole("mp3")),
    "joined mp3": lambda: whole("mp3") + without_header(whole("mp3")),
    "chained vorbis": lambda: whole("vorbis") * 2,
    "chained opus": lambda: whole("opus") * 2,
    "flac of unknown length": lambda: of_unknown_length(whole("flac")),
    "wav of size 0": lambda: with_bytes(whole("wav"), 40, bytes(4)),
}
"""Files whose headers say less than they hold."""
COMMANDS = {
    "lame, variable rate": "lame --quiet -V 5 - -",
    "lame, free format": "lame --quiet --freeformat -b 200 - -",
    "ffmpeg, mp3": "ffmpeg -v error -i - -q:a 4 -f mp3 -",
    "ffmpeg, flac": "ffmpeg -v error -i - -f flac -",
    "ffmpeg, wav": "ffmpeg -v error -i - -f wav -",
    "ffmpeg, mp4": "ffmpeg -v error -i - -movflags empty_moov+frag_keyframe -f mp4 -",
    "ffmpeg, webm": "ffmpeg -v error -i - -f webm -",
    "oggenc": "oggenc -Q -",
    "opusenc": "opusenc --quiet - -",
    "flac": "flac -s -c -",
}
"""Programs that write a WAV file from standard input to a pipe, in another format."""


@cache
def whole(kind: str) -> bytes:
    """A second of stereo noise in a format."""
    buffer = io.BytesIO()
    form, subtype = KINDS[kind]
    stereo = np.stack([noise(1.0, seed=0), noise(1.0, seed=1)], axis=1)
    soundfile.write(buffer, stereo, RATE, format=form, subtype=subtype)
    return buffer.getvalue()


@cache
def piped(command: str) -> bytes:
    """A second of stereo noise through a program; skips the test where it is not installed."""
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"{command.split()[0]} is not installed")
    return subprocess.run(command.split(), input=whole("wav"), capture_output=True, check=True, timeout=60).stdout


def decoded(data: bytes | Path, min_duration_s: float = 0.0, rate: int = RATE) -> Recording | str:
    """The recording, or the reason why there is none."""
    try:
        return read_recording(data, sample_rate_hz=rate, min_duration_s=min_duration_s)
    except UnusableAudio as error:
        assert error.reason in REASONS
        return error.reason


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_at_any_byte_is_unusable_or_lacks_a_tenth_of_a_second_at_most(kind: str, share: float) -> None:
    data = whole(kind)
    found = decoded(data[: int(share * len(data))])
    if isinstance(found, Recording):
        assert KINDS[kind][0] != "OGG", "an Ogg file is whole or cut off"
        assert len(found.samples_S) >= 0.9 * RATE
    else:
        assert found in ("empty", "undecodable", "truncated")


@pytest.mark.parametrize("kind", VARIANTS)
@QUICK
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_without_a_length_cut_at_any_byte_is_a_clip_or_has_a_reason(kind: str, share: float) -> None:
    data = VARIANTS[kind]()
    found = decoded(data[: int(share * len(data))])
    assert isinstance(found, Recording) or found in ("empty", "undecodable", "truncated", "silent")


@pytest.mark.parametrize("kind", COMMANDS)
@FEWER
@given(share=st.floats(0, 1, exclude_max=True), wrong=st.binary(max_size=8), is_cut=st.booleans())
def test_what_other_programs_write_is_a_clip_whole_and_a_clip_or_a_reason_damaged(
    kind: str, share: float, wrong: bytes, is_cut: bool
) -> None:
    data = bytearray(piped(COMMANDS[kind]))
    found = decoded(bytes(data))
    assert isinstance(found, Recording) and abs(len(found.samples_S) / RATE - 1) < 0.15
    place = int(share * len(data))
    data[place : place + len(wrong)] = wrong
    decoded(bytes(data[:place] if is_cut else data))


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_an_ogg_file_cut_between_two_pages_is_truncated(kind: str) -> None:
    data = whole(kind)
    assert isinstance(decoded(data), Recording)
    assert isinstance(decoded(data + b"\0" * 1000), Recording), "what follows the last page does not matter"
    last = data.rindex(b"OggS")
    assert decoded(data[:last]) in ("truncated", "empty")
    assert decoded(data[:-1]) == "truncated"


@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
@QUICK
@given(share=st.floats(0, 1, exclude_max=True), wrong=st.binary(min_size=1, max_size=8))
def test_wrong_bytes_anywhere_give_a_clip_or_a_reason(kind: str, share: float, wrong: bytes) -> None:
    data = bytearray(VARIANTS[kind]() if kind in VARIANTS else whole(kind))
    place = int(share**3 * len(data))  # more often in the headers
    data[place : place + len(wrong)] = wrong
    decoded(bytes(data))


@QUICK
@given(data=st.binary(max_size=400), head=st.sampled_from([b"", *(whole(kind)[:120] for kind in KINDS)]))
def test_any_bytes_give_a_reason(data: bytes, head: bytes) -> None:
    decoded(head + data)


@QUICK
@given(
    channels=st.integers(1, 12),
    rate=st.sampled_from([1_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000]),
    frames=st.integers(0, 3_000),
)
def test_any_rate_and_number_of_channels_and_samples_give_a_clip_of_that_length(
    channels: int, rate: int, frames: int
) -> None:
    buffer = io.BytesIO()
    samples = np.random.default_rng(frames).normal(0, 0.1, (frames, channels))
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    found = decoded(buffer.getvalue())
    if isinstance(found, str):
        assert frames < (2 * rate / RATE + 1 if found == "empty" else 30)
    else:
        assert abs(len(found.samples_S) - frames * RATE / rate) <= 1
        assert (found.source_channels, found.source_sample_rate_hz) == (channels, rate)


@QUICK
@given(value=st.sampled_from([np.nan, np.inf, -np.inf, 1e38]), frame=st.integers(0, 7_999), channel=st.integers(0, 2))
def test_a_sample_that_is_no_number_is_found_anywhere(value: float, frame: int, channel: int) -> None:
    samples = np.tile(tone()[:, None], 3)
    samples[frame, channel] = value
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="DOUBLE")
    for rate in (RATE, 44_100):
        found = decoded(buffer.getvalue(), rate=rate)
        assert (found == "not_finite") != bool(np.isfinite(value)), "a very large sample is clipped"


@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_a_wrong_extension_does_not_matter(tmp_path: Path, kind: str) -> None:
    data = VARIANTS[kind]() if kind in VARIANTS else whole(kind)
    for extension in ("wav", "flac", "ogg", "mp3", "aiff", "au", "m4a"):
        path = tmp_path / f"x.{extension}"
        path.write_bytes(data)
        found = decoded(path)
        assert isinstance(found, Recording)
        assert found == decoded(data)


def test_three_hours_need_little_more_memory_than_they_fill(tmp_path: Path) -> None:
    rate, seconds = 1_000, 3 * 3_600
    stereo = np.zeros((rate * 60, 2), np.int16)
    stereo[::7] = 9_000
    with soundfile.SoundFile(tmp_path / "x.wav", "w", rate, 2, "PCM_16") as file:
        for _ in range(seconds // 60):
            file.write(stereo)
    tracemalloc.start()
    found = decoded(tmp_path / "x.wav", rate=rate)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found, Recording)
    assert len(found.samples_S) == rate * seconds
    assert peak < 2 * len(found.wav) + 30e6, "the decoded channels alone are 86 MB"


# --- names and lists -------------------------------------------------------------------------------------------------

# Of file names Linux forbids only the slash and NUL; a surrogate stands for a byte that is not UTF-8.
names = st.text(
    st.characters(min_codepoint=1, max_codepoint=0x2FFF, blacklist_characters="/")
    | st.sampled_from("\n\r\"'-&;#,.~$` \t\udce9"),
    min_size=1, max_size=60,
).filter(lambda name: len(os.fsencode(name + ".wav")) <= 255 if _encodes(name) else False)  # fmt: skip


def _encodes(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


@QUICK
@given(chosen=st.lists(names, min_size=1, max_size=5, unique=True))
def test_audio_of_any_name_is_in_the_catalog_or_refused(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[str]
) -> None:
    root = tmp_path_factory.mktemp("names")
    (root / "train").mkdir()
    for name in chosen:
        with open(os.fsencode(f"{root}/train/{name}.wav"), "wb"):
            pass
    visible = sorted(name for name in chosen if not name.startswith("."))
    try:
        catalog, _ = catalog_of(ADAPTERS["folder"](root, "train"), dataset="x", split="train", labeled=False)
    except PipelineError as error:
        message = str(error)
        is_unfit = any("\udc80" <= letter <= "\udcff" for name in visible for letter in name)
        assert ("are not UTF-8" in message) == is_unfit
        assert is_unfit or not visible, message
        return
    assert sorted(catalog["source_name"].to_pylist()) == sorted(f"{name}.wav" for name in visible)
    assert catalog["status"].to_pylist() == ["ok"] * len(visible)


def test_wild_names_reach_the_shard(tmp_path: Path) -> None:
    wild = [
        "a\nb.wav",
        'say "x".wav',
        "-rf.wav",
        "~.wav",
        "$(x).wav",
        "x" * 251 + ".wav",
        "雨.wav",
        " .wav",
        "a,b;c.wav",
    ]
    for seed, name in enumerate(wild):
        write_audio(tmp_path / "train" / name, noise(0.2, seed))
    flags = ["--dataset", "x", "--split", "train", "--adapter", "folder", "--root", str(tmp_path), "--unlabeled"]
    plan = ["--clips-per-shard", "99", "--plan", str(tmp_path / "catalog.shards.parquet")]
    index_audio.main([*flags, *plan, "--catalog", str(tmp_path / "catalog.parquet")])
    shard_audio.main(shard_arguments(tmp_path / "catalog.parquet", tmp_path / "out", clips=99))
    rows = read_rows(tmp_path / "out/00000.parquet")[0].to_pylist()
    assert sorted(row["source_name"] for row in rows) == sorted(wild)
    assert {row["status"] for row in rows} == {"ok"}


LISTS = {
    "folder": ("train.csv", "file_name,caption_1\n"),
    "clotho": ("clotho_captions_train.csv", "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"),
    "audiocaps": ("train.csv", "audiocap_id,youtube_id,start_time,caption\n"),
    "audioset": ("train_segments.csv", "# Segments csv\n"),
}
FIELDS = st.sampled_from([
    "a.wav", "../../etc/passwd", "/", "..", "x" * 300 + ".wav", "-x.wav", "&#39;.wav", "&#0;", "\x00", "\ufeff", '"',
    '""', "1", "30", "-5", "nan", "1e999", "0x10", "¹", "", " ", "dog", '"a, b"', "\udce9", "é", "\r", "=1+1", "\u2028",
])  # fmt: skip
ROWS = st.lists(st.lists(FIELDS | st.text(max_size=6), max_size=7), max_size=6)


@pytest.mark.parametrize("adapter", LISTS)
@QUICK
@given(rows=ROWS, keep_header=st.integers(0, 9), tail=st.binary(max_size=3))
def test_any_list_gives_a_row_a_line_or_an_error_with_its_name(
    tmp_path: Path, adapter: str, rows: list[list[str]], keep_header: int, tail: bytes
) -> None:
    name, header = LISTS[adapter]
    text = (header if keep_header else "") + "".join(",".join(row) + "\n" for row in rows)
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass") + tail)
    write_audio(tmp_path / "train/a.wav", noise(0.2, 0))
    try:
        sources = list(ADAPTERS[adapter](tmp_path, "train"))
        catalog, losses = catalog_of(sources, dataset="x", split="train", labeled=adapter != "audioset")
    except PipelineError as error:
        assert name in str(error) or "x/train" in str(error)
        return
    assert len(catalog) == len(sources)
    assert set(catalog["status"].to_pylist()) <= {"ok", "dropped", "failed"}
    assert len(losses) == sum(reason is not None for reason in catalog["reason"].to_pylist())
