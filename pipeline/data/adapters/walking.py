"""Walk the folder of a dataset: links to folders are followed, hidden entries are left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import PipelineError

COMMON_EXTENSIONS = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf"}
    | {".m4a", ".aac", ".wma", ".webm", ".mp4"}
)
"""libsndfile decodes those of the first line, FFmpeg those of the second."""
AUDIO_EXTENSIONS = COMMON_EXTENSIONS | {
    *(".w64", ".rf64", ".snd", ".mp2"),
    *(".weba", ".mka", ".mkv", ".mov", ".3gp", ".amr", ".ape", ".wv"),
}
"""A clip takes a file with one of the other extensions only if it has none of a common format: a video often lies next
to its sound. A format that is not decoded (`.ape`) is listed, too, so that it ends as an `undecodable` row."""


def check_root(root: Path) -> None:
    """Raise PipelineError unless `root` is a folder."""
    try:
        is_directory, is_there = root.is_dir(), root.exists()
    except OSError as error:  # of a folder above it that may not be entered, for instance
        raise PipelineError(
            f"{root}: cannot be read ({error.strerror}); set the dataset's root in the config"
        ) from error
    if not is_directory:
        found = "a file" if is_there else "nothing"
        raise PipelineError(f"{root}: expected the folder of the dataset, found {found}; set its root in the config")


def walk(
    root: Path, is_entered: Callable[[str], bool] = lambda folder: True
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yields, for each folder below `root` and for itself, a prefix and the entries in it that are not folders.

    The prefix is the folder's path relative to `root`, empty or with a slash at its end. `is_entered` decides, from a
    subfolder's relative path, whether it is walked. Two links to one folder are both walked; a link to a folder that
    contains it is not, so that circles end. Nothing is yielded for a folder that does not exist.

    Raises PipelineError for a folder that cannot be listed.
    """
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        prefix, parents = waiting.pop()
        folder = os.path.join(root, prefix)
        files, subfolders = [], []
        try:
            status = os.stat(folder)
            place = status.st_dev, status.st_ino
            if place in parents:
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not is_folder(entry):
                        files.append(entry)
                    elif entry.name != "__MACOSX" and is_entered(prefix + entry.name):
                        subfolders.append(f"{prefix}{entry.name}/")
        except FileNotFoundError:  # removed since its parent was listed
            continue
        except OSError as error:
            raise PipelineError(f"{folder}: cannot be listed ({error.strerror})") from error
        waiting += [(subfolder, (*parents, place)) for subfolder in subfolders]
        yield prefix, files


def is_folder(entry: os.DirEntry[str]) -> bool:
    """True for a folder or a link to one; False for a link that leads nowhere or to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False
