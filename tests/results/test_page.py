"""The page, made from a tiny study by the stages and opened in a real browser where there is one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import markupsafe
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile

from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.results.comparisons import Comparison
from pipeline.results.curves import SHOWN, to_csv
from pipeline.results.page.contents import (
    Evaluation,
    by_target,
    read_account,
    read_evaluation,
    read_leaked,
    read_test_set,
    recall_at,
)
from pipeline.results.page.render import render_data
from pipeline.results.page.sections import DIFFERENCES, column, curve_plot, difference_plots, read_table
from pipeline.results.plots import COLOURS, colours_of, differences, recall_curves
from pipeline.results.pools import answer, read_pool
from pipeline.stages import compare, embed, evaluate, report, tabulate, train
from tests.forks import run_python

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def results(tiny_study, tmp_path_factory):
    """Two runs judged on the tiny study's captioned split: the random model, and the same after an epoch."""
    folder = tmp_path_factory.mktemp("results")
    models = {"vanilla": tiny_study.pretrained, "labeled_finetune": folder / "runs" / "labeled_finetune" / "seed0"}
    train.main(
        ["--pretrained", str(tiny_study.pretrained), "--pairs", str(tiny_study.pairs("finetune", epochs=1))]
        + ["--shards", str(tiny_study.shards), "--seed", "0", "--out", str(models["labeled_finetune"])]
    )
    split = tiny_study.shards / "labeled" / "train"
    rows, compared = [], []
    for run, model in models.items():
        out = folder / "evaluations" / run / "seed0" / "labeled"
        embed.main(["--model", str(model), "--shards", str(split), "--embeddings", str(out / "embeddings.npz")])
        evaluate.main(
            ["--embeddings", str(out / "embeddings.npz"), "--run", run, "--seed", "0", "--target", "labeled"]
            + ["--split", "train", "--metrics", str(out / "metrics.json"), "--ranks", str(out / "ranks.parquet")]
            + ["--contributions", str(out / "contributions.parquet")]
        )
        cell, method = ("-", "vanilla") if run == "vanilla" else ("A+T", "finetune")
        rows += ["--row", f"labeled|{method}|{cell}", str(out / "metrics.json")]
        compared += ["--row", f"labeled|{method}|{cell}", str(out / "contributions.parquet")]
    tabulate.main(
        [*rows, "--datasets", "labeled", "--protocol", "paper", "--study-name", "tiny"]
        + ["--csv", str(folder / "table1.csv"), "--tex", str(folder / "table1.tex")]
    )
    compare.main(
        [*compared, "--datasets", "labeled", "--protocol", "paper", "--csv", str(folder / "comparisons" / "table1.csv")]
    )
    return folder


def arguments(results, tiny_study, out):
    evaluations = [results / "evaluations" / run / "seed0" / "labeled" for run in ("labeled_finetune", "vanilla")]
    return [
        *("--name", "tiny <study>", "--note", "A test."),
        *("--protocol", "paper", "--tables", str(results / "table1.csv")),
        *("--comparisons", str(results / "comparisons" / "table1.csv")),
        *("--evaluations", *map(str, evaluations)),
        *("--logs", str(results / "runs" / "labeled_finetune" / "seed0" / "training.parquet")),
        *("--summaries", str(tiny_study.shards / "labeled" / "train" / "manifest.json"), "--out", str(out)),
    ]


@pytest.fixture(scope="module")
def page(results, tiny_study, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    report.main(arguments(results, tiny_study, out))
    return out


def test_page_needs_no_network(page):
    html = (page / "index.html").read_text()
    assert re.findall(r'(?:src|href)="(?!#)([^"]*)"', html) == ["data.js"]
    assert "http" not in html.replace("http://www.w3.org", "")  # names of XML, which nothing fetches


def test_same_results_give_same_page(page, results, tiny_study, tmp_path):
    report.main(arguments(results, tiny_study, tmp_path))
    for file in page.rglob("*.*"):
        assert (tmp_path / file.relative_to(page)).read_bytes() == file.read_bytes(), file


def test_page_shows_every_figure_of_the_table(page, results):
    html = (page / "index.html").read_text()
    table = pd.read_csv(results / "table1.csv", dtype=str, keep_default_na=False).drop(columns="protocol")
    assert all(f">{cell}</td>" in html for cell in table.to_numpy().ravel())
    assert "tiny &lt;study&gt;" in html


def test_plots_are_well_formed_and_take_the_ink_of_the_page(page):
    plots = re.findall(r"<svg xmlns.*?</svg>", (page / "index.html").read_text(), re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        ElementTree.fromstring(plot)
        assert "currentColor" in plot and ("labeled_finetune" in plot or "vanilla" in plot)


def test_every_clip_can_be_played(page, tiny_study):
    manifest = read_json(tiny_study.shards / "labeled" / "train" / "manifest.json")
    assert len(list((page / "audio").glob("*.mp3"))) == manifest["clips"]


def test_a_clip_that_cannot_be_written_is_named(results, tiny_study, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["-m", "pipeline.stages.report", *arguments(results, tiny_study, tmp_path)]
    done = run_python(*words, preexec_fn=limit, env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"^report: .*/audio/\w+\.mp3: cannot be written \(File too large\)", done.stderr.splitlines()[-1])
    assert not list((tmp_path / "audio").iterdir())


def test_recall_curve_counts_the_ranks_within_k():
    ranks = pa.table(
        {
            "direction": ["t2a", "t2a", "t2a", "a2t"],
            "rank": [1.0, 3.0, 11.0, 2.0],
            "rank_one_caption": [None] * 3 + [1.0],
        }
    )
    found = [Evaluation(folder=Path(), metrics={"run": "a", "seed": seed}, ranks=ranks) for seed in (0, 1)]
    assert recall_at(found, "t2a", "paper", 12)["a"].round(1).tolist() == [33.3] * 2 + [66.7] * 8 + [100.0] * 2
    assert recall_at(found, "a2t", "paper", 2)["a"].tolist() == [100, 100]
    assert recall_at(found, "a2t", "dcase", 2)["a"].tolist() == [0, 100]


def test_page_shows_curves_where_the_study_draws_them(page, results, tiny_study, tmp_path):
    points = [
        {"line": line, "run": f"{line}_{clips}", "labeled_clips": clips, "figure": figure}
        | {"value": 10.0, "low": 8.0, "high": 12.0, "sd": math.nan, "seeds": 1}
        | {"difference": math.nan, "difference_low": math.nan, "difference_high": math.nan, "p": math.nan}
        | {"p_holm": math.nan, "significant": "" if line == "finetune" else "yes"}
        for line in ("finetune", "composed") for clips in (100, 200) for figure in SHOWN
    ]  # fmt: skip
    path = tmp_path / "labeled_pairs.csv"
    path.write_text(to_csv(pd.DataFrame(points)))
    report.main([*arguments(results, tiny_study, tmp_path / "report"), "--curves", str(path)])
    html = (tmp_path / "report" / "index.html").read_text()
    plot = re.search(r'id="amount".*?(<svg xmlns.*?</svg>).*?</section>', html, re.DOTALL)[1]
    ElementTree.fromstring(plot)
    assert all(word in plot for word in ("finetune", "composed", "labeled clips", ">100<", ">200<"))
    assert "#amount" not in (page / "index.html").read_text()

    path.write_text("a,b\n1,2\n")
    with pytest.raises(PipelineError, match=r"labeled_pairs.csv: has the columns a, b; give a file of draw_curves"):
        curve_plot(path)


def test_headings_of_a_table_are_words(page):
    html = (page / "index.html").read_text()
    assert 'colspan="4">text → audio</th>' in html and ">mAP@10</th>" in html and "t2a_" not in html


def test_columns_of_published_figures_have_their_own_heading():
    found = column("published_gain_a2t_R1")
    assert (found.group, found.name) == ("audio → text, published gain, %", "R@1")


def test_deviations_are_next_to_their_means(tmp_path):
    path = tmp_path / "table1.csv"
    path.write_text("target,method,t2a_R1,seeds,t2a_R1_sd\nclotho,finetune,16.98,3,0.60\nclotho,vanilla,15.75,1,\n")
    table = read_table(path)
    assert [heading.name for heading in table.columns] == ["target", "method", "R@1", "seeds"]
    assert [(row[2].text, row[2].is_best) for row in table.rows] == [("16.98 ± 0.60", True), ("15.75", False)]


def test_clips_left_out_as_leaked_are_not_used(results, tiny_study, tmp_path):
    summary = tiny_study.shards / "labeled" / "train" / "manifest.json"
    clips = read_json(summary)["clips"]
    run = results / "runs" / "labeled_finetune" / "seed0"
    account = read_json(run / "training.json")
    account["data"]["left_out_as_leaked"] = {"results/shards/labeled/train": 4}
    (tmp_path / "training.json").write_text(json.dumps(account))
    leaked = read_leaked([tmp_path / "training.parquet", run / "training.parquet"])
    found = read_account(summary, leaked)
    assert (found.listed, found.used, found.not_used) == (clips, clips - 4, "4 left out as leaked")
    assert read_account(summary, {}).not_used == "none"


HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"'--><b>", "$x^{$ \\input{x} %"]


@pytest.mark.parametrize("text", HOSTILE)
def test_labels_of_plots_are_plain_text(text):
    recall = pd.DataFrame({text: [1.0, 2.0]}, index=[1, 2])
    svg = recall_curves({"title": recall}, colours_of([text]))
    assert text in "".join(ElementTree.fromstring(svg).itertext())


@pytest.mark.parametrize("text", HOSTILE)
def test_name_and_note_of_a_study_are_plain_text(page, results, tiny_study, tmp_path, text):
    words = arguments(results, tiny_study, tmp_path)
    words[1], words[3] = text, text
    report.main(words)
    html, same = (tmp_path / "index.html").read_text(), (page / "index.html").read_text()
    assert html.count("<script") == same.count("<script") and html.count("<img") == 0
    assert f"<h1>{markupsafe.escape(text)}</h1>" in html


def test_plots_have_a_size_where_no_page_gives_them_one(results):
    svg = ElementTree.fromstring((results / "runs" / "labeled_finetune" / "seed0" / "learning_curves.svg").read_text())
    assert svg.get("width") == "576pt" and svg.get("height") == "504pt" and svg.get("viewBox") == "0 0 576 504"


def test_two_rows_of_differences_keep_off_the_frame():
    found = Comparison(difference=1.0, low=0.5, high=1.5, p=0.1, p_holm=0.1)
    svg = differences({row: {"t2a_mAP10": found} for row in ("one", "two")}, {"t2a_mAP10": "title"})
    uses = re.findall(r'<use [^>]*y="([\d.]+)" style="[^"]*stroke: ([^;"]+)', svg)
    frame = max(float(y) for y, stroke in uses if stroke == "currentColor")  # where the ticks of the x axis are
    points = [float(y) for y, stroke in uses if stroke == COLOURS[0]]
    assert len(points) == 2 and frame - max(points) > 10


def test_evaluations_of_other_clips_are_refused(results, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(results / "evaluations" / "vanilla" / "seed0" / "labeled", folder)
    with np.load(folder / "embeddings.npz") as file:
        arrays = dict(file)
    arrays["audio_key"][0] = "another"
    np.savez(folder / "embeddings.npz", **arrays)
    first = read_evaluation(results / "evaluations" / "vanilla" / "seed0" / "labeled")
    group = by_target([first, read_evaluation(folder)])["labeled"]
    with pytest.raises(PipelineError, match="other clips or captions"):
        read_test_set(group)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def visit(browser):
    """Opens a page afresh and fails on its errors; always in one tab, because a new one is a new process."""
    tab = browser.new_page(viewport={"width": 400, "height": 800})
    errors = []
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("dialog", lambda dialog: (errors.append(f"a caption was run: {dialog.message}"), dialog.dismiss()))

    @contextlib.contextmanager
    def visit(page):
        tab.emulate_media(color_scheme="light")
        tab.goto("about:blank")
        errors.clear()
        tab.goto((page / "index.html").as_uri())
        yield tab
        assert errors == []

    yield visit
    tab.close()


@pytest.fixture
def opened(visit, page):
    with visit(page) as tab:
        yield tab


def test_differences_name_what_a_row_was_trained_on(tmp_path):
    path = tmp_path / "table1.csv"
    head = "target,method,clotho,audioset,label,figure,difference,low,high,p,p_holm\n"
    rows = [f"clotho,composed,A+T,A,longer,{name},2.0,1.0,3.0,0.01,0.02\n" for name in DIFFERENCES]
    path.write_text(head + "".join(rows))
    (plot,) = difference_plots(path)
    assert (plot.name, plot.subject) == ("table1", "clotho")
    assert "composed: longer" in plot.svg and "clotho A+T, audioset A" in plot.svg


@needs_browser
def test_filter_keeps_the_captions_that_hold_the_words(opened):
    opened.fill("#filter", "WHISTLES")
    listed = opened.locator("#queries li").all_inner_texts()
    assert listed and all("whistles" in text for text in listed)
    opened.fill("#filter", "no such words")
    assert opened.locator("#queries li").count() == 0
    assert opened.locator("#top-a li").count() == 0


@needs_browser
def test_an_empty_filter_shows_no_rank(opened):
    assert opened.locator("#rank-a").is_visible()
    rank = opened.locator("#rank-a").inner_text()
    opened.fill("#filter", "no such words")
    assert not opened.locator("#rank-a").is_visible()
    opened.fill("#filter", "")
    assert opened.locator("#rank-a").is_visible() and opened.locator("#rank-a").inner_text() == rank


@pytest.fixture(scope="module")
def mapped(results, tiny_study, pool_study, tmp_path_factory):
    """The page with a description of unlabeled audio."""
    out = tmp_path_factory.mktemp("mapped")
    words = arguments(results, tiny_study, out)
    summaries = [
        str(pool_study.folder / "shards" / name / "train" / "manifest.json") for name in ("target", "unlabeled")
    ]
    words[words.index("--summaries") + 1 : words.index("--out")] = [words[words.index("--summaries") + 1], *summaries]
    report.main([*words, "--pools", str(pool_study.folder / "pool")])
    return out


@pytest.fixture
def map_tab(visit, mapped):
    with visit(mapped) as tab:
        yield tab


def dots_of(page):
    return json.loads(re.search(r"window\.POOLS = (.*);\n", (page / "data.js").read_text())[1])["target: train clips"]


def test_a_page_without_a_description_has_no_map(page):
    assert "POOLS" not in (page / "data.js").read_text() and 'id="map"' not in (page / "index.html").read_text()


def test_the_description_is_in_words_and_figures(mapped, pool_study):
    html = (mapped / "index.html").read_text()
    summary, _ = read_pool(pool_study.folder / "pool")
    for sentence in answer(summary, summary.whole):
        assert str(markupsafe.escape(sentence)) in html
    assert "unlabeled/train" in html and "Choose by the validation split" in html
    assert "Shown: 20 of 20 unlabeled, 24 of 24 labeled, 6 of 6 test clips" in dots_of(mapped)["note"]


def test_every_dot_can_be_played(mapped):
    for dot in dots_of(mapped)["dots"]:
        assert (mapped / "audio" / f"{dot['key']}.mp3").stat().st_size > 0


def test_sounds_of_dots_are_no_longer_than_an_excerpt(results, tiny_study, pool_study, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "EXCERPT_S", 0.5)
    words = arguments(results, tiny_study, tmp_path)
    words += ["--pools", str(pool_study.folder / "pool"), "--summaries"]
    words += [
        str(pool_study.folder / "shards" / name / "train/manifest.json") for name in ("labeled", "target", "unlabeled")
    ]
    report.main(words)
    lengths = {path.stem: soundfile.info(path).duration for path in (tmp_path / "audio").iterdir()}
    for dot in dots_of(tmp_path)["dots"]:
        assert (lengths[dot["key"]] < 0.7) == (dot["group"] != "labeled"), dot["key"]  # the test clips of the study


def test_the_lists_begin_with_the_extremes(mapped, pool_study):
    shown = dots_of(mapped)
    held_out = pd.read_parquet(pool_study.folder / "pool" / "held_out.parquet")
    assert shown["dots"][shown["worst"][0]]["key"] == held_out.loc[held_out["unlabeled_cosine"].idxmin(), "key"]
    unlabeled = pd.read_parquet(pool_study.folder / "pool" / "unlabeled.parquet")
    farthest = unlabeled[["labeled_cosine", "held_out_cosine"]].max(axis=1).idxmin()
    assert shown["dots"][shown["far"][0]]["key"] == unlabeled.loc[farthest, "key"]


def test_a_map_of_clips_without_their_shards_is_refused(results, tiny_study, pool_study, tmp_path):
    words = [*arguments(results, tiny_study, tmp_path), "--pools", str(pool_study.folder / "pool")]
    with pytest.raises(
        PipelineError, match=r"(target|unlabeled)/train is on a map, but its manifest.json is not in --summ"
    ):
        report.main(words)


def middle_of(tab, number):
    """Where a dot is on the screen."""
    tab.locator("#map").scroll_into_view_if_needed()
    box, place = tab.locator("#map").bounding_box(), tab.evaluate(f"map.places[{number}]")
    return box["x"] + place[0], box["y"] + place[1]


@needs_browser
@pytest.mark.parametrize("number", [0, 25, 49])
def test_a_click_on_a_dot_plays_and_names_its_clip(map_tab, mapped, number):
    tab, dots = map_tab, dots_of(mapped)["dots"]
    tab.mouse.click(*middle_of(tab, number))
    x, y = tab.evaluate(f"map.places[{number}]")
    same = [dot["key"] for dot, place in zip(dots, tab.evaluate("map.places"), strict=True) if place == [x, y]]
    key, seconds = tab.evaluate(PLAYING)
    assert key in same and seconds > 0
    dot = next(dot for dot in dots if dot["key"] == key)
    text = tab.locator("#map-chosen").inner_text()
    assert key in text and dot["file"] in text and all(caption in text for caption in dot["captions"])


@needs_browser
def test_the_map_is_worked_with_keys_alone(map_tab):
    map_tab.locator("#map").focus()
    visited = set()
    for step in ["ArrowRight"] * 4 + ["ArrowUp"] * 4 + ["ArrowLeft"] * 6 + ["ArrowDown"] * 6:
        before = map_tab.evaluate("map.places[map.chosen]")
        map_tab.keyboard.press(step)
        after = map_tab.evaluate("map.places[map.chosen]")
        moved = (after[0] - before[0], after[1] - before[1])
        sign = {"ArrowRight": moved[0], "ArrowLeft": -moved[0], "ArrowDown": moved[1], "ArrowUp": -moved[1]}[step]
        assert sign > 0 or moved == (0, 0)
        visited.add(tuple(after))
    assert len(visited) > 5
    map_tab.keyboard.press("Enter")
    key, _ = map_tab.evaluate(PLAYING)
    assert key in map_tab.locator("#map-chosen").inner_text()


@needs_browser
def test_a_hidden_group_is_not_drawn_and_not_chosen(map_tab, mapped):
    groups = [dot["group"] for dot in dots_of(mapped)["dots"]]
    map_tab.locator("#map-groups input[value=unlabeled]").uncheck()
    assert map_tab.locator("#map .dots.unlabeled").get_attribute("d") == ""
    map_tab.mouse.click(*middle_of(map_tab, groups.index("unlabeled")))
    assert groups[map_tab.evaluate("map.chosen")] != "unlabeled"
    map_tab.locator("#map-groups input[value=unlabeled]").check()
    assert map_tab.locator("#map .dots.unlabeled").get_attribute("d").count("z") == groups.count("unlabeled")


@needs_browser
def test_a_clip_of_a_list_is_found_on_the_map(map_tab, mapped):
    shown = dots_of(mapped)
    map_tab.locator("#far .link").first.click()
    assert map_tab.evaluate("map.chosen") == shown["far"][0]
    map_tab.locator("#far .play").first.click()
    key, _ = map_tab.evaluate(PLAYING)
    assert key == shown["dots"][shown["far"][0]]["key"]
    assert map_tab.locator("#map-chosen .play").get_attribute("aria-pressed") == "true"


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_dots_of_the_map_stand_out(map_tab, scheme):
    map_tab.emulate_media(color_scheme=scheme)
    assert map_tab.evaluate(CONTRASTS) == []
    assert map_tab.evaluate("document.documentElement.scrollWidth") <= 400
    colours = map_tab.evaluate(
        "[...document.querySelectorAll('#map .dots')].map((dots) => getComputedStyle(dots).fill)"
    )
    assert len(set(colours)) == 3


HANDMADE = {
    "split": "test",
    "keys": ["one", "two", "three"],
    "captions": ["a dog barks", "a dog barks", HOSTILE[0] + HOSTILE[1] + HOSTILE[2]],
    "audio_of_text": [0, 1, 2],
    "runs": {
        run: {
            "seed": 0,
            "t2a": {"rank": [1.5, 2, 3], "top": [[1, 0, 2]] * 3, "score": [[0.9, 0.9, 0.1]] * 3},
            "a2t": {"rank": [2, 1, 3], "top": [[1, 0, 2]] * 3, "score": [[0.9, 0.9, 0.1]] * 3},
        }
        for run in ("vanilla", "finetune")
    },
}


@pytest.fixture
def handmade(visit, page, tmp_path):
    """The page with three clips, two of one caption, and a caption of HTML."""
    shutil.copy(page / "index.html", tmp_path)
    (tmp_path / "data.js").write_text(render_data({"clotho": HANDMADE}, {}))
    with visit(tmp_path) as tab:
        yield tab


@needs_browser
@pytest.mark.parametrize("direction", ["t2a", "a2t"])
def test_an_answer_with_the_caption_of_the_query_is_not_called_wrong(handmade, direction):
    handmade.select_option("#direction", direction)
    handmade.locator("#query-0").click()
    marks = handmade.locator("#top-a .mark").all_inner_texts()
    assert marks == ["≈ same caption", "✓ right", "✗ wrong"]


@needs_browser
def test_a_tied_rank_is_called_tied(handmade):
    handmade.locator("#query-0").click()
    assert handmade.locator("#rank-a").inner_text() == "the right clip has rank 1.5 (tied)"
    handmade.locator("#query-1").click()
    assert handmade.locator("#rank-a").inner_text() == "the right clip has rank 2"


@needs_browser
def test_captions_of_html_are_shown_as_text(handmade):
    handmade.locator("#query-2").click()
    assert handmade.locator("#question strong").inner_text() == HANDMADE["captions"][2]
    assert handmade.locator("img").count() == 0 and handmade.locator("#browser script").count() == 0


@needs_browser
def test_plots_are_visible_as_images(browser, results, tmp_path):
    """As in Snakemake's report, which shows a file by an image without a size."""
    shutil.copy(results / "runs" / "labeled_finetune" / "seed0" / "learning_curves.svg", tmp_path / "plot.svg")
    (tmp_path / "index.html").write_text('<div style="display: flex"><img src="plot.svg"></div>')
    tab = browser.new_page()
    tab.goto((tmp_path / "index.html").as_uri())
    assert tab.locator("img").bounding_box()["width"] == 768
    tab.close()


@needs_browser
def test_arrow_keys_step_through_the_queries(opened):
    opened.locator("#queries").press("ArrowDown")
    assert opened.locator("#queries li").nth(1).get_attribute("aria-selected") == "true"


@needs_browser
def test_right_answer_is_marked_where_it_is_ranked(opened, results):
    opened.select_option("#run-a", "vanilla")
    ranks = read_evaluation(results / "evaluations" / "vanilla" / "seed0" / "labeled").queries("t2a").to_pylist()
    query = next(row for row in ranks if row["rank"] in range(2, 11))
    opened.locator(f"#query-{query['query']}").click()
    answers = opened.locator("#top-a li").all_inner_texts()
    assert [place for place, text in enumerate(answers, 1) if "right" in text] == [query["rank"]]


@needs_browser
def test_orders_put_the_largest_wins_first(opened):
    def ranks():
        texts = opened.locator("#queries .ranks").all_inner_texts()
        return [tuple(map(float, re.findall(r"rank ([\d.]+)", text))) for text in texts]

    opened.select_option("#order", "b")
    leads = [1 / b - 1 / a for a, b in ranks()]
    assert leads == sorted(leads, reverse=True)


CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const [, , , alpha = 1] = numbers(getComputedStyle(node).backgroundColor);
      if (alpha > 0) return getComputedStyle(node).backgroundColor;
    }
  };
  const words = [...document.querySelectorAll("body *:not(svg *, script, style)")]
    .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  return words.filter((node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map((node) => `${node.tagName} ${node.className} ${node.textContent.slice(0, 40)}`);
}"""
PLAYING = "(async () => { const audio = document.getElementById('player'); while (audio.currentTime === 0)\
 await new Promise((done) => setTimeout(done, 20)); return [audio.dataset.key, audio.duration]; })()"


@needs_browser
def test_clips_play_from_disk_one_at_a_time(opened):
    opened.locator("#question .play").click()
    key, seconds = opened.evaluate(PLAYING)
    assert seconds >= 1
    assert opened.locator(f".play[data-key={key}]").first.get_attribute("aria-pressed") == "true"
    other = opened.locator(f"#top-a .play:not([data-key={key}])").first
    other.click()
    opened.wait_for_function("key => document.getElementById('player').dataset.key !== key", arg=key)
    assert opened.locator(f"#question .play[data-key={key}]").get_attribute("aria-pressed") == "false"


@needs_browser
def test_the_list_is_worked_with_keys_alone(opened):
    opened.keyboard.press("/")
    opened.keyboard.type("hisses")
    assert opened.input_value("#filter") == "hisses"
    opened.locator("#queries").press("Enter")
    key, _ = opened.evaluate(PLAYING)
    assert key in opened.locator("#question .key").inner_text()


@needs_browser
def test_a_clip_asks_for_its_captions(opened, page):
    opened.select_option("#direction", "a2t")
    data = json.loads((page / "data.js").read_text().removeprefix("window.RETRIEVED = ").removesuffix(";\n"))["labeled"]
    clip = data["keys"].index(opened.locator("#question .key").inner_text())
    for side in ("a", "b"):
        run = opened.input_value(f"#run-{side}")
        top = data["runs"][run]["a2t"]["top"][clip]
        texts = opened.locator(f"#top-{side} li").all_inner_texts()
        assert [data["captions"][text] in shown for text, shown in zip(top, texts, strict=True)] == [True] * 10
        assert ["right" in shown for shown in texts] == [data["audio_of_text"][text] == clip for text in top]


@needs_browser
def test_without_its_folder_the_page_says_where_the_answers_are(browser, page, tmp_path):
    """As in Snakemake's report, which holds index.html alone."""
    shutil.copy(page / "index.html", tmp_path)
    tab = browser.new_page()
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto((tmp_path / "index.html").as_uri())
    assert "open it in its own folder" in tab.locator("#browser").inner_text()
    assert errors == []
    tab.close()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(opened, scheme):
    """A contrast of 4.5 to 1 or more, as WCAG 2 asks for, of every text with the ground behind it."""
    opened.emulate_media(color_scheme=scheme)
    faint = opened.evaluate(CONTRASTS)
    assert faint == []


@needs_browser
def test_nothing_is_wider_than_a_phone(opened):
    for direction in ("t2a", "a2t"):
        opened.select_option("#direction", direction)
        assert opened.evaluate("document.documentElement.scrollWidth") <= 400
