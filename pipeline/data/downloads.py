"""Download the data that publishers offer without an account: Clotho, and the lists of AudioCaps and AudioSet.

Only `composed-text download` calls this; the workflow never downloads a dataset. The files have the layout that
`pipeline.data.adapters` reads. An interrupted download resumes from `NAME.part` and the validator in `NAME.part.etag`,
if the server supports it (RFC 9110: Range guarded by If-Range).
"""

from __future__ import annotations

import hashlib
import logging
import lzma
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import py7zr
import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from pipeline.data.adapters import ADAPTERS
from pipeline.data.adapters.audiocaps import COLUMNS
from pipeline.data.adapters.audioset import WIDTH
from pipeline.data.adapters.lists import read_csv, read_table
from pipeline.data.adapters.walking import AUDIO_EXTENSIONS
from pipeline.errors import PipelineError, write_error_message

logger = logging.getLogger(__name__)

RETRIES = 6  # in a row without a byte of progress
BACKOFF_S = 1.0  # before the second retry; doubled before each further one
LONGEST_WAIT_S = 120  # upper limit for a server's Retry-After
TIMEOUT_S = (10, 60)  # to connect, and between two packets
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that are worth a retry
UNPACKED = 2  # unpacked bytes per byte of a 7z archive of WAV files; Clotho's hold 12 GB in 6.5 GB


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file of a publisher: its name, there and below the dataset's root, and a check of its contents."""

    name: str
    split: str
    check: Callable[[Path], None]
    """Raises PipelineError unless a path holds the published file."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """The files of a dataset, their address and their licence."""

    address: str
    query: str
    """Appended to the name of a file in its URL."""
    licence: str
    splits: dict[str, tuple[Published, ...]]
    default_splits: tuple[str, ...]
    remark: str
    """The steps that remain for the user."""


def _has_md5(expected: str) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != expected:
            raise PipelineError(f"{path}: md5 {found}, the publisher's file has {expected}")

    return check


def _is_audiocaps_list(rows: int) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        found = sum(1 for _ in read_table(path, COLUMNS, f"AudioCaps' {', '.join(COLUMNS)}"))
        if found != rows:
            raise PipelineError(f"{path}: {found:,} rows, AudioCaps version 1 has {rows:,}")

    return check


def _is_audioset_list(rows: int | None) -> Callable[[Path], None]:
    """Return a check of the number of rows, which the second line of the list states."""

    def check(path: Path) -> None:
        expected, found = rows, 0
        for row, fields in read_csv(path, width=WIDTH, skip_initial_space=True):
            if not fields[0].startswith("#"):
                found += 1
                if len(fields) != WIDTH:
                    raise PipelineError(f"{path} row {row}: {len(fields)} fields, a segment of AudioSet has {WIDTH}")
            elif stated := re.search(r"num_segs=(\d+)", ",".join(fields)):
                expected = rows or int(stated[1])
        if found != expected:
            raise PipelineError(f"{path}: {found:,} rows, AudioSet's list has {expected or 'an unknown number'}")

    return check


def clotho_splits(md5: Mapping[str, tuple[str, str, str]]) -> dict[str, tuple[Published, ...]]:
    """Return the three files of each split of Clotho, from the md5 of its audio, captions and metadata."""
    return {
        split: (
            Published(name=f"clotho_captions_{split}.csv", split=split, check=_has_md5(captions)),
            Published(name=f"clotho_metadata_{split}.csv", split=split, check=_has_md5(metadata)),
            Published(name=f"clotho_audio_{split}.7z", split=split, check=_has_md5(audio)),
        )
        for split, (audio, captions, metadata) in md5.items()
    }


CLOTHO_MD5 = {  # as Zenodo shows them in record 4783391
    "development": (
        "c8b05bc7acdb13895bb3c6a29608667e", "d4090b39ce9f2491908eebf4d5b09bae", "170d20935ecfdf161ce1bb154118cda5",
    ),
    "validation": (
        "7dba730be08bada48bd15dc4e668df59", "5879e023032b22a2c930aaa0528bead4", "2e010427c56b1ce6008b0f03f41048ce",
    ),
    "evaluation": (
        "4569624ccadf96223f19cb59fe4f849f", "1b16b9e57cf7bdb7f13a13802aeb57e2", "13946f054d4e1bf48079813aac61bf77",
    ),
}  # fmt: skip

PUBLICATIONS = {
    "clotho": Publication(
        address="https://zenodo.org/records/4783391/files",
        query="?download=1",
        licence="captions: Tampere University's (non-commercial, with attribution); "
        "audio: one Freesound licence per clip, listed in clotho_metadata_*.csv",
        splits=clotho_splits(CLOTHO_MD5),
        default_splits=tuple(CLOTHO_MD5),
        remark="you may delete the archives",
    ),
    "audiocaps": Publication(
        address="https://raw.githubusercontent.com/cdjkim/audiocaps/master/dataset",
        query="",
        licence="lists: MIT; audio: YouTube videos of various owners",
        splits={
            split: (Published(name=f"{split}.csv", split=split, check=_is_audiocaps_list(rows)),)
            for split, rows in {"train": 49_838, "val": 495 * 5, "test": 975 * 5}.items()
        },
        default_splits=("train", "val", "test"),
        remark="the clips come from YouTube: put them into train/, val/ and test/ next to the lists, named by "
        "YouTube id, id and start, or audiocap id",
    ),
    "audioset": Publication(
        address="https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv",
        query="",
        licence="lists: CC BY 4.0; audio: YouTube videos of various owners",
        splits={
            split: (Published(name=f"{split}_segments.csv", split=split, check=_is_audioset_list(rows)),)
            for split, rows in {"balanced_train": 22_160, "eval": 20_371, "unbalanced_train": None}.items()
        },
        default_splits=("balanced_train",),
        remark="the clips come from YouTube: put them into a folder named after the split, next to the list, "
        "named by YouTube id, or id and start",
    ),
}
"""Publications by the adapter that reads their files."""


# --- HTTP ------------------------------------------------------------------------------------------------------------


def open_session(retries: int) -> requests.Session:
    """Return a session that repeats requests after failed connections and TEMPORARY statuses."""
    retry = Retry(
        retries,
        other=0,  # a retry does not help with an untrusted certificate
        backoff_factor=BACKOFF_S,
        retry_after_max=LONGEST_WAIT_S,
        status_forcelist=TEMPORARY,
        raise_on_status=False,
    )
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # offsets in a compressed response differ from the file's
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _request(session: requests.Session, method: str, url: str, headers: dict[str, str]) -> requests.Response:
    """Return the response with its body unread; PipelineError if there is none, or its status stays TEMPORARY."""
    try:
        response = session.request(method, url, headers=headers, stream=True, timeout=TIMEOUT_S, allow_redirects=True)
    except requests.exceptions.SSLError as error:
        raise PipelineError(
            f"{url}: no trusted connection ({error}); behind a company's proxy set REQUESTS_CA_BUNDLE"
        ) from error
    except (requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema) as error:
        raise PipelineError(f"{url}: is not a web address; give one that begins with https://") from error
    except requests.exceptions.RequestException as error:
        raise _gave_up(url, getattr(error.args[0], "reason", error) if error.args else error) from error
    if response.status_code in TEMPORARY:
        response.close()
        raise _gave_up(url, f"status {response.status_code} {response.reason}")
    return response


def _gave_up(url: str, reason: object) -> PipelineError:
    return PipelineError(f"{url}: {reason}; gave up, run the command again to resume")


def _refuse(url: str, response: requests.Response) -> PipelineError:
    return PipelineError(
        f"{url}: status {response.status_code} {response.reason}; if the publisher moved the file, give the new "
        "folder's address with --from"
    )


def remote_size(session: requests.Session, url: str) -> int | None:
    """Return the size of a file in bytes, None if its server does not state it; PipelineError if it does not exist."""
    with _request(session, "HEAD", url, {}) as response:
        if response.status_code in (404, 410):
            raise _refuse(url, response)
        return _length_of(response) if response.ok else None


def _length_of(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _validator(response: requests.Response) -> str | None:
    """Return the value for If-Range: a strong ETag, or else the date of the last modification."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _tag_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)  # first, because a tag without its part does no harm
    _tag_of(part).unlink(missing_ok=True)


def _fetch_rest(session: requests.Session, url: str, part: Path) -> bool:
    """Append the missing bytes to `part`, or all bytes if the server cannot resume; return whether it is whole."""
    offset, tag = _size(part), _tag_of(part)
    headers = {}
    if offset and tag.exists():
        headers = {"Range": f"bytes={offset}-", "If-Range": tag.read_text(encoding="utf-8")}
    with _request(session, "GET", url, headers) as response:
        content_range, validator = response.headers.get("Content-Range", ""), _validator(response)
        if response.status_code == 416 and content_range == f"bytes */{offset}":
            return True
        is_rest = content_range.startswith(f"bytes {offset}-") and validator == headers.get("If-Range", validator)
        if response.status_code == 416 or (response.status_code == 206 and not is_rest):
            logger.warning("%s: the file has changed since the last attempt; starting from the beginning", url)
            _discard(part)
            return False
        if response.status_code not in (200, 206):
            raise _refuse(url, response)
        if response.status_code == 200:
            _discard(part)
            offset = 0
            if validator is not None:
                tag.write_text(validator, encoding="utf-8")
        length = _length_of(response)
        total = None if length is None else offset + length
        with (
            part.open("ab") as file,
            tqdm(desc=part.stem, total=total, initial=offset, unit="B", unit_scale=True, mininterval=1) as bar,
        ):
            try:
                for chunk in response.iter_content(1 << 16):  # raises if bytes are missing at the end
                    file.write(chunk)
                    bar.update(len(chunk))
            except requests.exceptions.RequestException as error:
                logger.warning("%s: interrupted (%s)", url, error)
                return False
    return True


def fetch(session: requests.Session, url: str, path: Path, check: Callable[[Path], None]) -> None:
    """Download a file to `path`, which appears only once `check` has passed.

    Raises:
        PipelineError: The server refuses or does not answer, RETRIES attempts in a row bring no byte, the disk is
            full, or the file fails its check. A file that fails its check is removed.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        size, failures = _size(part), 0
        while not _fetch_rest(session, url, part):
            failures = 0 if _size(part) > size else failures + 1
            if failures > RETRIES:
                raise _gave_up(url, f"no further byte in {RETRIES} retries")
            size = _size(part)
            time.sleep(BACKOFF_S * 2**failures)
    except OSError as error:
        raise PipelineError(write_error_message(part, error)) from error
    try:
        check(part)
    except PipelineError as error:
        _discard(part)
        raise PipelineError(
            f"{url}: the received file is not the published one and was removed ({error}); run the command again"
        ) from error
    part.replace(path)
    _discard(part)


# --- archives --------------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the audio of a 7z archive as `folder`, which appears whole or not at all.

    Raises:
        PipelineError: An entry is a link or leads out of the folder, the audio is in several folders, the archive is
            damaged, or the disk is too small.
    """
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # from a killed process
    try:
        with py7zr.SevenZipFile(archive) as source:
            entries = source.list()
            for entry in entries:
                path = PurePosixPath(entry.filename)
                if path.is_absolute() or ".." in path.parts or not (entry.is_file or entry.is_directory):
                    raise PipelineError(f'{archive}: entry "{entry.filename}" leads out of the folder; not unpacked')
            names = [PurePosixPath(entry.filename) for entry in entries if entry.is_file]
            inner = {name.parent for name in names if name.suffix.strip().lower() in AUDIO_EXTENSIONS}
            if len(inner) != 1:
                raise PipelineError(f"{archive}: expected one folder of audio, found {len(inner)}; not unpacked")
            check_space(folder.parent, sum(entry.uncompressed for entry in entries), f"unpacking {archive.name}")
            source.extractall(temporary)
        (temporary / inner.pop()).rename(folder)
    except (py7zr.exceptions.ArchiveError, lzma.LZMAError, EOFError) as error:
        raise PipelineError(f"{archive}: cannot be unpacked ({error}); delete it and run the command again") from error
    except OSError as error:
        raise PipelineError(write_error_message(folder, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise PipelineError unless the disk of `folder`, which need not exist, has `needed` bytes free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PipelineError(
            f"{folder}: {purpose} needs {readable(needed)}, {readable(free)} are free; "
            "make room or choose another folder"
        )


# --- the command -----------------------------------------------------------------------------------------------------


def readable(size: float) -> str:
    """Return a number of bytes in the largest decimal unit in which it is at least 1."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _unpacked_folder(root: Path, file: Published) -> Path | None:
    """Return the folder of already unpacked audio, under either name that the adapter reads; None if there is none."""
    for folder in (root / file.split, root / PurePosixPath(file.name).stem):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    return None


def download(
    dataset: str, root: Path, *, splits: Sequence[str] | None = None, address: str | None = None, dry_run: bool = False
) -> None:
    """Download the published files of a dataset to `root`, except those that exist already.

    Sizes and licence are printed first; with `dry_run` nothing else happens. `address` is a mirror that replaces the
    publisher's address.

    Raises:
        PipelineError: As `fetch` and `unpack`; also if other files are in the way, or the disk is too small.
    """
    publication = PUBLICATIONS[dataset]
    splits = tuple(splits or publication.default_splits)
    if unknown := [split for split in splits if split not in publication.splits]:
        raise PipelineError(f'{dataset}: no split "{unknown[0]}"; it has {", ".join(publication.splits)}')
    base = (address or publication.address).rstrip("/")
    print(f"{dataset}: {base} -> {root}\nlicence: {publication.licence}")
    session = open_session(0 if dry_run else RETRIES)
    files = [file for split in splits for file in publication.splits[split]]
    urls = {file: f"{base}/{file.name}{'' if address else publication.query}" for file in files}
    missing, needed = _list_missing(session, root, urls)
    check_space(root, needed, f"the download of {dataset}")
    if dry_run:
        return
    for file in missing:
        path = root / file.name
        if not path.exists():
            fetch(session, urls[file], path, file.check)
        if path.suffix == ".7z":
            logger.info("unpacking %s", path)
            unpack(path, root / file.split)
    if dataset == "clotho":
        for split in splits:
            _check_clips(root, split)
    print(f"done; {publication.remark}")


def _list_missing(session: requests.Session, root: Path, urls: Mapping[Published, str]) -> tuple[list[Published], int]:
    """Print the size of every file; return those to download or to unpack, and the bytes that this needs."""
    missing: list[Published] = []
    to_download, to_unpack, is_known = 0, 0, True
    for file, url in urls.items():
        path = root / file.name
        is_archive = path.suffix == ".7z"
        if is_archive and (folder := _unpacked_folder(root, file)):
            print(f"  {file.name}: already unpacked in {folder}")
            continue
        if path.exists():
            try:
                file.check(path)
            except PipelineError as error:
                raise PipelineError(f"{error}; move it away and run the command again") from error
            print(f"  {file.name}: exists already")
            to_unpack += UNPACKED * _size(path) * is_archive
        else:
            size, received = remote_size(session, url), _size(path.with_name(f"{path.name}.part"))
            print(f"  {file.name}: {'size unknown' if size is None else readable(size)}", end="")
            print(f", of which {readable(received)} exist already" if received else "")
            is_known &= size is not None
            to_download += max(0, (size or 0) - received)
            to_unpack += UNPACKED * (size or 0) * is_archive
        if is_archive or not path.exists():
            missing.append(file)
    unpacking = f", and about {readable(to_unpack)} for the unpacked audio" if to_unpack else ""
    print(f"to download: {'' if is_known else 'at least '}{readable(to_download)}{unpacking}", flush=True)
    return missing, to_download + to_unpack


def _check_clips(root: Path, split: str) -> None:
    """Print the number of listed clips of a split; PipelineError unless the adapter finds a file for each."""
    rows = list(ADAPTERS["clotho"](root, split))
    if missing := [row.source_name for row in rows if row.path is None]:
        raise PipelineError(
            f'{root / split}: {len(missing)} of {len(rows)} listed clips have no file, the first "{missing[0]}"; move '
            "the folder away and run the command again"
        )
    print(f"  {split}: all {len(rows):,} listed clips have a file")
