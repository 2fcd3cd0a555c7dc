"""What a backbone asks of the audio, known without loading it, so that the data stages need no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained audio-text model that the study starts from."""

    sample_rate_hz: int
    """Rate at which it hears; shards are written at this rate."""
    window_s: float
    """Seconds of audio that it takes at once."""

    @property
    def window_frames(self) -> int:
        """Samples in a window."""
        return round(self.window_s * self.sample_rate_hz)


BACKBONES: dict[str, Backbone] = {
    "mini": Backbone(sample_rate_hz=16_000, window_s=2.56),
    "msclap-2023": Backbone(sample_rate_hz=44_100, window_s=7.0),
}
