"""Downloads give the publisher's bytes or an error that names the reason, even with a misbehaving server."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import py7zr
import pytest
import soundfile

from pipeline.__main__ import main
from pipeline.data import downloads
from pipeline.data.adapters.clotho import read_clotho
from pipeline.data.downloads import PUBLICATIONS, clotho_splits, download, fetch, open_session, unpack
from pipeline.errors import PipelineError

DATA = np.random.default_rng(0).bytes(700_000)
MD5 = hashlib.md5(DATA).hexdigest()
WILD_NAMES = [
    "Chuck-will&#39;s-widow.wav", "121006_rain&amp;storm.wav", "Rain .wav", "two  spaces.wav", "pr#6F9A9E.wav",
    "_Stream 2 at Krka falls.wav", "2.5 kHz. Tone.wav", "Train 1.wav", "train-1.wav", "Ölpumpe.wav",
]  # fmt: skip


class Publisher(ThreadingHTTPServer):
    """A real HTTP server with byte ranges, which misbehaves as scripted per file."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.scripts: dict[str, list[str]] = defaultdict(list)
        self.head_status = 200
        self.requests: list[tuple[str, str, str | None, int]] = []
        """Method, name, Range and status of every answer."""
        self.address = f"http://127.0.0.1:{self.server_port}"

    def gets(self, name: str) -> list[tuple[str | None, int]]:
        return [(asked, status) for method, path, asked, status in self.requests if (method, path) == ("GET", name)]


class Handler(BaseHTTPRequestHandler):
    server: Publisher

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name, asked = self.path.lstrip("/"), self.headers["Range"]
        script = self.server.scripts[name]
        trick = script.pop(0) if script and self.command == "GET" else ""
        data = self.server.files.get(name)
        status = 404 if data is None else int(trick) if trick.isdigit() else 200
        status = self.server.head_status if self.command == "HEAD" and data is not None else status
        if status != 200:
            self.server.requests.append((self.command, name, asked, status))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        assert data is not None
        if trick == "damage":
            data = data[:-1] + bytes([data[-1] ^ 1])
        etag, start = f'"{hashlib.md5(data).hexdigest()}"', 0
        if asked and trick != "ignore range" and self.headers["If-Range"] in (None, etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(data) else 416
        self.server.requests.append((self.command, name, asked, status))
        self.send_response(status)
        self.send_header("ETag", etag)
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(data)}")
            data = b""
        elif status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        body = data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if trick == "break":
            body = body[: len(body) // 2]
        if trick == "stall":
            self.wfile.write(body[: len(body) // 2])
            time.sleep(60)
        self.wfile.write(body)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher() as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.001)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "file.7z"


def get(publisher: Publisher, path: Path, *script: str, data: bytes = DATA) -> None:
    """Fetch `file.7z` from a server that follows a script, checking it against DATA's md5."""
    publisher.files["file.7z"] = data
    publisher.scripts["file.7z"].extend(script)
    fetch(open_session(downloads.RETRIES), f"{publisher.address}/file.7z", path, downloads._has_md5(MD5))


def assert_whole_and_alone(path: Path) -> None:
    assert path.read_bytes() == DATA
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def offset_of(asked: str) -> int:
    return int(asked.removeprefix("bytes=").removesuffix("-"))


# --- HTTP ------------------------------------------------------------------------------------------------------------


def test_an_interrupted_download_resumes(publisher, path):
    get(publisher, path, "break", "break")
    assert_whole_and_alone(path)
    (_, first), (second_from, second), (third_from, third) = publisher.gets("file.7z")
    assert (first, second, third) == (200, 206, 206)
    assert 250_000 < offset_of(second_from) < 350_000 < offset_of(third_from)  # all but less than a chunk is kept


def test_a_server_that_ignores_ranges_is_read_from_the_start(publisher, path):
    get(publisher, path, "break", "ignore range")
    assert_whole_and_alone(path)
    assert [(asked is not None, status) for asked, status in publisher.gets("file.7z")] == [(False, 200), (True, 200)]


def test_a_file_that_changed_between_attempts_is_read_from_the_start(publisher, path):
    with pytest.raises(PipelineError, match="status 404"):
        get(publisher, path, "break", "404", data=bytes(len(DATA)))
    kept = path.with_name("file.7z.part").stat().st_size
    assert kept > 0
    get(publisher, path)
    assert_whole_and_alone(path)
    assert publisher.gets("file.7z")[-1] == (f"bytes={kept}-", 200)


def test_a_whole_part_is_kept(publisher, path):
    get(publisher, path)
    path.rename(path.with_name("file.7z.part"))
    path.with_name("file.7z.part.etag").write_text(f'"{MD5}"')
    get(publisher, path)
    assert_whole_and_alone(path)
    assert publisher.gets("file.7z")[-1] == ("bytes=700000-", 416)


def test_a_part_without_its_validator_is_not_trusted(publisher, path):
    path.parent.mkdir()
    path.with_name("file.7z.part").write_bytes(b"of something else")
    get(publisher, path)
    assert_whole_and_alone(path)


def test_a_busy_server_is_retried(publisher, path):
    get(publisher, path, "503", "429")
    assert_whole_and_alone(path)
    assert [status for _, status in publisher.gets("file.7z")] == [503, 429, 200]


def test_a_server_that_stays_busy_is_given_up_and_named(publisher, path, monkeypatch):
    monkeypatch.setattr(downloads, "RETRIES", 3)
    with pytest.raises(PipelineError, match=r"file\.7z: status 503 .*gave up, run the command again"):
        get(publisher, path, *["503"] * 10)
    assert len(publisher.gets("file.7z")) == 4
    assert not path.exists()


def test_a_missing_file_is_named_and_not_retried(publisher, path):
    with pytest.raises(PipelineError, match=r"/file\.7z: status 404 Not Found; .*--from"):
        get(publisher, path, "404")
    assert len(publisher.gets("file.7z")) == 1


def test_a_damaged_file_is_named_with_both_checksums_and_removed(publisher, path):
    with pytest.raises(PipelineError, match=rf"/file\.7z: the received file is not .* md5 [0-9a-f]+, .* {MD5}"):
        get(publisher, path, "damage")
    assert list(path.parent.iterdir()) == []
    get(publisher, path)
    assert_whole_and_alone(path)


def test_a_server_that_is_not_there_is_named(path, monkeypatch):
    monkeypatch.setattr(downloads, "RETRIES", 1)
    with pytest.raises(PipelineError, match=r"http://127\.0\.0\.1:9/file\.7z: .*gave up"):
        fetch(open_session(downloads.RETRIES), "http://127.0.0.1:9/file.7z", path, downloads._has_md5(MD5))


# --- lists -----------------------------------------------------------------------------------------------------------


def audiocaps_list(rows: int) -> bytes:
    lines = [f"{row},-yt_{row:07d},{row % 500},a sound of number {row}" for row in range(rows)]
    return "\n".join(["audiocap_id,youtube_id,start_time,caption", *lines, ""]).encode()


def audioset_list(rows: int, stated: int | None = None) -> bytes:
    lines = [f'-a_{row:08d}, {row % 500}.000, {row % 500 + 10}.000, "/m/09x0r,/t/dd00088"' for row in range(rows)]
    head = [
        "# Segments csv created Sun Mar  5 10:54:31 2017",
        f"# num_ytids={stated or rows}, num_segs={stated or rows}, num_unique_labels=527, num_positive_labels=52882",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    return "\n".join([*head, *lines, ""]).encode()


def run_download(*arguments: object) -> None:
    main(["download", *map(str, arguments)])


def test_audiocaps_lists_arrive_where_the_adapter_reads_them(publisher, tmp_path, capsys):
    publisher.files |= {"val.csv": audiocaps_list(2_475), "test.csv": audiocaps_list(4_875)}
    run_download("audiocaps", "--to", tmp_path, "--splits", "val", "test", "--from", publisher.address)
    assert (tmp_path / "val.csv").read_bytes() == publisher.files["val.csv"]
    printed = capsys.readouterr().out
    assert "licence: lists: MIT" in printed
    assert "put them into train/, val/ and test/" in printed
    asked = len(publisher.requests)
    run_download("audiocaps", "--to", tmp_path, "--splits", "val", "test", "--from", publisher.address)
    assert len(publisher.requests) == asked  # whole already: no request
    (tmp_path / "val.csv").write_bytes(audiocaps_list(5))
    with pytest.raises(PipelineError, match=r"val\.csv: 5 rows, AudioCaps version 1 has 2,475; move it away"):
        run_download("audiocaps", "--to", tmp_path, "--splits", "val", "--from", publisher.address)


def test_a_list_of_another_version_is_refused(publisher, tmp_path):
    publisher.files["train.csv"] = audiocaps_list(91_256)
    with pytest.raises(PipelineError, match=r"91,256 rows, AudioCaps version 1 has 49,838"):
        run_download("audiocaps", "--to", tmp_path, "--splits", "train", "--from", publisher.address)
    publisher.files["train.csv"] = b"<html>at the moment we are closed</html>"
    with pytest.raises(PipelineError, match=r"train\.csv.*no column audiocap_id, youtube_id"):
        run_download("audiocaps", "--to", tmp_path, "--splits", "train", "--from", publisher.address)
    assert list(tmp_path.iterdir()) == []


def test_audioset_lists_must_have_the_rows_that_they_state(publisher, tmp_path):
    publisher.files["balanced_train_segments.csv"] = audioset_list(22_160)
    publisher.files["unbalanced_train_segments.csv"] = audioset_list(50, stated=60)
    run_download("audioset", "--to", tmp_path, "--from", publisher.address)
    assert [file.name for file in tmp_path.iterdir()] == ["balanced_train_segments.csv"]
    with pytest.raises(PipelineError, match="50 rows, AudioSet's list has 60"):
        run_download("audioset", "--to", tmp_path, "--splits", "unbalanced_train", "--from", publisher.address)


def test_killed_and_run_again_gives_the_same_file(publisher, tmp_path):
    publisher.files["train.csv"] = audiocaps_list(49_838)
    publisher.scripts["train.csv"].append("stall")
    command = [sys.executable, "-m", "pipeline", "download", "audiocaps", "--to", str(tmp_path), "--splits", "train"]
    command += ["--from", publisher.address]
    part = tmp_path / "train.csv.part"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 0 < part.stat().st_size < len(publisher.files["train.csv"])
    assert not (tmp_path / "train.csv").exists()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert "exist already" in finished.stdout
    assert publisher.gets("train.csv")[-1][1] == 206
    assert [file.name for file in tmp_path.iterdir()] == ["train.csv"]
    assert (tmp_path / "train.csv").read_bytes() == publisher.files["train.csv"]


def test_a_folder_that_cannot_be_made_and_an_address_of_no_server_are_refused(publisher, tmp_path):
    (tmp_path / "file").touch()
    publisher.files["val.csv"] = b"a list"
    with pytest.raises(PipelineError, match=r"file/data/val\.csv\.part: cannot be written \(Not a directory\)"):
        download("audiocaps", tmp_path / "file" / "data", splits=["val"], address=publisher.address)
    for address in ("example.org/lists", "ftp://example.org/lists"):
        with pytest.raises(PipelineError, match=rf"{address}/val\.csv: is not a web address; give one that"):
            download("audiocaps", tmp_path, splits=["val"], address=address)


def test_an_unknown_split_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(PipelineError, match='audiocaps: no split "validation"; it has train, val, test'):
        run_download("audiocaps", "--to", tmp_path, "--splits", "validation")


# --- Clotho ----------------------------------------------------------------------------------------------------------


def wav(seed: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(seed).normal(0, 0.1, 800), 16_000, format="WAV")
    return buffer.getvalue()


def archive_of(names: list[str], *, folder: str = "development/") -> bytes:
    buffer = io.BytesIO()
    with py7zr.SevenZipFile(buffer, "w") as archive:
        for seed, name in enumerate(names):
            archive.writestr(wav(seed), f"{folder}{name}")
    return buffer.getvalue()


@pytest.fixture
def clotho(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """A publisher of one split of Clotho with names as wild as Clotho's."""
    captions = "".join(f'"{name}",one,two,three,four,five\n' for name in WILD_NAMES)
    metadata = "".join(f'"{name}",rain;storm,{number}\n' for number, name in enumerate(WILD_NAMES))
    header = ",".join(["file_name", *(f"caption_{number}" for number in range(1, 6))])
    files = {
        "clotho_audio_development.7z": archive_of(WILD_NAMES),
        "clotho_captions_development.csv": f"{header}\n{captions}".encode(),
        "clotho_metadata_development.csv": f"file_name,keywords,sound_id\n{metadata}".encode("iso-8859-1"),
    }
    publisher.files |= files
    md5 = {"development": tuple(hashlib.md5(data).hexdigest() for data in files.values())}
    changed = dataclasses.replace(
        PUBLICATIONS["clotho"], splits=clotho_splits(md5), default_splits=("development",), address=publisher.address
    )
    monkeypatch.setitem(PUBLICATIONS, "clotho", dataclasses.replace(changed, query=""))
    return publisher


def test_clotho_arrives_as_its_adapter_reads_it(clotho, tmp_path, capsys):
    run_download("clotho", "--to", tmp_path)
    rows = list(read_clotho(tmp_path, "development"))
    assert [row.source_name for row in rows] == WILD_NAMES
    assert [Path(row.path).read_bytes() for row in rows] == [wav(seed) for seed in range(len(WILD_NAMES))]
    assert [row.source_id for row in rows] == [str(number) for number in range(len(WILD_NAMES))]
    printed = capsys.readouterr().out
    assert printed.index("licence: captions: Tampere") < printed.index("to download") < printed.index("listed clips")
    assert f"all {len(WILD_NAMES)} listed clips have a file" in printed


def test_what_is_complete_is_neither_fetched_nor_unpacked_again(clotho, tmp_path):
    run_download("clotho", "--to", tmp_path)
    (tmp_path / "clotho_audio_development.7z").unlink()
    asked, before = len(clotho.requests), {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run_download("clotho", "--to", tmp_path)
    assert len(clotho.requests) == asked
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_killed_unpacking_starts_again(clotho, tmp_path):
    half = tmp_path / ".development.unpacking" / "development"
    half.mkdir(parents=True)
    (half / "left over.wav").write_bytes(b"half")
    run_download("clotho", "--to", tmp_path)
    assert sorted(path.name for path in (tmp_path / "development").iterdir()) == sorted(WILD_NAMES)
    assert not half.exists()


def test_clips_missing_from_an_unpacked_folder_are_counted(clotho, tmp_path):
    run_download("clotho", "--to", tmp_path)
    (tmp_path / "development" / "Rain .wav").unlink()
    with pytest.raises(PipelineError, match=r'1 of 10 listed clips have no file, the first "Rain \.wav"; move'):
        run_download("clotho", "--to", tmp_path)


def test_dry_run_prints_sizes_and_writes_nothing(clotho, tmp_path, capsys):
    run_download("clotho", "--to", tmp_path / "new", "--dry-run")
    size = len(clotho.files["clotho_audio_development.7z"]) / 1000
    printed = capsys.readouterr().out
    assert f"clotho_audio_development.7z: {size:.1f} kB" in printed
    assert "licence: captions: Tampere University's (non-commercial" in printed
    assert not (tmp_path / "new").exists()
    assert {method for method, *_ in clotho.requests} == {"HEAD"}


def test_dry_run_does_not_retry_a_busy_server(clotho, tmp_path):
    clotho.head_status = 503
    with pytest.raises(PipelineError, match=r"clotho_captions_development\.csv: status 503 .*; gave up"):
        run_download("clotho", "--to", tmp_path, "--dry-run")
    assert len(clotho.requests) == 1


def test_dry_run_without_a_network_tries_once(tmp_path, caplog):
    with pytest.raises(PipelineError, match=r"http://127\.0\.0\.1:9/val\.csv: .*refused; gave up"):
        download("audiocaps", tmp_path, splits=["val"], address="http://127.0.0.1:9", dry_run=True)
    assert not caplog.records  # urllib3 logs each retry


def test_a_disk_that_is_too_small_is_found_before_anything_is_fetched(clotho, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "UNPACKED", 10**15)
    with pytest.raises(PipelineError, match=r"the download of clotho needs [\d.]+ GB, .* are free; make room"):
        run_download("clotho", "--to", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_published_checksums_are_those_of_three_splits():
    splits = PUBLICATIONS["clotho"].splits
    assert list(splits) == ["development", "validation", "evaluation"]
    assert len({md5 for md5s in downloads.CLOTHO_MD5.values() for md5 in md5s}) == 9
    names = {file.name for files in splits.values() for file in files}
    assert names == {f"clotho_audio_{split}.7z" for split in splits} | {
        f"clotho_{kind}_{split}.csv" for kind in ("captions", "metadata") for split in splits
    }


def renamed(archive: bytes, old: str, new: str) -> bytes:
    """A 7z archive with plain header whose entry has another name of the same length, checksums put right."""
    changed = archive.replace(old.encode("utf-16-le"), new.encode("utf-16-le"))
    assert changed != archive and len(old) == len(new)
    offset, size = struct.unpack("<QQ", changed[12:28])
    header = changed[32 + offset : 32 + offset + size]
    start = struct.pack("<QQI", offset, size, zlib.crc32(header))
    return changed[:8] + struct.pack("<I", zlib.crc32(start)) + start + changed[32:]


@pytest.mark.parametrize("name", ["/tmp/outside.wav", "../../outsid.wav"])
def test_an_entry_that_leaves_its_folder_is_refused_before_anything_is_written(tmp_path, name):
    buffer = io.BytesIO()
    with py7zr.SevenZipFile(buffer, "w") as archive:
        archive.set_encoded_header_mode(False)
        archive.writestr(wav(0), "abcdefghijkl.wav")
    folder = tmp_path / "inner" / "root"
    folder.mkdir(parents=True)
    (folder / "bad.7z").write_bytes(renamed(buffer.getvalue(), "abcdefghijkl.wav", name))
    with pytest.raises(PipelineError, match=r'bad\.7z: entry ".*outsid.*" leads out of the folder'):
        unpack(folder / "bad.7z", folder / "development")
    assert [path.name for path in tmp_path.rglob("*.wav")] == []


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.wav", "real.wav"])
def test_a_link_in_an_archive_is_refused_before_anything_is_written(tmp_path, target):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "outside.wav").write_bytes(wav(1))
    (inside / "real.wav").write_bytes(wav(0))
    (inside / "link.wav").symlink_to(target)
    root = tmp_path / "root"
    root.mkdir()
    with py7zr.SevenZipFile(root / "bad.7z", "w") as archive:
        archive.write(inside / "real.wav", "development/real.wav")
        archive.write(inside / "link.wav", "development/link.wav")
    with pytest.raises(PipelineError, match=r'bad\.7z: entry "development/link\.wav" leads out of the folder'):
        unpack(root / "bad.7z", root / "development")
    assert [path.name for path in root.rglob("*")] == ["bad.7z"]


def test_a_cut_archive_leaves_no_folder(tmp_path):
    (tmp_path / "cut.7z").write_bytes(archive_of(WILD_NAMES)[:-40])
    with pytest.raises(PipelineError, match=r"cut\.7z: cannot be unpacked"):
        unpack(tmp_path / "cut.7z", tmp_path / "development")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.7z"]


@pytest.mark.parametrize("inner", ["", "clotho_audio_development/", "a/b/"])
def test_audio_is_unpacked_into_the_split_for_any_folder_in_the_archive(tmp_path, inner):
    (tmp_path / "archive.7z").write_bytes(archive_of(["one.wav", "two.wav"], folder=inner))
    unpack(tmp_path / "archive.7z", tmp_path / "development")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["archive.7z", "development", "one.wav", "two.wav"]


def test_a_folder_in_the_way_is_not_replaced(clotho, tmp_path):
    (tmp_path / "development").mkdir()
    (tmp_path / "development" / "mine.wav").write_bytes(b"mine")
    with pytest.raises(PipelineError, match="listed clips have no file"):
        download("clotho", tmp_path)
    assert (tmp_path / "development" / "mine.wav").read_bytes() == b"mine"
