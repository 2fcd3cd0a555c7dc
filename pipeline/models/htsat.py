"""msclap's HTS-AT as an audio encoder, that of ms-clap 2023 and of the mini."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchlibrosa.augmentation import DropStripes

from pipeline.models.devices import send
from pipeline.models.msclap_parts import HTSAT_Swin_Transformer, Projection
from pipeline.models.spectrogram import log_mel

# B = batch, S = samples, K = stripes, T = frames, M = mel bins, I = image side, N = patches, C = channels,
# D = joint width


def random_stripes(windows: int, positions: int, dropper: DropStripes, device: torch.device) -> Tensor:
    """Which positions of each window SpecAugment drops, (B, positions): stripes distributed as torchlibrosa's.

    The width of each is uniform below the dropper's, its begin uniform where the width leaves it room. They are drawn
    on the CPU, for the same numbers on every device, and only they travel: a mask of all positions is 47 MB a step.
    """
    width_BK1 = torch.randint(dropper.drop_width, (windows, dropper.stripes_num, 1))
    begin_BK1 = (torch.rand(width_BK1.shape) * (positions - width_BK1)).long()
    width_BK1, begin_BK1 = send(width_BK1, device), send(begin_BK1, device)
    position = torch.arange(positions, device=device)
    return ((position >= begin_BK1) & (position < begin_BK1 + width_BK1)).any(dim=1)


def stretched(mel_B1TM: Tensor, image_frames: int) -> Tensor:
    """The spectrogram (B, 1, I, M) of `image_frames` frames: msclap's bicubic interpolation as a matrix product.

    torch adds up the gradient of an interpolation atomically on a GPU, in another order each time. Of all operations
    of a training step it was the only one that gave other bits when the step was repeated.
    """
    frames = mel_B1TM.shape[2]
    with torch.autocast(mel_B1TM.device.type, enabled=False):
        single_TT = torch.eye(frames, device=mel_B1TM.device)
        weights_IT = bicubic(single_TT[None, None], image_frames)[0, 0]
        return weights_IT @ mel_B1TM


def bicubic(mel_B1TM: Tensor, image_frames: int) -> Tensor:
    """The interpolation over time of HTS-AT's `reshape_wav2img`."""
    size = (image_frames, mel_B1TM.shape[3])
    return functional.interpolate(mel_B1TM, size, mode="bicubic", align_corners=True)


class HtsatEncoder(nn.Module):
    """HTS-AT and Projection under msclap's names, which fixes their sizes in its own AudioEncoder.

    Only the way to its numbers differs: the spectrogram comes from an FFT instead of a convolution with the Fourier
    matrix, SpecAugment drops all stripes at once, and HTS-AT's classifier, whose output CLAP drops, is not computed.
    """

    def __init__(self, htsat: HTSAT_Swin_Transformer, embedding_dim: int) -> None:
        super().__init__()
        self.base = nn.ModuleDict({"htsat": htsat})
        self.projection = Projection(htsat.num_features, embedding_dim)
        # The classifier stays in the state dict, so that exports are whole; DDP must not wait for its gradient.
        htsat.tscam_conv.requires_grad_(False)
        htsat.head.requires_grad_(False)

    @property
    def htsat(self) -> HTSAT_Swin_Transformer:
        """The transformer."""
        return self.base["htsat"]

    def forward(self, samples_BS: Tensor) -> Tensor:
        """Embeddings (B, D) of windows."""
        htsat = self.htsat
        image_B1II = htsat.reshape_wav2img(self.front_end(samples_BS))
        x_BNC = htsat.pos_drop(htsat.patch_embed(image_B1II))
        for layer in htsat.layers:
            for block in layer.blocks:  # not through the layer, which stacks all attention maps outside training
                x_BNC, _ = block(x_BNC)
            if layer.downsample is not None:
                x_BNC = layer.downsample(x_BNC)
        latent_BC = htsat.norm(x_BNC).mean(dim=1)  # HTS-AT's `latent_output`
        return self.projection(latent_BC)

    @torch.compiler.disable
    def front_end(self, samples_BS: Tensor) -> Tensor:
        """The normalised spectrogram (B, 1, T, M), in the encoder's own training mode with SpecAugment.

        On a GPU it has the frames of HTS-AT's image already; elsewhere `reshape_wav2img` stretches it.
        """
        mel_B1TM = self.augmented(self.normalised_log_mel(samples_BS))
        image_frames = self.htsat.spec_size * self.htsat.freq_ratio
        if not mel_B1TM.is_cuda or mel_B1TM.shape[2] == image_frames:
            return mel_B1TM
        return stretched(mel_B1TM, image_frames)

    def augmented(self, mel_B1TM: Tensor) -> Tensor:
        """The spectrogram (B, 1, T, M), without random stripes in the encoder's own training mode."""
        augmenter = self.htsat.spec_augmenter
        if not augmenter.training:
            return mel_B1TM
        # torchlibrosa zeroes stripe after stripe in place, each of which copies the batch's gradient once.
        windows, _, frames, mels = mel_B1TM.shape
        is_dropped_BT = random_stripes(windows, frames, augmenter.time_dropper, mel_B1TM.device)
        is_dropped_BM = random_stripes(windows, mels, augmenter.freq_dropper, mel_B1TM.device)
        return mel_B1TM.masked_fill(is_dropped_BT[:, None, :, None] | is_dropped_BM[:, None, None, :], 0)

    def normalised_log_mel(self, samples_BS: Tensor) -> Tensor:
        """HTS-AT's input (B, 1, T, M): the log-mel spectrogram after BatchNorm over the mel bins, float32."""
        stft = self.htsat.spectrogram_extractor.stft
        mel_BTM = log_mel(
            samples_BS,
            window_W=stft.conv_real.weight[0, 0],  # Fourier matrix times window: at frequency 0 the window alone
            filters_FM=self.htsat.logmel_extractor.melW,
            hop_length=stft.hop_length,
        )
        # 2.56 s at hop 320 make 129 centred frames and the mini's image holds 128; ms-clap's 965 stay below its 1024.
        # Contiguous, because the layout decides the order of BatchNorm's sums and so their last bits.
        mel_BTM = mel_BTM[:, : self.htsat.spec_size * self.htsat.freq_ratio].contiguous()
        with torch.autocast(samples_BS.device.type, enabled=False):
            normalised_BMT1 = self.htsat.bn0(mel_BTM.transpose(1, 2).unsqueeze(-1))
        return normalised_BMT1.transpose(1, 3)
