"""Embed clips and captions with a model, from shards, files or samples in memory."""

# W = windows of a batch, S = samples of a window, D = joint width, M = texts, N = clips

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pipeline.data.audio import FULL_SCALE, UnusableAudio, fit_window, read_recording
from pipeline.data.shards.reader import ShardReader
from pipeline.data.stretches import Window, read_windows
from pipeline.errors import PipelineError
from pipeline.evaluation.moment_retrieval import Windows
from pipeline.evaluation.windows import window_starts
from pipeline.models.clap import ClapModel
from pipeline.models.devices import send

SUBTYPES = {"int16": "PCM_16", "int32": "PCM_32", "float32": "FLOAT", "float64": "DOUBLE"}
"""WAV subtypes for the types of samples in memory."""

Sound = Path | tuple[Any, int]
"""An audio file, or samples (samples,) or (samples, channels) and their rate in Hz."""


def embed_audio(
    model: ClapModel, shards: ShardReader, windows: str, batch_size: int, keys: Sequence[str] | None = None
) -> NDArray[np.float32]:
    """Return the embeddings (N, D) of a split's clips, in the reader's order; see `embed_windows`.

    keys: the clips to embed, if not all.

    Raises:
        PipelineError: The split has no clips, or its rate is not the model's.
    """
    if not len(shards):
        raise PipelineError(f"{shards.folder}: the split has no clip to embed; see the reasons in manifest.parquet")
    if shards.sample_rate_hz != model.sample_rate_hz:
        raise PipelineError(
            f"{shards.folder}: shards are at {shards.sample_rate_hz} Hz, the model takes {model.sample_rate_hz} Hz; "
            "make the shards again at the model's rate"
        )
    chosen = shards.keys if keys is None else keys
    clips = (
        [
            shards.read_window(key, start, model.window_frames, model.short_clips)
            for start in window_starts(shards.frames(key), model.window_frames, windows)
        ]
        for key in chosen
    )
    return embed_windows(model, clips, len(chosen), batch_size)


def embed_sounds(
    model: ClapModel,
    sounds: Sequence[Sound],
    windows: str,
    batch_size: int,
    channels: str,
    unusable: dict[int, UnusableAudio] | None = None,
) -> NDArray[np.float32]:
    """Return the embeddings (N, D) of sounds in any format and at any rate, equal to those from shards.

    Args:
        channels: which channels are kept: as in the shards to compare with, or `model.channels`.
        unusable: receives the row and the reason of each unusable sound, whose embedding is then NaN.

    Raises:
        PipelineError: A file is missing or, without `unusable`, a sound cannot be used.
    """

    def clips() -> Iterator[list[NDArray[np.int16]]]:
        for row, sound in enumerate(sounds):
            try:
                yield sound_windows(model, sound, row, windows, channels)
            except UnusableAudio as error:
                if unusable is None:
                    reason = error.reason.replace("_", " ")
                    raise PipelineError(f"{name_of(sound, row)}: {reason} ({error}); give another sound") from error
                unusable[row] = error
                yield []

    return embed_windows(model, clips(), len(sounds), batch_size)


def sound_windows(model: ClapModel, sound: Sound, row: int, windows: str, channels: str) -> list[NDArray[np.int16]]:
    """Return the windows of a sound at the model's rate, as 16-bit samples; see `embed_sounds`."""
    if isinstance(sound, Path) and not sound.is_file():
        raise PipelineError(f"{sound}: {'is not a file' if sound.exists() else 'not found'}; give an audio file")
    source = sound if isinstance(sound, Path) else wav_of(*sound, name_of(sound, row))
    samples_S = read_recording(
        source, sample_rate_hz=model.sample_rate_hz, min_duration_s=0, channels=channels
    ).samples_S
    if len(samples_S) < model.window_frames:
        samples_S = fit_window(samples_S, model.window_frames, model.short_clips)
    starts = window_starts(len(samples_S), model.window_frames, windows)
    return [samples_S[start : start + model.window_frames] for start in starts]


def wav_of(samples: Any, rate: int, name: str) -> bytes:
    """Return samples in memory as the bytes of a WAV file, so that they are read like a file.

    Raises:
        PipelineError: The array has another shape than (samples,) or (samples, channels), or a type not in `SUBTYPES`.
    """
    samples_SC = np.asarray(samples)
    if samples_SC.ndim not in (1, 2) or (samples_SC.ndim == 2 and samples_SC.shape[1] > samples_SC.shape[0]):
        raise PipelineError(f"{name}: has the shape {samples_SC.shape}; give (samples,) or (samples, channels)")
    if samples_SC.dtype.name not in SUBTYPES:
        raise PipelineError(f"{name}: has the type {samples_SC.dtype}; give one of {', '.join(SUBTYPES)}")
    if rate < 1 or rate != int(rate):
        raise PipelineError(f"{name}: has the rate {rate}; give a whole number of samples per second")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples_SC, int(rate), format="WAV", subtype=SUBTYPES[samples_SC.dtype.name])
    return buffer.getvalue()


def name_of(sound: Sound, row: int) -> str:
    """Return the name of a sound for messages: its file, or its index in the list."""
    return str(sound) if isinstance(sound, Path) else f"sound {row}"


@torch.inference_mode()
def embed_windows(
    model: ClapModel, clips: Iterable[Sequence[NDArray[np.int16]]], count: int, batch_size: int
) -> NDArray[np.float32]:
    """Return the embeddings (N, D) of `count` clips, each given as windows of `model.window_frames` 16-bit samples.

    A clip's embedding is the mean of its windows' embeddings at unit length, so that every window counts the same. The
    cosine that ranks the clips ignores that length too.
    """
    device = model.logit_scale.device
    total_ND = torch.zeros(count, model.embedding_dim, device=device)
    windows_N = torch.zeros(count)
    with tqdm(desc="audio", unit="clip", total=count, disable=None) as progress:
        places = ((row, window_S) for row, clip in enumerate(clips) for window_S in clip)
        while batch := list(itertools.islice(places, batch_size)):
            embedding_WD = encode_windows(model, torch.from_numpy(np.stack([window_S for _, window_S in batch])))
            rows_W = torch.tensor([row for row, _ in batch])
            total_ND.index_add_(0, send(rows_W, device), F.normalize(embedding_WD))
            windows_N.index_add_(0, rows_W, torch.ones(len(batch)))
            progress.update(batch[-1][0] + 1 - progress.n)
    return (total_ND.cpu() / windows_N[:, None]).numpy()


@torch.inference_mode()
def embed_recordings(
    model: ClapModel, recordings: Sequence[Path], hop_s: float, batch_size: int, channels: str
) -> tuple[Windows, NDArray[np.float64], dict[int, UnusableAudio]]:
    """Return the windows of recordings, their durations in seconds (R,), and why some cannot be read to their end.

    A window of the model's length begins every `hop_s`, and one more covers the end of a recording. A recording that
    is shorter than a window has this one, filled as `fit_window` does. One that is damaged ends there.
    Memory holds one batch of samples, and all embeddings.
    """
    window_s = model.window_frames / model.sample_rate_hz
    durations_R, unusable = np.zeros(len(recordings)), {}

    def windows() -> Iterator[tuple[int, Window]]:
        for recording, path in enumerate(recordings):
            try:
                for window in read_windows(
                    path, length_s=window_s, hop_s=hop_s, sample_rate_hz=model.sample_rate_hz, channels=channels
                ):
                    if window.end_s > durations_R[recording]:  # later ones end there, too, and are shorter
                        durations_R[recording] = window.end_s
                        yield recording, window
            except UnusableAudio as error:
                unusable[recording] = error

    places: list[tuple[int, float, float]] = []
    vectors = [torch.empty(0, model.embedding_dim)]
    waiting = windows()
    with tqdm(desc="recordings", unit="window", disable=None) as progress:
        while batch := list(itertools.islice(waiting, batch_size)):
            samples = [fit_window(window.samples_S, model.window_frames, model.short_clips) for _, window in batch]
            vectors.append(F.normalize(encode_windows(model, torch.from_numpy(np.stack(samples)))))
            places += [(recording, window.start_s, window.end_s) for recording, window in batch]
            progress.update(len(batch))
    windows_of_all = Windows(
        recording_W=np.array([recording for recording, _, _ in places], np.int64),
        start_s_W=np.array([start_s for _, start_s, _ in places], np.float64),
        end_s_W=np.array([end_s for _, _, end_s in places], np.float64),
        vector_WD=torch.cat([batch.cpu() for batch in vectors]).numpy(),
    )
    return windows_of_all, durations_R, unusable


@torch.inference_mode()
def embed_texts(model: ClapModel, captions: Sequence[str], batch_size: int) -> NDArray[np.float32]:
    """Return the embeddings (M, D) of captions in their order, not normalised.

    Batches hold captions of similar length, to keep padding small. A repeated caption is encoded once, so that its
    copies tie exactly.
    """
    distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))
    encoded = [
        encode_captions(model, distinct[first : first + batch_size])
        for first in tqdm(range(0, len(distinct), batch_size), desc="texts", unit="batch", disable=None)
    ]
    place = {caption: row for row, caption in enumerate(distinct)}
    # Copied once at the end: after each batch, the copy would keep the GPU waiting for the next.
    return torch.cat(encoded).cpu().numpy()[[place[caption] for caption in captions]]


SAMPLES_AT_A_TIME = 64 * 40_960
"""Samples that a CPU encodes at a time: 64 windows of the small backbone, 8 of ms-clap 2023. With more, the activations
leave the caches: of 64 windows of ms-clap at once, each takes 1.2 to 1.4 times as long as of 8."""


def encode_windows(model: ClapModel, samples_WS: Tensor) -> Tensor:
    """Return the embeddings (W, D), float32, of one batch of 16-bit windows, without waiting for a GPU."""
    device = model.logit_scale.device
    windows = len(samples_WS) if device.type != "cpu" else SAMPLES_AT_A_TIME // samples_WS.shape[1]
    with _autocast(device):
        parts = [
            model.encode_audio(send(part_WS, device).float() / FULL_SCALE).float()
            for part_WS in samples_WS.split(max(1, windows))
        ]
    return torch.cat(parts)


def encode_captions(model: ClapModel, captions: Sequence[str]) -> Tensor:
    """Return the embeddings (M, D), float32, of one batch of captions, without waiting for a GPU."""
    with _autocast(model.logit_scale.device):
        return model.encode_text(captions).float()


def _autocast(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16 on a GPU; a CPU computes as loaded, so its figures are the same on every run."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def captions_of(shards: ShardReader) -> tuple[list[str], NDArray[np.int64]]:
    """Return all captions of a split, ordered by clip, and the row of each caption's clip."""
    texts = [(caption, row) for row, key in enumerate(shards.keys) for caption in shards.captions(key)]
    return [caption for caption, _ in texts], np.array([row for _, row in texts], np.int64)
