"""Mix the samples of a soundscape from its recordings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import soxr

from pipeline.data.small_study.recordings import Recording
from pipeline.data.small_study.soundscapes import Event, Soundscape
from pipeline.data.small_study.styles import STYLES

EVENT_LEVEL_DBFS = -21.0  # RMS of an event's loudest 100 ms before its gain
PEAK = 0.9  # louder mixtures are scaled down to this peak, which leaves room for a resampler's overshoot
FADE_S = 0.008


def render(soundscape: Soundscape, recordings: Mapping[str, Recording]) -> np.ndarray:
    """Return the samples of a soundscape: int16, shape (frames, channels), peak at most `PEAK`."""
    frames = round(soundscape.duration_s * soundscape.rate_hz)

    # Background noise, a different section for each channel.
    generator = np.random.default_rng(soundscape.noise_seed)
    noise = _noise(STYLES[soundscape.dataset].noise_exponent)
    gain = np.float32(10 ** (soundscape.noise_dbfs / 20))
    mix = np.empty((soundscape.channels, frames), dtype=np.float32)
    for channel in mix:
        start = int(generator.integers(len(noise) - frames))
        np.multiply(noise[start : start + frames], gain, out=channel)

    # Events, panned with constant power.
    for event in soundscape.events:
        sound = _excerpt(event, recordings[event.recording], soundscape.rate_hz)
        angle = (event.pan + 1) * np.pi / 4
        sides = (np.cos(angle) * np.sqrt(2), np.sin(angle) * np.sqrt(2)) if soundscape.channels == 2 else (1.0,)
        until = min(frames, round(event.until_s * soundscape.rate_hz))
        for onset_s in event.onsets_s:
            onset = round(onset_s * soundscape.rate_hz)
            audible = _fade_out(sound[: max(0, until - onset)], soundscape.rate_hz)
            for channel, side in zip(mix, sides, strict=True):
                channel[onset : onset + len(audible)] += audible * np.float32(side)

    peak = float(np.abs(mix).max())
    if peak > PEAK:
        mix *= np.float32(PEAK / peak)
    return np.ascontiguousarray(np.rint(mix.T * 32767).astype(np.int16))


def _excerpt(event: Event, recording: Recording, rate_hz: int) -> np.ndarray:
    """Return the excerpt of an event at its speed and gain, relative to the common level: float32 at `rate_hz`."""
    start, end = (round(second * recording.rate_hz) for second in (event.start_s, event.start_s + event.length_s))
    sound = soxr.resample(recording.samples[start:end], recording.rate_hz * event.speed, rate_hz, "HQ")
    frame = min(rate_hz // 10, len(sound))
    energy = (sound[: len(sound) // frame * frame].reshape(-1, frame) ** 2).mean(axis=1)
    level = 10 ** ((EVENT_LEVEL_DBFS + event.gain_db) / 20) / max(np.sqrt(energy.max()), 1e-4)
    sound = sound * np.float32(level)
    fade = min(round(FADE_S * rate_hz), len(sound))
    sound[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
    return sound


def _fade_out(sound: np.ndarray, rate_hz: int) -> np.ndarray:
    fade = min(round(FADE_S * rate_hz), len(sound))
    sound = sound.copy()
    sound[len(sound) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return sound


@cache
def _noise(exponent: float) -> np.ndarray:
    """Return noise with an RMS of 1 and a power of 1 / f ** exponent, 22 s long at 48 kHz."""
    length = 2**20
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(length))
    bins = np.maximum(np.arange(len(spectrum)), length // 1000)  # flat below a thousandth of the rate
    noise = np.fft.irfft(spectrum * bins ** (-exponent / 2), length)
    return (noise / np.sqrt((noise**2).mean())).astype(np.float32)
