"""Clotho v2.1 as unpacked from Zenodo record 4783391: three folders of WAV files and three lists of five captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.datasets.sources import (
    SourceRow,
    check_root,
    clean_captions,
    find_audio,
    match_names,
    read_table,
    unescaped,
)

CAPTION_COLUMNS = tuple(f"caption_{number}" for number in range(1, 6))


def read_clotho(root: Path, split: str) -> Iterator[SourceRow]:
    """The rows of `clotho_captions_{split}.csv`, audio from `{split}/` or `clotho_audio_{split}/`.

    With `clotho_metadata_{split}.csv` beside it the Freesound sound id becomes the source id. The archive's own folder
    is `{split}`; some unpack it into one named after the archive. Other splits' folders are never searched, because
    file names repeat between splits.
    """
    check_root(root)
    listing = root / f"clotho_captions_{split}.csv"
    rows = list(read_table(listing, ("file_name", *CAPTION_COLUMNS), "Clotho's file_name, caption_1 .. caption_5"))
    files = find_audio([root / split, root / f"clotho_audio_{split}"])
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
            captions=clean_captions(fields[column] for column in CAPTION_COLUMNS),
            row=row,
        )


def _sound_ids(path: Path) -> dict[str, str]:
    """Freesound id by unescaped file name, of the files that have one; empty without the metadata."""
    if not path.exists():
        return {}
    rows = read_table(path, ("file_name", "sound_id"), "Clotho's metadata: file_name, keywords, sound_id, ...")
    return {
        unescaped(fields["file_name"]).strip(): fields["sound_id"] for _, fields in rows if fields["sound_id"].isdigit()
    }
