"""Clotho v2.1 as unpacked from Zenodo record 4783391: three folders of WAV files and three lists of five captions."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.data.adapters.audio_files import find_audio, match_names, unescaped
from pipeline.data.adapters.lists import read_table
from pipeline.data.adapters.rows import SourceRow, clean_captions
from pipeline.data.adapters.walking import check_root

logger = logging.getLogger(__name__)

CAPTION_COLUMNS = tuple(f"caption_{number}" for number in range(1, 6))
WARNED_ROWS = 20
_FREESOUND_ID = re.compile(r"(\d+)(?:\.0+)?")  # pandas writes 123456.0 where a column has gaps


def read_clotho(root: Path, split: str) -> Iterator[SourceRow]:
    """The rows of `clotho_captions_{split}.csv`, audio from `{split}/` or `clotho_audio_{split}/`.

    With `clotho_metadata_{split}.csv` next to it the Freesound sound id becomes the source id. The archive's own folder
    is `{split}`; some unpack it into one named after the archive. Other splits' folders are never searched, because
    file names repeat between splits.
    """
    check_root(root)
    listing = root / f"clotho_captions_{split}.csv"
    rows = list(read_table(listing, ("file_name", *CAPTION_COLUMNS), "Clotho's file_name, caption_1 .. caption_5"))
    files = find_audio([root / split, root / f"clotho_audio_{split}"])
    captions = {row: clean_captions(fields[column] for column in CAPTION_COLUMNS) for row, fields in rows}
    _warn_of_few_captions(listing, captions)
    found = match_names((fields["file_name"] for _, fields in rows), files)
    sound_ids = _sound_ids(root / f"clotho_metadata_{split}.csv")
    for row, fields in rows:
        name = fields["file_name"]
        path, reason = found[name]
        yield SourceRow(
            source_name=name,
            path=path,
            reason=reason,
            source_id=sound_ids.get(unescaped(name).strip()),
            captions=captions[row],
            row=row,
        )


def _warn_of_few_captions(listing: Path, captions: Mapping[int, Sequence[str]]) -> None:
    """Name the first rows that have fewer captions than Clotho gives each clip; one without any is lost and counted."""
    few = [row for row, texts in captions.items() if 0 < len(texts) < len(CAPTION_COLUMNS)]
    if few:
        more = f" and {len(few) - WARNED_ROWS} more" if len(few) > WARNED_ROWS else ""
        rows = ", ".join(f"{row} ({len(captions[row])})" for row in few[:WARNED_ROWS])
        logger.warning(
            "%s: %d clips have fewer than %d captions, in rows %s%s",
            listing,
            len(few),
            len(CAPTION_COLUMNS),
            rows,
            more,
        )


def _sound_ids(path: Path) -> dict[str, str]:
    """Freesound id by unescaped file name, of the files that have one; empty without the metadata."""
    if not path.exists():
        return {}
    rows = read_table(path, ("file_name", "sound_id"), "Clotho's metadata: file_name, keywords, sound_id, ...")
    ids = ((unescaped(fields["file_name"]).strip(), _FREESOUND_ID.fullmatch(fields["sound_id"])) for _, fields in rows)
    return {name: match[1] for name, match in ids if match}
