"""A small random model of each kind of backbone, made of the real parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import BertConfig, BertModel, ClapConfig

from pipeline.models import laion, mini, msclap2022
from pipeline.models.clap import ClapModel
from pipeline.models.msclap_parts import Cnn14, Projection
from pipeline.models.text import TextEncoder
from pipeline.models.tokenization import BERT_SPECIAL, BERT_TEXT, ROBERTA_SPECIAL, byte_level_bpe, wordpiece

from msclap.models.audio import ConvBlock  # isort: skip

CAPTIONS = ["a dog barks", "rain falls on a tin roof while people talk", "", "birds sing, then a door shuts"]
LAION_FEATURES = {
    "feature_size": 64,
    "sampling_rate": 48_000,
    "hop_length": 480,
    "fft_window_size": 1024,
    "frequency_min": 50,
    "frequency_max": 14_000,
}


def write_bert_vocabulary(folder: Path) -> Path:
    """vocab.txt with BERT's 30522 entries: its special tokens at their places, then characters and a few words."""
    tokens = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = "abcdefghijklmnopqrstuvwxyz0123456789!',.-"
    tokens += [*characters, *(f"##{character}" for character in characters)]
    tokens += ["dog", "bark", "rain", "##ing", "bird", "##all", "this", "sound", "is", "roof", "people", "talk", "door"]
    tokens += [f"[filler{i}]" for i in range(30_522 - len(tokens))]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return folder


def roberta_tokenizer() -> Tokenizer:
    """A byte-level BPE learnt from a few captions, with RoBERTa's special tokens at their numbers."""
    tokenizer = byte_level_bpe(models.BPE(), ROBERTA_SPECIAL)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(ROBERTA_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    return tokenizer


def laion_config(vocabulary_size: int) -> ClapConfig:
    """LAION-CLAP's configuration with fewer and narrower layers."""
    return ClapConfig(
        text_config={
            "vocab_size": vocabulary_size,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        audio_config={
            "patch_embeds_hidden_size": 8,
            "depths": [2, 2],
            "num_attention_heads": [1, 2],
            "hidden_size": 16,
        },
        projection_dim=24,
    )


def batch_norms(model: ClapModel) -> list[_BatchNorm]:
    """Every BatchNorm of a model."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def learn_statistics(model: ClapModel) -> ClapModel:
    """BatchNorm's statistics of a batch of noise, without which CNN14 with random weights gives all sounds alike."""
    for norm in batch_norms(model):
        norm.momentum = 1.0
    model.set_training_mode(batch_norm="batch")
    with torch.no_grad():
        model.encode_audio(torch.randn(2, model.window_frames) * torch.tensor([[0.01], [0.3]]))
    for norm in batch_norms(model):
        norm.momentum = 0.1
    model.set_training_mode()
    return model.eval()


def small_mini(folder: Path) -> ClapModel:
    return mini.build(mini.train_tokenizer(CAPTIONS, 300))


def small_msclap2022(folder: Path) -> ClapModel:
    """CNN14 of 2 to 64 channels instead of 64 to 2048, and BERT of two layers."""
    cnn14 = Cnn14(44_100, 1024, 320, 64, 50, 14_000, classes_num=3, out_emb=48)
    channels = [1, 2, 4, 8, 16, 32, 64]
    for number in range(1, 7):
        setattr(cnn14, f"conv_block{number}", ConvBlock(channels[number - 1], channels[number]))
    cnn14.fc1 = torch.nn.Linear(channels[-1], 48)
    tokenizer = wordpiece(str(write_bert_vocabulary(folder) / "vocab.txt"))
    assert [tokenizer.token_to_id(token) for token in BERT_SPECIAL] == [0, 100, 101, 102, 103]
    bert = BertModel(BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64))
    return ClapModel(
        backbone="msclap-2022",
        audio_encoder=msclap2022.Cnn14Encoder(cnn14, 24),
        caption_encoder=TextEncoder(bert, Projection(32, 24), kind=BERT_TEXT, pooled_at="first", positions=512),
        embedding_dim=24,
        tokenizer=tokenizer,
    )


def small_laion(folder: Path) -> ClapModel:
    tokenizer = roberta_tokenizer()
    config = laion_config(tokenizer.get_vocab_size()).to_dict()
    return laion.build(tokenizer, {name: config[name] for name in laion.SIZES}, LAION_FEATURES)


SMALL: dict[str, Callable[[Path], ClapModel]] = {
    "mini": small_mini,  # msclap-2023 is of the same parts
    "msclap-2022": small_msclap2022,
    "laion-clap": small_laion,
}
