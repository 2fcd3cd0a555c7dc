"""The benchmark's straightforward step is the same training step, only written the slow way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.train import LONGEST_OF_256, TOKENS_A_CAPTION, SeparatePasses, gpt2_tokenizer, made_up_captions
from pipeline.models import load_model
from pipeline.training.batches import PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.micro_batches import micro_batches
from pipeline.training.settings import TrainingSettings


def test_the_straightforward_step_has_the_losses_of_the_pipelines(tiny_study):
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


def test_made_up_captions_are_as_long_as_those_of_audiocaps():
    tokenizer = gpt2_tokenizer()
    captions = made_up_captions(tokenizer, 2048, np.random.default_rng(0))
    lengths = np.array([len(tokenizer.encode(f"{caption} <|endoftext|>").ids) for caption in captions])
    found = np.quantile(lengths, TOKENS_A_CAPTION[0][2:7])
    assert np.abs(found - TOKENS_A_CAPTION[1][2:7]).max() <= 1
    assert lengths.reshape(8, 256).max(axis=1).mean() == pytest.approx(LONGEST_OF_256, rel=0.15)
