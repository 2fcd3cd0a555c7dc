"""The audio-text model: msclap's HTS-AT and Projection, transformers' GPT-2, and the f_a2t of the paper.

Parameter names and numbers are those of msclap's `CLAP`, so its checkpoints load and its embeddings are reproduced.
Only the way there differs: the spectrogram comes from an FFT instead of a convolution with the Fourier matrix,
HTS-AT's classifier, whose output CLAP drops, is not computed, and captions are padded to the longest of the batch
and pooled at their true end.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GPT2Model

with warnings.catch_warnings():  # importing msclap silences all warnings of the process for good
    from msclap.models.clap import Projection
    from msclap.models.htsat import HTSAT_Swin_Transformer

from pipeline.errors import PipelineError
from pipeline.models.a2t import AudioToText
from pipeline.models.backbones import BACKBONES
from pipeline.models.tokenization import END_OF_TEXT

# msclap's HTS-AT calls it without `indexing`; its result is the one that torch keeps as the default.
warnings.filterwarnings("ignore", message="torch.meshgrid")

# B = batch, S = samples, T = frames, F = frequency bins, M = mel bins, I = image side, N = patches, C = channels,
# P = captions with a pseudo-token, L = tokens, E = token width, D = joint width

MAX_TOKENS = 77
"""Tokens of a caption, the end-of-text token included: `text_len` of msclap's configuration."""

FUSED_GELU = "gelu_pytorch_tanh"
"""The function that GPT-2's `gelu_new` writes out in seven tensor operations, as one."""

log = logging.getLogger(__name__)


class ClapModel(nn.Module):
    """An audio and a text encoder into one joint space; `backbone` is the entry of `BACKBONES` it was built as.

    `logit_scale` is the logarithm of what multiplies the cosines. `a2t` is None until `add_a2t`.
    `train()` leaves the encoders deterministic and BatchNorm fixed unless `set_training_mode` asked otherwise.
    """

    def __init__(
        self,
        *,
        backbone: str,
        htsat: HTSAT_Swin_Transformer,
        gpt2: GPT2Model,
        embedding_dim: int,
        tokenizer: Tokenizer,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sample_rate_hz = BACKBONES[backbone].sample_rate_hz
        self.window_s = BACKBONES[backbone].window_s
        self.window_frames = BACKBONES[backbone].window_frames
        self.token_dim = int(gpt2.config.n_embd)
        self.embedding_dim = embedding_dim
        self.tokenizer = tokenizer
        # Named as in msclap, whose AudioEncoder and TextEncoder classes fix the size and fetch GPT-2 from the hub.
        self.audio_encoder = nn.ModuleDict(
            {"base": nn.ModuleDict({"htsat": htsat}), "projection": Projection(htsat.num_features, embedding_dim)}
        )
        self.caption_encoder = nn.ModuleDict({"base": gpt2, "projection": Projection(self.token_dim, embedding_dim)})
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.a2t: AudioToText | None = None
        # The classifier stays in the state dict, so that exports are whole; DDP must not wait for its gradient.
        htsat.tscam_conv.requires_grad_(False)
        htsat.head.requires_grad_(False)
        self._encoder_regularisation = False
        self._batch_norm = "frozen"
        self._truncation_logged = False

    @property
    def htsat(self) -> HTSAT_Swin_Transformer:
        """The audio encoder's transformer."""
        return cast(nn.ModuleDict, self.audio_encoder["base"])["htsat"]

    @property
    def gpt2(self) -> GPT2Model:
        """The text encoder's transformer."""
        return cast(GPT2Model, self.caption_encoder["base"])

    def add_a2t(self, hidden_layers: int = 2, dropout: float = 0.1) -> None:
        """Give the model a freshly initialised f_a2t, saved and loaded with it."""
        self.a2t = AudioToText(self.embedding_dim, self.token_dim, hidden_layers, dropout).to(self.logit_scale.device)

    def load_weights(self, state: Mapping[str, Tensor], source: str | Path) -> None:
        """Take over the state dict read from `source`.

        Raises PipelineError naming the entries that are missing, unexpected or of another shape.
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
            told = "; ".join(
                f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
                for kind, names in problems.items()
                if names
            )
            raise PipelineError(f"{source}: not the weights of {self.backbone}: {told}")
        self.load_state_dict(state)

    def set_training_mode(
        self, *, encoder_regularisation: bool = False, batch_norm: Literal["frozen", "batch"] = "frozen"
    ) -> None:
        """Choose what `train()` switches on, and switch it on.

        encoder_regularisation: msclap's own training mode: SpecAugment, DropPath 0.1, dropout 0.5 in the projections
            and 0.1 in GPT-2. Without it only f_a2t has dropout, and both encoders are deterministic.
        batch_norm: "frozen" keeps the running statistics of the one BatchNorm, in HTS-AT's front end, as loaded;
            "batch" uses and learns those of the batch, as training from scratch must.
        """
        self._encoder_regularisation = encoder_regularisation
        self._batch_norm = batch_norm
        self.train()

    def train(self, mode: bool = True) -> Self:
        """As in torch, within what `set_training_mode` chose."""
        super().train(mode)
        self.audio_encoder.train(mode and self._encoder_regularisation)
        self.caption_encoder.train(mode and self._encoder_regularisation)
        self.htsat.bn0.train(mode and self._batch_norm == "batch")
        return self

    def encode_audio(self, samples_BS: Tensor) -> Tensor:
        """Unnormalised embeddings (B, D) of windows of `window_frames` samples in [-1, 1] at `sample_rate_hz`."""
        if samples_BS.ndim != 2 or samples_BS.shape[1] != self.window_frames:
            raise ValueError(
                f"{self.backbone} takes samples of shape (B, {self.window_frames}), {self.window_s} s at "
                f"{self.sample_rate_hz} Hz; got {tuple(samples_BS.shape)}"
            )
        htsat = self.htsat
        mel_B1TM = htsat.spec_augmenter(self._normalised_log_mel(samples_BS))  # the identity outside training
        image_B1II = htsat.reshape_wav2img(mel_B1TM)
        x_BNC = htsat.pos_drop(htsat.patch_embed(image_B1II))
        for layer in htsat.layers:
            for block in layer.blocks:  # not through the layer, which stacks all attention maps outside training
                x_BNC, _ = block(x_BNC)
            if layer.downsample is not None:
                x_BNC = layer.downsample(x_BNC)
        latent_BC = htsat.norm(x_BNC).mean(dim=1)  # HTS-AT's `latent_output`
        return self.audio_encoder["projection"](latent_BC)

    def _normalised_log_mel(self, samples_BS: Tensor) -> Tensor:
        """HTS-AT's input (B, 1, T, M): log-mel energies in dB after BatchNorm over the mel bins, float32.

        Autocast is kept out, for a power spectrum spans more than bfloat16 resolves.
        """
        with torch.autocast(samples_BS.device.type, enabled=False):
            # A few windows at a time: the spectra of a whole batch would leave the cache and fill the memory.
            mel_BTM = torch.cat([self._mel_energies(chunk_BS) for chunk_BS in samples_BS.split(8)])
            log_mel_BTM = self.htsat.logmel_extractor.power_to_db(mel_BTM)
            normalised_BMT1 = self.htsat.bn0(log_mel_BTM.transpose(1, 2).unsqueeze(-1))
        return normalised_BMT1.transpose(1, 3)

    def _mel_energies(self, samples_BS: Tensor) -> Tensor:
        stft = self.htsat.spectrogram_extractor.stft
        # In float64: quiet bands beside loud ones drown in the rounding of a float32 FFT, which moves embeddings of
        # tonal sounds by 4e-5; msclap's convolution in float32 moves them by 1e-5.
        spectrum_BFT = torch.stft(
            samples_BS.double(),
            n_fft=stft.n_fft,
            hop_length=stft.hop_length,
            window=stft.conv_real.weight[0, 0].double(),  # Fourier matrix times window: at frequency 0 the window alone
            center=True,
            pad_mode=stft.pad_mode,
            return_complex=True,
        )
        # 2.56 s at hop 320 make 129 centred frames and the mini's image holds 128; ms-clap's 965 stay below its 1024.
        spectrum_BTF = spectrum_BFT.transpose(1, 2)[:, : self.htsat.spec_size * self.htsat.freq_ratio]
        power_BTF = spectrum_BTF.real.square() + spectrum_BTF.imag.square()
        return power_BTF.float() @ self.htsat.logmel_extractor.melW

    def encode_text(
        self,
        captions: Sequence[str],
        pseudo_tokens: Tensor | None = None,
        pseudo_position: Literal["before_end", "after_end"] = "before_end",
    ) -> Tensor:
        """Unnormalised embeddings (B, D) of captions, the last P of them with a pseudo-token of `pseudo_tokens` (P, E).

        A pseudo-token stands just before the end-of-text token, or after it, and the embedding is that of the last
        position: of end-of-text, or of the pseudo-token after it. Captions longer than `MAX_TOKENS` lose their end,
        never the end-of-text token, and the pseudo-token is not counted.
        """
        pseudo_count = 0 if pseudo_tokens is None else len(pseudo_tokens)
        if pseudo_count > len(captions):
            raise ValueError(f"{pseudo_count} pseudo-tokens for {len(captions)} captions")
        if pseudo_position not in ("before_end", "after_end"):
            raise ValueError(f"pseudo_position must be before_end or after_end; got {pseudo_position!r}")
        ids = self._token_ids(captions)
        for caption_ids in ids[len(ids) - pseudo_count :]:
            caption_ids.append(caption_ids[-1])  # a place for the pseudo-token, before or after end-of-text
        lengths_B = torch.tensor([len(caption_ids) for caption_ids in ids])
        ids_BL = torch.zeros(len(ids), int(lengths_B.max()), dtype=torch.long)
        ids_BL[torch.arange(ids_BL.shape[1]) < lengths_B[:, None]] = torch.from_numpy(np.concatenate(ids))
        device = self.logit_scale.device
        last_B = (lengths_B - 1).to(device, non_blocking=True)
        rows_B = torch.arange(len(ids), device=device)

        embeds_BLE = self.gpt2.wte(ids_BL.to(device, non_blocking=True))
        if pseudo_tokens is not None and pseudo_count:
            place_P = last_B[-pseudo_count:] - int(pseudo_position == "before_end")
            embeds_BLE = embeds_BLE.index_put((rows_B[-pseudo_count:], place_P), pseudo_tokens.to(embeds_BLE.dtype))
        # No attention mask: attention is causal, so padding on the right of the last position cannot reach it.
        states_BLE = self.gpt2(inputs_embeds=embeds_BLE, use_cache=False).last_hidden_state
        return self.caption_encoder["projection"](states_BLE[rows_B, last_B])

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """The tokens of each caption followed by a space and end-of-text, as ms-clap writes it, at most MAX_TOKENS."""
        # One by one: encode_batch starts threads, after which every forked loader worker prints a warning.
        # A caption that spells the end token out would otherwise end before its end.
        plain = [caption.replace(END_OF_TEXT, " ") for caption in captions]
        ids = [self.tokenizer.encode(f"{caption} {END_OF_TEXT}").ids for caption in plain]
        longest = max(range(len(ids)), key=lambda i: len(ids[i]))
        if len(ids[longest]) > MAX_TOKENS:
            if not self._truncation_logged:
                self._truncation_logged = True
                log.warning(
                    "captions are cut to %d tokens; the first to be cut has %d: %r",
                    MAX_TOKENS, len(ids[longest]), captions[longest],
                )  # fmt: skip
            ids = [i if len(i) <= MAX_TOKENS else [*i[: MAX_TOKENS - 1], i[-1]] for i in ids]
        return ids
