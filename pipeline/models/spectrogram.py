"""The front end of every audio encoder: the log-mel spectrogram of a batch of windows, on their device."""

from __future__ import annotations

import torch
from torch import Tensor

# B = batch, S = samples, T = frames, F = frequency bins, M = mel bins, W = samples of the Fourier window

SMALLEST_POWER = 1e-10
"""Lower bound of the power, -100 dB: `amin` of torchlibrosa, `mel_floor` of transformers."""


@torch.compiler.disable  # torch.compile does not speed up an FFT
def log_mel(samples_BS: Tensor, window_W: Tensor, filters_FM: Tensor, hop_length: int) -> Tensor:
    """Return log-mel energies (B, T, M) in dB, float32; frames centred at multiples of `hop_length`, ends reflected.

    Without autocast, because the range of a power spectrum exceeds the resolution of bfloat16.
    """
    with torch.autocast(samples_BS.device.type, enabled=False):
        # A few windows at a time: the spectra of a whole batch would exceed cache and fill the memory. More on a GPU
        # (a gigabyte), where eight windows are too little work per kernel launch.
        windows = 8 if samples_BS.device.type == "cpu" else 32
        chunks = samples_BS.split(windows)
        mel_BTM = torch.cat([_mel(chunk_BS, window_W, filters_FM, hop_length) for chunk_BS in chunks])
        return 10.0 * torch.log10(mel_BTM.clamp(min=SMALLEST_POWER))


def _mel(samples_BS: Tensor, window_W: Tensor, filters_FM: Tensor, hop_length: int) -> Tensor:
    # In float64: the rounding of a float32 FFT hides quiet bands next to loud ones and changes embeddings of tonal
    # sounds by 4e-5; msclap's convolution in float32 changes them by 1e-5.
    spectrum_BFT = torch.stft(
        samples_BS.double(),
        n_fft=len(window_W),
        hop_length=hop_length,
        window=window_W.double(),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    spectrum_BTF = spectrum_BFT.transpose(1, 2)
    power_BTF = spectrum_BTF.real.square() + spectrum_BTF.imag.square()
    return power_BTF.float() @ filters_FM
