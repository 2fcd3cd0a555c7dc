"""The full-size model of ms-clap 2022 against msclap itself, on the same weights."""

from __future__ import annotations

from pathlib import Path

import msclap
import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.models import load_model, mini, msclap2022, save_model
from pipeline.models.clap import ClapModel
from pipeline.models.initialization import WithoutInitialization
from pipeline.models.tokenization import BERT_TEXT, read_tokenizer
from pipeline.stages import import_weights

from .conftest import build_of_one_buffer
from .small import CAPTIONS, learn_statistics, write_bert_vocabulary


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint, and a folder bert-base-uncased that msclap loads BERT and its tokenizer from."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("msclap2022")
    tokenizer = read_tokenizer(write_bert_vocabulary(folder / "bert-base-uncased"), BERT_TEXT)
    model = learn_statistics(build_of_one_buffer(msclap2022.build, tokenizer))
    with torch.no_grad():
        model.logit_scale.fill_(3.5)
    # Not with safetensors, which cannot share a buffer.
    model.caption_encoder.base.save_pretrained(folder / "bert-base-uncased", safe_serialization=False)
    state = model.state_dict()
    # As transformers wrote it when the published weights were made.
    state["caption_encoder.base.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": state}, folder / "CLAP_weights_2022.pth")
    return folder


@pytest.fixture(scope="module")
def model(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> ClapModel:
    """The checkpoint, imported into a folder and loaded from there. The import loads the checkpoint directly."""
    folder = tmp_path_factory.mktemp("imported")
    files = ["--weights", str(hub / "CLAP_weights_2022.pth"), "--tokenizer", str(hub / "bert-base-uncased")]
    import_weights.main(["--backbone", "msclap-2022", *files, "--out", str(folder)])
    return load_model(folder)


@pytest.fixture(scope="module")
def reference(hub: Path) -> msclap.CLAP:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub)
        with WithoutInitialization():
            return msclap.CLAP(model_fp=hub / "CLAP_weights_2022.pth", version="2022")


def test_sizes_are_those_of_msclap(model: ClapModel, reference: msclap.CLAP) -> None:
    assert model.sample_rate_hz == reference.args.sampling_rate
    assert model.window_s == reference.args.duration
    assert model.caption_encoder.kind.max_tokens == reference.args.text_len
    assert (model.embedding_dim, model.token_dim) == (1024, 768)


def test_parameters_have_the_names_and_values_of_msclap(model: ClapModel, reference: msclap.CLAP) -> None:
    ours, theirs = model.state_dict(), reference.clap.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_audio_embeddings_are_those_of_msclap(model: ClapModel, reference: msclap.CLAP) -> None:
    frames = model.window_frames
    time_s = torch.arange(frames) / model.sample_rate_hz
    chord = sum(0.1 * torch.sin(2 * torch.pi * hz * time_s) for hz in (220, 277, 330)) + 1e-3 * torch.randn(frames)
    samples_BS = torch.stack([0.1 * torch.randn(frames), torch.zeros(frames), chord])
    with torch.no_grad():
        ours = model.encode_audio(samples_BS)
    theirs = reference._get_audio_embeddings(samples_BS[:, None])
    assert theirs.std(dim=0).mean() > 0.1  # the three differ
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_text_embeddings_are_those_of_msclap(model: ClapModel, reference: msclap.CLAP) -> None:
    captions = [*CAPTIONS, "Très FORT! It's raining, 3 dogs bark"]
    with torch.no_grad():
        ours = model.encode_text(captions)
    theirs = reference.get_text_embeddings(captions)
    assert theirs.std(dim=0).mean() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_captions_become_the_tokens_of_bert(model: ClapModel, reference: msclap.CLAP) -> None:
    captions = [*CAPTIONS, "Très FORT! It's raining, 3 dogs bark 猫"]
    assert model._token_ids(captions) == [reference.tokenizer.encode(caption) for caption in captions]


def test_other_weights_and_tokenizers_are_refused(hub: Path, tmp_path: Path) -> None:
    tokenizer = hub / "bert-base-uncased"
    with pytest.raises(
        PipelineError, match=r"gone\.pth: no such file.*msclap-2022 are ms-clap's CLAP_weights_2022\.pth"
    ):
        load_model("msclap-2022", weights=tmp_path / "gone.pth", tokenizer=tokenizer)
    with pytest.raises(
        PipelineError, match=r"no tokenizer found; expected a folder with tokenizer\.json or vocab\.txt"
    ):
        load_model("msclap-2022", weights=hub / "CLAP_weights_2022.pth", tokenizer=tmp_path)
    save_model(mini.build(mini.byte_tokenizer()), tmp_path)
    with pytest.raises(PipelineError, match=r"has no \[CLS\] token; a BERT style tokenizer is needed"):
        load_model("msclap-2022", weights=hub / "CLAP_weights_2022.pth", tokenizer=tmp_path)
    short = read_tokenizer(tokenizer, BERT_TEXT)
    short.add_tokens(["quack"])
    with pytest.raises(PipelineError, match=r"30522 tokens with \[SEP\] at 102; the one given has 30523"):
        msclap2022.build(short)
