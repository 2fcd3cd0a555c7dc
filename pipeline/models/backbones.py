"""The backbones with their sample rate and window, known without torch for the data stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained audio-text model from which a study can start."""

    sample_rate_hz: int
    """Sample rate of its input; shards have this rate."""
    window_s: float
    """Length of its input in seconds."""
    module: str
    """Its module in `pipeline.models`, with `load(weights, tokenizer)` for published weights,
    `build(tokenizer, **architecture)` for random weights, and `TEXT`, the kind of its tokenizer."""

    @property
    def window_frames(self) -> int:
        """Samples in a window."""
        return round(self.window_s * self.sample_rate_hz)


BACKBONES: dict[str, Backbone] = {
    "mini": Backbone(sample_rate_hz=16_000, window_s=2.56, module="mini"),
    "msclap-2022": Backbone(sample_rate_hz=44_100, window_s=5.0, module="msclap2022"),
    "msclap-2023": Backbone(sample_rate_hz=44_100, window_s=7.0, module="msclap2023"),
    "laion-clap": Backbone(sample_rate_hz=48_000, window_s=10.0, module="laion"),
}

PUBLISHED = tuple(name for name in BACKBONES if name != "mini")
"""Backbones with published weights; the pipeline pretrains `mini` itself."""
