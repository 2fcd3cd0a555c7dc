"""msclap's HTS-AT as audio encoder of ms-clap 2023 and of the mini."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchlibrosa.augmentation import DropStripes

from pipeline.models.devices import send
from pipeline.models.msclap_parts import HTSAT_Swin_Transformer, Projection
from pipeline.models.spectrogram import log_mel

# B = batch, S = samples, K = stripes, T = frames, M = mel bins, I = image side, N = patches, C = channels,
# D = joint width; of attention: W = windows, H = heads, D = width of a head


def random_stripes(windows: int, positions: int, dropper: DropStripes, device: torch.device) -> Tensor:
    """Return the positions of each window that SpecAugment drops, (B, positions): stripes as in torchlibrosa.

    The width of a stripe is uniform below the dropper's width, its start uniform over the possible places. Stripes are
    drawn on the CPU, so that every device gets the same. Only they are copied: a mask of all positions has 47 MB.
    """
    width_BK1 = torch.randint(dropper.drop_width, (windows, dropper.stripes_num, 1))
    begin_BK1 = (torch.rand(width_BK1.shape) * (positions - width_BK1)).long()
    width_BK1, begin_BK1 = send(width_BK1, device), send(begin_BK1, device)
    position = torch.arange(positions, device=device)
    return ((position >= begin_BK1) & (position < begin_BK1 + width_BK1)).any(dim=1)


def stretched(mel_B1TM: Tensor, image_frames: int) -> Tensor:
    """Return the spectrogram (B, 1, I, M) with `image_frames` frames: msclap's interpolation as a matrix product.

    On a GPU, torch adds the gradient of an interpolation in a different order each time. It was the only operation of a
    training step that gave different bits when the step was repeated.
    """
    frames = mel_B1TM.shape[2]
    with torch.autocast(mel_B1TM.device.type, enabled=False):
        single_TT = torch.eye(frames, device=mel_B1TM.device)
        weights_IT = bicubic(single_TT[None, None], image_frames)[0, 0]
        return weights_IT @ mel_B1TM


def bicubic(mel_B1TM: Tensor, image_frames: int) -> Tensor:
    """Return the spectrogram after the interpolation over time of HTS-AT's `reshape_wav2img`."""
    size = (image_frames, mel_B1TM.shape[3])
    return functional.interpolate(mel_B1TM, size, mode="bicubic", align_corners=True)


class WindowAttention(nn.Module):
    """msclap's attention within windows, with its parameters, names and bits.

    msclap selects queries, keys and values one by one. The gradient of each selection is a tensor of zeros of the size
    of all three, and the three are added. Taken apart in one operation, the gradient is put together in one.
    """

    relative_position_index: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads, self.scale, self.softmax = attention.num_heads, attention.scale, attention.softmax
        self.relative_position_bias_table = attention.relative_position_bias_table
        self.register_buffer("relative_position_index", attention.relative_position_index)
        self.qkv, self.attn_drop = attention.qkv, attention.attn_drop
        self.proj, self.proj_drop = attention.proj, attention.proj_drop

    def forward(self, x_WNC: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the patches (W, N, C) of all windows after attention, and the attention maps (W, H, N, N).

        mask: for K windows of an image, what is added to the logits of their patches, (K, N, N).
        """
        windows, patches, channels = x_WNC.shape
        heads = (windows, patches, 3, self.num_heads, channels // self.num_heads)
        query_WHND, key_WHND, value_WHND = self.qkv(x_WNC).reshape(heads).permute(2, 0, 3, 1, 4).unbind()
        logits_WHNN = (query_WHND * self.scale) @ key_WHND.transpose(-2, -1)
        bias_NNH = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(patches, patches, -1)
        logits_WHNN = logits_WHNN + bias_NNH.permute(2, 0, 1).contiguous()
        if mask is not None:
            by_image = logits_WHNN.view(-1, len(mask), self.num_heads, patches, patches)
            logits_WHNN = (by_image + mask[:, None]).view_as(logits_WHNN)
        attention_WHNN = self.attn_drop(self.softmax(logits_WHNN))
        x_WNC = (attention_WHNN @ value_WHND).transpose(1, 2).reshape(windows, patches, channels)
        return self.proj_drop(self.proj(x_WNC)), attention_WHNN


class HtsatEncoder(nn.Module):
    """HTS-AT and Projection with msclap's parameter names; msclap's own AudioEncoder has fixed sizes.

    The embeddings are the same; the computation differs. The spectrogram comes from an FFT instead of a convolution
    with the Fourier matrix. SpecAugment drops all stripes in one operation. HTS-AT's classifier, whose output CLAP
    ignores, is not computed.
    """

    def __init__(self, htsat: HTSAT_Swin_Transformer, embedding_dim: int) -> None:
        super().__init__()
        for layer in htsat.layers:
            for block in layer.blocks:
                block.attn = WindowAttention(block.attn)
        self.base = nn.ModuleDict({"htsat": htsat})
        self.projection = Projection(htsat.num_features, embedding_dim)
        # The classifier stays in the state dict for complete exports; DDP must not wait for its gradient.
        htsat.tscam_conv.requires_grad_(False)
        htsat.head.requires_grad_(False)

    @property
    def htsat(self) -> HTSAT_Swin_Transformer:
        """The transformer of the encoder."""
        return self.base["htsat"]

    def forward(self, samples_BS: Tensor) -> Tensor:
        """Return embeddings (B, D) of windows."""
        htsat = self.htsat
        image_B1II = htsat.reshape_wav2img(self.front_end(samples_BS))
        x_BNC = htsat.pos_drop(htsat.patch_embed(image_B1II))
        for layer in htsat.layers:
            for block in layer.blocks:  # not through the layer: outside training it stacks all attention maps
                x_BNC, _ = block(x_BNC)
            if layer.downsample is not None:
                x_BNC = layer.downsample(x_BNC)
        latent_BC = htsat.norm(x_BNC).mean(dim=1)  # HTS-AT's `latent_output`
        return self.projection(latent_BC)

    def layer_groups(self) -> list[list[nn.Module]]:
        """Return the modules by depth: front end, one group per block, then the last norm with the projection.

        The layer that halves the image after some blocks belongs to the block before it.
        """
        htsat = self.htsat
        groups: list[list[nn.Module]] = [[htsat.bn0, htsat.patch_embed]]
        for layer in htsat.layers:
            groups += [[block] for block in layer.blocks]
            if layer.downsample is not None:
                groups[-1].append(layer.downsample)
        return [*groups, [htsat.norm, self.projection]]

    @torch.compiler.disable
    def front_end(self, samples_BS: Tensor) -> Tensor:
        """Return the normalised spectrogram (B, 1, T, M), with SpecAugment in the encoder's training mode.

        On a GPU it already has the frames of HTS-AT's image; on a CPU `reshape_wav2img` stretches it.
        """
        mel_B1TM = self.augmented(self.normalised_log_mel(samples_BS))
        image_frames = self.htsat.spec_size * self.htsat.freq_ratio
        if not mel_B1TM.is_cuda or mel_B1TM.shape[2] == image_frames:
            return mel_B1TM
        return stretched(mel_B1TM, image_frames)

    def augmented(self, mel_B1TM: Tensor) -> Tensor:
        """Return the spectrogram (B, 1, T, M); in the encoder's training mode random stripes are zero."""
        augmenter = self.htsat.spec_augmenter
        if not augmenter.training:
            return mel_B1TM
        # torchlibrosa zeroes one stripe at a time in place, and each copies the gradient of the batch.
        windows, _, frames, mels = mel_B1TM.shape
        is_dropped_BT = random_stripes(windows, frames, augmenter.time_dropper, mel_B1TM.device)
        is_dropped_BM = random_stripes(windows, mels, augmenter.freq_dropper, mel_B1TM.device)
        return mel_B1TM.masked_fill(is_dropped_BT[:, None, :, None] | is_dropped_BM[:, None, None, :], 0)

    def normalised_log_mel(self, samples_BS: Tensor) -> Tensor:
        """Return HTS-AT's input (B, 1, T, M): the log-mel spectrogram after BatchNorm over the mel bins, float32."""
        stft = self.htsat.spectrogram_extractor.stft
        mel_BTM = log_mel(
            samples_BS,
            window_W=stft.conv_real.weight[0, 0],  # Fourier matrix times window; at frequency 0 it is the window
            filters_FM=self.htsat.logmel_extractor.melW,
            hop_length=stft.hop_length,
        )
        # 2.56 s at hop 320 give 129 centred frames, but the mini's image has 128; ms-clap's 965 are below its 1024.
        # Contiguous, because the layout determines the order of BatchNorm's sums and their last bits.
        mel_BTM = mel_BTM[:, : self.htsat.spec_size * self.htsat.freq_ratio].contiguous()
        with torch.autocast(samples_BS.device.type, enabled=False):
            normalised_BMT1 = self.htsat.bn0(mel_BTM.transpose(1, 2).unsqueeze(-1))
        return normalised_BMT1.transpose(1, 3)
