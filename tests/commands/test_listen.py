"""listen writes the sounds that training reads."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from outputs import change_manifest, refused

from pipeline.__main__ import main
from pipeline.data.leaks import leaked_path
from pipeline.data.pairs import read_epoch
from pipeline.files import write_json
from pipeline.stages import pair_clips


class Players(HTMLParser):
    """The sources of a page's audio elements and all its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(dict(attrs)["src"])] if tag == "audio" else []

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("objective", ["composed", "concatenate"])
def test_listen_writes_the_samples_that_training_reads(tiny_study, capsys, tmp_path: Path, objective: str) -> None:
    from pipeline.training.batches import PairedBatches

    path = tiny_study.pairs(objective)
    batch = PairedBatches(path, tiny_study.shards)[1 * 3 + 2]
    slots = ["--epoch", "1", "--step", "2", "--slot", "5", "--out", str(tmp_path / "out")]
    main(["listen", str(path), "--shards", str(tiny_study.shards), *slots])
    printed = capsys.readouterr().out
    labeled, partner, composed = (
        soundfile.read(tmp_path / "out" / f"{name}.wav", dtype=kind)
        for name, kind in (("labeled", "int16"), ("partner", "int16"), ("composed", "float64"))
    )
    assert labeled[1] == partner[1] == composed[1] == 16_000
    np.testing.assert_array_equal(labeled[0], batch.labeled_BS[5].numpy())
    np.testing.assert_array_equal(partner[0], batch.partner_BS[5].numpy())  # type: ignore[index]
    np.testing.assert_array_equal(composed[0], (labeled[0] / 32768 + partner[0] / 32768) / 2)  # Eq. (11), exactly
    page = Players((tmp_path / "out" / "index.html").read_text())
    assert page.sources == ["labeled.wav", "partner.wav", "composed.wav"]
    row = read_epoch(path, 1).to_pylist()[2 * 8 + 5]
    for text in (page.text, printed):
        assert row["labeled_key"] in text and row["partner_key"] in text and batch.captions[5] in text
        assert objective == "composed" or batch.partner_captions[5] in text  # type: ignore[index]


def test_the_composed_sound_has_the_mixing_gain_of_the_run(tiny_study, tmp_path: Path) -> None:
    arguments = [
        "listen",
        str(tiny_study.pairs("composed")),
        "--shards",
        str(tiny_study.shards),
        "--out",
        str(tmp_path),
    ]
    main([*arguments, "--out", str(tmp_path), "--mixing-gain", "0.25"])
    labeled, partner, composed = (
        soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("labeled", "partner", "composed")
    )
    np.testing.assert_allclose(composed, 0.75 * labeled + 0.25 * partner, rtol=0, atol=2**-23)
    page = Players((tmp_path / "index.html").read_text()).text
    assert "0.75 labeled + 0.25 partner" in page and "Epoch 0, step 0, slot 0" in page


def test_listen_mixes_with_the_gain_of_the_trained_run(tiny_study, tmp_path: Path) -> None:
    pairs, account = (
        tmp_path / "pairs" / "birds" / "seed3.parquet",
        tmp_path / "runs" / "birds" / "seed3" / "training.json",
    )
    for path in (pairs, account):
        path.parent.mkdir(parents=True)
    shutil.copyfile(tiny_study.pairs("composed"), pairs)
    arguments = ["listen", str(pairs), "--shards", str(tiny_study.shards), "--out", str(tmp_path / "out")]

    def gain(*more: str) -> str:
        main([*arguments, *more])
        return Players((tmp_path / "out" / "index.html").read_text()).text

    assert "0.5 labeled + 0.5 partner" in gain()  # not trained yet
    write_json({"settings": {"mixing_gain": 0.25}}, account)
    assert "0.75 labeled + 0.25 partner" in gain()
    assert "0.9 labeled + 0.1 partner" in gain("--mixing-gain", "0.1")
    write_json({"settings": {"mixing_gain": "much"}}, account)
    assert "settings.mixing_gain is 'much'; give the gain with --mixing-gain" in refused(*arguments)


def test_a_pair_without_partner_leaves_none_of_another_slot(tiny_study, tmp_path: Path) -> None:
    arguments = ["--shards", str(tiny_study.shards), "--out", str(tmp_path)]
    main(["listen", str(tiny_study.pairs("composed")), *arguments])
    assert len(list(tmp_path.glob("*.wav"))) == 3
    main(["listen", str(tiny_study.pairs("finetune")), *arguments])
    assert [path.name for path in tmp_path.glob("*.wav")] == ["labeled.wav"]
    assert Players((tmp_path / "index.html").read_text()).sources == ["labeled.wav"]


def test_captions_cannot_break_the_page(tiny_study, split: Path, tmp_path: Path, capsys) -> None:
    caption = '<script>alert(1)</script> & "rain" \x1b[2J'
    for row in range(24):
        change_manifest(split, row, captions=[caption, caption])
    path = tmp_path / "pairs" / "pairs.parquet"
    pair_clips.main(
        ["--labeled", str(split / "manifest.parquet"), "--backbone", "mini", "--epochs", "1", "--batch-size", "8"]
        + ["--seed", "0", "--pairs", str(path), "--leaked", str(leaked_path(path))]
    )
    main(["listen", str(path), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script>" not in page and caption in Players(page).text
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "number", "last"), [("epoch", 2, 1), ("step", 3, 2), ("slot", 8, 7), ("slot", -1, 7)])
def test_a_slot_that_is_not_there_is_refused(tiny_study, tmp_path: Path, name: str, number: int, last: int) -> None:
    message = refused("listen", tiny_study.pairs("composed"), f"--{name}", number, "--out", tmp_path / "out")
    assert f"no {name} {number}; it has {name}s 0 to {last}" in message
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused(tiny_study, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, reason in (("file", "File exists"), ("file/below", "Not a directory")):
        message = refused("listen", tiny_study.pairs("finetune"), "--out", tmp_path / out)
        assert f"{tmp_path / out}: cannot be made ({reason}); give another folder with --out" in message
