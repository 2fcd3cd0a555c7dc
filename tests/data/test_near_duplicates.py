"""Re-encodings and cuts of held-out recordings are reported, and the report says what it cannot see."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from audio_files import make_catalog, make_shards, noise, write_audio
from numpy.typing import NDArray

from pipeline.data.audio import read_recording, to_int16
from pipeline.data.near_duplicates import FingerprintIndex, fingerprint_of
from pipeline.files import read_json
from pipeline.stages import find_near_duplicates

RECORDINGS = Path(__file__).parents[2] / "data" / "recordings" / "audio"
RATE = 16_000
Change = Callable[[NDArray, NDArray], NDArray]


@pytest.fixture(scope="module")
def recordings() -> list[NDArray[np.float32]]:
    """The first ten seconds of every second real recording."""
    paths = sorted(RECORDINGS.glob("*.ogg"))[::2]
    found = [read_recording(path, sample_rate_hz=RATE, min_duration_s=0).samples_S for path in paths]
    return [samples[: 10 * RATE].astype(np.float32) / 32_768 for samples in found]


@pytest.fixture(scope="module")
def index(recordings) -> FingerprintIndex:
    return FingerprintIndex(fingerprint(samples) for samples in recordings)


def fingerprint(samples: NDArray) -> NDArray[np.uint32]:
    return fingerprint_of(to_int16(samples), RATE)


def encoded(samples: NDArray, audio_format: str, subtype: str) -> NDArray:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=audio_format, subtype=subtype)
    buffer.seek(0)
    return soundfile.read(buffer, dtype="float32")[0]


def noisy(samples: NDArray, _: NDArray) -> NDArray:
    level = 0.1 * np.sqrt(np.mean(samples**2))
    return samples + np.random.default_rng(0).normal(0, level, len(samples)).astype(np.float32)


CHANGES: dict[str, tuple[float, float, Change]] = {  # least and largest share of recordings that is found
    "the same": (1, 1, lambda samples, _: samples),
    "Ogg Vorbis": (1, 1, lambda samples, _: encoded(samples, "OGG", "VORBIS")),
    "MP3": (1, 1, lambda samples, _: encoded(samples, "MP3", "MPEG_LAYER_III")),
    "6 dB louder": (1, 1, lambda samples, _: 2 * samples),
    "6 dB softer": (1, 1, lambda samples, _: samples / 2),
    "cut": (1, 1, lambda samples, _: samples[len(samples) * 3 // 10 + 7 : len(samples) * 8 // 10]),
    "through 8 kHz": (1, 1, lambda samples, _: soxr.resample(soxr.resample(samples, RATE, 8_000), 8_000, RATE)),
    "noise 20 dB below": (0.85, 1, noisy),
    "mixed in equal parts": (0.3, 0.9, lambda samples, other: (samples + np.resize(other, len(samples))) / 2),
    "1.05 times the speed": (0, 0.1, lambda samples, _: soxr.resample(samples, RATE * 1.05, RATE)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_recordings_are_found_as_often_as_the_report_says(recordings, index, change: str) -> None:
    least, most, make = CHANGES[change]
    long = [number for number, samples in enumerate(recordings) if len(samples) >= 3.9 * RATE]
    found = 0
    for number in long:
        other = (number + 1) % len(recordings)
        clips = {match.clip for match in index.matches(fingerprint(make(recordings[number], recordings[other])))}
        assert clips <= {number} | ({other} if change.startswith("mixed") else set()), "another recording"
        found += number in clips
    assert len(long) >= 10
    assert least <= found / len(long) <= most


def test_a_cut_is_found_where_it_was_cut(recordings, index) -> None:
    number = max(range(len(recordings)), key=lambda number: len(recordings[number]))
    (match,) = index.matches(fingerprint(recordings[number][2 * RATE : 6 * RATE]))
    assert match.clip == number and match.offset_s == pytest.approx(-2, abs=0.02)
    assert match.shared_s == pytest.approx(4, abs=0.05)


def test_short_silent_and_steady_sounds_match_nothing(index) -> None:
    steady = 0.3 * np.sin(np.arange(10 * RATE) * 0.2).astype(np.float32)
    for samples in (np.zeros(0), np.zeros(99), np.zeros(10 * RATE), steady, noise(10, seed=5)):
        assert list(index.matches(fingerprint(samples))) == []
        assert list(FingerprintIndex([]).matches(fingerprint(samples))) == []


def test_the_stage_names_the_pairs_and_says_what_it_cannot_see(recordings, tmp_path: Path) -> None:
    long = [samples for samples in recordings if len(samples) >= 3.9 * RATE]
    for number, samples in enumerate(long[:3]):
        write_audio(tmp_path / "test/train" / f"test {number}.wav", samples)
    write_audio(tmp_path / "field/train" / "copy.ogg", long[1][RATE:] / 2)
    for number, samples in enumerate(long[3:6]):
        write_audio(tmp_path / "field/train" / f"other {number}.wav", samples)
    folders = {}
    for name in ("test", "field"):
        catalog = make_catalog(tmp_path / name, tmp_path / f"{name}.parquet", labeled=False)
        folders[name] = make_shards(catalog, tmp_path / "shards" / name, 2)
    report = tmp_path / "report.json"
    arguments = ["--shards", str(folders["field"]), "--held-out", str(folders["test"]), "--report", str(report)]
    find_near_duplicates.main(arguments)
    found = read_json(report)
    (pair,) = found["pairs"]
    assert "copy" in pair["key"] and "test_1" in pair["held_out_key"]
    assert pair["offset_s"] == pytest.approx(-1, abs=0.02) and pair["differing"] < 0.2
    assert (found["clips"], found["held_out_clips"]) == (4, 3) and "none at 1.05 times the speed" in found["meaning"]
    whole = report.read_bytes()
    find_near_duplicates.main(arguments)
    assert report.read_bytes() == whole
