"""The small backbone: ms-clap's parts in a size that two CPU cores train in minutes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torchlibrosa.augmentation import SpecAugmentation
from transformers import GPT2Config, GPT2Model

from pipeline.errors import PipelineError
from pipeline.models.backbones import BACKBONES
from pipeline.models.clap import ClapModel
from pipeline.models.htsat import HtsatEncoder
from pipeline.models.msclap_parts import HTSAT_Swin_Transformer, Projection
from pipeline.models.text import FUSED_GELU, TextEncoder
from pipeline.models.tokenization import END_OF_TEXT, byte_level_bpe, read_tokenizer
from pipeline.models.tokenization import GPT2_TEXT as TEXT

EMBEDDING_DIM = 128
TOKEN_DIM = 128
POSITIONS = 128  # above the tokens of a caption and some pseudo-tokens


def build(tokenizer: Tokenizer) -> ClapModel:
    """Return the small model, initialised randomly from torch's seed, with one embedding per token."""
    htsat = _htsat()
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    gpt2 = GPT2Model(
        GPT2Config(
            vocab_size=tokenizer.get_vocab_size(),
            n_positions=POSITIONS,
            n_embd=TOKEN_DIM,
            n_layer=1,
            n_head=4,
            activation_function=FUSED_GELU,
            bos_token_id=end_of_text,
            eos_token_id=end_of_text,
        )
    )
    return ClapModel(
        backbone="mini",
        audio_encoder=HtsatEncoder(htsat, EMBEDDING_DIM),
        caption_encoder=TextEncoder(
            gpt2, Projection(TOKEN_DIM, EMBEDDING_DIM), kind=TEXT, pooled_at="last", positions=POSITIONS
        ),
        embedding_dim=EMBEDDING_DIM,
        tokenizer=tokenizer,
    )


def _htsat() -> HTSAT_Swin_Transformer:
    """Return msclap's HTS-AT in the small size, initialised randomly."""
    sample_rate_hz = BACKBONES["mini"].sample_rate_hz
    front_end = SimpleNamespace(  # all entries of msclap's config module that HTSAT_Swin_Transformer reads
        sample_rate=sample_rate_hz,
        window_size=512,
        hop_size=320,
        mel_bins=32,
        fmin=50,
        fmax=sample_rate_hz // 2,
        enable_tscam=True,
        enable_repeat_mode=False,
        htsat_attn_heatmap=False,
        loss_type="clip_bce",
    )
    htsat = HTSAT_Swin_Transformer(
        config=front_end,
        spec_size=64,
        patch_size=8,  # with HTS-AT's 4, most of the time goes into four times as many patches, which gain nothing
        patch_stride=(8, 8),
        embed_dim=48,
        depths=[2, 2, 2],
        num_heads=[2, 4, 8],
        window_size=4,
        mlp_ratio=2.0,
        num_classes=1,
    )
    # HTS-AT's stripes have up to 64 of 1024 frames and 8 of 64 mel bins; the image here has 128 and 32.
    htsat.spec_augmenter = SpecAugmentation(
        time_drop_width=8, time_stripes_num=2, freq_drop_width=4, freq_stripes_num=2
    )
    return htsat


def load(weights: str | Path | None, tokenizer: str | Path | None) -> ClapModel:
    """Return the small model, initialised from torch's seed; without a tokenizer it has one token per byte.

    Raises PipelineError for weights, because none are published.
    """
    if weights is not None:
        raise PipelineError(f"{weights}: the mini has no pretrained weights; load a folder of save_model instead")
    return build(byte_tokenizer() if tokenizer is None else read_tokenizer(tokenizer, TEXT))


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer of 256 byte tokens and end-of-text, for any text."""
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    return byte_level_bpe(models.BPE(vocab=vocabulary, merges=[]))


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE of at most `vocab_size` tokens learned from captions in any order."""
    tokenizer = byte_level_bpe(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)
    return tokenizer
