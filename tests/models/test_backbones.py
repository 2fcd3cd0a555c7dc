"""What every kind of backbone promises, on a small random model of each."""

from __future__ import annotations

import contextlib
import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.models import load_model, save_model
from pipeline.models.backbones import BACKBONES, PUBLISHED
from pipeline.models.clap import ClapModel
from pipeline.training.batches import Batch
from pipeline.training.composition import CompositionLoss
from pipeline.training.settings import TrainingSettings

from .small import CAPTIONS, SMALL, batch_norms, learn_statistics

POSITIONS: Any = pytest.mark.parametrize("position", ["before_end", "after_end"])


@pytest.fixture(scope="module", params=SMALL)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ClapModel:
    """One model a backbone; tests that change it take a copy."""
    torch.manual_seed(0)
    model = learn_statistics(SMALL[request.param](tmp_path_factory.mktemp("small")))
    model.add_a2t(dropout=0.0, tokens=2)
    return model.eval()


def noise(model: ClapModel, windows: int = 3) -> Tensor:
    return torch.randn(windows, model.window_frames) * torch.tensor([0.1, 0.01, 0.3])[:windows, None]


def test_model_hears_what_the_list_of_backbones_says(model: ClapModel) -> None:
    backbone = BACKBONES[model.backbone]
    assert (model.sample_rate_hz, model.window_s) == (backbone.sample_rate_hz, backbone.window_s)
    assert model.window_frames == model.sample_rate_hz * model.window_s
    with torch.no_grad():
        audio = model.encode_audio(noise(model))
        text = model.encode_text(CAPTIONS)
    assert audio.shape == (3, model.embedding_dim) and text.shape == (4, model.embedding_dim)
    assert audio.isfinite().all() and text.isfinite().all()
    assert (audio[0] - audio[2]).abs().max() > 1e-4 and (text[0] - text[1]).abs().max() > 1e-4


@torch.no_grad()
def test_padding_does_not_change_text_embeddings(model: ClapModel) -> None:
    apart = torch.cat([model.encode_text([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(model.encode_text(CAPTIONS), apart, rtol=0, atol=1e-5)


@POSITIONS
@torch.no_grad()
def test_fused_pass_with_pseudo_tokens_equals_separate_ones(model: ClapModel, position: Any) -> None:
    pseudo_PKE = torch.randn(4, 2, model.token_dim)
    fused = model.encode_text([*CAPTIONS, *CAPTIONS], pseudo_PKE, position)
    torch.testing.assert_close(fused[:4], model.encode_text(CAPTIONS), rtol=0, atol=1e-5)
    for caption, pseudo_KE, embedding in zip(CAPTIONS, pseudo_PKE, fused[4:], strict=True):
        alone = model.encode_text([caption], pseudo_KE[None], position)[0]
        torch.testing.assert_close(embedding, alone, rtol=0, atol=1e-5)
        assert (alone - model.encode_text([caption])[0]).abs().max() > 1e-4


@POSITIONS
@torch.no_grad()
def test_pseudo_tokens_stand_beside_the_end_token(model: ClapModel, position: Any) -> None:
    encoder, pseudo_KE = model.caption_encoder, torch.randn(2, model.token_dim)
    (ids,) = model._token_ids(["a dog barks"])
    embeds_LE = encoder.embed(torch.tensor(ids))
    at = len(ids) - int(position == "before_end")
    output = encoder.base(inputs_embeds=torch.cat([embeds_LE[:at], pseudo_KE, embeds_LE[at:]])[None])
    pooled = {
        "mini": output.last_hidden_state[0, -1],
        "msclap-2022": output.last_hidden_state[0, 0],
        "laion-clap": output.pooler_output[0] if "pooler_output" in output else None,
    }
    expected = encoder.projection(pooled[model.backbone])
    found = model.encode_text(["rain falls on a tin roof", "a dog barks"], pseudo_KE[None], position)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_special_tokens_in_a_caption_are_not_special(model: ClapModel) -> None:
    kind = model.caption_encoder.kind
    spelled = model._token_ids([f"a dog {token} barks" for token in kind.special])
    ends = [model.tokenizer.token_to_id(token) for token in kind.special]
    for ids in spelled:
        inner = ids[int(kind.start is not None) : -1]
        assert not set(inner) & set(ends)


def test_long_captions_keep_their_end_token(model: ClapModel) -> None:
    kind = model.caption_encoder.kind
    (ids,) = model._token_ids(["a dog barks and then " * 40])
    assert len(ids) == kind.max_tokens and ids[-1] == model.tokenizer.token_to_id(kind.end)


def test_more_pseudo_tokens_than_positions_are_refused(model: ClapModel) -> None:
    encoder = model.caption_encoder
    room = encoder.positions - encoder.kind.max_tokens
    with pytest.raises(PipelineError, match=rf"exceed the {encoder.positions} positions .*at most {room}"):
        copy.deepcopy(model).add_a2t(tokens=room + 1)
    full = torch.zeros(1, room, model.token_dim)
    with torch.no_grad():
        assert model.encode_text(["a dog barks and then " * 40], full).isfinite().all()


def composed_batch(model: ClapModel) -> Batch:
    labeled_BS, partner_BS = (((noise(model, 2)) * 32767).to(torch.int16) for _ in range(2))
    return Batch(
        labeled_BS=labeled_BS,
        partner_BS=partner_BS,
        captions=["a dog barks", "rain falls on a tin roof"],
        partner_captions=None,
        partner_keys=["c", "d"],
        keys=["a", "b"],
    )


@POSITIONS
def test_composed_objective_reaches_every_trainable_parameter(model: ClapModel, position: Any) -> None:
    model = copy.deepcopy(model)
    model.set_training_mode(batch_norm="batch")
    settings = TrainingSettings(objective="composed", pseudo_position=position)
    losses = CompositionLoss(model, settings)(composed_batch(model))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert model.a2t is not None
    for part in (model.a2t, model.audio_encoder, model.caption_encoder):
        reached = [p.grad is not None and bool(p.grad.any()) for p in part.parameters() if p.requires_grad]
        assert sum(reached) > 0.9 * len(reached)


def test_a_step_never_waits_to_see_a_value_of_the_device(model: ClapModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, whose tensors have no values to see."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not know this device
    model = copy.deepcopy(model)
    batch = composed_batch(model)
    model.set_training_mode(encoder_regularisation=True)
    model.to("meta")
    losses = CompositionLoss(model, TrainingSettings(objective="composed"))(batch)
    losses["loss"].backward()
    assert all(value.is_meta for value in losses.values())


def test_model_can_be_copied_and_pickled(model: ClapModel) -> None:
    with torch.no_grad():
        text = model.encode_text(CAPTIONS)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin.encode_text(CAPTIONS), text)


def test_encoders_are_deterministic_in_training_unless_regularised(model: ClapModel) -> None:
    model, samples_BS = copy.deepcopy(model), noise(model)
    with torch.no_grad():
        audio, text = model.encode_audio(samples_BS), model.encode_text(CAPTIONS)
        model.set_training_mode()
        assert torch.equal(model.encode_audio(samples_BS), audio) and torch.equal(model.encode_text(CAPTIONS), text)
        model.set_training_mode(encoder_regularisation=True)
        assert not torch.equal(model.encode_audio(samples_BS), audio)
        assert not torch.equal(model.encode_text(CAPTIONS), text)


def test_every_batch_norm_moves_only_when_asked(model: ClapModel) -> None:
    model = copy.deepcopy(model)
    norms = batch_norms(model)
    assert len(norms) == {"mini": 1, "msclap-2022": 13, "laion-clap": 1}[model.backbone]
    for regularised in (False, True):
        model.set_training_mode(encoder_regularisation=regularised)
        with torch.no_grad():
            model.encode_audio(noise(model))
        assert not any(norm.training or norm.num_batches_tracked != 1 for norm in norms)
    model.set_training_mode(batch_norm="batch")
    with torch.no_grad():
        model.encode_audio(noise(model))
    assert all(norm.training and norm.num_batches_tracked == 2 for norm in norms)


@torch.no_grad()
def test_autocast_leaves_the_embeddings_where_they_are(model: ClapModel) -> None:
    samples_BS = noise(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.encode_audio(samples_BS)
    cosine = torch.nn.functional.cosine_similarity(mixed.float(), model.encode_audio(samples_BS))
    assert cosine.min() > 0.99


def test_saved_folder_loads_back_equal(model: ClapModel, tmp_path: Path) -> None:
    if model.backbone == "msclap-2022":
        pytest.skip("its sizes are fixed: test_msclap2022.py saves the full-size model")
    save_model(model, tmp_path / "a")
    loaded = load_model(tmp_path / "a")
    assert loaded.backbone == model.backbone and loaded.architecture == model.architecture
    assert loaded.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        samples_BS = noise(model)
        assert torch.equal(loaded.encode_audio(samples_BS), model.encode_audio(samples_BS))
        assert torch.equal(loaded.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
    save_model(loaded, tmp_path / "b")
    for name in ("model.safetensors", "model.json", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_the_hub_the_error_says_what_to_get(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)
    with pytest.raises(
        PipelineError, match=r"on the Hugging Face hub cannot be downloaded .*give .*(tokenizer|weights)"
    ):
        load_model(name)
