"""The model's own promises, on the small backbone."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Literal

import pytest
import torch
from msclap.models.htsat import WindowAttention as MsclapAttention
from torch import Tensor
from torchlibrosa.augmentation import DropStripes

from pipeline.errors import PipelineError
from pipeline.models import load_model, mini
from pipeline.models.clap import AudioToText, AudioToTextDecoder, ClapModel
from pipeline.models.htsat import WindowAttention, random_stripes
from pipeline.models.tokenization import END_OF_TEXT, GPT2_TEXT

from .conftest import CAPTIONS

Position = Literal["before_end", "after_end"]
PROMPT = "this sound is"


def text_by_hand(
    model: ClapModel, caption: str, pseudo_KE: Tensor | None = None, position: Position = "before_end"
) -> Tensor:
    """One caption through GPT-2 without padding, the pseudo-tokens' rows put into the embeddings by hand."""
    ids = torch.tensor(model.tokenizer.encode(f"{caption} {END_OF_TEXT}").ids)
    embeds_LE = model.caption_encoder.base.wte(ids)
    if pseudo_KE is not None:
        at = len(ids) - 1 if position == "before_end" else len(ids)
        embeds_LE = torch.cat([embeds_LE[:at], pseudo_KE, embeds_LE[at:]])
    states = model.caption_encoder.base(inputs_embeds=embeds_LE[None]).last_hidden_state
    return model.caption_encoder.projection(states[0, -1])


def test_a2t_has_the_layers_of_eq_7() -> None:
    module = AudioToText(embedding_dim=5, token_dim=3, hidden_layers=2, dropout=0.1)
    kinds = [type(layer).__name__ for layer in module.modules() if not list(layer.children())]
    assert kinds == ["Linear", "Dropout", "ReLU", "Linear", "Dropout", "ReLU", "Linear"]
    shapes = [tuple(p.shape) for p in module.parameters() if p.ndim == 2]
    assert shapes == [(5, 5), (5, 5), (3, 5)]
    assert {layer.p for layer in module.modules() if isinstance(layer, torch.nn.Dropout)} == {0.1}
    x = torch.randn(2, 5)
    first, second, last = (layer for layer in module.modules() if isinstance(layer, torch.nn.Linear))
    torch.testing.assert_close(module.eval()(x)[:, 0], last(torch.relu(second(torch.relu(first(x))))))


def test_several_pseudo_tokens_are_parts_of_the_last_layer() -> None:
    module = AudioToText(embedding_dim=5, token_dim=3, tokens=4).eval()
    x = torch.randn(2, 5)
    assert module(x).shape == (2, 4, 3)
    assert torch.equal(module(x).flatten(1), module.layers(x))


@pytest.mark.parametrize("clips", [0, 1, 3])
def test_a_decoder_turns_its_queries_into_pseudo_tokens(clips: int) -> None:
    module = AudioToTextDecoder(5, 12, layers=2, heads=3, dropout=0.0, tokens=4)
    tokens = module(torch.randn(clips, 5))
    assert tokens.shape == (clips, 4, 12)
    tokens.sum().backward()
    assert all(value.grad is not None for value in module.parameters()), "also without a clip: other processes wait"
    assert not torch.equal(*(layer.linear1.weight for layer in module.layers))


def test_heads_that_do_not_divide_the_token_width_are_refused() -> None:
    with pytest.raises(PipelineError, match="a2t_heads is 7, which does not divide the 128 values of mini's token"):
        load_model("mini").add_a2t(kind="decoder", heads=7)


def test_embeddings_have_the_joint_width_and_are_finite(small: ClapModel, samples: Tensor) -> None:
    audio, text = small.encode_audio(samples), small.encode_text(CAPTIONS)  # silence and an empty caption among them
    assert audio.shape == text.shape == (4, small.embedding_dim)
    assert audio.isfinite().all() and text.isfinite().all()


def test_each_window_is_encoded_apart(small: ClapModel) -> None:
    samples_BS = torch.randn(11, small.window_frames) * 0.1  # more than one chunk of the front end
    apart = torch.cat([small.encode_audio(window[None]) for window in samples_BS])
    torch.testing.assert_close(small.encode_audio(samples_BS), apart, rtol=0, atol=1e-5)


def test_audio_path_is_that_of_msclaps_own_forward(small: ClapModel) -> None:
    frames = 127 * small.audio_encoder.htsat.config.hop_size  # 128 spectrogram frames, the most that it takes
    samples_BS = torch.zeros(3, small.window_frames)
    samples_BS[:, :frames] = torch.randn(3, frames) * 0.1
    # Reflection at the end would differ between the two lengths in the last frame; silence there makes it equal.
    samples_BS[:, frames - small.audio_encoder.htsat.config.window_size :] = 0
    theirs = small.audio_encoder.htsat(samples_BS[:, :frames])["latent_output"]
    ours = small.encode_audio(samples_BS)
    torch.testing.assert_close(ours, small.audio_encoder.projection(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_has_the_bits_of_msclaps(is_masked: bool) -> None:
    torch.manual_seed(0)
    published = MsclapAttention(dim=32, window_size=(4, 4), num_heads=2)
    patches_WNC = torch.randn(12, 16, 32)
    mask_KNN = torch.zeros(6, 16, 16).bernoulli(0.2) * -100 if is_masked else None

    def result(attention: torch.nn.Module) -> list[Tensor]:
        x_WNC = patches_WNC.clone().requires_grad_()
        outputs = attention(x_WNC, mask=mask_KNN)
        outputs[0].square().sum().backward()
        assert x_WNC.grad is not None
        gradients = {name: value.grad for name, value in attention.named_parameters()}
        attention.zero_grad()
        return [*outputs, x_WNC.grad, *(gradients[name] for name in sorted(gradients))]

    expected, found = result(published), result(WindowAttention(published))
    assert len(expected) == 2 + 1 + 5
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("shape", [(40_960,), (2, 40_959), (2, 1, 40_960)])
def test_samples_of_another_shape_are_refused(small: ClapModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 40960\), 2.56 s at 16000 Hz; got"):
        small.encode_audio(torch.zeros(shape))


def test_padding_does_not_change_text_embeddings(small: ClapModel) -> None:
    together = small.encode_text([*CAPTIONS, "a very long caption " * 6])
    for caption, embedding in zip(CAPTIONS, together, strict=False):
        torch.testing.assert_close(embedding, text_by_hand(small, caption), rtol=0, atol=1e-5)


def test_exclamation_mark_at_the_end_changes_the_embedding(small: ClapModel) -> None:
    plain, marked = small.encode_text(["a cat meows", "a cat meows!"])
    assert (plain - marked).abs().max() > 1e-2
    torch.testing.assert_close(marked, text_by_hand(small, "a cat meows!"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("position", ["before_end", "after_end"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_pseudo_tokens_are_rows_of_the_embeddings(small: ClapModel, position: Position, tokens: int) -> None:
    pseudo_PKE = torch.randn(2, tokens, small.token_dim)
    encoded = small.encode_text([PROMPT, "a dog barks"], pseudo_PKE, position)
    for caption, pseudo_KE, embedding in zip((PROMPT, "a dog barks"), pseudo_PKE, encoded, strict=True):
        torch.testing.assert_close(embedding, text_by_hand(small, caption, pseudo_KE, position), rtol=0, atol=1e-5)


@pytest.mark.parametrize("position", ["before_end", "after_end"])
def test_one_fused_pass_equals_separate_ones(small: ClapModel, position: Position) -> None:
    pseudo_PKE = torch.randn(4, 2, small.token_dim)
    fused = small.encode_text([*CAPTIONS, *[PROMPT] * 2, *CAPTIONS[:2]], pseudo_PKE, position)
    apart = [
        small.encode_text(CAPTIONS),
        small.encode_text([PROMPT] * 2, pseudo_PKE[:2], position),
        small.encode_text(CAPTIONS[:2], pseudo_PKE[2:], position),
    ]
    torch.testing.assert_close(fused, torch.cat(apart), rtol=0, atol=1e-5)


def test_no_pseudo_tokens_are_as_none(small: ClapModel) -> None:
    empty = torch.empty(0, 1, small.token_dim)
    assert torch.equal(small.encode_text(CAPTIONS, empty), small.encode_text(CAPTIONS))


def test_wrong_pseudo_tokens_are_refused(small: ClapModel) -> None:
    with pytest.raises(ValueError, match="pseudo-tokens of 2 captions for 1 captions"):
        small.encode_text([PROMPT], torch.zeros(2, 1, small.token_dim))
    with pytest.raises(ValueError, match=r"shape \(P, K, 128\); got \(1, 128\)"):
        small.encode_text([PROMPT], torch.zeros(1, small.token_dim))
    with pytest.raises(ValueError, match="before_end or after_end; got 'end'"):
        small.encode_text([PROMPT], torch.zeros(1, 1, small.token_dim), "end")  # type: ignore[arg-type]


def test_long_caption_is_cut_before_its_end_token_and_logged_once(
    small: ClapModel, caplog: pytest.LogCaptureFixture
) -> None:
    long = "a dog barks and then " * 40
    with caplog.at_level(logging.WARNING):
        ids = small._token_ids(["a dog", long])
        small.encode_text([long])
        small.encode_text([long], torch.zeros(1, 1, small.token_dim), "after_end")
    assert len(ids[1]) == GPT2_TEXT.max_tokens
    assert ids[1][-1] == small.tokenizer.token_to_id(END_OF_TEXT)
    assert ids[1][:-1] == small.tokenizer.encode(long).ids[: GPT2_TEXT.max_tokens - 1]
    assert len(caplog.records) == 1 and f"cut to {GPT2_TEXT.max_tokens} tokens" in caplog.text


def test_gradient_reaches_every_trainable_parameter(small: ClapModel, samples: Tensor) -> None:
    small.set_training_mode()
    assert small.a2t is not None
    audio = small.encode_audio(samples)
    text = small.encode_text([*CAPTIONS, *[PROMPT] * 4], small.a2t(audio))
    (small.logit_scale.exp() * torch.nn.functional.cosine_similarity(text, audio.repeat(2, 1))).sum().backward()
    without = [name for name, p in small.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    frozen = {name.split(".")[3] for name, p in small.named_parameters() if not p.requires_grad}
    assert frozen == {"spectrogram_extractor", "logmel_extractor", "tscam_conv", "head"}


def test_encoders_are_deterministic_in_training_and_a2t_drops_out(small: ClapModel, samples: Tensor) -> None:
    audio, text = small.encode_audio(samples), small.encode_text(CAPTIONS)
    small.set_training_mode()
    assert torch.equal(small.encode_audio(samples), audio)
    assert torch.equal(small.encode_text(CAPTIONS), text)
    assert small.a2t is not None
    assert not torch.equal(small.a2t(audio), small.a2t(audio))
    small.eval()
    assert torch.equal(small.a2t(audio), small.a2t(audio))


def test_encoder_regularisation_is_msclaps_training_mode(small: ClapModel, samples: Tensor) -> None:
    small.set_training_mode(encoder_regularisation=True)
    assert not torch.equal(small.encode_audio(samples), small.encode_audio(samples))
    assert not torch.equal(small.encode_text(CAPTIONS), small.encode_text(CAPTIONS))
    off = [name for name, module in small.named_modules() if not module.training]
    assert off == ["audio_encoder.base.htsat.bn0"]
    small.eval()
    assert not any(module.training for module in small.modules())
    small.train()  # what was chosen stays chosen
    assert small.audio_encoder.htsat.training and not small.audio_encoder.htsat.bn0.training


@pytest.mark.parametrize("encoder_regularisation", [False, True])
def test_batch_norm_moves_only_when_asked(small: ClapModel, samples: Tensor, encoder_regularisation: bool) -> None:
    before = copy.deepcopy(small.audio_encoder.htsat.bn0.state_dict())
    small.set_training_mode(encoder_regularisation=encoder_regularisation)
    small.encode_audio(samples)
    assert all(torch.equal(value, before[name]) for name, value in small.audio_encoder.htsat.bn0.state_dict().items())
    small.set_training_mode(encoder_regularisation=encoder_regularisation, batch_norm="batch")
    small.encode_audio(samples)
    assert small.audio_encoder.htsat.bn0.num_batches_tracked == 1
    assert not torch.equal(small.audio_encoder.htsat.bn0.running_mean, before["running_mean"])


@pytest.mark.parametrize(("positions", "width", "stripes"), [(965, 64, 2), (64, 8, 2), (32, 4, 3)])
def test_stripes_are_as_many_and_as_wide_as_torchlibrosas(positions: int, width: int, stripes: int) -> None:
    dropper = DropStripes(dim=2, drop_width=width, stripes_num=stripes).train()
    ours = random_stripes(4000, positions, dropper, torch.device("cpu")).float()
    theirs = (dropper(torch.ones(4000, 1, positions, 1)) == 0)[:, 0, :, 0].float()
    assert ours.mean() == pytest.approx(theirs.mean().item(), rel=0.05)
    assert ours.sum(dim=1).max() <= stripes * (width - 1)
    edges, inner = ours[:, : width // 2].mean(), ours[:, positions // 4 : positions // 2].mean()
    assert edges < inner  # fewer stripes cover the ends


def test_spec_augment_drops_stripes_in_training_and_leaves_the_rest(small: ClapModel, samples: Tensor) -> None:
    plain = small.audio_encoder.normalised_log_mel(samples)
    assert torch.equal(small.audio_encoder.front_end(samples), plain)
    small.set_training_mode(encoder_regularisation=True)
    augmented = small.audio_encoder.front_end(samples)
    assert torch.equal(augmented[augmented != 0], plain[augmented != 0]) and (augmented == 0).any()
    augmented.sum().backward()
    assert small.audio_encoder.htsat.bn0.bias.grad.isfinite().all()


def test_spectrogram_stays_in_float32_under_autocast(small: ClapModel, samples: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = small.audio_encoder.normalised_log_mel(samples)
        embeddings = small.encode_audio(samples)
    assert torch.equal(mixed, small.audio_encoder.normalised_log_mel(samples))
    torch.testing.assert_close(embeddings.float(), small.encode_audio(samples), rtol=0, atol=0.1)


def test_same_seed_gives_the_same_weights() -> None:
    states = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        model = mini.build(mini.byte_tokenizer())
        model.add_a2t()
        states.append(model.state_dict())
    same, other = ([torch.equal(states[0][name], state[name]) for name in states[0]] for state in states[1:])
    assert all(same) and not all(other)


def test_model_can_be_copied_and_pickled(small: ClapModel, samples: Tensor) -> None:
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(twin.encode_audio(samples), small.encode_audio(samples))
        assert torch.equal(twin.encode_text(CAPTIONS), small.encode_text(CAPTIONS))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_embeddings_on_a_gpu_are_those_on_the_cpu(small: ClapModel, samples: Tensor) -> None:
    pseudo_PKE = torch.randn(1, 1, small.token_dim)
    audio, text = small.encode_audio(samples), small.encode_text(CAPTIONS, pseudo_PKE)
    small.to("cuda")
    torch.testing.assert_close(small.encode_audio(samples.cuda()).cpu(), audio, rtol=0, atol=1e-3)
    torch.testing.assert_close(small.encode_text(CAPTIONS, pseudo_PKE.cuda()).cpu(), text, rtol=0, atol=1e-3)
