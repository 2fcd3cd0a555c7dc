"""The page of hits: index.html, and in sounds/ the excerpts to hear and their spectrograms. It needs no network."""

# S = samples, T = frames of a spectrogram, F = frequencies

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.data.stretches import Stretch, read_stretches
from pipeline.data.unusable import UnusableAudio
from pipeline.errors import PipelineError, printable, write_error_message
from pipeline.evaluation.folders.search import FolderSearch, Hit
from pipeline.files import make_folder_atomically
from pipeline.models.clap import ClapModel
from pipeline.results.hits.text import clock, reasons, summary
from pipeline.results.page.render import render_template

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("hits.html")
SOUNDS = "sounds"
CONTEXT_S = 1.0
"""Sound before and after a hit in its excerpt."""
LONGEST_S = 30.0
"""Of an excerpt; of a longer hit it is the beginning."""
_FFT_S = 0.032
_HEIGHT, _MOST_WIDTH = 160, 800
"""Pixels of a spectrogram."""
_RANGE_DB = 70.0
"""Below the loudest point, where a spectrogram is dark."""
_COLOURS = "magma"
_MOST_UNSEARCHED = 200
"""Recordings named that were not searched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Excerpt:
    """The sound of a hit, with some before and after it."""

    samples_S: NDArray[np.int16]
    start_s: float
    end_s: float


def check_page_folder(folder: Path, recordings: Path) -> None:
    """Raise PipelineError unless a page may be written to a folder.

    Inside the recordings, its excerpts would be searched the next time. Only an older page is replaced.
    """
    if folder.resolve().is_relative_to(recordings.resolve()):
        raise PipelineError(
            f"{folder}: is inside the recordings, and the next search would find it; give another folder"
        )
    is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_empty and not (folder / SOUNDS / ".hits").exists():
        raise PipelineError(f"{folder}: holds other files than a page of hits; give a new folder with --page")


def write_page(result: FolderSearch, query: str, recordings: Path, network: ClapModel, folder: Path) -> None:
    """Write the page to a folder, which appears when it is complete.

    The excerpts are what the model gets: one channel at its rate.

    Raises:
        PipelineError: The folder may not be written to; see `check_page_folder`.
    """
    check_page_folder(folder, recordings)
    folder = folder.absolute()
    with make_folder_atomically(folder) as temporary:
        sounds = temporary / SOUNDS
        try:
            sounds.mkdir()
            (sounds / ".hits").touch()
            shown = [
                _write_excerpt(hit, excerpt, network.sample_rate_hz, sounds)
                for hit, excerpt in _excerpts(result.hits, recordings, network)
            ]
            text = render(result, query, recordings, sorted(shown, key=lambda row: row["rank"]))
            (temporary / "index.html").write_text(text, encoding="utf-8")
        except OSError as error:
            raise PipelineError(write_error_message(folder, error)) from error


def render(result: FolderSearch, query: str, recordings: Path, hits: Sequence[dict[str, Any]]) -> str:
    """Return index.html; `hits` are rows of `_write_excerpt`."""
    return render_template(
        TEMPLATE,
        styles=["page.css", "hits.css"],
        scripts=["player.js", "hits.js"],
        query=printable(query),
        recordings=printable(str(recordings)),
        summary=summary(result),
        hits=hits,
        unsearched=[
            {"file": printable(found.file), "reason": found.reason.replace("_", " "), "detail": printable(found.detail)}
            for found in result.unsearched[:_MOST_UNSEARCHED]
        ],
        more=max(0, len(result.unsearched) - _MOST_UNSEARCHED),
        reasons=reasons(result),
    )


def _excerpts(hits: Sequence[Hit], recordings: Path, network: ClapModel) -> Iterator[tuple[Hit, _Excerpt | None]]:
    """Each hit with its excerpt, None where its file cannot be read any more; a recording is opened once."""
    by_file: dict[str, list[Hit]] = {}
    for hit in hits:
        by_file.setdefault(hit.file, []).append(hit)
    for name, found in by_file.items():
        ordered = sorted(found, key=lambda hit: hit.start_s)
        stretches = []
        for hit in ordered:
            start_s = max(0.0, hit.start_s - CONTEXT_S)
            stretches.append(Stretch(start_s, min(hit.end_s + CONTEXT_S, start_s + LONGEST_S)))
        excerpts: list[_Excerpt] = []
        try:
            for piece in read_stretches(
                recordings / name, stretches, sample_rate_hz=network.sample_rate_hz, channels=network.channels
            ):
                start_s = piece.stretch.start_s
                end_s = start_s + piece.clip.decoded / piece.clip.source_sample_rate_hz
                samples_S = piece.clip.recording().samples_S
                excerpts.append(_Excerpt(samples_S=samples_S, start_s=start_s, end_s=end_s))
        except (UnusableAudio, PipelineError) as error:
            logger.warning("%s: %s; its other excerpts are missing on the page", name, error)
        yield from zip(ordered, [*excerpts, *[None] * (len(ordered) - len(excerpts))], strict=True)


def _write_excerpt(hit: Hit, excerpt: _Excerpt | None, rate_hz: int, folder: Path) -> dict[str, Any]:
    """Write sound and spectrogram of a hit; return what the page shows of it."""
    row: dict[str, Any] = {
        "rank": hit.rank,
        "score": f"{hit.score:.3f}",
        "file": printable(hit.file),
        "start": clock(hit.start_s),
        "end": clock(hit.end_s),
        "times": f"{hit.start_s:.3f}\t{hit.end_s:.3f}",
        "has_sound": excerpt is not None,
    }
    if excerpt is None:
        return row
    with (folder / f"{hit.rank}.flac").open("wb") as file:
        soundfile.write(file, excerpt.samples_S, rate_hz, format="FLAC", subtype="PCM_16")
    picture_FT = spectrogram(excerpt.samples_S, rate_hz)
    matplotlib.image.imsave(folder / f"{hit.rank}.png", picture_FT, vmin=-_RANGE_DB, vmax=0, cmap=_COLOURS)
    length_s = excerpt.end_s - excerpt.start_s
    left = 100 * (hit.start_s - excerpt.start_s) / length_s
    right = 100 * max(0.0, excerpt.end_s - hit.end_s) / length_s
    return row | {
        "left": f"{left:.2f}",
        "right": f"{right:.2f}",
        "begins": clock(excerpt.start_s),
        "ends": clock(excerpt.end_s),
        "khz": f"{rate_hz / 2000:g}",
    }


def spectrogram(samples_S: NDArray[np.int16], rate_hz: int) -> NDArray[np.float32]:
    """Return the power of a sound in dB below its loudest point (F, T), highest frequency first, for a picture."""
    size = max(2, round(_FFT_S * rate_hz))
    hop = max(1, size // 4, -(-len(samples_S) // _MOST_WIDTH))
    padded_S = np.pad(samples_S.astype(np.float32), (size // 2, size))
    frames_TS = np.lib.stride_tricks.sliding_window_view(padded_S, size)[: len(samples_S) : hop]
    power_TF = np.abs(np.fft.rfft(frames_TS * np.hanning(size), axis=1)) ** 2
    # Frequencies are averaged to the height of the picture.
    edges = np.unique(np.linspace(0, power_TF.shape[1], _HEIGHT + 1).astype(int))
    power_TF = np.add.reduceat(power_TF, edges[:-1], axis=1) / np.diff(edges)
    loudest = max(float(power_TF.max()), math.ulp(1.0))
    decibels_TF = 10 * np.log10(np.maximum(power_TF / loudest, 1e-12))
    return decibels_TF.T[::-1].astype(np.float32)
