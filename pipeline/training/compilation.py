"""torch.compile, where the profile asks for it: of the audio encoder, three quarters of a step's arithmetic."""

from __future__ import annotations

from pipeline.models.clap import ClapModel


def compile_audio_encoder(model: ClapModel) -> None:
    """Have torch.compile make kernels for what follows the spectrogram; parameters keep their names.

    The text encoder stays as it is: its lengths differ from step to step, and kernels for all lengths depend on those
    that were seen first, so that a training that was killed could not go on to the bit. Those of the audio encoder
    are made for each number of windows by itself. Random numbers are drawn as without torch.compile, so that both
    passes of a micro-batch draw the same.
    """
    model.audio_encoder.compile(dynamic=False, options={"fallback_random": True})
