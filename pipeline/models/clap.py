"""The audio-text model: audio encoder and text encoder of a backbone, and the paper's f_a2t.

Captions are padded to the longest of the batch and pooled at their true end or start. All backbones use the parameter
names of msclap's `CLAP`: audio_encoder.base, .projection, caption_encoder.base, .projection, logit_scale.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import PipelineError
from pipeline.models.backbones import BACKBONES
from pipeline.models.devices import send
from pipeline.models.text import TextEncoder

# B = batch, S = samples, P = captions with pseudo-tokens, K = pseudo-tokens of a clip or caption, L = tokens,
# E = token width, D = joint width

logger = logging.getLogger(__name__)


class AudioToText(nn.Module):
    """f_a2t, from an audio embedding to pseudo-tokens of the text encoder, Eqs. (7) and (14).

    Hidden layers of Linear(D -> D), Dropout, ReLU, then Linear(D -> K * E); the paper has one pseudo-token.

    The order of dropout and ReLU, and the dropout of 0.1, are those of Pic2Word's IM2TEXT module.
    """

    def __init__(
        self, embedding_dim: int, token_dim: int, hidden_layers: int = 2, dropout: float = 0.1, tokens: int = 1
    ) -> None:
        super().__init__()
        self.hidden_layers = hidden_layers
        self.dropout = dropout
        self.tokens = tokens
        hidden = [
            nn.Sequential(nn.Linear(embedding_dim, embedding_dim), nn.Dropout(dropout), nn.ReLU())
            for _ in range(hidden_layers)
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(embedding_dim, tokens * token_dim))

    def forward(self, audio_BD: Tensor) -> Tensor:
        """Return pseudo-tokens (B, K, E) of audio embeddings (B, D)."""
        return self.layers(audio_BD).unflatten(-1, (self.tokens, -1))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `ClapModel.add_a2t` that make this module, as model.json records them."""
        return {"hidden_layers": self.hidden_layers, "dropout": self.dropout, "tokens": self.tokens}


class AudioToTextDecoder(nn.Module):
    """f_a2t as a Transformer decoder: K learned query tokens that attend to the audio embedding and to each other.

    The layers are torch's, with the norm first and GELU; the feed-forward layer has four times the token width. The
    embedding is the only place to attend to, so cross-attention is a linear map of it.

    Source: the abstract of the paper's follow-up, which gives no sizes; docs/method.md lists the choices.
    """

    def __init__(
        self, embedding_dim: int, token_dim: int, *, layers: int, heads: int, dropout: float, tokens: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.queries_KE = nn.Parameter(torch.empty(tokens, token_dim).normal_(std=0.02))
        self.memory = nn.Linear(embedding_dim, token_dim)
        self.layers = nn.ModuleList(  # not nn.TransformerDecoder, whose layers all start with the same weights
            nn.TransformerDecoderLayer(
                token_dim, heads, 4 * token_dim, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(token_dim)
        self.output = nn.Linear(token_dim, token_dim)

    def forward(self, audio_BD: Tensor) -> Tensor:
        """Return pseudo-tokens (B, K, E) of audio embeddings (B, D)."""
        memory_B1E = self.memory(audio_BD)[:, None]
        tokens_BKE = self.queries_KE.expand(len(audio_BD), -1, -1)
        for layer in self.layers:
            tokens_BKE = layer(tokens_BKE, memory_B1E)
        return self.output(self.norm(tokens_BKE))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `ClapModel.add_a2t` that make this module, as model.json records them."""
        return {
            "kind": "decoder",
            "layers": len(self.layers),
            "heads": self.heads,
            "dropout": self.dropout,
            "tokens": len(self.queries_KE),
        }


CAPTIONS_PER_GROUP = 24
"""Captions of similar length that a CPU encodes at a time. A training step of the small study has 96 captions of 25
tokens on average and 49 at most: in groups the text encoder takes half the time."""


class ClapModel(nn.Module):
    """An audio and a text encoder with one joint space; `backbone` is its name in `BACKBONES`.

    audio_encoder: a module from windows (B, S) to embeddings (B, D).
    architecture: the arguments of the backbone module's `build` besides the tokenizer.

    `short_clips` is the way in which windows of short clips were filled in training, and `channels` the mono signal of
    files with several channels (`SHORT_CLIPS` and `CHANNELS` of `pipeline.data.audio`). Both apply wherever the model
    reads a clip. The published backbones repeat short clips and use the mean.
    `logit_scale` is the logarithm of the factor on the cosines. `a2t` is None until `add_a2t`.
    `train()` keeps the encoders deterministic and BatchNorm frozen unless `set_training_mode` was called.
    """

    def __init__(
        self,
        *,
        backbone: str,
        audio_encoder: nn.Module,
        caption_encoder: TextEncoder,
        embedding_dim: int,
        tokenizer: Tokenizer,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sample_rate_hz = BACKBONES[backbone].sample_rate_hz
        self.window_s = BACKBONES[backbone].window_s
        self.window_frames = BACKBONES[backbone].window_frames
        self.short_clips = "repeat"
        self.channels = "mean"
        self.token_dim = caption_encoder.token_dim
        self.embedding_dim = embedding_dim
        self.tokenizer = tokenizer
        self.architecture = dict(architecture or {})
        self.audio_encoder = audio_encoder
        self.caption_encoder = caption_encoder
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.a2t: AudioToText | AudioToTextDecoder | None = None
        self._encoder_regularisation = False
        self._batch_norm = "frozen"
        self._truncation_logged = False

    def add_a2t(
        self,
        hidden_layers: int = 2,
        dropout: float = 0.1,
        tokens: int = 1,
        *,
        kind: str = "mlp",
        layers: int = 2,
        heads: int = 8,
    ) -> None:
        """Add a newly initialised f_a2t with `tokens` pseudo-tokens per clip; it is saved and loaded with the model.

        kind: "mlp" is that of Eq. (7), with `hidden_layers`; "decoder" has `layers` with `heads` each.

        Raises PipelineError if the longest caption and the pseudo-tokens exceed the text encoder's positions, or if the
        heads do not divide the width of its tokens.
        """
        longest, positions = self.caption_encoder.kind.max_tokens, self.caption_encoder.positions
        if longest + tokens > positions:
            raise PipelineError(
                f"{tokens} pseudo-tokens and captions of up to {longest} tokens exceed the {positions} positions of "
                f"{self.backbone}'s text encoder; ask for at most {positions - longest}"
            )
        if kind == "decoder" and self.token_dim % heads:
            raise PipelineError(
                f"a2t_heads is {heads}, which does not divide the {self.token_dim} values of {self.backbone}'s token "
                "embeddings; give a divisor"
            )
        sizes = (self.embedding_dim, self.token_dim)
        a2t: AudioToText | AudioToTextDecoder = (
            AudioToTextDecoder(*sizes, layers=layers, heads=heads, dropout=dropout, tokens=tokens)
            if kind == "decoder"
            else AudioToText(*sizes, hidden_layers, dropout, tokens)
        )
        self.a2t = a2t.to(self.logit_scale.device)

    def load_weights(self, state: Mapping[str, Tensor], source: str | Path) -> None:
        """Load a state dict that was read from `source`.

        Raises PipelineError with the entries that are missing, unexpected or of another shape.
        """
        own = self.state_dict()
        problems = {
            "missing": [name for name in own if name not in state],
            "unexpected": [name for name in state if name not in own],
            "of another shape": [
                f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
                for name, value in own.items()
                if name in state and state[name].shape != value.shape
            ],
        }
        if any(problems.values()):
            details = "; ".join(
                f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
                for kind, names in problems.items()
                if names
            )
            raise PipelineError(f"{source}: not the weights of {self.backbone}: {details}")
        self.load_state_dict(state)

    def set_training_mode(
        self, *, encoder_regularisation: bool = False, batch_norm: Literal["frozen", "batch"] = "frozen"
    ) -> None:
        """Choose what `train()` enables, and enable it.

        encoder_regularisation: the encoders' own training mode. ms-clap 2023 and mini: SpecAugment, DropPath 0.1,
            dropout 0.5 in the projections and 0.1 in GPT-2; ms-clap 2022: dropout 0.2 and 0.5 in CNN14, 0.5 in the
            projections and 0.1 in BERT; LAION-CLAP: the dropout of its configuration, 0.1 in both transformers.
            Without it only f_a2t has dropout, and both encoders are deterministic.
        batch_norm: "frozen" keeps the running statistics of every BatchNorm in the audio encoder (one in front of
            HTS-AT, 13 in CNN14); "batch" uses and learns those of the batch, for training from scratch.
        """
        self._encoder_regularisation = encoder_regularisation
        self._batch_norm = batch_norm
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode as in torch, within the choice of `set_training_mode`."""
        super().train(mode)
        self.audio_encoder.train(mode and self._encoder_regularisation)
        self.caption_encoder.train(mode and self._encoder_regularisation)
        for module in self.audio_encoder.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode and self._batch_norm == "batch")
        return self

    def encode_audio(self, samples_BS: Tensor) -> Tensor:
        """Return unnormalised embeddings (B, D) of windows: `window_frames` samples in [-1, 1] at `sample_rate_hz`."""
        if samples_BS.ndim != 2 or samples_BS.shape[1] != self.window_frames:
            raise ValueError(
                f"{self.backbone} takes samples of shape (B, {self.window_frames}), {self.window_s} s at "
                f"{self.sample_rate_hz} Hz; got {tuple(samples_BS.shape)}"
            )
        return self.audio_encoder(samples_BS)

    def encode_text(
        self,
        captions: Sequence[str],
        pseudo_tokens: Tensor | None = None,
        pseudo_position: Literal["before_end", "after_end"] = "before_end",
    ) -> Tensor:
        """Return unnormalised embeddings (B, D) of captions, the last P of them with pseudo-tokens (P, K, E).

        The pseudo-tokens of a caption are directly before the end token, or after it. A causal text encoder pools at
        the last position: the end token, or the last pseudo-token after it. The others pool at the first position.
        Captions longer than the kind's `max_tokens` are cut but keep the end token; pseudo-tokens do not count.
        """
        pseudo_count = 0 if pseudo_tokens is None else len(pseudo_tokens)
        if pseudo_count > len(captions):
            raise ValueError(f"pseudo-tokens of {pseudo_count} captions for {len(captions)} captions")
        if pseudo_tokens is not None and (pseudo_tokens.ndim != 3 or pseudo_tokens.shape[2] != self.token_dim):
            raise ValueError(
                f"pseudo-tokens must be of shape (P, K, {self.token_dim}); got {tuple(pseudo_tokens.shape)}"
            )
        if pseudo_position not in ("before_end", "after_end"):
            raise ValueError(f"pseudo_position must be before_end or after_end; got {pseudo_position!r}")
        ids = self._token_ids(captions)
        if pseudo_tokens is not None:
            for caption_ids in ids[len(ids) - pseudo_count :]:
                caption_ids += caption_ids[-1:] * pseudo_tokens.shape[1]  # places before or after the end token
        groups = self._groups_by_length(ids)
        embeddings, first_pseudo = [], len(ids) - pseudo_count
        for group in groups:
            rows_P = [i - first_pseudo for i in group if i >= first_pseudo]  # last in the group, as in the batch
            group_PKE = pseudo_tokens
            if pseudo_tokens is not None and len(groups) > 1:
                group_PKE = pseudo_tokens[torch.tensor(rows_P, dtype=torch.long)]
            embeddings.append(self._encode_tokens([ids[i] for i in group], group_PKE, pseudo_position))
        if len(groups) == 1:
            return embeddings[0]
        row_of = {number: row for row, number in enumerate(number for group in groups for number in group)}
        return torch.cat(embeddings)[torch.tensor([row_of[number] for number in range(len(ids))])]

    def _groups_by_length(self, ids: list[list[int]]) -> list[list[int]]:
        """Return the numbers of the captions in groups of similar length, because padding costs as much as tokens.

        A GPU gets one group: it is faster with a large batch.
        """
        if self.logit_scale.device.type != "cpu":
            return [list(range(len(ids)))]
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        return [
            sorted(by_length[first : first + CAPTIONS_PER_GROUP]) for first in range(0, len(ids), CAPTIONS_PER_GROUP)
        ]

    def _encode_tokens(
        self, ids: list[list[int]], pseudo_tokens: Tensor | None, pseudo_position: Literal["before_end", "after_end"]
    ) -> Tensor:
        """Return embeddings (B, D) of token lists; the last P have places for their pseudo-tokens (P, K, E)."""
        longest = max(map(len, ids))  # of the lists: a shape must not depend on the values of a tensor
        padded = [caption_ids + [0] * (longest - len(caption_ids)) for caption_ids in ids]
        device = self.logit_scale.device
        lengths_B = send(torch.tensor([len(caption_ids) for caption_ids in ids]), device)

        embeds_BLE = self.caption_encoder.embed(send(torch.tensor(padded), device))
        if pseudo_tokens is not None and (pseudo_count := len(pseudo_tokens)):
            # Eqs. (8), (15): the last pseudo-token is the last position but one, before the end token, or the last.
            back_K = torch.arange(-pseudo_tokens.shape[1], 0, device=device) - int(pseudo_position == "before_end")
            rows_P1 = torch.arange(len(ids) - pseudo_count, len(ids), device=device)[:, None]
            place_PK = lengths_B[-pseudo_count:, None] + back_K
            embeds_BLE = embeds_BLE.index_put((rows_P1, place_PK), pseudo_tokens.to(embeds_BLE.dtype))
        return self.caption_encoder(embeds_BLE, lengths_B)

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each caption with start and end tokens, at most `max_tokens` of the kind."""
        kind = self.caption_encoder.kind
        start = [] if kind.start is None else [self.tokenizer.token_to_id(kind.start)]
        end = self.tokenizer.token_to_id(kind.end)
        ids = []
        for caption in captions:
            for token in kind.special:
                caption = caption.replace(token, " ")
            # One by one: encode_batch starts threads, and then every forked loader worker prints a warning.
            caption_ids = self.tokenizer.encode(caption + kind.before_end, add_special_tokens=False).ids
            ids.append([*start, *caption_ids, end])
        longest = max(range(len(ids)), key=lambda i: len(ids[i]))
        if len(ids[longest]) > kind.max_tokens:
            if not self._truncation_logged:
                self._truncation_logged = True
                logger.warning(
                    "captions are cut to %d tokens; the first to be cut has %d: %r",
                    kind.max_tokens, len(ids[longest]), captions[longest],
                )  # fmt: skip
            ids = [i if len(i) <= kind.max_tokens else [*i[: kind.max_tokens - 1], i[-1]] for i in ids]
        return ids
