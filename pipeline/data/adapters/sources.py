"""What every adapter needs: the row it yields, tolerant CSV reading, and finding files by their publisher's names."""

from __future__ import annotations

import csv
import html
import io
import logging
import math
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

# The first line is what libsndfile decodes. The second it does not, but people have such files: they are found, so that
# they end as `undecodable` rows instead of never being seen.
AUDIO_EXTENSIONS = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf"}
) | {*(".m4a", ".aac", ".wma", ".webm", ".mp4")}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """One clip as its publisher lists it."""

    source_name: str
    """The publisher's name of the clip; unique in a split, a repeated name is a duplicate."""
    path: str | None = None
    """The audio file found for it, or the file that it is a member of."""
    member: str | None = None
    """Where in that file its bytes lie, as `pipeline.data.containers` writes it; None for a file of its own."""
    reason: str | None = None
    """Why it cannot be used: `missing_file`, `ambiguous_file` or `duplicate`."""
    source_id: str | None = None
    """Identity of the recording it was cut from: YouTube or Freesound id."""
    start_s: float | None = None
    """Where in that recording the clip begins."""
    captions: tuple[str, ...] = ()
    """Without empty ones, in the publisher's order."""
    row: int | None = None
    """Line of the publisher's list, the header being line 1."""


CAPTION_COLUMN = re.compile(r"caption_(\d+)")


# --- lists -----------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The text of a list in UTF-8, with or without a byte order mark, in UTF-16 with one, or else in Windows-1252.

    Raises PipelineError for a file that is not there or cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        logger.warning("%s row %d is not UTF-8: the file is read as Windows-1252", path, line)
        return data.decode("cp1252", errors="replace")


def read_csv(path: Path, *, skip_initial_space: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row that is not blank; all fields stay text.

    Raises PipelineError, naming the row, for broken quoting: read leniently, one open quote swallows the rows after it.
    """
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=skip_initial_space, strict=True)
    line = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise PipelineError(f"{path} row {line}: {error}; is a quote missing or doubled there?") from error


def read_table(path: Path, columns: Sequence[str], layout: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields by column name of every row of a CSV that has a header.

    Raises PipelineError when one of `columns` is not in the header, a row is wider than it, or the first of `columns`,
    which names the clip, is empty; `layout` tells what was expected.
    """
    rows = read_csv(path)
    _, header = next(rows, (1, []))
    header = [name.strip() for name in header]
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(header) or "nothing"
        raise PipelineError(f"{path}: no column {', '.join(missing)}; found {found}; expected {layout}")
    for row, fields in rows:
        if len(fields) > len(header):
            raise PipelineError(
                f"{path} row {row}: {len(fields)} fields under {len(header)} columns; a field with a comma needs quotes"
            )
        named = dict(zip(header, fields + [""] * (len(header) - len(fields)), strict=True))
        if not named[columns[0]].strip():
            raise PipelineError(f"{path} row {row}: no {columns[0]}")
        yield row, named


def clean_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """The captions that are not empty, white space collapsed."""
    return tuple(text for text in (" ".join(caption.split()) for caption in captions) if text)


def seconds(text: str, place: str) -> float:
    """A start time as a number; PipelineError names the place where it stands."""
    try:
        if math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    raise PipelineError(f'{place}: start time "{text}" is not a number of seconds')


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AudioFiles:
    """All audio files below one folder, as sorted POSIX paths relative to it."""

    folder: Path
    names: list[str]

    def path(self, name: str) -> str:
        """The folder joined with one of the names."""
        return f"{self.folder.as_posix()}/{name}"


def check_root(root: Path) -> None:
    """Raise PipelineError unless `root` is a folder."""
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise PipelineError(f"{root}: expected the folder of the dataset, found {found}; set its root in the config")


def find_audio(folders: Sequence[Path]) -> AudioFiles:
    """The audio files below the first of `folders` that has any, from one walk a folder.

    Raises PipelineError when none has.
    """
    for folder in folders:
        names = walk_files(folder, AUDIO_EXTENSIONS)
        if names:
            return AudioFiles(folder, names)
    raise PipelineError(
        f"no audio files below {' or '.join(str(folder) for folder in folders)}; unpack the audio there"
    )


def find_split_files(root: Path, split: str, extension: str) -> list[str]:
    """The container files of one split below a root, sorted, as paths with the root.

    Those of a folder SPLIT anywhere below the root, or those named `SPLIT-00000-of-00010`, `SPLIT_000`, `SPLIT` and the
    like, as https://huggingface.co/docs/hub/datasets-file-names-and-splits has them. PipelineError when there are none,
    or in more than one place: the same clips come in several configurations of one repository.
    """
    numbered = re.compile(re.escape(split) + r"(?:[-_.]?\d.*)?", re.DOTALL)
    names = walk_files(root, {extension})
    places: dict[str, list[str]] = defaultdict(list)
    for name in names:
        *folders, file = name.split("/")
        if split in folders:
            places["/".join(folders[: folders.index(split) + 1]) + "/"].append(name)
        elif numbered.fullmatch(os.path.splitext(file)[0]):
            places["/".join([*folders, split]) + "*"].append(name)
    if not places:
        found = f"found {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "found none at all"
        raise PipelineError(
            f"{root}: no {extension} files of the split {split}; looked for a folder {split} and for "
            f"{split}{extension}, {split}-00000-of-00010{extension} and the like; {found}"
        )
    if len(places) > 1:
        raise PipelineError(
            f"{root}: {extension} files of the split {split} in several places: {', '.join(sorted(places))}; "
            "set the dataset's root to the folder of one of them"
        )
    (found_names,) = places.values()
    _warn_of_missing_parts(root, found_names)
    return [f"{root.as_posix()}/{name}" for name in found_names]


def _warn_of_missing_parts(root: Path, names: Iterable[str]) -> None:
    """Tell which of the files that are numbered `-00003-of-00010` are not there."""
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


def walk_files(folder: Path, extensions: Collection[str]) -> list[str]:
    """The files below a folder with one of the extensions, sorted, relative to it; hidden ones are left out.

    PipelineError for a folder that cannot be listed, and for names that are not UTF-8, which no catalog could hold.
    """
    names = sorted(_walk(folder, extensions))
    unfit = [name for name in names if not name.isascii() and re.search("[\ud800-\udfff]", name)]
    if unfit:
        raise PipelineError(
            f"{folder}: {len(unfit)} file names are not UTF-8, the first {unfit[0]!a}; rename them"
            " (for instance with convmv -t utf8)"
        )
    return names


def _walk(folder: Path, extensions: Collection[str]) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # os.walk would skip an unreadable folder without a word
            raise PipelineError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    base = str(folder)
    seen: set[tuple[int, int]] = set()  # links between folders are followed, in circles never
    for current, subfolders, names in os.walk(base, followlinks=True, onerror=refuse):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != "__MACOSX"]
        prefix = os.path.relpath(current, base).replace(os.sep, "/") + "/" if current != base else ""
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions:
                yield prefix + name


def without_extension(name: str) -> str:
    """The name without its audio extension; dots elsewhere stay."""
    stem, extension = os.path.splitext(name)
    return stem if extension.strip().lower() in AUDIO_EXTENSIONS else name


def unescaped(name: str) -> str:
    """The name with HTML entities resolved, in composed Unicode: one spelling of what archives spell differently."""
    while (plain := html.unescape(name)) != name:  # `&amp;#39;` takes two rounds
        name = plain
    return unicodedata.normalize("NFC", name)


# From the strictest to the loosest. The last two serve audio that was converted, or unpacked by tools that trim names.
_SPELLINGS: tuple[Callable[[str], str], ...] = (
    str,
    unescaped,
    lambda name: unescaped(without_extension(name)),
    lambda name: " ".join(unescaped(without_extension(name)).split()),
)


def match_names(names: Iterable[str], files: AudioFiles) -> dict[str, tuple[str | None, str | None]]:
    """Path, or the reason why there is none, of every listed name.

    A name with folders must lie there, one without may lie deeper. Names are compared ever more loosely, each time only
    with files that no stricter comparison has claimed: `Rain .wav` without a file of its own never takes the one of
    `Rain.wav`. What fits more than one way is `ambiguous_file`.
    """
    found: dict[str, tuple[str | None, str | None]] = {}
    open_names = list(dict.fromkeys(names))
    open_files = files.names
    for round_number, spelling in enumerate((_SPELLINGS[0], *_SPELLINGS)):
        files_by_spelling = defaultdict(list)
        for file in open_files:
            files_by_spelling[spelling(file)].append(file)
            if round_number > 0 and "/" in file:  # the first round takes what lies just where the list says
                files_by_spelling[spelling(file.rpartition("/")[2])].append(file)
        names_by_spelling = defaultdict(list)
        for name in open_names:
            names_by_spelling[spelling(name)].append(name)
        claimed: set[str] = set()
        for spelled, alike in names_by_spelling.items():
            candidates = files_by_spelling.get(spelled, [])
            if len(candidates) == 1 and len(alike) == 1:
                found[alike[0]] = files.path(candidates[0]), None
            elif candidates:
                logger.warning("%s: listed %s, found %s: ambiguous", files.folder, alike, candidates[:5])
                found.update((name, (None, "ambiguous_file")) for name in alike)
            claimed.update(candidates)
        open_names = [name for name in open_names if name not in found]
        open_files = [file for file in open_files if file not in claimed]
        if not open_names or not open_files:
            break
    found.update((name, (None, "missing_file")) for name in open_names)
    return found


# --- YouTube clips ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoClip:
    """A stretch of a YouTube video, as AudioCaps and AudioSet list it."""

    youtube_id: str
    start_s: float
    row: int
    captions: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    """The publisher's own ids of the clip (AudioCaps)."""

    @property
    def name(self) -> str:
        """`{youtube_id}_{start}`, the start without trailing zeros, because lists differ in them."""
        return f"{self.youtube_id}_{_plain(self.start_s)}"


def _plain(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)


def source_rows_of(clips: Sequence[VideoClip], files: AudioFiles) -> Iterator[SourceRow]:
    """The clips with the files found for them under any name that is in use.

    `{id}_{start}`, `Y{id}_{start}` and the publisher's number say which clip is meant. `Y{id}` and `{id}` do only when
    the split has one clip of that video; otherwise the row is `ambiguous_file`.
    """
    by_stem = defaultdict(list)
    for file in files.names:
        by_stem[without_extension(PurePosixPath(file).name)].append(file)
    starts: dict[str, set[float]] = defaultdict(set)
    for clip in clips:
        starts[clip.youtube_id].add(clip.start_s)
    for clip in clips:
        start = clip.start_s
        spellings = dict.fromkeys((_plain(start), f"{start:.1f}", f"{start:.3f}"))
        exact = [f"{prefix}{clip.youtube_id}_{text}" for prefix in ("", "Y") for text in spellings] + list(clip.numbers)
        bare = [f"Y{clip.youtube_id}", clip.youtube_id]
        stem = next((stem for stem in exact + bare if stem in by_stem), None)
        candidates = by_stem[stem] if stem is not None else []
        path, reason = None, None
        if not candidates:
            reason = "missing_file"
        elif len(candidates) > 1 or (stem in bare and len(starts[clip.youtube_id]) > 1):
            logger.warning("%s row %d: %s could be %s: ambiguous", files.folder, clip.row, clip.name, candidates[:5])
            reason = "ambiguous_file"
        else:
            path = files.path(candidates[0])
        yield SourceRow(
            source_name=clip.name,
            path=path,
            reason=reason,
            source_id=clip.youtube_id,
            start_s=start,
            captions=clip.captions,
            row=clip.row,
        )
