"""LAION-CLAP against transformers' own ClapModel and feature extractor, on small random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import ClapFeatureExtractor, PreTrainedTokenizerFast
from transformers import ClapModel as TransformersClap

from pipeline.errors import PipelineError
from pipeline.models import load_model, mini
from pipeline.models.clap import ClapModel
from pipeline.models.tokenization import ROBERTA_TEXT, read_tokenizer
from pipeline.stages import import_weights

from .small import CAPTIONS, LAION_FEATURES, laion_config, roberta_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as transformers writes it, with BatchNorm's statistics and two different scales."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("laion")
    tokenizer = roberta_tokenizer()
    model = TransformersClap(laion_config(tokenizer.get_vocab_size()))
    with torch.no_grad():
        for encoder in (model.text_model, model.audio_model):
            for parameter in encoder.parameters():
                if parameter.ndim > 1:  # of a size at which embeddings differ
                    parameter.normal_(0, 0.2)
        model.audio_model.audio_encoder.batch_norm.running_mean.uniform_(-50, -30)
        model.audio_model.audio_encoder.batch_norm.running_var.uniform_(200, 500)
        model.logit_scale_a.fill_(3.5)
        model.logit_scale_t.fill_(2.5)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    ClapFeatureExtractor(**LAION_FEATURES, truncation="rand_trunc").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> ClapModel:
    return load_model("laion-clap", weights=folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> TransformersClap:
    return TransformersClap.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def samples_BS() -> Tensor:
    """Noise, silence, a chord over faint noise, and a burst, as 16-bit windows scaled to [-1, 1)."""
    torch.manual_seed(1)
    time_s = torch.arange(480_000) / 48_000
    chord = sum(0.1 * torch.sin(2 * torch.pi * hz * time_s) for hz in (220, 277, 330)) + 1e-3 * torch.randn(480_000)
    burst = 0.3 * torch.randn(480_000) * (time_s > 9)
    samples_BS = torch.stack([0.1 * torch.randn(480_000), torch.zeros(480_000), chord, burst]).clamp(-1, 0.999)
    return (samples_BS * 32768).to(torch.int16) / 32768


def features(folder: Path, samples_BS: Tensor) -> Tensor:
    extractor = ClapFeatureExtractor.from_pretrained(folder)
    return extractor(list(samples_BS.numpy()), sampling_rate=48_000, return_tensors="pt")["input_features"]


def test_spectrogram_is_that_of_the_feature_extractor(folder: Path, model: ClapModel, samples_BS: Tensor) -> None:
    expected = features(folder, samples_BS)
    found = model.audio_encoder.input_features(samples_BS)
    assert found.shape == expected.shape == (4, 1, 1001, 64)
    assert expected.max() - expected.min() > 60  # dB
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)  # dB; float32 resolves 8e-6 at -100


@torch.no_grad()
def test_audio_embeddings_are_those_of_transformers(
    folder: Path, model: ClapModel, reference: TransformersClap, samples_BS: Tensor
) -> None:
    theirs = reference.get_audio_features(input_features=features(folder, samples_BS))
    assert theirs.std(dim=0).mean() > 0.01  # the four differ
    torch.testing.assert_close(normalize(model.encode_audio(samples_BS), dim=-1), theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_text_embeddings_are_those_of_transformers(folder: Path, model: ClapModel, reference: TransformersClap) -> None:
    ids = model._token_ids(CAPTIONS)
    longest = max(map(len, ids))
    pad = reference.config.text_config.pad_token_id
    theirs = reference.get_text_features(
        input_ids=torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids]),
        attention_mask=torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
    )
    assert theirs.std(dim=0).mean() > 0.01
    torch.testing.assert_close(normalize(model.encode_text(CAPTIONS), dim=-1), theirs, rtol=0, atol=1e-5)


def test_captions_become_the_tokens_of_roberta(model: ClapModel, tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = roberta_tokenizer()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    captions = [*CAPTIONS, "Très fort! 3 dogs' barks 猫"]
    assert model._token_ids(captions) == theirs(captions)["input_ids"]
    assert model._token_ids([""]) == [[0, 2]]
    model_part = json.loads(tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model_part["vocab"]))
    merges = [" ".join(pair) for pair in model_part["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    read = read_tokenizer(tmp_path, ROBERTA_TEXT)
    assert [read.encode(caption).ids for caption in captions] == [row[1:-1] for row in model._token_ids(captions)]


def test_scale_is_that_of_laions_audio_to_text_loss(model: ClapModel) -> None:
    assert model.logit_scale.item() == 3.5


def test_import_writes_a_folder_that_loads_to_the_same_model(
    folder: Path, model: ClapModel, tmp_path: Path, samples_BS: Tensor
) -> None:
    import_weights.main(["--backbone", "laion-clap", "--weights", str(folder), "--out", str(tmp_path)])
    loaded = load_model(tmp_path)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.logit_scale.item() == 3.5
    with torch.no_grad():
        assert torch.equal(loaded.encode_audio(samples_BS), model.encode_audio(samples_BS))
        assert torch.equal(loaded.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
    assert str(folder) not in (tmp_path / "model.json").read_text()


def changed(folder: Path, to: Path, name: str, **changes: object) -> Path:
    """A copy of a model's folder with keys of one JSON file changed."""
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    content = json.loads((to / name).read_text())
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    (to / name).write_text(json.dumps(content))
    return to


def test_models_with_feature_fusion_are_refused(folder: Path, tmp_path: Path) -> None:
    config = {"enable_fusion": True, "fusion_type": "aff_2d"}
    fused = changed(folder, tmp_path, "config.json", audio_config=config)
    with pytest.raises(PipelineError, match=r"feature fusion.*use one without it, such as laion/clap-htsat-unfused"):
        load_model("laion-clap", weights=fused)


def test_models_of_another_rate_are_refused(folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path, "preprocessor_config.json", sampling_rate=16_000)
    with pytest.raises(PipelineError, match=r"10 s at 16000 Hz; laion-clap has 10\.0 s at 48000 Hz"):
        load_model("laion-clap", weights=other)


def test_weights_that_are_missing_or_of_another_shape_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    more = changed(folder, tmp_path / "more", "config.json", text_config={"num_hidden_layers": 3})
    with pytest.raises(PipelineError, match=r"weights of a ClapModel are missing: text_model\.encoder\.layer\.2\."):
        load_model("laion-clap", weights=more)
    (tmp_path / "wide").mkdir()
    wide = changed(folder, tmp_path / "wide", "config.json", projection_dim=32)
    with pytest.raises(PipelineError, match=r"wide: not a readable model"):
        load_model("laion-clap", weights=wide)


def test_a_folder_without_a_model_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=rf"{tmp_path}: .*preprocessor_config\.json.*give as `weights` a folder with"
    ):
        load_model("laion-clap", weights=tmp_path)
    for path in folder.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(PipelineError, match=rf"{tmp_path}: .*model\.safetensors.*give as `weights` a folder with"):
        load_model("laion-clap", weights=tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(PipelineError, match=rf"{tmp_path}: "):
        load_model("laion-clap", weights=tmp_path)


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    mini.byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PipelineError, match=r"has no <s> token; a RoBERTa style tokenizer is needed"):
        load_model("laion-clap", weights=folder, tokenizer=tmp_path)
