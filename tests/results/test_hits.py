"""Hits as CSV, label tracks, selection tables and a page, with names of every kind."""

from __future__ import annotations

import csv
import html
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

import pipeline
from pipeline.errors import PipelineError
from pipeline.evaluation.folders.indexing import Unsearched
from pipeline.evaluation.folders.search import FolderSearch, Hit, search_folder
from pipeline.results.hits import labels
from pipeline.results.hits.page import spectrogram, write_page
from pipeline.results.hits.text import as_json, clock, render

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
NAMES = [
    "plain.wav",
    "sub/tab\tand\nline.wav",
    "<script>alert(1).wav",
    'quote" and, comma.wav',
    os.fsdecode(b"not utf-8 \xff.wav"),
    "n" * 240 + ".wav",
    "日本 é.wav",
]
QUERY = 'rain\ton "a" <b>tent</b>'


def hits(names: list[str] = NAMES) -> list[Hit]:
    """Two hits per recording, the later one first."""
    return [
        Hit(rank=2 * number + place + 1, score=0.9 - 0.01 * number, file=name, start_s=start_s, end_s=start_s + 2)
        for number, name in enumerate(names)
        for place, start_s in enumerate((5.0, 1.25))
    ]


def result(found: list[Hit], unsearched: list[Unsearched] | None = None) -> FolderSearch:
    return FolderSearch(hits=found, files=7, windows=99, duration_s=4000, unsearched=unsearched or [])


def test_csv_keeps_every_name(tmp_path):
    labels.write_csv(hits(), tmp_path / "hits.csv")
    with (tmp_path / "hits.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"].replace("\\udcff", "\udcff") for row in rows] == [hit.file for hit in hits()]
    assert rows[1] == {"rank": "2", "score": "0.900000", "file": "plain.wav", "start_s": "1.250", "end_s": "3.250"}


def test_label_tracks_are_one_line_per_hit_in_order_of_time(tmp_path):
    paths = labels.write_label_tracks(hits(), QUERY, tmp_path / "labels")
    assert len(paths) == len(set(paths)) == len(NAMES)
    assert paths[0] == tmp_path / "labels" / "plain.wav.labels.txt"
    assert paths[1].parent == tmp_path / "labels" / "sub"
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [line.split("\t")[:2] for line in lines] == [["1.250000", "3.250000"], ["5.000000", "7.000000"]]
        assert all(len(line.split("\t")) == 3 and line.endswith('rain\\ton "a" <b>tent</b>') for line in lines)


def test_selection_tables_have_ravens_columns(tmp_path):
    paths = labels.write_selection_tables(hits(), QUERY, tmp_path / "in", 8000, tmp_path / "tables")
    for path, name in zip(paths, NAMES, strict=True):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        assert [row["Selection"] for row in rows] == ["1", "2"]
        assert [(row["Begin Time (s)"], row["End Time (s)"]) for row in rows] == [
            ("1.250000", "3.250000"),
            ("5.000000", "7.000000"),
        ]
        assert {row["High Freq (Hz)"] for row in rows} == {"8000.0"} and None not in rows[0]
        written = rows[0]["Begin Path"].encode().decode("unicode_escape") if "\\" in rows[0]["Begin Path"] else None
        assert (written or rows[0]["Begin Path"]) == str(tmp_path / "in" / name)


def test_long_names_stay_apart(tmp_path):
    names = ["n" * 240 + "a.wav", "n" * 240 + "b.wav"]
    paths = labels.write_label_tracks(hits(names), "x", tmp_path)
    assert len(set(paths)) == 2 and all(len(path.name) <= 255 for path in paths)


def test_lines_show_times_and_what_was_not_searched():
    unsearched = [
        Unsearched(file=f"bad\n{number}.wav", reason="undecodable", detail="no sound", searched_s=0.0)
        for number in range(30)
    ]
    unsearched.append(Unsearched(file="cut.wav", reason="truncated", detail="1 of 2 frames", searched_s=61.0))
    lines = render(result(hits()[:2], unsearched[::-1])).splitlines()
    assert lines[0].split() == ["1", "0.900", "0:00:05.0", "-", "0:00:07.0", "plain.wav"]
    assert "searched 7 recordings, 1.11 hours, 99 windows" in lines
    assert "not searched, or not to the end: 1 truncated, 30 undecodable" in lines
    assert "  cut.wav: 1 of 2 frames, searched up to 0:01:01.0" in lines
    assert lines[-1] == "  and 11 more; --json lists all" and "  bad\\n29.wav: no sound" in lines
    assert render(result([])).startswith("nothing stands out")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00.0"), (59.96, "0:01:00.0"), (3723.44, "1:02:03.4")])
def test_times_are_read_as_a_clock(seconds, text):
    assert clock(seconds) == text


def test_json_holds_every_value():
    values = as_json(result(hits()[:1]))
    assert values["hits"] == [{"rank": 1, "score": 0.9, "file": "plain.wav", "start_s": 5.0, "end_s": 7.0}]


def test_spectrogram_shows_a_tone_at_its_frequency():
    times = np.arange(32_000) / 16_000
    picture = spectrogram((8000 * np.sin(2 * np.pi * 2000 * times)).astype(np.int16), 16_000)
    assert picture.shape[0] == 160 and picture.max() == pytest.approx(0, abs=1e-5)
    loudest = picture[:, picture.shape[1] // 2].argmax()
    assert 1 - (loudest + 0.5) / len(picture) == pytest.approx(2000 / 8000, abs=0.02)  # the top is 8 kHz


def test_spectrogram_of_nothing_is_dark():
    assert (spectrogram(np.zeros(1600, np.int16), 16_000) <= -100).all()


# --- page ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tiny_study, tmp_path_factory):
    """A folder with the odd names, searched: model, recordings, result."""
    folder = tmp_path_factory.mktemp("hits")
    recordings = folder / "recordings"
    (recordings / "sub").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in NAMES:
        samples = 0.3 * np.sin(np.arange(64_000) * generator.uniform(0.05, 1.5)) + generator.normal(0, 0.02, 64_000)
        soundfile.write(folder / "a.wav", samples, 16_000)
        (folder / "a.wav").rename(recordings / name)
    (recordings / "bad <b>.wav").write_text("no sound")
    model = pipeline.load(tiny_study.pretrained)
    return model, recordings, search_folder("a tone", model, recordings, top=20, index=folder / "index")


@pytest.fixture(scope="module")
def page(searched, tmp_path_factory) -> Path:
    model, recordings, found = searched
    folder = tmp_path_factory.mktemp("page") / "out"
    write_page(found, QUERY, recordings, model.network, folder)
    return folder


def test_page_needs_no_network(page):
    text = (page / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href|data-source)="([^"]*)"', text)
    assert sources and all(re.fullmatch(r"sounds/\d+\.(flac|png)", source) for source in sources)
    assert "http" not in text and all((page / source).exists() for source in sources)


def test_page_shows_every_hit_and_escapes_names(page, searched):
    text = (page / "index.html").read_text(encoding="utf-8")
    found = searched[2]
    assert len(found.hits) >= len(NAMES)
    assert text.count('class="play"') == len(found.hits) == len(list((page / "sounds").glob("*.png")))
    assert "<script>alert" not in text and "&lt;script&gt;alert(1).wav" in text
    assert "<b>" not in text and html.escape("bad <b>.wav") in text and "tab\\tand\\nline.wav" in text
    assert all(f'data-times="{hit.start_s:.3f}\t{hit.end_s:.3f}"' in text for hit in found.hits)


def test_excerpts_are_the_sound_of_the_hit(page, searched):
    _, recordings, found = searched
    hit = next(hit for hit in found.hits if hit.file == "plain.wav")
    excerpt, rate_hz = soundfile.read(page / "sounds" / f"{hit.rank}.flac", dtype="int16")
    samples, _ = soundfile.read(recordings / "plain.wav", dtype="int16")
    first, end = (round(max(0.0, time) * rate_hz) for time in (hit.start_s - 1, hit.end_s + 1))
    np.testing.assert_array_equal(excerpt, samples[first:end])


def test_same_hits_give_the_same_page(page, searched, tmp_path):
    model, recordings, found = searched
    write_page(found, QUERY, recordings, model.network, tmp_path / "again")
    for file in page.rglob("*.*"):
        assert (tmp_path / "again" / file.relative_to(page)).read_bytes() == file.read_bytes(), file


def test_a_hit_whose_recording_is_gone_has_no_sound(searched, tmp_path):
    model, recordings, found = searched
    write_page(result([*hits(["gone.wav"]), *found.hits[:1]]), "x", recordings, model.network, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    assert text.count("cannot be read any more") == 2 and text.count('class="play"') == 1


def test_only_an_older_page_is_replaced(searched, tmp_path):
    model, recordings, found = searched
    for _ in range(2):
        write_page(found, "x", recordings, model.network, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(PipelineError, match="mine: holds other files than a page of hits; give a new folder"):
        write_page(found, "x", recordings, model.network, tmp_path / "mine")
    with pytest.raises(PipelineError, match="is inside the recordings"):
        write_page(found, "x", recordings, model.network, recordings / "page")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_page_plays_and_copies_in_a_browser(page):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page()
        errors: list[str] = []
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.goto((page / "index.html").as_uri())
        shown.locator(".play").first.click()
        shown.wait_for_function("!document.getElementById('player').paused")
        assert shown.locator(".play").first.get_attribute("aria-pressed") == "true"
        assert shown.evaluate("document.querySelector('.picture img').naturalWidth") > 100
        shown.locator(".copy").first.click()
        shown.wait_for_function("document.querySelector('.copy').textContent !== 'Copy seconds'")
        assert not errors
        browser.close()
