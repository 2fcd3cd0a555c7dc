"""Audio files below a folder, found by the names that a publisher's list gives them."""

from __future__ import annotations

import html
import logging
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.adapters.walking import AUDIO_EXTENSIONS, COMMON_EXTENSIONS, walk
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

Match = tuple[str | None, str | None]
"""The path of a listed clip, or the reason why it has none."""


@dataclass(frozen=True, slots=True)
class AudioFiles:
    """All audio files below one folder, as sorted POSIX paths relative to it."""

    folder: Path
    names: list[str]
    broken: frozenset[str] = frozenset()
    """Those of the names that are links to nothing, named pipes or the like."""

    def by_preference(self) -> tuple[list[str], list[str]]:
        """The names of common formats, and the others, which serve clips that have none of the first."""
        common = [name for name in self.names if _extension(name) in COMMON_EXTENSIONS]
        return common, [name for name in self.names if _extension(name) not in COMMON_EXTENSIONS]

    def path(self, name: str) -> str:
        """The folder joined with one of the names."""
        return f"{self.folder.as_posix()}/{name}"

    def match(self, name: str) -> Match:
        """The path of one of the names, or `missing_file` for a broken link."""
        return (None, "missing_file") if name in self.broken else (self.path(name), None)

    def likeliest(self, names: Sequence[str]) -> list[str]:
        """Several candidates without broken links, and of links to one file only the first."""
        if len(names) < 2:
            return list(names)
        whole = [name for name in names if name not in self.broken] or list(names)
        by_file = {os.path.realpath(self.path(name)): name for name in reversed(whole)}
        return sorted(by_file.values(), key=whole.index)


def find_audio(folders: Sequence[Path]) -> AudioFiles:
    """The audio files below the first of `folders` that has any of a common format, from one walk per folder.

    If none has, the first with any other format serves. Raises PipelineError when there is none, either.
    """
    fallback = None
    for folder in folders:
        files = walk_files(folder, AUDIO_EXTENSIONS)
        if not files:
            continue
        found = AudioFiles(folder, list(files), frozenset(name for name, is_file in files.items() if not is_file))
        if found.by_preference()[0]:
            break
        fallback = fallback or found
    else:
        if fallback is None:
            raise PipelineError(
                f"no audio files below {' or '.join(str(folder) for folder in folders)}; "
                f"unpack the audio there{_folders_next_to(folders[0])}"
            )
        found = fallback
    if found.broken:
        logger.warning(
            "%s: %d names of audio are no files, or links that lead nowhere; the first is %s",
            found.folder, len(found.broken), min(found.broken),
        )  # fmt: skip
    return found


def _folders_next_to(folder: Path) -> str:
    """Names the folders that are there in place of one that is not."""
    if folder.is_dir() or not folder.parent.is_dir():
        return ""
    others = sorted(path.name for path in folder.parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    return f" ({folder.parent} has the folders {', '.join(others[:5])}; is the split one of these?)" if others else ""


def walk_files(folder: Path, extensions: Collection[str]) -> dict[str, bool]:
    """The files below a folder with one of the extensions, sorted, relative to it; hidden ones are left out.

    The value is False for a link that leads nowhere and for what is no regular file. Raises PipelineError for a folder
    that cannot be listed, and for names that are not UTF-8, which no catalog could hold.
    """
    files = {
        f"{prefix}{entry.name}": _is_file(entry)
        for prefix, entries in walk(folder)
        for entry in entries
        if _extension(entry.name) in extensions
    }
    names = sorted(files)
    unfit = [name for name in names if not name.isascii() and re.search("[\ud800-\udfff]", name)]
    if unfit:
        raise PipelineError(
            f"{folder}: {len(unfit)} file names are not UTF-8, the first {unfit[0]!a}; rename them"
            " (for instance with convmv -t utf8)"
        )
    return {name: files[name] for name in names}


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, or into a folder that may not be entered
        return False


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def without_extension(name: str, extensions: Collection[str] = AUDIO_EXTENSIONS) -> str:
    """The name without its audio extension; dots elsewhere stay."""
    stem, extension = os.path.splitext(name)
    return stem if extension.strip().lower() in extensions else name


def unescaped(name: str) -> str:
    """The name with HTML entities resolved, in composed Unicode: one spelling of what archives spell differently."""
    while (plain := html.unescape(name)) != name:  # `&amp;#39;` takes two rounds
        name = plain
    return unicodedata.normalize("NFC", name)


def _posix(name: str) -> str:
    """The name with slashes as POSIX has them: `.\\dog\\1.wav` and `./dog//1.wav` are `dog/1.wav`."""
    return posixpath.normpath(name.strip().replace("\\", "/"))


# --- names in lists --------------------------------------------------------------------------------------------------


def _spellings(extensions: Collection[str]) -> tuple[Callable[[str], str], ...]:
    """Functions that bring names into one spelling, from the strictest to the loosest.

    The last two serve audio that was converted, or unpacked by tools that trim names.
    """
    return (
        str,
        unescaped,
        lambda name: unescaped(without_extension(name, extensions)),
        lambda name: " ".join(unescaped(without_extension(name, extensions)).split()),
    )


def match_names(names: Iterable[str], files: AudioFiles, outer: str = "") -> dict[str, Match]:
    """Path, or the reason why there is none, of every listed name.

    A name with folders must lie there, one without may lie deeper. Names are compared ever more loosely, each time only
    with files that no stricter comparison has claimed: `Rain .wav` that has no file never takes the one of
    `Rain.wav`. A name that fits several files, or a file that fits several names, is `ambiguous_file`.

    Names that are left are compared again as POSIX paths below `outer`: `./a.wav`, `dog\\1.wav`. Of an absolute name
    counts the file that is there, or else the longest end of it that is a file below the folder.
    """
    found: dict[str, Match] = {}
    listed = {name: name for name in names}
    known = set(files.names)
    unused: list[str] = []
    for more_files, extensions in zip(files.by_preference(), (COMMON_EXTENSIONS, AUDIO_EXTENSIONS), strict=True):
        spellings = _spellings(extensions)
        open_names = {name: name for name in listed if name not in found}
        unused = _match(open_names, unused + more_files, files, spellings, found)
        respelled = {name: _below(name, files, known, outer) for name in open_names if name not in found}
        respelled = {name: other for name, other in respelled.items() if other != name}
        unused = _match(respelled, unused, files, spellings, found)
    missing = [name for name in listed if name not in found]
    found.update((name, _elsewhere(name)) for name in missing)
    warn_of_missing(files.folder, [name for name in missing if found[name][0] is None], unused)
    return found


def _match(
    spelled_names: Mapping[str, str],
    open_files: list[str],
    files: AudioFiles,
    spellings: Sequence[Callable[[str], str]],
    found: dict[str, Match],
) -> list[str]:
    """Add to `found` what is found for the names in their spelling, and return the files that are left."""
    open_names = list(spelled_names)
    for round_number, spelling in enumerate((spellings[0], *spellings)):
        if not open_names or not open_files:
            break
        files_by_spelling = defaultdict(list)
        for file in open_files:
            files_by_spelling[spelling(file)].append(file)
            if round_number > 0 and "/" in file:  # the first round takes what lies just where the list says
                files_by_spelling[spelling(file.rpartition("/")[2])].append(file)
        names_by_spelling = defaultdict(list)
        for name in open_names:
            names_by_spelling[spelling(spelled_names[name])].append(name)
        claimed: set[str] = set()
        for spelled, alike in names_by_spelling.items():
            candidates = files_by_spelling.get(spelled, [])
            claimed.update(candidates)
            likeliest = files.likeliest(candidates)
            if len(likeliest) == 1 and len(alike) == 1:
                found[alike[0]] = files.match(likeliest[0])
            elif candidates:
                logger.warning("%s: listed %s, found %s: ambiguous", files.folder, alike, likeliest[:5])
                found.update((name, (None, "ambiguous_file")) for name in alike)
        open_names = [name for name in open_names if name not in found]
        open_files = [file for file in open_files if file not in claimed]
    return open_files


def _below(name: str, files: AudioFiles, known: Set[str], outer: str) -> str:
    """A listed name as a path below the folder of the files, as far as it can be one."""
    posix = _posix(name)
    if not _is_absolute(name):
        return posix.removeprefix(outer)
    if os.path.isfile(name):
        relative = os.path.relpath(name, files.folder).replace(os.sep, "/")
        return relative if relative in known else name
    parts = posix.split("/")
    return next((end for first in range(1, len(parts)) if (end := "/".join(parts[first:])) in known), name)


def _is_absolute(name: str) -> bool:
    return name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name) is not None


def _elsewhere(name: str) -> Match:
    """An absolute name's file, if it is there, else `missing_file`."""
    if os.path.isabs(name) and _extension(name) in AUDIO_EXTENSIONS and os.path.isfile(name):
        return name, None
    return None, "missing_file"


def warn_of_missing(folder: Path, missing: Sequence[str], unused: Sequence[str]) -> None:
    """Show what was looked for and what is there, because a person sees at once how they differ."""
    if missing and unused:
        logger.warning(
            "%s: %d clips have no file and %d files belong to no clip; looked for %s; found %s",
            folder, len(missing), len(unused), _first_three(missing), _first_three(unused),
        )  # fmt: skip


def _first_three(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names[:3])
