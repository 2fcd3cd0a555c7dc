"""The paper's figures in, its Table 1 out."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import FIGURES
from pipeline.evaluation.protocols import ALL_PROTOCOLS
from pipeline.evaluation.windows import WINDOWS
from pipeline.results.table.latex import _ESCAPES, WINDOW_NOTES, escape
from pipeline.results.table.names import PROTOCOL_NOTES
from pipeline.results.table.published import read_published
from pipeline.stages import tabulate

PAPER = Path(__file__).parents[2] / "data" / "paper_table1.csv"
GOLDEN = Path(__file__).parent / "expected_table1.tex"
N_AUDIO = {"clotho": 1045, "audiocaps": 883}
N_EXPECTED = {"clotho": 1045, "audiocaps": 975}
LABELS = {"finetune_all_pairs": "finetune", "vanilla": "vanilla CLAP"}
MARKS = {"finetune_all_pairs": r"$^{\dagger}$", "concatenate": r"$^{\ddagger}$"}

DATASETS = ["--datasets", "clotho", "audiocaps", "audioset"]
Study = list[tuple[str, list[dict[str, Any]]]]


@pytest.fixture
def study() -> Study:
    """The paper's twelve rows, each with the metrics of one seed."""
    return [
        (
            "|".join(row[name] for name in ("target", "method", "clotho", "audiocaps", "audioset")),
            [
                {
                    "run": row["method"],
                    "seed": 0,
                    "target": row["target"],
                    "split": "evaluation" if row["target"] == "clotho" else "test",
                    "n_text": 5 * N_AUDIO[row["target"]],
                    "n_audio": N_AUDIO[row["target"]],
                    "n_audio_expected": N_EXPECTED[row["target"]],
                    "windows": "mean",
                    "protocols": {"paper": {name: float(row[name]) for name in FIGURES}},
                }
            ],
        )
        for row in csv.DictReader(PAPER.open())
    ]


def run_stage(
    folder: Path, study: Study, name: str = "published", note: str = "", more: Sequence[str] = ()
) -> tuple[Path, Path]:
    arguments = [*more, "--protocol", "paper", "--study-name", name, "--study-note", note, *DATASETS]
    for number, (row, seeds) in enumerate(study):
        arguments += ["--row", row]
        for index, metrics in enumerate(seeds):
            path = folder / f"row{number}_{index}.json"
            path.write_text(json.dumps(metrics))
            arguments.append(str(path))
    outputs = folder / "table1.csv", folder / "table1.tex"
    tabulate.main([*arguments, "--csv", str(outputs[0]), "--tex", str(outputs[1])])
    return outputs


def with_seeds(study: Study, offsets: list[float]) -> None:
    """Give every trained row a seed an offset, which its figures are moved by."""
    for row, seeds in study:
        if "|vanilla|" not in row:
            seeds[:] = [
                {
                    **seeds[0],
                    "seed": seed,
                    "protocols": {"paper": {k: v + offset for k, v in seeds[0]["protocols"]["paper"].items()}},
                }
                for seed, offset in enumerate(offsets)
            ]


def test_paper_figures_give_exactly_this_latex(tmp_path, study):
    _, tex = run_stage(tmp_path, study, note="The figures that the paper prints, not results of this code.")
    assert tex.read_text() == GOLDEN.read_text()


def test_every_figure_of_the_paper_stands_in_its_row_and_column():
    """The golden file against the paper's CSV, without the code that wrote it."""
    body = GOLDEN.read_text().split(r"\toprule")[1].split(r"\bottomrule")[0]
    blocks = body.split("Retrieval performance of the ")[1:]
    assert [block.split(" dataset")[0] for block in blocks] == ["Clotho", "AudioCaps"]
    for block, target in zip(blocks, ("clotho", "audiocaps"), strict=True):
        lines = [line.removesuffix(r" \\").split(" & ") for line in block.splitlines()]
        printed = [cells for cells in lines if re.fullmatch(r"\d+\.\d\d", cells[-1])]
        published = [row for row in csv.DictReader(PAPER.open()) if row["target"] == target]
        for cells, row in zip(printed, published, strict=True):
            assert cells[0] == LABELS.get(row["method"], row["method"]) + MARKS.get(row["method"], "")
            assert [{"Audio": "A"}.get(cell, cell) for cell in cells[1:4]] == [
                row[name] for name in ("clotho", "audiocaps", "audioset")
            ]
            assert [float(cell) for cell in cells[4:]] == [float(row[name]) for name in FIGURES]


def test_csv_begins_with_the_paper_table_and_adds_what_was_evaluated(tmp_path, study):
    path, _ = run_stage(tmp_path, study)
    table, published = pd.read_csv(path), pd.read_csv(PAPER)
    assert path.read_text().splitlines()[0] == (
        "target,method,clotho,audiocaps,audioset,t2a_R1,t2a_R5,t2a_R10,t2a_mAP10,"
        "a2t_R1,a2t_R5,a2t_R10,a2t_mAP10,n_text,n_audio,protocol,seeds"
    )
    pd.testing.assert_frame_equal(table[published.columns], published)
    assert table["n_audio"].tolist() == [1045] * 6 + [883] * 6
    assert table["n_text"].tolist() == [5225] * 6 + [4415] * 6
    assert set(table["protocol"]) == {"paper"}
    assert set(table["seeds"]) == {1}


def test_seeds_give_mean_in_both_and_deviation_in_latex(tmp_path, study):
    with_seeds(study, [-0.5, 0.1, 0.7])  # mean 0.1, sample standard deviation 0.6
    csv_path, tex = run_stage(tmp_path, study)
    table, published = pd.read_csv(csv_path), pd.read_csv(PAPER)
    trained = table["method"] != "vanilla"
    assert table["seeds"].tolist() == np.where(trained, 3, 1).tolist()
    moved = published[list(FIGURES)].add(np.where(trained, 0.1, 0), axis=0)
    np.testing.assert_allclose(table[list(FIGURES)], moved, atol=0.0051)
    lines = tex.read_text().splitlines()
    assert sum(line.count(r"\,{\tiny$\pm$0.60}") for line in lines) == 10 * 8
    assert r"vanilla CLAP & - & - & - & 15.75\phantom{\,{\tiny$\pm$0.00}} & " in tex.read_text()
    assert r"finetune & A+T & - & - & 17.08\,{\tiny$\pm$0.60} & 40.79\,{\tiny$\pm$0.60} & " in tex.read_text()
    assert any(line.startswith(r"Means over 3 seeds; after $\pm$,") for line in lines)


def test_rows_keep_their_order_and_stand_under_their_heading(tmp_path, study):
    path, tex = run_stage(tmp_path, study[::-1])
    assert pd.read_csv(path)["target"].tolist() == ["audiocaps"] * 6 + ["clotho"] * 6
    text = tex.read_text()
    assert text.index("AudioCaps dataset}") < text.index("Clotho dataset}")
    block = text.split("Clotho dataset}")[1]
    assert block.index("finetune &") < block.index("vanilla CLAP &") < block.index("Proposed method")
    assert block.index("Proposed method") < block.index("composed &") < block.index("(Scenario")


def test_part_of_the_table_has_only_its_own_notes(tmp_path, study):
    _, tex = run_stage(tmp_path, study[:2])
    text = tex.read_text()
    assert "on the Clotho dataset, study" in text
    assert "AudioCaps dataset" not in text
    assert "dagger" not in text
    assert "Proposed method" not in text


def test_dataset_of_your_own_is_a_target_too(tmp_path, study):
    rows = [
        (row.replace("clotho|", "my_sounds|", 1), [{**m, "target": "my_sounds"} for m in seeds])
        for row, seeds in study[:6]
    ]
    _, tex = run_stage(tmp_path, rows)
    assert r"Retrieval performance of the my\_sounds dataset" in tex.read_text()


def test_same_metrics_give_the_same_bytes(tmp_path, study):
    first = [path.read_bytes() for path in run_stage(tmp_path, study)]
    assert first == [path.read_bytes() for path in run_stage(tmp_path, study)]


def test_every_protocol_and_way_of_windows_has_its_note():
    assert set(PROTOCOL_NOTES) == set(ALL_PROTOCOLS)
    assert set(WINDOW_NOTES) == set(WINDOWS)


def change(study: Study, row: int, **values: Any) -> None:
    study[row][1][0].update(values)


MISTAKES: dict[str, tuple[Callable[[Study], Any], str]] = {
    "row twice": (lambda s: s.append(s[2]), r"row clotho\|composed\|A\+T\|A\|- is given twice"),
    "row without files": (lambda s: s[3][1].clear(), r"row clotho\|composed\|A\+T\|-\|A has no metrics file"),
    "another target": (lambda s: change(s, 0, target="audiocaps"), r"row0_0\.json: is of the target audiocaps"),
    "no such protocol": (
        lambda s: change(s, 4, protocols={"dcase": {}, "best-of-5": {}}),
        r"row4_0\.json: has no protocol 'paper', only dcase, best-of-5",
    ),
    "figure that is no number": (
        lambda s: s[1][1][0]["protocols"]["paper"].update(t2a_R5=float("nan")),
        r"row1_0\.json: paper t2a_R5 is nan",
    ),
    "figure missing": (lambda s: s[1][1][0]["protocols"]["paper"].pop("a2t_R5"), r"row1_0\.json: paper a2t_R5 is None"),
    "seed twice": (lambda s: s[1][1].append(s[1][1][0]), r"row1_1\.json and .*row1_0\.json are both of seed 0"),
    "two runs": (lambda s: s[1][1].append({**s[1][1][0], "seed": 1, "run": "other"}), "mixes runs: .* is of other"),
    "seeds of other clips": (
        lambda s: s[1][1].append({**s[1][1][0], "seed": 1, "n_text": 5220}),
        r"row1_1\.json and .*row0_0\.json are not comparable: n_text 5220 and 5225",
    ),
    "rows of other clips": (
        lambda s: change(s, 5, n_audio=1044, n_text=5220),
        "not comparable: n_text 5220 and 5225, n_audio 1044 and 1045",
    ),
    "rows of another split": (lambda s: change(s, 5, split="validation"), "split validation and evaluation"),
    "rows with other windows": (lambda s: change(s, 5, windows="first"), "windows first and mean"),
    "targets with other windows": (
        lambda s: [change(s, row, windows="first") for row in range(6)],
        r"different windows \(first, mean\)",
    ),
    "field missing": (lambda s: s[0][1][0].pop("n_audio"), r"row0_0\.json: holds no n_audio"),
    "too few cells": (lambda s: s.append(("clotho|composed|A+T", [])), "has 3 fields"),
    "unknown cell": (lambda s: s.append(("clotho|composed|A+T|T|-", [])), r"'T' is none of A\+T, A, -"),
    "unknown method": (lambda s: s.append(("clotho|compose|A+T|A|-", [])), "method 'compose' is unknown"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_rows_that_do_not_belong_in_one_table_are_named(tmp_path, study, mistake):
    make, message = MISTAKES[mistake]
    make(study)
    with pytest.raises(PipelineError, match=message):
        run_stage(tmp_path, study)
    assert not (tmp_path / "table1.tex").exists()


def test_missing_or_damaged_metrics_are_named(tmp_path):
    arguments = ["--row", "clotho|vanilla|-|-|-", str(tmp_path / "a.json"), "--protocol", "paper", "--study-name", "x"]
    arguments += DATASETS
    arguments += ["--csv", str(tmp_path / "x.csv"), "--tex", str(tmp_path / "x.tex")]
    with pytest.raises(PipelineError, match=r"a\.json: not found"):
        tabulate.main(arguments)
    (tmp_path / "a.json").write_text('{"run": ')
    with pytest.raises(PipelineError, match=r"a\.json: is not JSON"):
        tabulate.main(arguments)
    with pytest.raises(PipelineError, match="names a metrics file twice"):
        (tmp_path / "a.json").write_text("{}")
        tabulate.main([*arguments[:3], arguments[2], *arguments[3:]])


def test_character_without_a_glyph_is_named():
    with pytest.raises(PipelineError, match="no glyph for '漢'"):
        escape("a 漢 b")


def pdf_text(folder: Path, name: str) -> str:
    """Compile NAME.tex in a folder without a warning, and return the words of its single page."""
    if shutil.which("pdflatex") is None or shutil.which("pdftotext") is None:
        pytest.skip("needs pdflatex (texlive-latex-extra) and pdftotext (poppler-utils)")
    compiled = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stdout[-2000:]
    assert not re.search(r"Warning|Overfull|Underfull", compiled.stdout), compiled.stdout
    assert "(1 page," in compiled.stdout
    return subprocess.run(
        ["pdftotext", "-layout", f"{name}.pdf", "-"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def test_document_compiles_as_it_stands(tmp_path, study):
    with_seeds(study, [-10.5, 0, 10.5])
    run_stage(tmp_path, study, name="the_small & only")
    text = pdf_text(tmp_path, "table1")
    assert "study the small & only, protocol paper" in text  # the underscore is a rule, no character of the font
    assert "883 clips of the 975 published" in text
    assert "38.05 ±10.50" in text
    assert re.search(r"^ *concatenate‡? +A\+T +A\+T +- +38\.26", text, re.MULTILINE)


def test_note_prints_as_it_was_written(tmp_path, study):
    everything = "".join(chr(code) for code in [*range(33, 127), *range(0xC0, 0x100)] if chr(code) not in "ÐÞðþ")
    others = [character for character in _ESCAPES if ord(character) > 0xFF]
    run_stage(tmp_path, study, note=" ".join([*others, "a -- b --- c", *everything]))
    text = pdf_text(tmp_path, "table1")
    assert "a -- b --- c" in text
    assert "# $ % &" in text
    assert all(letter in text for letter in "ßøÆ")  # others print as letter and accent, in pieces


HOSTILE = r"\input{x} 5 % & $y^{ #1 ~ a_b \end{document} \\"


def hostile_study(study: Study) -> Study:
    """A finetune row on a dataset whose names are LaTeX commands, with such a label and split."""
    metrics = {**study[0][1][0], "target": HOSTILE, "split": HOSTILE}
    return [(f"{HOSTILE}|finetune|A+T|A|-|{HOSTILE}", [metrics])]


def test_commands_in_names_labels_and_notes_are_printed(tmp_path, study):
    _, tex = run_stage(tmp_path, hostile_study(study), name=HOSTILE, note=HOSTILE)
    text = tex.read_text()
    assert text.count(escape(HOSTILE)) == 7  # header, label, caption twice, notes thrice
    assert text.count(r"\input") == 1 and text.count(r"\end{document}") == 1  # the file's own


def test_document_with_commands_in_names_compiles_to_their_text(tmp_path, study):
    run_stage(tmp_path, hostile_study(study), name=HOSTILE, note=HOSTILE)
    text = pdf_text(tmp_path, "table1")
    assert r"\input{x} 5 % & $y" in text


def test_commands_in_columns_of_training_data_are_printed(tmp_path, study, monkeypatch):
    monkeypatch.setattr(f"{__name__}.DATASETS", ["--datasets", r"a_b & \input{x}", "50 %", "#"])
    _, tex = run_stage(tmp_path, study)
    assert r"a\_b \& \textbackslash{}input\{x\} & 50 \% & \#" in tex.read_text()


def test_table_can_be_input_into_a_document(tmp_path, study):
    run_stage(tmp_path, study)
    (tmp_path / "parent.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,standalone}\n\\usepackage[margin=15mm]{geometry}\n"
        "\\begin{document}\nBefore the table.\n\\input{table1.tex}\nAfter the table.\n\\end{document}\n"
    )
    text = pdf_text(tmp_path, "parent")
    assert "Before the table. After the table." in " ".join(text.split())
    assert "Retrieval performance of the AudioCaps dataset" in text


def with_ablation(study: Study, label: str) -> None:
    """Give the study a second row of its composed run's method and training data, with a label."""
    row, seeds = next(item for item in study if "|composed|" in item[0])
    study.append((f"{row}|{label}", [{**metrics, "run": "ablation"} for metrics in seeds]))


def test_rows_of_one_method_and_data_are_told_apart_by_their_labels(tmp_path, study):
    with_ablation(study, "gain 50 % | no_term")
    path, tex = run_stage(tmp_path, study)
    table = pd.read_csv(path, keep_default_na=False)
    assert list(table["label"]) == [""] * 12 + ["gain 50 % | no_term"]
    assert r"composed (gain 50 \% \textbar{} no\_term) & A+T & Audio & - & " in tex.read_text()


def test_without_labels_the_csv_has_no_column_for_them(tmp_path, study):
    path, _ = run_stage(tmp_path, study)
    assert "label" not in path.read_text()


def test_the_same_label_twice_is_refused(tmp_path, study):
    with_ablation(study, "once")
    with_ablation(study, "once")
    with pytest.raises(PipelineError, match=r"row .*\|once is given twice"):
        run_stage(tmp_path, study)


def write_comparisons(path: Path, p_holm: dict[str, float]) -> Path:
    """What compare writes, for Clotho's first composed row: the corrected p of some figures, 1 for all others."""
    row = ["clotho", "composed", "A+T", "A", "-", ""]
    names = ["target", "method", "clotho", "audiocaps", "audioset", "label", "figure"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "difference", "low", "high", "p", "p_holm", "significant"])
        for figure in FIGURES:
            p = p_holm.get(figure, 1.0)
            writer.writerow([*row, figure, 1.0, 0.5, 1.5, p, p, "yes" if p < 0.05 else "no"])
    return path


def test_figures_that_differ_significantly_are_marked_and_no_others(tmp_path, study):
    comparisons = write_comparisons(tmp_path / "comparisons.csv", {"t2a_R1": 0.049, "a2t_R1": 0.05})
    csv_path, tex_path = run_stage(tmp_path, study, more=["--comparisons", str(comparisons)])
    tex = tex_path.read_text()
    marked = re.findall(r"([\d.]+)\$\^\{\*\}\$", tex)
    first = next(row for row in csv.DictReader(csv_path.open()) if row["method"] == "composed")
    assert marked == [first["t2a_R1"]]
    assert "Holm" in tex and tex.count(r"\phantom{$^{*}$}") == 12 * 8 - 1


def test_markdown_holds_the_figures_of_the_csv_and_the_marks(tmp_path, study):
    comparisons = write_comparisons(tmp_path / "comparisons.csv", {"t2a_R1": 0.001})
    markdown = tmp_path / "table.md"
    csv_path, _ = run_stage(tmp_path, study, more=["--comparisons", str(comparisons), "--markdown", str(markdown)])
    lines = markdown.read_text().split("\n")[2:14]
    marks = 0
    for line, row in zip(lines, csv.DictReader(csv_path.open()), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        marks += line.count(r"\*")
        assert [cell.removesuffix(r"\*") for cell in cells[-8:]] == [row[name] for name in FIGURES]
    assert marks == 1


def test_marked_document_compiles(tmp_path, study):
    comparisons = write_comparisons(tmp_path / "comparisons.csv", {"t2a_R1": 0.001})
    run_stage(tmp_path, study, more=["--comparisons", str(comparisons)])
    text = pdf_text(tmp_path, "table1")
    assert re.search(r"Differs from finetune on the same clips: paired bootstrap over clips, p < 0.05", text)


def test_deviations_over_seeds_are_the_same_in_csv_markdown_and_latex(tmp_path, study):
    with_seeds(study, [-0.5, 0.2, 1.3])
    rows, markdown, tex = beside(tmp_path, study)
    expected = [row[f"{name}_sd"] for row in rows for name in FIGURES]
    assert expected[:8] == [""] * 8 and set(expected[8:48]) == {"0.91"}, "vanilla has one seed, and no deviation"
    assert re.findall(r"± ([\d.]+)", markdown) == [sd for sd in expected if sd]
    assert re.findall(r"\\,\{\\tiny\$\\pm\$([\d.]+)\}\}?", tex.replace(r"\phantom{\,{\tiny$\pm$0.00}}", "")) == [
        sd for sd in expected if sd
    ]


def beside(folder: Path, study: Study, more: Sequence[str] = ()) -> tuple[list[dict[str, str]], str, str]:
    """CSV rows, Markdown and LaTeX of a table beside the paper's."""
    markdown = folder / "table.md"
    csv_path, tex = run_stage(folder, study, more=["--published", str(PAPER), "--markdown", str(markdown), *more])
    return list(csv.DictReader(csv_path.open())), markdown.read_text(), tex.read_text()


def test_the_papers_figures_beside_themselves_differ_by_nothing_and_gain_what_the_abstract_states(tmp_path, study):
    rows, markdown, tex = beside(tmp_path, study)
    for row, published in zip(rows, csv.DictReader(PAPER.open()), strict=True):
        for name in FIGURES:
            assert float(row[f"published_{name}"]) == float(row[name]) == float(published[name])
            assert row[f"difference_{name}"] == "0.00"
    composed = [row for row in rows if row["method"] == "composed"]
    assert [row["gain_t2a_R1"] for row in composed] == ["9.3", "8.4", "13.6", "11.3"]
    assert all(
        row[f"gain_{name}"] == row[f"published_gain_{name}"] for row in composed for name in ("t2a_R1", "a2t_R1")
    )
    assert not any(row["gain_t2a_R1"] for row in rows if row["method"] != "composed")
    assert "text to audio: Clotho 9.3 %, AudioCaps 13.6 %." in markdown
    assert r"text to audio: Clotho 9.3 \%, AudioCaps 13.6 \%." in tex


def test_published_figures_and_differences_are_the_same_in_csv_markdown_and_latex(tmp_path, study):
    for number, (_, seeds) in enumerate(study):
        figures = seeds[0]["protocols"]["paper"]
        seeds[0]["protocols"] = {"paper": {name: value + 0.37 * (number - 5) for name, value in figures.items()}}
    rows, markdown, tex = beside(tmp_path, study)
    assert rows[0]["difference_t2a_R1"] == "-1.85" and rows[11]["difference_a2t_mAP10"] == "2.22"
    assert rows[1]["gain_t2a_R1"] == "" and rows[2]["gain_t2a_R1"] == f"{100 * (17.45 / 15.5 - 1):.1f}"
    for kind in ("published", "difference"):
        expected = [[float(row[f"{kind}_{name}"]) for name in FIGURES] for row in rows]
        in_markdown = [line for line in markdown.splitlines() if f"*{kind}*" in line]
        assert [[float(figure) for figure in re.findall(r"[-+]?\d+\.\d\d", line)] for line in in_markdown] == expected
        in_latex = [line for line in tex.splitlines() if rf"\quad\footnotesize\emph{{{kind}}}" in line]
        assert [[float(figure) for figure in re.findall(r"[-+]?\d+\.\d\d", line)] for line in in_latex] == expected


def test_rows_are_matched_by_training_data_whatever_the_columns_and_others_are_shown_as_not_published(tmp_path, study):
    """A label makes a row another one; a method or training data that the paper lacks have no counterpart."""
    first = study[0][1][0]
    rows = ["clotho|finetune|A+T|-|", "clotho|composed|A+T|A|", "clotho|composed|A+T|A||gain 0.25"]
    rows += ["clotho|composed_all_pairs|A+T|A+T|", "clotho|text_mixing|A+T|-|"]
    given = [(row.replace("||", "|-|").rstrip("|") + ("|-" if row.endswith("|") else ""), [first]) for row in rows]
    found, markdown, tex = beside(tmp_path, given)
    assert [row["published_t2a_R1"] for row in found] == ["16.98", "18.56", "", "", ""]
    assert markdown.count("*not published*") == tex.count(r"\emph{not published}") == 3
    table = read_published(PAPER, FIGURES)
    swapped = tmp_path / "published.csv"
    pd.read_csv(PAPER)[["audioset", "audiocaps", "clotho", "method", "target", *FIGURES]].to_csv(swapped, index=False)
    assert read_published(swapped, FIGURES) == table


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("a2t_R5", "a2t_R6"), "has no column a2t_R5"),
        (lambda text: text.replace("16.98", "n/a"), "line 3: a figure is no number"),
        (lambda text: text + text.splitlines()[1] + "\n", "line 14: repeats the row clotho|vanilla"),
    ],
)
def test_published_figures_that_cannot_be_read_are_refused_with_their_line(tmp_path, study, edit, message):
    path = tmp_path / "published.csv"
    path.write_text(edit(PAPER.read_text()))
    with pytest.raises(PipelineError, match=re.escape(message)):
        run_stage(tmp_path, study, more=["--published", str(path)])


def test_document_beside_the_paper_compiles_with_seeds_and_marks(tmp_path, study):
    with_seeds(study, [-0.5, 0.1, 0.7])
    comparisons = write_comparisons(tmp_path / "comparisons.csv", {"t2a_R1": 0.001})
    beside(tmp_path, study, more=["--comparisons", str(comparisons)])
    text = pdf_text(tmp_path, "table1")
    assert re.search(r"^ *composed +A\+T +Audio +- +18\.66 ?±0\.60", text, re.MULTILINE)
    assert re.search(r"^ *published +18\.56 +42\.78", text, re.MULTILINE)
    assert re.search(r"^ *difference +(\+0\.10 +){7}\+0\.10", text, re.MULTILINE)
    assert re.search(r"^ *Clotho +A\+T +Audio +- +9\.3 +9\.3 +22\.3 +22\.1", text, re.MULTILINE)


def test_table2_of_the_experiment_compiles_beside_the_paper(tmp_path, study):
    """All its rows, with the labels of the file, on one sheet."""
    experiment = yaml.safe_load((PAPER.parents[1] / "experiments" / "table2.yaml").read_text())
    runs = {**yaml.safe_load((PAPER.parents[1] / "config.yaml").read_text())["runs"], **experiment["runs"]}
    rows: Study = []
    for row in experiment["tables"]["table2"]:
        run = runs[row["run"]]
        cells = [
            "A+T" if name in run["labeled"] else "A" if name in run.get("unlabeled", []) else "-"
            for name in DATASETS[1:]
        ]
        metrics = next(seeds[0] for name, seeds in study if name.startswith(row["target"]))
        label = [row["label"]] if "label" in row else []
        rows.append(("|".join([row["target"], row["method"], *cells, *label]), [metrics]))
    beside(tmp_path, rows)
    text = pdf_text(tmp_path, "table1")
    assert text.count("not published") == 14 and len(re.findall("^ *published", text, re.MULTILINE)) == 8
    assert re.search(r"^ *text mixing§ \(“followed by”\) +A\+T +- +- ", text, re.MULTILINE)
    assert re.search(r"^ *composed¶ +A\+T +A\+T +Audio ", text, re.MULTILINE)
