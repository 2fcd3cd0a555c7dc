"""Further captions of a labeled split, from a CSV next to its own: only training draws them.

The CSV has the columns `file_name` and `paraphrase`, and may have `caption`. `file_name` is the clip's name in its list
(the column `source_name` of the manifest) or its key. `caption` is the clip's caption that the row paraphrases.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.adapters.lists import read_table
from pipeline.data.adapters.rows import clean_captions
from pipeline.data.catalogs import OK
from pipeline.data.shards.format import manifest_batches
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

COLUMNS = ("file_name", "paraphrase")
LAYOUT = "file_name, paraphrase and, to check them, caption"


@dataclass(frozen=True, kw_only=True)
class Paraphrases:
    """The paraphrases of some clips, by their place among the usable rows of all manifests (`Clips.rows`)."""

    texts: Mapping[int, Sequence[str]]
    counts: Mapping[int, int]
    """Number of the clip's own captions; their numbers come before those of its paraphrases."""

    def more(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of paraphrases of each clip, int32."""
        return np.fromiter((len(self.texts.get(row, ())) for row in rows.tolist()), np.int32, len(rows))

    def column(self, rows: np.ndarray, captions: np.ndarray) -> pa.Array:
        """Return the texts of drawn captions that are paraphrases; null for a clip's own and for none."""
        texts = []
        for row, caption in zip(rows.tolist(), captions.tolist(), strict=True):
            number = caption - self.counts.get(row, caption + 1)
            texts.append(self.texts[row][number] if number >= 0 else None)
        return pa.array(texts, pa.string())


@dataclass
class _Clip:
    """A clip of the split, to which rows of a CSV may belong."""

    row: int | None
    """Place among the usable rows; None for a clip that is not used."""
    captions: tuple[str, ...]
    found: list[str] = field(default_factory=list)


def read_paraphrases(manifests: Sequence[Path], files: Mapping[Path, Path]) -> Paraphrases:
    """Return the paraphrases of labeled splits; `files` has the CSV of each manifest that has one.

    A paraphrase that equals a caption or another paraphrase of its clip is left out. So are those of clips that cannot
    be used.

    Raises:
        PipelineError: A row names no clip of the split, several clips, or a caption that the clip does not have; or it
            has no paraphrase. The message names file and row.
    """
    if unknown := [path for path in files if path not in manifests]:
        raise PipelineError(f"--paraphrases {unknown[0]}: is no manifest of --labeled; give one of those")
    texts: dict[int, list[str]] = {}
    counts: dict[int, int] = {}
    first = 0
    for manifest in manifests:
        rows = [] if manifest not in files else list(read_table(files[manifest], COLUMNS, LAYOUT))
        names = {fields["file_name"] for _, fields in rows}
        clips, usable = _clips_of(manifest, names, first)
        for row, fields in rows:
            _add(f"{files[manifest]} row {row}", fields, clips, manifest)
        for clip in {id(clip): clip for found in clips.values() for clip in found}.values():
            if clip.row is not None and clip.found:
                texts[clip.row], counts[clip.row] = clip.found, len(clip.captions)
        if rows:
            logger.info("%s: %d rows for %d clips", files[manifest], len(rows), len(clips))
        first += usable
    return Paraphrases(texts=texts, counts=counts)


def _clips_of(manifest: Path, names: set[str], first: int) -> tuple[dict[str, list[_Clip]], int]:
    """Return the clips with some names or keys, and the number of usable rows of the manifest."""
    clips: defaultdict[str, list[_Clip]] = defaultdict(list)
    usable = 0
    for batch in manifest_batches(manifest, ["key", "source_name", "status", "captions"]):
        columns = [batch[name].to_pylist() for name in ("key", "source_name", "status")]
        for place, (key, name, status) in enumerate(zip(*columns, strict=True)):
            if name in names or key in names:
                clip = _Clip(first + usable if status == OK else None, tuple(batch["captions"][place].as_py()))
                for each in {name, key} & names:
                    clips[each].append(clip)
            usable += status == OK
    return dict(clips), usable


def _add(place: str, fields: Mapping[str, str], clips: Mapping[str, list[_Clip]], manifest: Path) -> None:
    """Add the paraphrase of a row of a CSV to its clip."""
    name, split = fields["file_name"], "/".join(manifest.parts[-3:-1])
    if name not in clips:
        raise PipelineError(f'{place}: {split} has no clip "{name}"; remove the row, or give a file_name of that split')
    found = [clip for clip in clips[name] if clip.row is not None] or clips[name]
    text = next(iter(clean_captions([fields["paraphrase"]])), None)
    if text is None:
        raise PipelineError(f"{place}: the paraphrase is empty; write one or remove the row")
    if caption := next(iter(clean_captions([fields.get("caption", "")])), None):
        if not any(caption in clip.captions for clip in found):
            raise PipelineError(
                f'{place}: "{name}" has no caption "{caption}"; correct it, or leave the column caption out'
            )
        found = [clip for clip in found if caption in clip.captions]
    if len(found) > 1:
        raise PipelineError(f'{place}: "{name}" names {len(found)} clips; give the key of one as file_name')
    if text not in (*found[0].captions, *found[0].found):
        found[0].found.append(text)
