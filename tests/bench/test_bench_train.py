"""The benchmark's straightforward step computes the same losses as the pipeline's."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from bench.train import (
    LONGEST_OF_256,
    TOKENS_PER_CAPTION,
    Contestant,
    SeparatePasses,
    frozen_audio,
    gpt2_tokenizer,
    made_up_captions,
    validation_costs,
    validation_shares,
)
from pipeline.models import load_model
from pipeline.training.batches import PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.micro_batches import micro_batches
from pipeline.training.settings import TrainingSettings


def test_both_steps_have_the_same_losses(tiny_study):
    model = load_model(tiny_study.pretrained)
    torch.manual_seed(0)
    model.add_a2t(dropout=0.0)
    model.set_training_mode()
    settings = TrainingSettings(objective="composed")
    batch = next(micro_batches(PairedBatches(tiny_study.pairs("composed"), tiny_study.shards)[0], 6))
    own, plain = CompositionLoss(model, settings)(batch), SeparatePasses(model, settings)(batch)
    assert own.keys() == plain.keys()
    for name, value in own.items():
        assert plain[name].item() == pytest.approx(value.item(), rel=1e-4), name


@pytest.fixture
def objectives(tiny_study):
    """The pipeline's objective and the straightforward one, of one model."""
    model = load_model(tiny_study.pretrained)
    model.add_a2t(dropout=0.0)
    model.set_training_mode()
    settings = TrainingSettings(objective="composed")
    return CompositionLoss(model, settings), SeparatePasses(model, settings)


@pytest.mark.parametrize(("is_own", "clips"), [(True, 8), (False, 2)])
def test_without_enough_memory_only_the_pipeline_keeps_its_batch(tiny_study, objectives, monkeypatch, is_own, clips):
    batches = PairedBatches(tiny_study.pairs("composed"), tiny_study.shards)
    objective = objectives[0] if is_own else objectives[1]
    model, encode_audio = objective.model, objective.model.encode_audio
    optimizer = torch.optim.Adam((value for value in model.parameters() if value.requires_grad), lr=1e-5)
    whole = Contestant(objective, optimizer, torch.device("cpu"))
    whole.warm_up(batches[0], 8)

    def encode_few(samples_BS):
        if len(samples_BS) > (6 if is_own else 2):  # windows: the pipeline encodes three per clip together
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode_audio(samples_BS)

    monkeypatch.setattr(model, "encode_audio", encode_few)
    parted = Contestant(objective, optimizer, torch.device("cpu"))
    parted.warm_up(batches[0], 8)
    parted.measure(batches[1])
    facts = parted.facts(peak=None)
    assert (whole.slots, facts["clips"], facts["micro_batch"]) == (8, clips, 2)
    # The second encoding is not counted, and captions of two clips are padded to less.
    assert 0.8 < facts["gflop_per_clip"] / (whole.flops / whole.clips / 1e9) <= 1.01


def test_the_step_with_a_frozen_audio_encoder_passes_nothing_back_to_it_and_thaws_it(tiny_study, objectives):
    batch, model = PairedBatches(tiny_study.pairs("composed"), tiny_study.shards)[0], objectives[0].model
    optimizer = torch.optim.Adam((value for value in model.parameters() if value.requires_grad), lr=1e-5)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    whole = Contestant(objectives[0], optimizer, torch.device("cpu"))
    frozen = Contestant(objectives[0], optimizer, torch.device("cpu"), state=partial(frozen_audio, model))
    for contestant in (whole, frozen):
        contestant.warm_up(batch, 8)
    frozen.step(batch)
    assert all(value.grad is None for value in model.audio_encoder.parameters())
    assert model.a2t.layers[0][0].weight.grad is not None
    assert [name for name, value in model.named_parameters() if value.requires_grad] == trained
    assert frozen.flops < 0.7 * whole.flops


def test_the_cost_of_a_validation_is_a_share_of_an_epoch(tiny_study, objectives):
    batches, model = PairedBatches(tiny_study.pairs("composed"), tiny_study.shards), objectives[0].model
    costs = validation_costs(model, [batches[0], batches[1]], 1)
    assert costs.keys() == {"window_s", "caption_s"} and min(costs.values()) > 0 and model.training
    measured = {"validation": {"window_s": 0.1, "caption_s": 0.01}, "pipeline": {"step_s": 8.0, "clips": 8}}
    assert "captions each: 150.0 s, 3.9% of an epoch of Clotho (3,839 clips)" in "".join(validation_shares(measured))


def test_made_up_captions_have_the_lengths_of_audiocaps():
    tokenizer = gpt2_tokenizer()
    captions = made_up_captions(tokenizer, 2048, np.random.default_rng(0))
    lengths = np.array([len(tokenizer.encode(f"{caption} <|endoftext|>").ids) for caption in captions])
    found = np.quantile(lengths, TOKENS_PER_CAPTION[0][2:7])
    assert np.abs(found - TOKENS_PER_CAPTION[1][2:7]).max() <= 1
    assert lengths.reshape(8, 256).max(axis=1).mean() == pytest.approx(LONGEST_OF_256, rel=0.15)
