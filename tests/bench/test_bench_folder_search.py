"""The comparisons of the search in recordings, at a size for tests."""

from __future__ import annotations

import numpy as np
import soundfile

import pipeline
from bench import chance, folder_search
from pipeline.evaluation.folders.search import Hit


def test_second_search_embeds_the_new_files_alone(tiny_study, tmp_path):
    rows = folder_search.second_search(pipeline.load(tiny_study.pretrained), tmp_path, files=20)
    assert rows[1].startswith("| windows embedded in it | 10.00 | at most 10.00 | yes")


def test_indexing_is_compared_on_the_same_windows(tiny_study, tmp_path, capsys):
    folder_search.write_recordings(tmp_path, 2, 6, 48_000, 2, "flac")
    row = folder_search.indexing(pipeline.load(tiny_study.pretrained), tmp_path)
    assert row.startswith("| indexing recordings: time over the forward passes'")
    assert "2 recordings, 8 windows of 2.56 s" in capsys.readouterr().out


def test_many_windows_are_searched_with_and_without_references(tmp_path, capsys):
    row = folder_search.many_windows(3000, tmp_path, references=20)
    assert row.startswith("| seconds of a search among 3,000 windows of recordings |")
    assert "for 20 reference captions" in capsys.readouterr().out


def test_hits_are_judged_by_the_timetable():
    def hit(file: str, start_s: float) -> Hit:
        return Hit(rank=1, score=0.5, file=file, start_s=start_s, end_s=start_s + 2)

    placements = [chance.Placement("a", "dog", 10, 13), chance.Placement("b", "dog", 50, 53)]
    tally = chance.Tally()
    chance.judge([hit("a", 11), hit("a", 30), hit("b", 20)], placements, tally)
    chance.judge([], [], tally)
    chance.judge([hit("a", 1)], [], tally)
    assert tally.placed == [True, False] and tally.right == [True, False, False] and tally.absent == [False, True]
    assert tally.errors_s == [1, 0]
    assert tally.row("x") == "| x | 50 % | 50 % | 33 % | 0.5 s |"


def test_sounds_are_where_the_timetable_places_them(tmp_path, monkeypatch):
    monkeypatch.setattr(chance, "MINUTES", 0.5)
    monkeypatch.setattr(chance, "GAP_S", 3.0)
    monkeypatch.setattr(chance, "NOISE_DBFS", -90.0)
    sounds = [{"file_name": path.name} for path in sorted((chance.SOUNDS / "audio").iterdir())]
    placements = chance.write_field(tmp_path, sounds, np.random.default_rng(0))
    assert len(placements) >= 4
    for place in placements:
        samples, rate_hz = soundfile.read(tmp_path / place.file)
        inside = samples[round(place.start_s * rate_hz) : round(place.end_s * rate_hz)]
        assert np.sqrt(np.mean(inside**2)) > 0.02
