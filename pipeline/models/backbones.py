"""The backbones, and what each asks of the audio: known without loading one, so that the data stages need no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained audio-text model that the study starts from."""

    sample_rate_hz: int
    """Rate at which it hears; shards are written at this rate."""
    window_s: float
    """Seconds of audio that it takes at once."""
    module: str
    """The module of `pipeline.models` that makes it: `load(weights, tokenizer)` from what its publisher gives,
    `build(tokenizer, **architecture)` with random weights, and `TEXT`, the kind of its tokenizer."""

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
"""Those whose pretrained weights are imported; the study makes `mini` itself."""
