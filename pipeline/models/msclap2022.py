"""ms-clap 2022: CNN14 and BERT with msclap's configuration, and the published checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel

from pipeline.models.clap import ClapModel
from pipeline.models.initialization import WithoutInitialization
from pipeline.models.msclap_parts import Cnn14, Projection, read_settings
from pipeline.models.published import from_hub, read_msclap_checkpoint
from pipeline.models.spectrogram import log_mel
from pipeline.models.text import TextEncoder
from pipeline.models.tokenization import BERT_TEXT as TEXT
from pipeline.models.tokenization import check_vocabulary, read_tokenizer

# B = batch, S = samples, T = frames, M = mel bins, C = channels, D = joint width

NAME = "msclap-2022"
WEIGHTS_FILE = "CLAP_weights_2022.pth"
SEPARATOR_ID = 102
"""BERT's id of [SEP]."""
# The numbers 0, 1, ...: transformers wrote them into state dicts until 4.30.
CONSTANTS = re.compile(r"caption_encoder\.base\.embeddings\.position_ids")


class Cnn14Encoder(nn.Module):
    """CNN14 and Projection with msclap's parameter names; in its training mode with dropout after every block.

    The embeddings are the same; the computation differs. The spectrogram comes from an FFT, and the classifier, whose
    output CLAP ignores, is not computed.
    """

    def __init__(self, cnn14: Cnn14, embedding_dim: int) -> None:
        super().__init__()
        self.base = cnn14
        self.projection = Projection(cnn14.fc1.out_features, embedding_dim)
        # It stays in the state dict for complete exports; DDP must not wait for its gradient.
        cnn14.fc_audioset.requires_grad_(False)

    def layer_groups(self) -> list[list[nn.Module]]:
        """Return the modules by depth: BatchNorm, the six blocks, then the last linear layer with the projection."""
        cnn14 = self.base
        blocks = [getattr(cnn14, f"conv_block{number}") for number in range(1, 7)]
        return [[cnn14.bn0], *([block] for block in blocks), [cnn14.fc1, self.projection]]

    def forward(self, samples_BS: Tensor) -> Tensor:
        """Return embeddings (B, D) of windows."""
        cnn14, training = self.base, self.base.training
        stft = cnn14.spectrogram_extractor.stft
        mel_BTM = log_mel(
            samples_BS,
            window_W=stft.conv_real.weight[0, 0],  # Fourier matrix times window; at frequency 0 it is the window
            filters_FM=cnn14.logmel_extractor.melW,
            hop_length=stft.hop_length,
        )
        with torch.autocast(samples_BS.device.type, enabled=False):
            x_BCTM = cnn14.bn0(mel_BTM.transpose(1, 2).unsqueeze(-1)).transpose(1, 3)
        for number in range(1, 7):
            block = getattr(cnn14, f"conv_block{number}")
            x_BCTM = block(x_BCTM, pool_size=(2, 2) if number < 6 else (1, 1), pool_type="avg")
            x_BCTM = functional.dropout(x_BCTM, p=0.2, training=training)
        x_BCT = x_BCTM.mean(dim=3)
        x_BC = x_BCT.max(dim=2).values + x_BCT.mean(dim=2)
        x_BC = functional.relu(cnn14.fc1(functional.dropout(x_BC, p=0.5, training=training)))
        return self.projection(functional.dropout(x_BC, p=0.5, training=training))


def build(tokenizer: Tokenizer) -> ClapModel:
    """Return the full-size model, initialised randomly from torch's seed.

    Raises PipelineError if the tokenizer is not that of bert-base-uncased, whose ids the weights use.
    """
    config = BertConfig()  # bert-base-uncased's sizes are the default
    check_vocabulary(tokenizer, TEXT, NAME, config.vocab_size, SEPARATOR_ID)
    settings = read_settings("2022")
    cnn14 = Cnn14(
        sample_rate=settings["sampling_rate"],
        window_size=settings["window_size"],
        hop_size=settings["hop_size"],
        mel_bins=settings["mel_bins"],
        fmin=settings["fmin"],
        fmax=settings["fmax"],
        classes_num=settings["num_classes"],
        out_emb=settings["out_emb"],
    )
    embedding_dim = settings["d_proj"]
    return ClapModel(
        backbone=NAME,
        audio_encoder=Cnn14Encoder(cnn14, embedding_dim),
        caption_encoder=TextEncoder(
            BertModel(config),
            Projection(config.hidden_size, embedding_dim),
            kind=TEXT,
            pooled_at="first",
            positions=config.max_position_embeddings,
        ),
        embedding_dim=embedding_dim,
        tokenizer=tokenizer,
    )


def load(weights: str | Path | None, tokenizer: str | Path | None) -> ClapModel:
    """Return the pretrained model from a checkpoint in ms-clap's format and BERT's tokenizer; None downloads either.

    Raises PipelineError if a file is not available or not readable, or belongs to another model.
    """
    if tokenizer is None:
        tokenizer = from_hub(
            "bert-base-uncased", "tokenizer.json", "a folder with bert-base-uncased's tokenizer files as `tokenizer`"
        )
    if weights is None:
        weights = from_hub("microsoft/msclap", WEIGHTS_FILE, f"{WEIGHTS_FILE} as `weights`")
    read = read_tokenizer(tokenizer, TEXT)
    state = read_msclap_checkpoint(weights, NAME, WEIGHTS_FILE, CONSTANTS)
    with WithoutInitialization():
        model = build(read)
    model.load_weights(state, weights)
    return model
