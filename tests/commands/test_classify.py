"""Real recordings in folders by class, a real model in, accuracy out."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.__main__ import main
from pipeline.errors import PipelineError
from pipeline.evaluation.classification import classify, confusion, prompts_of
from pipeline.evaluation.embedding import embed_sounds, embed_texts
from pipeline.evaluation.intervals import wilson_interval
from pipeline.models import load_model, save_model

RECORDINGS = Path(__file__).parents[2] / "data" / "recordings"
FAMILIES = ("animals", "water", "signals")


@pytest.fixture(scope="module")
def chosen() -> list[tuple[str, str]]:
    """Four recordings of each of three families, with their family."""
    with (RECORDINGS / "recordings.csv").open(encoding="utf-8") as file:
        rows = [(row["file_name"], row["family"]) for row in csv.DictReader(file)]
    return [row for family in FAMILIES for row in [row for row in rows if row[1] == family][:4]]


@pytest.fixture
def folders(tmp_path, chosen) -> Path:
    for name, family in chosen:
        (tmp_path / "clips" / family).mkdir(parents=True, exist_ok=True)
        shutil.copy(RECORDINGS / "audio" / name, tmp_path / "clips" / family / name)
    return tmp_path / "clips"


@pytest.fixture
def esc50(tmp_path, chosen) -> Path:
    root = tmp_path / "ESC-50"
    (root / "meta").mkdir(parents=True)
    (root / "audio").mkdir()
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for number, (name, family) in enumerate(chosen):
            shutil.copy(RECORDINGS / "audio" / name, root / "audio" / name)
            writer.writerow([name, 1 + number % 5, FAMILIES.index(family), family, "False", number, "A"])
    return root


def test_every_recording_goes_to_the_class_of_the_nearest_prompt(tiny_study, folders, chosen):
    model = load_model(tiny_study.pretrained)
    result = classify(tiny_study.pretrained, folders, "this is a sound of {class}")
    classes = sorted(FAMILIES)
    expected = np.zeros((3, 3))
    prompts = embed_texts(model, [f"this is a sound of {name}" for name in classes], 64)
    for name, family in chosen:
        vector = embed_sounds(model, [RECORDINGS / "audio" / name], "mean", 1, "mean")[0]
        cosine = prompts @ vector / np.linalg.norm(prompts, axis=1)
        expected[classes.index(family), cosine.argmax()] += 1
    assert result.confusion_KK.tolist() == expected.tolist()
    assert result.accuracy == pytest.approx(100 * np.trace(expected) / 12)
    assert result.low < result.accuracy < result.high
    assert (result.clips, len(result.classes)) == (12, 3)
    assert [found.accuracy for found in result.classes] == pytest.approx((100 * np.diag(expected) / 4).tolist())


def test_files_are_read_by_the_channels_of_the_models_training(tiny_study, folders, tmp_path):
    """A file whose first channel is silent is unusable for a model that was trained on first channels."""
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write(folders / "water" / "stereo.wav", np.stack([np.zeros(16_000), sound], axis=1), 16_000)
    model = load_model(tiny_study.pretrained)
    assert model.channels == "mean"
    assert classify(tiny_study.pretrained, folders, "a {class}").left_out == {}
    model.channels = "first"
    save_model(model, tmp_path / "run")
    assert classify(tmp_path / "run", folders, "a {class}").left_out == {"silent": 1}


def test_esc50_layout_gives_the_counts_of_folders(tiny_study, folders, esc50):
    of_folders, of_esc50 = (
        classify(tiny_study.pretrained, root, "this is a sound of {class}").confusion_KK for root in (folders, esc50)
    )
    assert of_esc50.tolist() == of_folders.tolist()
    assert of_folders.sum() == 12


def test_command_prints_facts_and_writes_the_confusion(tiny_study, folders, tmp_path, capsys):
    arguments = ["classify", "--run", str(tiny_study.pretrained), "--in", str(folders)]
    main([*arguments, "--confusion", str(tmp_path / "confusion.csv"), "--json"])
    facts = json.loads(capsys.readouterr().out)
    with (tmp_path / "confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [row["class"] for row in facts["classes"]] == sorted(FAMILIES)
    right = sum(float(row[row["class"]]) for row in rows)
    assert facts["accuracy"]["accuracy"] == pytest.approx(100 * right / 12)
    main(arguments)
    assert "chance    33.33" in capsys.readouterr().out


def test_collapsed_model_scores_as_chance():
    counts = confusion(np.ones((8, 2)), np.ones((4, 2)), np.repeat(np.arange(4), 2))
    assert counts.tolist() == np.full((4, 4), 0.5).tolist()


def test_confusion_by_hand():
    audio = np.array([[1, 0], [0.6, 0.8], [0, 1]])  # nearest: class 0, class 1, class 1
    assert confusion(audio, np.eye(2), np.array([0, 0, 1])).tolist() == [[1, 1], [0, 1]]


def test_wilson_interval_by_hand():
    # 8 of 10: (0.8 + 0.19207) / 1.38415 = 0.71674 +- 0.22659 (z = 1.96); 0 of 10 begins at 0, where a normal one fails.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)


def test_prompts_are_words():
    assert prompts_of(["church_bells", "dog"], "the {class}!") == ["the church bells!", "the dog!"]
    with pytest.raises(PipelineError, match=r"the prompt 'a sound' has no \{class\}"):
        prompts_of(["dog", "cat"], "a sound")
    with pytest.raises(PipelineError, match="the classes church bells and church_bells have the same prompt"):
        prompts_of(["church bells", "church_bells"], "{class}")


def test_refusals_of_classify_name_the_cause(tiny_study, folders, esc50, tmp_path):
    def refused(root: Path, message: str) -> None:
        with pytest.raises(PipelineError, match=message):
            classify(tiny_study.pretrained, root, "a {class}")

    refused(tmp_path / "nowhere", "nowhere: not found; give the folder of the clips")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no audio files below")
    refused(folders / "water", r"is in no class folder \(4 such files\)")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "water").symlink_to(folders / "water")
    refused(tmp_path / "one", r"1 class \(water\); classification needs at least two")
    listed = sorted((esc50 / "audio").iterdir())[0]
    listed.unlink()
    refused(esc50, rf"esc50\.csv row \d+: missing file {listed.name}")


def test_missing_run_is_named(folders, tmp_path):
    with pytest.raises(PipelineError, match=r"no_run: not found; give the folder of a run"):
        classify(tmp_path / "no_run", folders, "a {class}")


def test_unusable_files_are_left_out_and_counted(tiny_study, folders, caplog, capsys):
    whole = classify(tiny_study.pretrained, folders, "a {class}")
    (folders / "animals" / "0 broken.wav").write_bytes(b"RIFF")
    soundfile.write(folders / "water" / "0 silent.wav", np.zeros(16_000), 16_000)
    main(["classify", "--run", str(tiny_study.pretrained), "--in", str(folders), "--prompt", "a {class}", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == {"undecodable": 1, "silent": 1}
    assert (found["accuracy"]["clips"], found["accuracy"]["accuracy"]) == (12, whole.accuracy)
    assert "0 broken.wav: left out, undecodable" in caplog.text and "0 silent.wav: left out, silent" in caplog.text


def test_a_class_without_a_usable_clip_has_no_accuracy(tiny_study, folders, capsys):
    for path in (folders / "water").iterdir():
        path.write_bytes(b"no sound")
    result = classify(tiny_study.pretrained, folders, "a {class}")
    assert [(found.clips, found.accuracy is None) for found in result.classes if found.name == "water"] == [(0, True)]
    main(["classify", "--run", str(tiny_study.pretrained), "--in", str(folders)])
    assert "left out" in capsys.readouterr().out
    for family in ("animals", "signals"):
        for path in (folders / family).iterdir():
            path.write_bytes(b"no sound")
    with pytest.raises(PipelineError, match="none of its 12 audio files can be used"):
        classify(tiny_study.pretrained, folders, "a {class}")
