"""LAION-CLAP: HTS-AT and RoBERTa from transformers' ClapModel, with the sizes of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import ClapConfig, ClapFeatureExtractor
from transformers import ClapModel as TransformersClap

from pipeline.errors import PipelineError
from pipeline.models.backbones import BACKBONES
from pipeline.models.clap import ClapModel
from pipeline.models.published import from_hub, unavailable
from pipeline.models.spectrogram import log_mel
from pipeline.models.text import TextEncoder
from pipeline.models.tokenization import ROBERTA_TEXT as TEXT
from pipeline.models.tokenization import check_vocabulary, read_tokenizer

# B = batch, S = samples, D = joint width

NAME = "laion-clap"
REPOSITORY = "laion/clap-htsat-unfused"
"""Default weights; laion/larger_clap_general is the same model in another size."""
FEATURES = ("feature_size", "sampling_rate", "hop_length", "fft_window_size", "frequency_min", "frequency_max")
"""Attributes of transformers' feature extractor that determine the spectrogram of one window."""

SIZES = ("text_config", "audio_config", "projection_dim", "projection_hidden_act")
"""Entries of transformers' ClapConfig that determine the modules."""


class LaionAudioEncoder(nn.Module):
    """transformers' HTS-AT and projection after a spectrogram computed on the model's device."""

    window_W: Tensor
    filters_FM: Tensor

    def __init__(self, base: nn.Module, projection: nn.Module, features: Mapping[str, Any]) -> None:
        super().__init__()
        self.base = base
        self.projection = projection
        extractor = ClapFeatureExtractor(**features)
        self.hop_length = extractor.hop_length
        window_W = torch.hann_window(extractor.fft_window_size, dtype=torch.float64)
        self.register_buffer("window_W", window_W, persistent=False)
        # Models without feature fusion use Slaney's filters.
        filters_FM = torch.from_numpy(extractor.mel_filters_slaney).float()
        self.register_buffer("filters_FM", filters_FM, persistent=False)

    def layer_groups(self) -> list[list[nn.Module]]:
        """Return the modules by depth; the groups are those of `HtsatEncoder.layer_groups`."""
        htsat: Any = self.base.audio_encoder
        groups: list[list[nn.Module]] = [[htsat.batch_norm, htsat.patch_embed]]
        for layer in htsat.layers:
            groups += [[block] for block in layer.blocks]
            if layer.downsample is not None:
                groups[-1].append(layer.downsample)
        return [*groups, [htsat.norm, self.projection]]

    def input_features(self, samples_BS: Tensor) -> Tensor:
        """Return log-mel spectrograms (B, 1, T, M), as ClapFeatureExtractor computes them."""
        return log_mel(samples_BS, self.window_W, self.filters_FM, self.hop_length).unsqueeze(1)

    def forward(self, samples_BS: Tensor) -> Tensor:
        """Return embeddings (B, D) of windows."""
        return self.projection(self.base(self.input_features(samples_BS)).pooler_output)


def build(tokenizer: Tokenizer, clap: Mapping[str, Any], features: Mapping[str, Any]) -> ClapModel:
    """Return the model with these `SIZES` and `FEATURES`, initialised randomly from torch's seed.

    Raises PipelineError if the tokenizer does not fit the configuration.
    """
    return _wrap(TransformersClap(ClapConfig.from_dict(dict(clap))), tokenizer, features)


def load(weights: str | Path | None, tokenizer: str | Path | None) -> ClapModel:
    """Return the pretrained model of a folder in transformers' format or of a repository on the hub.

    The default tokenizer is next to the weights. Raises PipelineError if a file is not available or not readable, or
    if the model has feature fusion or another window.
    """
    weights = str(weights or REPOSITORY)
    try:
        extractor = ClapFeatureExtractor.from_pretrained(weights)
        config = ClapConfig.from_pretrained(weights)
        _check_form(weights, config, extractor)
        clap, loading_report = TransformersClap.from_pretrained(weights, config=config, output_loading_info=True)
    except OSError as error:  # the hub's own errors, a missing network or file, and a damaged file
        folder = "as `weights` a folder with its config.json, preprocessor_config.json, model.safetensors or"
        instead = f"{folder} pytorch_model.bin, and tokenizer files"
        if Path(weights).is_dir():
            raise PipelineError(f"{weights}: {str(error).splitlines()[0]}; give {instead}") from error
        raise unavailable(weights, "the model", error, instead) from error
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise PipelineError(f"{weights}: not a readable model ({str(error).splitlines()[0]})") from error
    # `position_ids` and `token_type_ids` are constants that some versions of transformers do not write.
    missing = [name for name in loading_report["missing_keys"] if not name.endswith(("position_ids", "token_type_ids"))]
    if missing:
        raise PipelineError(f"{weights}: {len(missing)} weights of a ClapModel are missing: {', '.join(missing[:5])}")
    if tokenizer is None:
        tokenizer = (
            weights
            if Path(weights).is_dir()
            else from_hub(weights, "tokenizer.json", "a folder with RoBERTa's tokenizer files as `tokenizer`")
        )
    features = {name: getattr(extractor, name) for name in FEATURES}
    return _wrap(clap, read_tokenizer(tokenizer, TEXT), features)


def _check_form(weights: str, config: ClapConfig, extractor: ClapFeatureExtractor) -> None:
    if config.audio_config.enable_fusion or extractor.truncation != "rand_trunc":
        raise PipelineError(
            f"{weights}: a model with feature fusion, for clips longer than the window; use one without it, "
            f"such as {REPOSITORY}"
        )
    expected = (BACKBONES[NAME].sample_rate_hz, BACKBONES[NAME].window_s)
    if (extractor.sampling_rate, extractor.max_length_s) != expected:
        raise PipelineError(
            f"{weights}: a model of {extractor.max_length_s} s at {extractor.sampling_rate} Hz; {NAME} has "
            f"{expected[1]} s at {expected[0]} Hz"
        )


def _wrap(clap: TransformersClap, tokenizer: Tokenizer, features: Mapping[str, Any]) -> ClapModel:
    """Return a `ClapModel` with the parts of transformers' model."""
    text = clap.config.text_config
    check_vocabulary(tokenizer, TEXT, NAME, text.vocab_size, text.eos_token_id)
    model = ClapModel(
        backbone=NAME,
        audio_encoder=LaionAudioEncoder(clap.audio_model, clap.audio_projection, features),
        caption_encoder=TextEncoder(
            clap.text_model,
            clap.text_projection,
            kind=TEXT,
            pooled_at="pooler",
            positions=text.max_position_embeddings
            - text.pad_token_id
            - 1,  # RoBERTa counts from the position after padding
        ),
        embedding_dim=clap.config.projection_dim,
        tokenizer=tokenizer,
        architecture={"clap": {name: clap.config.to_dict()[name] for name in SIZES}, "features": dict(features)},
    )
    # LAION's loss uses this scale in both directions (mlp_loss off); it does not use logit_scale_t.
    with torch.no_grad():
        model.logit_scale.copy_(clap.logit_scale_a)
    return model
