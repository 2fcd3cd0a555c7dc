"""Files that cannot be written, and what killed processes leave behind."""

from __future__ import annotations

import errno
import http.server
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import py7zr
import pyarrow as pa
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from pipeline.data.downloads import fetch, open_session, unpack
from pipeline.errors import PipelineError, crash_message, read_error_message
from pipeline.files import sha256_of, write_atomically, write_json
from pipeline.training.distributed import Processes
from pipeline.training.monitor import Monitor
from pipeline.training.outputs import lock_folder
from tests.forks import run_python

ROOT = Path(__file__).parents[1]
RECORDINGS = ROOT / "data" / "recordings"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, full to the last byte because of the file `filler`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a file system needs root")
    try:
        fill(disk)
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


def shard_audio(study: Path, out: Path) -> list[str]:
    catalog = study / "catalogs" / "labeled" / "train.parquet"
    plan = ["--plan", str(catalog.with_suffix(".shards.parquet")), "--part", "0-of-1"]
    outputs = ["--shards", str(out), "--done", str(out / "part.json")]
    return ["--catalog", str(catalog), *plan, "--sample-rate-hz", "16000", "--format", "wav", *outputs]


def index_audio(study: Path, out: Path) -> list[str]:
    source = ["--dataset", "labeled", "--split", "train", "--adapter", "folder", "--root", str(study / "raw/labeled")]
    outputs = ["--catalog", str(out / "train.parquet"), "--plan", str(out / "train.shards.parquet")]
    return [*source, "--labeled", "--clips-per-shard", "20", *outputs]


def index_shards(study: Path, out: Path) -> list[str]:
    plan, shards = study / "catalogs/labeled/train.shards.parquet", study / "shards/labeled/train"
    return ["--plan", str(plan), "--shards", str(shards), *manifest_files(out)]


def manifest_files(out: Path) -> list[str]:
    names = {"manifest": "manifest.parquet", "summary": "manifest.json", "identities": "identities.parquet"}
    return [word for flag, name in names.items() for word in (f"--{flag}", str(out / name))]


def pair_clips(study: Path, out: Path) -> list[str]:
    manifests = [str(study / "shards" / dataset / "train/manifest.parquet") for dataset in ("labeled", "unlabeled")]
    plan = ["--backbone", "mini", "--epochs", "2", "--batch-size", "8", "--seed", "0"]
    outputs = ["--pairs", str(out / "pairs.parquet"), "--leaked", str(out / "leaked.parquet")]
    return ["--labeled", manifests[0], "--unlabeled", manifests[1], *plan, *outputs]


def stage_shards(study: Path, out: Path) -> list[str]:
    return ["--address", str(study / "shards/labeled/train"), *manifest_files(out)]


def find_near_duplicates(study: Path, out: Path) -> list[str]:
    splits = ["--shards", str(study / "shards/labeled/train"), "--held-out", str(study / "shards/unlabeled/train")]
    return [*splits, "--report", str(out / "report.json")]


def mix_soundscapes(study: Path, out: Path) -> list[str]:
    settings = ["--dataset", "general", "--scale", "0.005"]
    return ["--recordings", str(RECORDINGS), *settings, "--out", str(out / "general")]


STAGES = [index_audio, shard_audio, index_shards, pair_clips, stage_shards, find_near_duplicates, mix_soundscapes]


def run_stage(stage: Callable[[Path, Path], list[str]], study: Path, out: Path, **options: object):
    return run_python("-m", f"pipeline.stages.{stage.__name__}", *stage(study, out), cwd=ROOT, **options)


def checksums(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def assert_one_line(finished: subprocess.CompletedProcess[str], stage: str, *words: str) -> None:
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert last.startswith(f"{stage}: ")
    for word in words:
        assert word in last


@pytest.mark.parametrize("stage", STAGES)
def test_full_disk_is_one_line_and_room_gives_the_same_bytes(stage, tiny_study, small_disk, tmp_path):
    assert run_stage(stage, tiny_study.folder, tmp_path / "elsewhere").returncode == 0
    expected = checksums(tmp_path / "elsewhere")
    out = small_disk / "out"
    finished = run_stage(stage, tiny_study.folder, out)
    assert_one_line(finished, stage.__name__, str(out), "No space left on device", "run the same command again")
    assert not checksums(out)
    (small_disk / "filler").unlink()
    assert run_stage(stage, tiny_study.folder, out).returncode == 0
    assert checksums(out) == expected


@pytest.mark.parametrize("stage", STAGES)
def test_limit_on_the_size_of_files_is_one_line(stage, tiny_study, tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    out = tmp_path / "out"
    finished = run_stage(stage, tiny_study.folder, out, preexec_fn=limit, env=environment)
    assert_one_line(finished, stage.__name__, str(out), "File too large", "run the same command again")
    assert not checksums(out)


def test_read_only_folder_is_one_line(tiny_study, tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    finished = run_stage(index_audio, tiny_study.folder, small_disk)
    assert_one_line(finished, "index_audio", f"{small_disk}/train.parquet", "Read-only file system")


def test_file_in_place_of_the_folder_is_one_line(tiny_study, tmp_path):
    (tmp_path / "file").touch()
    finished = run_stage(index_audio, tiny_study.folder, tmp_path / "file")
    assert_one_line(finished, "index_audio", "file/train.parquet: cannot be written", "check the path")


def test_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(PipelineError, match=r"summary\.json: cannot be written \(Is a directory\)"):
        write_json({}, tmp_path / "summary.json")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


SAMPLES = np.random.default_rng(0).normal(0, 0.1, 8_000_000).astype(np.float32)
WRITERS = {
    "soundfile": lambda path: soundfile.write(path, SAMPLES, 16_000, format="WAV"),
    "torch": lambda path: torch.save(torch.from_numpy(SAMPLES), path),
    "safetensors": lambda path: save_file({"weight": torch.from_numpy(SAMPLES)}, path),
}


@pytest.mark.parametrize("library", WRITERS)
def test_full_disk_is_named_where_a_library_hides_it(library, small_disk):
    (small_disk / "filler").unlink()
    with (
        pytest.raises(PipelineError, match=r"disk/file: cannot be written \(No space left on device\)"),
        write_atomically(small_disk / "file") as temporary,
    ):
        WRITERS[library](temporary)
    assert not list(small_disk.iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_disk_is_named_by_a_training(small_disk):
    with (
        pytest.raises(PipelineError, match=r"run/checkpoints/lock: cannot be written \(No space left on device\)"),
        lock_folder(small_disk / "run"),
    ):
        pass
    processes = Processes(rank=0, count=1, device=torch.device("cpu"))
    monitor = Monitor(small_disk / "run", steps=1, first_step=0, batch_size=1, processes=processes)
    with pytest.raises(PipelineError, match=r"run/tensorboard: cannot be written \(No space left on device\)"):
        monitor.report([{"step": 0, "loss": 1.0}])  # its event files are written by a thread of their own


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a server with an archive of 20 s of noise, archive.7z."""
    (served := tmp_path / "served" / "development").mkdir(parents=True)
    soundfile.write(served / "noise.wav", SAMPLES[:320_000], 16_000, subtype="FLOAT")
    with py7zr.SevenZipFile(served.parent / "archive.7z", "w") as archive:
        archive.writeall(served, "development")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(served.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/archive.7z"
        server.shutdown()
        thread.join()


def test_download_to_a_full_disk_goes_on_once_there_is_room(address, small_disk, tmp_path):
    archive = small_disk / "data" / "archive.7z"
    with (small_disk / "filler").open("rb+") as file:
        file.truncate(7 << 20)  # a megabyte is free, the archive has more

    def download() -> None:
        fetch(open_session(0), address, archive, lambda path: None)

    message = r"archive\.7z\.part: cannot be written \(No space left on device\); make room on the disk, then run the"
    with pytest.raises(PipelineError, match=message):
        download()
    assert archive.with_name("archive.7z.part").stat().st_size > 500_000
    (small_disk / "filler").unlink()
    download()
    assert sha256_of(archive) == sha256_of(tmp_path / "served" / "archive.7z")


def test_failed_unpacking_leaves_nothing(address, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(PipelineError, match=r"development: cannot be written \(File too large\)"):
            unpack(tmp_path / "served" / "archive.7z", tmp_path / "root" / "development")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "root").iterdir())


def test_error_of_another_file_is_not_taken_for_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), write_atomically(tmp_path / "copy") as temporary:
        temporary.write_bytes((tmp_path / "source").read_bytes())


def test_too_little_memory_is_one_line():
    with pytest.raises(MemoryError) as raised:
        np.empty(2**60, np.uint8)
    message = crash_message(raised.value)
    assert message and message.startswith("out of memory (Unable to allocate") and "more memory" in message


def test_lack_of_memory_or_of_files_is_not_taken_for_damage():
    def message(error: Exception) -> str:
        return read_error_message("manifest.parquet", error, "make it again")

    assert message(pa.ArrowMemoryError("realloc failed")).startswith("manifest.parquet: out of memory (realloc failed)")
    assert message(OSError(errno.EMFILE, "")).startswith(
        "manifest.parquet: cannot be read (Too many open files); raise"
    )
    assert message(pa.ArrowInvalid("no footer")) == "manifest.parquet: cannot be read (no footer); make it again"


def test_defects_keep_their_traceback():
    assert crash_message(ZeroDivisionError("division by zero")) is None


# --- killed processes ------------------------------------------------------------------------------------------------


def write_in_a_process(function: str, path: Path, inside: str) -> subprocess.Popen[str]:
    """A process that writes to a path and, once its temporary is there, prints a line and runs `inside`."""
    code = f"""
import os, signal, sys, time
from pathlib import Path
from pipeline.files import {function}
with {function}({str(path)!r}) as temporary:
    (temporary / "file" if temporary.is_dir() else temporary).write_bytes(b"half")
    print(flush=True)
    {inside}
"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("function", ["write_atomically", "make_folder_atomically"])
def test_next_process_removes_what_a_killed_one_left(function, tmp_path):
    killed = write_in_a_process(function, tmp_path / "result", "os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.wait(60) == -signal.SIGKILL
    assert [path.name.startswith(".result.") for path in tmp_path.iterdir()] == [True]
    (tmp_path / ".result.index").touch()  # a user's own
    assert write_in_a_process(function, tmp_path / "result", "pass").wait(60) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".result.index", "result"]


@pytest.mark.parametrize("function", ["write_atomically", "make_folder_atomically"])
def test_temporaries_of_living_processes_stay(function, tmp_path):
    with write_in_a_process(function, tmp_path / "result", "time.sleep(60)") as living:
        assert living.stdout is not None
        living.stdout.readline()
        (temporary,) = tmp_path.iterdir()
        assert write_in_a_process(function, tmp_path / "result", "pass").wait(60) == 0
        assert temporary.exists()
        living.kill()


def test_files_of_other_names_are_not_removed(tmp_path):
    killed = write_in_a_process("write_atomically", tmp_path / "other", "os.kill(os.getpid(), signal.SIGKILL)")
    killed.wait(60)
    assert write_in_a_process("write_atomically", tmp_path / "result", "pass").wait(60) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_written_files_obey_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_json({}, tmp_path / "summary.json")
        with write_atomically(tmp_path / "model.safetensors") as temporary:
            save_file({"weight": torch.zeros(3)}, temporary)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


# --- errors that no stage handles ------------------------------------------------------------------------------------


LITTLE_MEMORY = "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))"


def run_as_stage(statement: str) -> subprocess.CompletedProcess[str]:
    code = f"from pipeline.stages import run\ndef main(argv):\n    {statement}\nrun(main)"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("open('no\\nwhere')", "no\\nwhere: No such file or directory; check the path, then run"),
        ("open('/proc/self/mem').read()", "Input/output error; check that the disk is present and undamaged, then run"),
        ("raise MemoryError('std::bad_alloc')", "out of memory (std::bad_alloc); give the command more memory, then"),
        ("import pyarrow; raise pyarrow.ArrowMemoryError('realloc of size 512')", "out of memory (realloc of"),
        ("import torch; torch.empty(2**59)", "out of memory ([enforce fail at alloc_cpu"),
        (f"{LITTLE_MEMORY}; import torch", "out of memory (libtorch"),
    ],
)  # fmt: skip
def test_errors_of_files_and_memory_are_one_line(statement, line):
    finished = run_as_stage(statement)
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"-c: {line}"), finished.stderr
    assert finished.stderr.count("\n") == 1


def test_defects_of_a_stage_keep_their_traceback():
    finished = run_as_stage("{}['key']")
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr and finished.stderr.endswith("KeyError: 'key'\n")
