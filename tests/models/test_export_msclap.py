"""An exported run of ms-clap in msclap's own wrapper."""

from __future__ import annotations

import shutil
from pathlib import Path

import msclap
import pytest
import torch

from pipeline.models import load_model, save_model
from pipeline.results.export import export_run
from pipeline.stages import train

from .conftest import CAPTIONS, FullSize


@pytest.fixture(scope="module")
def exported(full: FullSize, tiny_study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-size model with f_a2t, beside the records of a training, exported."""
    run = tmp_path_factory.mktemp("msclap") / "results" / "runs" / "birds" / "seed0"
    words = ["--pretrained", tiny_study.pretrained, "--pairs", tiny_study.pairs("finetune"), "--shards"]
    train.main(list(map(str, [*words, tiny_study.shards, "--seed", 0, "--out", run])))
    full.model.add_a2t()
    try:
        save_model(full.model, run)
    finally:
        full.model.a2t = None
    export_run(run, run.parents[3] / "out")
    return run.parents[3] / "out"


def test_msclap_gives_the_embeddings_of_the_exported_model(
    full: FullSize, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The wrapper asks for "gpt2", which this folder is.
    full.model.caption_encoder.base.save_pretrained(tmp_path / "gpt2")
    shutil.copy(full.tokenizer / "encoder.json", tmp_path / "gpt2" / "vocab.json")
    shutil.copy(full.tokenizer / "vocab.bpe", tmp_path / "gpt2" / "merges.txt")
    monkeypatch.chdir(tmp_path)
    wrapper = msclap.CLAP(model_fp=exported / "CLAP_weights_2023.pth", version="2023")
    model = load_model(exported)

    theirs = wrapper.clap.state_dict()  # its strict=False would hide a missing name
    ours = {name: value for name, value in model.state_dict().items() if not name.startswith("a2t.")}
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    samples_BS = 0.1 * torch.randn(2, model.window_frames)
    with torch.no_grad():
        audio_BD, text_BD = model.encode_audio(samples_BS), model.encode_text(CAPTIONS)
    torch.testing.assert_close(audio_BD, wrapper._get_audio_embeddings(samples_BS[:, None]), rtol=0, atol=1e-5)
    torch.testing.assert_close(text_BD, wrapper.get_text_embeddings(CAPTIONS), rtol=0, atol=1e-5)


def test_the_card_names_the_checkpoint_and_the_licence_of_the_weights(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert 'CLAP(model_fp="path/to/this/folder/CLAP_weights_2023.pth", version="2023")' in card
    assert "license: other" in card and "publisher's terms" in card and "CC BY-SA" not in card
