"""Settings of the audio in shards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AudioSettings:
    """How the audio in shards is made."""

    sample_rate_hz: int
    audio_format: str
    """wav or flac."""
    channels: str
    """Which channels are kept (`pipeline.data.audio.CHANNELS`)."""
    min_duration_s: float
    """Shorter clips are dropped."""
    min_level_dbfs: float | None = None
    """Stretches of recordings whose mean level is lower are dropped; None for no limit."""
