"""The windows of recordings of any length."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recordings import HOP_S, RATE_HZ, field, tone, write

from pipeline.data.unusable import UnusableAudio
from pipeline.errors import PipelineError
from pipeline.evaluation.folders.recordings import (
    End,
    Window,
    WindowForm,
    decode_ahead,
    find_recordings,
    stream_windows,
)

FORM = WindowForm(sample_rate_hz=RATE_HZ, channels="mean", window_frames=40_960, hop_s=HOP_S, short_clips="repeat")


def windows_of(path: Path, form: WindowForm = FORM, first: int = 0) -> tuple[list[Window], End]:
    *windows, end = stream_windows(path, form, first)
    return windows, end


def test_windows_overlap_and_reach_the_end(tmp_path):
    path = write(tmp_path / "a.wav", tone(6))
    samples, _ = soundfile.read(path, dtype="int16")
    windows, end = windows_of(path)
    assert [window.number for window in windows] == [0, 1, 2, 3] and end == End(6.0)
    for window in windows[:3]:
        first = round(window.number * HOP_S * RATE_HZ)
        np.testing.assert_array_equal(window.samples_S, samples[first : first + FORM.window_frames])
    rest = samples[round(3 * HOP_S * RATE_HZ) :]
    np.testing.assert_array_equal(windows[3].samples_S, np.resize(rest, FORM.window_frames))


def test_a_recording_of_a_tenth_of_a_second_is_one_window(tmp_path):
    windows, end = windows_of(write(tmp_path / "a.wav", tone(0.1)))
    assert len(windows) == 1 and windows[0].samples_S.shape == (FORM.window_frames,) and end == End(0.1)


def test_a_recording_as_long_as_a_window_is_one_window(tmp_path):
    windows, end = windows_of(write(tmp_path / "a.wav", tone(2.56)))
    assert len(windows) == 1 and end == End(2.56)


def test_windows_can_begin_at_any_number(tmp_path):
    path = write(tmp_path / "a.flac", tone(9, seed=5))
    whole, end = windows_of(path)
    rest, same_end = windows_of(path, first=3)
    assert [window.number for window in rest] == [window.number for window in whole[3:]] and end == same_end
    for one, other in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(one.samples_S, other.samples_S)


@pytest.mark.parametrize("seconds", [6, 6.4, 2.56, 1])
def test_a_killed_search_goes_on_after_any_window(tmp_path, seconds):
    path = write(tmp_path / "a.wav", tone(seconds))
    whole, end = windows_of(path)
    for first in range(len(whole) + 1):
        rest, same_end = windows_of(path, first=first)
        assert [window.number for window in rest] == list(range(first, len(whole))) and same_end == end


def test_samples_that_are_not_finite_cost_their_windows_alone(tmp_path):
    samples = tone(12)
    samples[5 * RATE_HZ] = np.nan
    windows, end = windows_of(write(tmp_path / "a.wav", samples, subtype="FLOAT"))
    assert [window.number for window in windows] == [0, 1, 4, 5, 6, 7, 8] and end == End(12.0)


def test_silent_windows_are_left_out(tmp_path):
    path = write(tmp_path / "a.wav", np.concatenate([tone(3), np.zeros(10 * RATE_HZ), tone(3)]))
    windows, end = windows_of(path)
    assert {window.number for window in windows} == {0, 1, 2, 9, 10, 11} and end.fault is None


@pytest.mark.parametrize(
    ("samples", "reason"), [(np.zeros(50_000), "silent"), (np.full(50_000, np.nan), "not_finite"), ([], "empty")]
)
def test_recordings_without_a_usable_window_have_a_reason(tmp_path, samples, reason):
    path = write(tmp_path / "a.wav", np.array(samples), subtype="FLOAT")
    windows, end = windows_of(path)
    assert not windows and isinstance(end.fault, UnusableAudio) and end.fault.reason == reason


def test_a_recording_that_is_cut_off_is_read_to_the_break(tmp_path):
    path = write(tmp_path / "a.wav", tone(20))
    os.truncate(path, path.stat().st_size // 2)
    windows, end = windows_of(path)
    assert len(windows) >= 5 and isinstance(end.fault, UnusableAudio) and end.fault.reason == "truncated"
    assert 0 < end.duration_s <= 10


def test_a_recording_that_is_gone_has_a_fault_of_the_disk(tmp_path):
    windows, end = windows_of(tmp_path / "gone.wav")
    assert not windows and isinstance(end.fault, PipelineError)


def test_folder_is_walked_with_subfolders_and_without_hidden_files(tmp_path):
    field(tmp_path)
    write(tmp_path / ".hidden" / "c.wav", tone(1))
    (tmp_path / "notes.txt").touch()
    assert [file.name for file in find_recordings(tmp_path)] == ["a.wav", "short.wav", "sub/b.flac"]


def test_folders_without_recordings_are_refused(tmp_path):
    with pytest.raises(PipelineError, match="no audio file below it; give a folder with files named"):
        find_recordings(tmp_path)
    with pytest.raises(PipelineError, match="nowhere: not found; give the folder"):
        find_recordings(tmp_path / "nowhere")


@pytest.mark.parametrize("threads", [1, 3])
def test_decoding_ahead_keeps_the_order(tmp_path, threads):
    for number in range(12):
        write(tmp_path / f"{number:02}.wav", tone(0.5 + 3 * (number % 3), seed=number))
    files = find_recordings(tmp_path)
    found = list(decode_ahead(tmp_path, [(file, 0) for file in files], FORM, threads))
    expected = [(file.name, item) for file in files for item in stream_windows(tmp_path / file.name, FORM)]
    assert [file.name for file, _ in found] == [name for name, _ in expected]
    for (_, one), (_, other) in zip(found, expected, strict=True):
        assert type(one) is type(other)
        if isinstance(one, Window) and isinstance(other, Window):
            np.testing.assert_array_equal(one.samples_S, other.samples_S)


def test_threads_end_when_the_caller_stops(tmp_path):
    for number in range(4):
        write(tmp_path / f"{number}.wav", tone(60, seed=number))
    stream = decode_ahead(tmp_path, [(file, 0) for file in find_recordings(tmp_path)], FORM, 2)
    next(stream)
    stream.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]
