"""The Parquet files and tars of one split, as the Hugging Face hub and WebDataset name them."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pipeline.data.adapters.audio_files import walk_files
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)


def find_split_files(root: Path, split: str, extension: str) -> list[str]:
    """The container files of one split below a root, sorted, as paths with the root.

    Those of a folder SPLIT anywhere below the root, or those named `SPLIT-00000-of-00010`, `SPLIT_000`, `SPLIT` and the
    like, as https://huggingface.co/docs/hub/datasets-file-names-and-splits has them. A place whose files are links to
    those of another does not count.

    Raises:
        PipelineError: there are none, or some in more than one place: the same clips come in several configurations of
            one repository. Or one of them is a link that leads nowhere.
    """
    numbered = re.compile(re.escape(split) + r"(?:[-_.]?\d.*)?", re.DOTALL)
    files = walk_files(root, {extension})
    places: dict[str, list[str]] = defaultdict(list)
    for name in files:
        *folders, file = name.split("/")
        if split in folders:
            places["/".join(folders[: folders.index(split) + 1]) + "/"].append(name)
        elif numbered.fullmatch(os.path.splitext(file)[0]):
            places["/".join([*folders, split]) + "*"].append(name)
    if not places:
        some = list(files)[:3]
        found = f"found {', '.join(some)}{', ...' if len(files) > 3 else ''}" if some else "found none at all"
        raise PipelineError(
            f"{root}: no {extension} files of the split {split}; looked for a folder {split} and for "
            f"{split}{extension}, {split}-00000-of-00010{extension} and the like; {found}"
        )
    if broken := [name for names in places.values() for name in names if not files[name]]:
        raise PipelineError(f"{root}/{broken[0]}: is no file, or a link that leads nowhere; fetch it again")
    if len(places) > 1:
        places = _without_links(root, places)
    if len(places) > 1:
        raise PipelineError(
            f"{root}: {extension} files of the split {split} in several places: {', '.join(sorted(places))}; "
            "set the dataset's root to the folder of one of them"
        )
    (found_names,) = places.values()
    _warn_of_missing_parts(root, found_names)
    return [f"{root.as_posix()}/{name}" for name in found_names]


def _without_links(root: Path, places: dict[str, list[str]]) -> dict[str, list[str]]:
    """The places that hold a file which no place before them holds."""
    known: set[str] = set()
    kept = {}
    for place in sorted(places):
        files = {os.path.realpath(root / name) for name in places[place]}
        if not files <= known:
            kept[place] = places[place]
        known |= files
    return kept


def _warn_of_missing_parts(root: Path, names: Iterable[str]) -> None:
    """Log which of the files that are numbered `-00003-of-00010` are not there."""
    numbers: dict[tuple[str, int], set[int]] = defaultdict(set)
    for name in names:
        if match := re.match(r"(.*?)-(\d+)-of-(\d+)", name):
            numbers[match[1], int(match[3])].add(int(match[2]))
    for (stem, count), present in numbers.items():
        if missing := sorted(set(range(count)) - present):
            logger.warning(
                "%s/%s: %d of %d parts are not there, the first is number %d: their clips cannot be listed",
                root, stem, len(missing), count, missing[0],
            )  # fmt: skip
