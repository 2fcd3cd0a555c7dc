"""From a split to a page, from the page to a list of captions, and from the list to a dataset that a run can read."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.__main__ import main
from pipeline.data.adapters import ADAPTERS
from pipeline.data.catalogs import read_catalog
from pipeline.data.shards.format import read_manifest
from pipeline.data.shards.reader import open_shards
from pipeline.errors import PipelineError
from pipeline.evaluation.selection import suggest
from pipeline.results.captioning.page import write_page
from pipeline.stages import index_audio, index_shards, shard_audio

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
COUNT = 6
SOURCE_NAME = '=cmd|"<b>x</b>, #1.wav'


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_study) -> Path:
    return Path(shutil.copytree(tiny_study.pretrained, tmp_path_factory.mktemp("run") / "run"))


def split(tiny_study, dataset: str = "unlabeled") -> Path:
    return tiny_study.shards / dataset / "train"


def command(tiny_study, run_folder, *more: object) -> list[str]:
    return ["suggest", "--run", str(run_folder), "--in", str(split(tiny_study)), *map(str, more)]


@pytest.fixture(scope="module")
def suggestions(tiny_study, run_folder):
    """The suggestions, the first under a name that a spreadsheet would take for a formula."""
    first, *others = suggest(run_folder, split(tiny_study), count=COUNT)
    return [dataclasses.replace(first, source_name=SOURCE_NAME, source_id="-Ab_c"), *others]


@pytest.fixture
def page(suggestions, tiny_study, tmp_path) -> Path:
    write_page(suggestions, open_shards(split(tiny_study)), tmp_path / "page")
    return tmp_path / "page"


def shard(root: Path, folder: Path) -> Path:
    """Shards of the folder of a page, made by the stages as a run makes them."""
    catalog, plan = folder / "catalog.parquet", folder / "plan.parquet"
    index_audio.main(
        ["--dataset", "mine", "--split", "captions", "--adapter", "folder", "--root", str(root), "--labeled"]
        + ["--clips-per-shard", "20", "--catalog", str(catalog), "--plan", str(plan)]
    )
    out = folder / "mine" / "captions"
    shard_audio.main(
        ["--catalog", str(catalog), "--plan", str(plan), "--sample-rate-hz", "16000", "--format", "wav"]
        + ["--shards", str(out), "--done", str(out / "parts" / "0-of-1.json")]
    )
    index_shards.main(
        ["--plan", str(plan), "--shards", str(out), "--identities", str(out / "identities.parquet")]
        + ["--manifest", str(out / "manifest.parquet"), "--summary", str(out / "manifest.json")]
    )
    return out


# --- command ---------------------------------------------------------------------------------------------------------


def test_command_prints_what_it_suggests(tiny_study, run_folder, capsys):
    expected = suggest(run_folder, split(tiny_study), captioned=[split(tiny_study, "labeled")], count=4)
    options = ["--count", 4, "--captioned", split(tiny_study, "labeled")]
    main(command(tiny_study, run_folder, *options))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[3] for line in lines] == [clip.key for clip in expected]
    main(command(tiny_study, run_folder, *options, "--json"))
    found = json.loads(capsys.readouterr().out)["suggestions"]
    assert found == [dataclasses.asdict(clip) for clip in expected]


def test_page_holds_the_audio_of_the_suggestions(tiny_study, run_folder, tmp_path, capsys):
    main(command(tiny_study, run_folder, "--count", 3, "--page", tmp_path / "page"))
    shards = open_shards(split(tiny_study))
    expected = suggest(run_folder, split(tiny_study), count=3)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "page" / "index.html")
    assert {path.stem for path in (tmp_path / "page" / "audio").iterdir()} == {clip.key for clip in expected}
    for clip in expected:
        samples, rate = soundfile.read(tmp_path / "page" / "audio" / f"{clip.key}.flac", dtype="int16")
        assert rate == 16_000 and np.array_equal(samples, shards.read(clip.key))


def test_a_page_with_captions_stays_as_it_is(tiny_study, run_folder, tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "captions.csv").write_text("file_name,caption\n")
    with pytest.raises(PipelineError, match=r"page: holds captions\.csv already and is not written to; give a new f"):
        main(command(tiny_study, run_folder, "--page", folder))
    assert [path.name for path in folder.iterdir()] == ["captions.csv"]
    (folder / "captions.csv").rename(folder / "notes.txt")
    with pytest.raises(PipelineError, match="holds other files already"):
        main(command(tiny_study, run_folder, "--page", folder))


def test_a_page_that_cannot_be_written_is_named(tiny_study, run_folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match="page: cannot be written"):
        main(command(tiny_study, run_folder, "--count", 2, "--page", tmp_path / "file" / "page"))


def test_a_damaged_tar_leaves_no_page(suggestions, tiny_study, tmp_path):
    folder = Path(shutil.copytree(split(tiny_study), tmp_path / "shards"))
    for tar in folder.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(PipelineError, match=r"\.tar: SHA-256"):
        write_page(suggestions, open_shards(folder), tmp_path / "page")
    assert not (tmp_path / "page").exists()


# --- the folder of the page as a dataset -----------------------------------------------------------------------------


def test_captioned_clips_are_recognised_by_their_audio(page, suggestions, tiny_study, run_folder, tmp_path):
    with (page / "captions.csv").open("w", newline="") as file:
        rows = [[f"audio/{clip.key}.flac", "a tone"] for clip in suggestions[:4]]
        csv.writer(file).writerows([["file_name", "caption"], *rows])
    shards = shard(page, tmp_path)
    pool = {row["key"]: row["sha256"] for row in read_manifest(tiny_study.manifest("unlabeled")).to_pylist()}
    made = read_manifest(shards / "manifest.parquet")["sha256"].to_pylist()
    assert sorted(made) == sorted(pool[clip.key] for clip in suggestions[:4])
    rest = suggest(run_folder, split(tiny_study), captioned=[shards], count=16)
    assert {clip.key for clip in rest} == pool.keys() - {clip.key for clip in suggestions[:4]}
    with pytest.raises(PipelineError, match="16 can be captioned, 4 others are captioned already"):
        suggest(run_folder, split(tiny_study), captioned=[shards], count=17)


# --- browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def visit(page, tmp_path):
    """Opens the page in a browser that keeps its profile, as a person's does; each call is another visit."""
    from playwright.sync_api import sync_playwright

    errors = []
    with sync_playwright() as playwright:
        contexts = []

        def open_page(profile: str = "profile", script: str = ""):
            while contexts:
                contexts.pop().close()
            context = playwright.chromium.launch_persistent_context(
                str(tmp_path / profile),
                executable_path=CHROMIUM,
                args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
                viewport={"width": 400, "height": 800},
                accept_downloads=True,
            )
            contexts.append(context)
            tab = context.new_page()
            tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            tab.on("pageerror", lambda error: errors.append(str(error)))
            tab.on("dialog", lambda dialog: errors.append(f"a text was run: {dialog.message}"))
            tab.add_init_script(script)
            tab.goto((page / "index.html").as_uri())
            return tab

        yield open_page
        while contexts:
            contexts.pop().close()
    assert errors == []


def typed(tab) -> list[str]:
    return tab.locator("textarea").evaluate_all("boxes => boxes.map((box) => box.value)")


def download(tab, action, path: Path) -> Path:
    with tab.expect_download() as found:
        action()
    assert found.value.suggested_filename == "captions.csv"
    found.value.save_as(path)
    return path


HOSTILE = ['a dog, "Rex", barks', "</script><img src=x onerror=alert(1)> & 🐸", "=SUM(A1)", "first\nsecond line"]


@needs_browser
def test_captions_typed_with_the_keyboard_become_a_dataset(visit, page, suggestions, tmp_path):
    tab = visit()
    for caption in HOSTILE:
        for line in caption.split("\n"):
            tab.keyboard.insert_text(line)
            tab.keyboard.press("Shift+Enter" if "\n" in caption and line == "first" else "End")
        tab.keyboard.press("Enter")
    assert tab.locator("#state").inner_text().startswith(f"4 of {COUNT} captioned")
    tab = visit()  # closed and opened again
    assert typed(tab) == [*HOSTILE, "", ""]
    assert tab.evaluate("document.activeElement.id") == "caption-5"
    download(tab, lambda: tab.keyboard.press("Control+s"), page / "captions.csv")
    assert "All are in the last captions.csv" in tab.locator("#state").inner_text()

    rows = list(ADAPTERS["folder"](page, "captions"))
    assert [row.captions for row in rows] == [(" ".join(caption.split()),) for caption in HOSTILE]
    assert [row.source_name for row in rows] == [f"audio/{clip.key}.flac" for clip in suggestions[:4]]
    assert [row.source_id for row in rows] == ["-Ab_c", None, None, None]
    with (page / "captions.csv").open(newline="", encoding="utf-8-sig") as file:
        assert next(csv.DictReader(file))["source_name"] == SOURCE_NAME
    shard(page, tmp_path)
    catalog = read_catalog(tmp_path / "catalog.parquet").to_pylist()
    assert {caption for row in catalog for caption in row["captions"]} == {
        " ".join(caption.split()) for caption in HOSTILE
    }


@needs_browser
def test_keys_move_and_play(visit):
    tab = visit()
    focused = "document.activeElement.id"
    playing = "document.getElementById('player').dataset.key + !document.getElementById('player').paused"
    assert tab.evaluate(focused) == "caption-1"
    tab.keyboard.press("Alt+ArrowDown")
    assert tab.evaluate(focused) == "caption-2"
    first = tab.evaluate(playing)
    assert first.endswith("true")
    tab.keyboard.press("Escape")
    tab.wait_for_function("document.getElementById('player').paused")
    tab.keyboard.press("Escape")
    assert tab.evaluate(playing) == first
    tab.keyboard.press("Alt+ArrowUp")
    assert tab.evaluate(focused) == "caption-1" and tab.evaluate(playing) != first
    for _ in range(COUNT):
        tab.keyboard.press("Enter")
    assert tab.evaluate(focused) == "save"  # after the last clip
    assert typed(tab) == [""] * COUNT


@needs_browser
def test_a_clip_plays(visit, suggestions, tiny_study):
    tab = visit()
    tab.keyboard.press("Escape")
    tab.wait_for_function("document.getElementById('player').duration > 0")
    shards = open_shards(split(tiny_study))
    seconds = shards.frames(suggestions[0].key) / shards.sample_rate_hz
    assert tab.evaluate("document.getElementById('player').duration") == pytest.approx(seconds, abs=0.01)
    assert tab.locator("#playing").inner_text() == f"1: {SOURCE_NAME}"


@needs_browser
def test_a_saved_list_is_opened_in_another_browser(visit, tmp_path):
    tab = visit()
    for caption in HOSTILE:
        tab.keyboard.insert_text(caption)
        tab.keyboard.press("Enter")
    saved = download(tab, lambda: tab.locator("#save").click(), tmp_path / "captions (1).csv")
    tab = visit("another profile")
    assert typed(tab) == [""] * COUNT
    tab.locator("#file").set_input_files(saved)
    tab.wait_for_function("document.getElementById('state').textContent.includes('4 captions read')")
    assert typed(tab) == [*HOSTILE, "", ""]
    assert typed(visit("another profile")) == [*HOSTILE, "", ""]


@needs_browser
def test_a_browser_that_keeps_nothing_is_named(visit, tmp_path):
    refuses = "Storage.prototype.setItem = () => { throw new DOMException('no', 'SecurityError'); };"
    tab = visit(script=refuses)
    assert tab.locator("#warning").is_visible()
    tab.keyboard.insert_text("rain")
    saved = download(tab, lambda: tab.keyboard.press("Control+s"), tmp_path / "captions.csv")
    assert "rain" in saved.read_text(encoding="utf-8-sig")
    assert not visit().locator("#warning").is_visible()
