"""The audio and captions of one slot of a pairs file, as training gets them.

Shapes: S = samples of a window.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
from numpy.typing import NDArray

from pipeline.commands.inspection.columns import batches, read_schema
from pipeline.commands.inspection.pair_checks import check_splits
from pipeline.commands.inspection.pairs import read_footer, splits_of
from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError
from pipeline.files import read_json, write_atomically
from pipeline.training.settings import OptimizationSettings, PairingSettings

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }}
  audio {{ width: 100%; }}
  h1, p {{ overflow-wrap: anywhere; }}
</style>
<h1>{title}</h1>
<p>{source}</p>
{sections}
</html>
"""

_SECTION = """<section>
<h2>{heading}</h2>
<audio controls preload="metadata" src="{name}.wav"></audio>
<p>{text}<br><small>{origin}</small></p>
</section>"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sound:
    """One of the sounds of a slot, and its origin."""

    name: str
    """labeled, partner or composed: its file is `{name}.wav`."""
    samples_S: NDArray[Any]
    """16-bit; of the composed sound 32-bit, of which 24 are written."""
    origin: str
    text: str
    """Its input of the text encoder."""


def mixing_gain_of_run(pairs: Path) -> float:
    """Return the mixing gain of the run that trained on pairs/RUN/seedN.parquet; the default if there is none.

    It is in runs/RUN/seedN/training.json.
    """
    default = OptimizationSettings().mixing_gain
    run = pairs.absolute().parent
    account = run.parent.parent / "runs" / run.name / pairs.stem / "training.json"
    if not account.is_file():
        return default
    gain = read_json(account).get("settings", {}).get("mixing_gain", default)
    if not isinstance(gain, int | float):
        raise PipelineError(f"{account}: settings.mixing_gain is {gain!r}; give the gain with --mixing-gain")
    return float(gain)


def read_slot(
    pairs: Path, shards: Path | None, *, epoch: int, step: int, slot: int, mixing_gain: float
) -> tuple[list[Sound], int]:
    """The sounds of a slot and their sample rate; one sound if the pairs mix nothing.

    mixing_gain: g of the composed sound (1 - g) x + g u of the labeled clip x and its partner u, Eq. (11).
    """
    footer = read_footer(pairs)
    for name, number, count in (
        ("epoch", epoch, footer["epochs"]),
        ("step", step, footer["steps_per_epoch"]),
        ("slot", slot, footer["batch_size"]),
    ):
        if not 0 <= number < count:
            raise PipelineError(f"{pairs}: no {name} {number}; it has {name}s 0 to {count - 1}")
    splits = splits_of(pairs, footer, shards)
    check_splits(pairs, splits, footer["sample_rate_hz"])
    readers = [open_shards(split.folder) for split in splits if split.folder is not None]
    row, place = None, step * footer["batch_size"] + slot
    for batch in batches(pairs, read_schema(pairs).names, [epoch]):
        if place < batch.num_rows:
            row = {name: batch[name][place].as_py() for name in batch.schema.names}
            break
        place -= batch.num_rows
    if row is None or (row["epoch"], row["step"], row["slot"]) != (epoch, step, slot):
        raise PipelineError(f"{pairs}: epoch {epoch}, step {step}, slot {slot} is not in its place; run verify on it")

    def sound(name: str, captions: str) -> Sound:
        """The sound of a slot's labeled clip or partner, from its columns."""
        key, start, caption, text = row[f"{name}_key"], row[f"{name}_start"], row[captions], row.get(f"{captions}_text")
        reader = _reader_of(readers, key)
        reader.check_tar_of(key)
        return Sound(
            name=name,
            samples_S=reader.read_window(key, start, footer["window_frames"], PairingSettings.of(footer).short_clips),
            origin=f"{key} from {start / reader.sample_rate_hz:.2f} s",
            text=f'"{text or reader.captions(key)[caption]}"' if caption >= 0 else "pseudo-token of the partner",
        )

    sounds = [sound("labeled", "caption")]
    if row["partner_key"] is not None:
        sounds.append(sound("partner", "partner_caption"))
        labeled_S, partner_S = (sound.samples_S * 65536.0 for sound in sounds)
        mixed_S = np.rint((1 - mixing_gain) * labeled_S + mixing_gain * partner_S).astype(np.int32)
        text = " + ".join(sound.text for sound in sounds)
        origin = f"{1 - mixing_gain:g} labeled + {mixing_gain:g} partner"
        sounds.append(Sound(name="composed", samples_S=mixed_S, origin=origin, text=text))
    return sounds, footer["sample_rate_hz"]


def _reader_of(readers: list[ShardReader], key: str) -> ShardReader:
    for reader in readers:
        if reader.rows_of(pa.array([key]))[0] >= 0:
            return reader
    raise PipelineError(
        f"{key} is in none of {', '.join(str(reader.folder) for reader in readers)}; make the pairs again"
    )


def write_slot(sounds: list[Sound], sample_rate_hz: int, folder: Path, title: str, source: str) -> None:
    """Write `{name}.wav` of every sound and index.html, which plays them from disk.

    The composed sound is written as 24-bit PCM, which holds (x + u) / 2 exactly.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be made ({error.strerror}); give another folder with --out") from error
    for name in ("labeled", "partner", "composed"):
        (folder / f"{name}.wav").unlink(missing_ok=True)  # of a slot that was written before
    for sound in sounds:
        subtype = "PCM_24" if sound.name == "composed" else "PCM_16"
        with write_atomically(folder / f"{sound.name}.wav") as temporary:
            soundfile.write(temporary, sound.samples_S, sample_rate_hz, subtype=subtype, format="WAV")
    with write_atomically(folder / "index.html") as temporary:
        temporary.write_text(page(sounds, title, source), encoding="utf-8")


def page(sounds: list[Sound], title: str, source: str) -> str:
    """The page, with one player per sound."""
    sections = [
        _SECTION.format(
            heading=sound.name.capitalize(),
            name=sound.name,
            text=html.escape(sound.text),
            origin=html.escape(sound.origin),
        )
        for sound in sounds
    ]
    return _PAGE.format(title=html.escape(title), source=html.escape(source), sections="\n".join(sections))
