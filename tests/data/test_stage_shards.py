"""Shards at another address: copied whole and checked, or read by byte range, from real servers and filesystems."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from audio_files import assert_refused, run_stage
from torch.utils.data import DataLoader

from pipeline.__main__ import main
from pipeline.commands.verify import verify
from pipeline.data.shards.format import read_manifest
from pipeline.data.shards.reader import open_shards
from pipeline.data.shards.streaming import stream_clips
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.stages import stage_shards
from pipeline.training.batches import PairedBatches


class Server(http.server.SimpleHTTPRequestHandler):
    """Files over HTTP, by byte range unless told otherwise; notes the paths that it was asked for."""

    ranges = True
    asked: list[str]

    def do_HEAD(self) -> None:
        if not self.redirected():
            super().do_HEAD()

    def redirected(self) -> bool:
        """Answer /moved/PATH with a redirection to /PATH, /loop/ with one to itself, /stolen/ with a local file."""
        _, kind, rest = [*self.path.split("/", 2), ""][:3]
        targets = {"moved": f"/{rest}", "loop": self.path, "stolen": "file:///etc/passwd"}
        if kind not in targets:
            return False
        self.send_response(302)
        self.send_header("Location", targets[kind])
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.redirected():
            return None
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not (found and self.ranges and path.is_file()):
            return super().do_GET()
        data = path.read_bytes()[int(found[1]) : int(found[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {found[1]}-{int(found[1]) + len(data) - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(tiny_study, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_study.shards, tmp_path / "published"))


@pytest.fixture(params=[True])
def server(published: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, list[str]]]:
    """The address of the published shards and the list of what was asked for."""
    asked: list[str] = []
    handler = type("Handler", (Server,), {"ranges": request.param, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(published))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def stage(address: str, folder: Path, *flags: str) -> Path:
    outputs = ["--manifest", str(folder / "manifest.parquet"), "--summary", str(folder / "manifest.json")]
    outputs += ["--identities", str(folder / "identities.parquet")]
    stage_shards.main(["--address", address, *outputs, *flags])
    return folder


def windows(folder: Path) -> np.ndarray:
    reader = open_shards(folder)
    return np.stack([reader.read_window(key, 3, 5_000) for key in reader.keys])


def test_copies_from_a_server_are_whole_and_read_alike(server, published: Path, tmp_path: Path) -> None:
    address, _ = server
    folder = stage(f"{address}/labeled/train", tmp_path / "labeled" / "train")
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in (published / "labeled/train").iterdir() if path.is_file()} - {
        f"{tar.stem}.parquet" for tar in (published / "labeled/train").glob("*.tar")
    }
    for name in names:
        assert (folder / name).read_bytes() == (published / "labeled/train" / name).read_bytes()
    assert ": ok: " in verify(folder, shards=None, quick=False)


def test_a_broken_copy_goes_on_with_what_is_missing(server, tmp_path: Path) -> None:
    address, asked = server
    folder = stage(f"{address}/labeled/train", tmp_path / "copy")
    tars = sorted(folder.glob("*.tar"))
    tars[0].unlink()
    with tars[1].open("rb+") as file:  # a byte of another value, as a disk may give it
        file.seek(2_000)
        file.write(bytes([file.read(1)[0] ^ 1]))
    asked.clear()
    stage(f"{address}/labeled/train", folder)
    assert {Path(path).name for path in asked} == {tars[0].name, tars[1].name, "manifest.json", "manifest.parquet"}
    asked.clear()
    stage(f"{address}/labeled/train", folder)
    assert not any(path.endswith(".tar") for path in asked)


def test_two_processes_may_copy_to_one_folder(server, published: Path, tmp_path: Path) -> None:
    address, _ = server
    jobs = [threading.Thread(target=stage, args=(f"{address}/labeled/train", tmp_path / "copy")) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert np.array_equal(windows(tmp_path / "copy"), windows(published / "labeled/train"))
    assert not list((tmp_path / "copy").glob(".*")), "nothing is left of the copying"


def test_a_damaged_tar_is_named_with_its_checksum_and_not_kept(server, published: Path, tmp_path: Path) -> None:
    address, _ = server
    tar = published / "labeled/train/00000.tar"
    data = bytearray(tar.read_bytes())
    data[5_000] ^= 1
    tar.write_bytes(data)
    expected = read_json(tar.parent / "manifest.json")["shards"][0]["sha256"]
    with pytest.raises(PipelineError, match=rf"{address}/labeled/train/00000.tar: SHA-256 \w+, .* says {expected}"):
        stage(f"{address}/labeled/train", tmp_path / "copy")
    assert not list((tmp_path / "copy").glob("00000.tar")) and not (tmp_path / "copy/manifest.json").exists()


def test_training_batches_are_the_same_read_from_afar(tiny_study, server, tmp_path: Path) -> None:
    address, asked = server
    for name in ("labeled", "unlabeled"):
        folder = stage(f"{address}/{name}/train", tmp_path / name / "train", "--tars", "remote")
        assert not list(folder.glob("*.tar"))
    asked.clear()
    here, there = (PairedBatches(tiny_study.pairs("composed"), shards) for shards in (tiny_study.shards, tmp_path))
    for workers in (0, 2):
        batches = DataLoader(there, batch_size=None, num_workers=workers)
        for one, two in zip((here[step] for step in range(len(here))), batches, strict=True):
            assert one.keys == two.keys and one.captions == two.captions
            assert one.labeled_BS.equal(two.labeled_BS) and one.partner_BS.equal(two.partner_BS)
    assert len(asked) >= 2 * 2 * 48, "a request a window"


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads http with curl")
def test_clips_are_streamed_from_afar_as_from_here(server, published: Path, tmp_path: Path) -> None:
    address, _ = server
    folder = stage(f"{address}/labeled/train", tmp_path / "train", "--tars", "remote")
    here, there = (list(stream_clips(split)) for split in (published / "labeled/train", folder))
    assert len(here) == 24 and [clip["key"] for clip in here] == [clip["key"] for clip in there]
    assert all(np.array_equal(one["samples"], two["samples"]) for one, two in zip(here, there, strict=True))
    tar = published / "labeled/train/00000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(PipelineError, match=rf"{address}/labeled/train/00000\.tar: \d+ bytes, \d+ expected"):
        stream_clips(folder)


def test_tars_that_changed_at_their_address_are_found_before_the_first_step(
    tiny_study, server, published: Path, tmp_path: Path
) -> None:
    address, _ = server
    for name in ("labeled", "unlabeled"):
        stage(f"{address}/{name}/train", tmp_path / name / "train", "--tars", "remote")
    pairs = tiny_study.pairs("composed")
    tar = sorted((published / "unlabeled/train").glob("*.tar"))[-1]
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-512])
    with pytest.raises(
        PipelineError, match=rf"{tar.name}: {len(whole) - 512} bytes, {len(whole)} expected; the file was cut"
    ):
        PairedBatches(pairs, tmp_path)
    tar.unlink()
    with pytest.raises(PipelineError, match=rf"{address}/unlabeled/train/{tar.name}: not found"):
        PairedBatches(pairs, tmp_path)


def verified(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main(["verify", *map(str, arguments)])
    return capsys.readouterr().out


def test_tars_at_an_address_are_verified_there_to_the_byte(
    server, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = server
    place = f"{address}/labeled/train"
    folder = stage(place, tmp_path / "train", "--tars", "remote")
    main(["inspect", str(folder)])
    assert re.search(rf"\n  tars_at +{place}\n", capsys.readouterr().out)
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for path in (folder, place, f"{place}/"):
        asked.clear()
        assert re.match(
            rf"{place}: ok: shards 2, .* \(SHA-256 of all and of each of 24 clips\)", verified(capsys, path)
        )
        assert sum(path.endswith(".tar") for path in asked) == 2, "each tar once"
        asked.clear()
        assert f"{place}: ok: " in verified(capsys, path, "--quick")
        assert not any(path.endswith(".tar") for path in asked)
    row = read_manifest(folder / "manifest.parquet").to_pylist()[9]
    tar = published / "labeled" / "train" / f"{row['shard']}.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: row["pcm_offset"]] + bytes([whole[row["pcm_offset"]] ^ 1]) + whole[row["pcm_offset"] + 1 :])
    named = rf"{place}: 1 of 2 shards and 1 of 48 members damaged; the first: {tar.name}: .*{row['key']}\.wav: SHA-256"
    for path in (folder, place):
        with pytest.raises(PipelineError, match=named):
            verified(capsys, path)
        assert "sizes alone" in verified(capsys, path, "--quick")
    tar.unlink()
    for arguments in ([], ["--quick"]):
        with pytest.raises(PipelineError, match=rf"{place}/{tar.name}: not found"):
            verified(capsys, place, *arguments)
    assert not list(scratch.iterdir()), "nothing that was fetched is left"


def test_a_summary_at_an_address_that_contradicts_its_manifest_is_named_by_the_address(
    server, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, _ = server
    path = published / "labeled/train/manifest.json"
    summary = read_json(path)
    path.write_text(json.dumps(summary | {"rows": 25}))
    with pytest.raises(PipelineError, match=rf"^{address}/labeled/train/manifest.json: rows is 25, .* has 24;"):
        verified(capsys, f"{address}/labeled/train")
    path.write_text(json.dumps(summary | {"shards": [{"shard": "00000"}]}))
    with pytest.raises(
        PipelineError, match=rf"^{address}/labeled/train/manifest.json: has no shards.tar, shards.bytes"
    ):
        verified(capsys, f"{address}/labeled/train")


@pytest.mark.parametrize("server", [False], indirect=True)
def test_a_server_without_byte_ranges_serves_copies_only(server, published: Path, tmp_path: Path) -> None:
    address, _ = server
    with pytest.raises(PipelineError, match=r"\.tar: the server does not support byte ranges .*tars: copy"):
        stage(f"{address}/labeled/train", tmp_path / "remote", "--tars", "remote")
    stage(f"{address}/labeled/train", tmp_path / "copy")
    assert np.array_equal(windows(tmp_path / "copy"), windows(published / "labeled/train"))


def test_other_filesystems_serve_alike(published: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(published / "labeled"), "/shards/labeled", recursive=True)
    expected = windows(published / "labeled/train")
    for number, address in enumerate(["memory://shards/labeled/train", f"{published}/labeled/train"]):
        for tars in ("copy", "remote"):
            folder = stage(address, tmp_path / f"{tars}{number}", "--tars", tars)
            assert np.array_equal(windows(folder), expected), (address, tars)


def test_what_cannot_be_had_is_named(server, published: Path, tmp_path: Path) -> None:
    address, _ = server
    for wrong, words in {
        f"{address}/nowhere": "nowhere/manifest.json: not found; give the address of one split's shards",
        "http://127.0.0.1:1/x": "x/manifest.json: cannot be read",
        "s3://bucket/split": "s3://bucket/split/manifest.json: Install s3fs to access S3",
        "nfs4://x": "Protocol not known: nfs4",
        f"{published}": "manifest.json: not found",
    }.items():
        with pytest.raises(PipelineError, match=re.escape(words)):
            stage(wrong, tmp_path / "copy")
    summary = published / "labeled/train/manifest.json"
    text = json.dumps(read_json(summary))
    summary.write_text(text.replace('"00000.tar"', '"../00000.tar"'))
    with pytest.raises(PipelineError, match=r"'\.\./00000\.tar' is not the name of a shard's tar"):
        stage(f"{address}/labeled/train", tmp_path / "copy")
    outputs = ["--manifest", tmp_path / "copy/manifest.parquet", "--summary", tmp_path / "copy/manifest.json"]
    outputs += ["--identities", tmp_path / "copy/identities.parquet"]
    finished = run_stage("stage_shards", ["--address", f"{address}/nowhere", *outputs])
    assert_refused(finished, "stage_shards", "not found")


# --- hostile addresses -----------------------------------------------------------------------------------------------


def test_an_address_that_redirects_is_followed(server, published: Path, tmp_path: Path) -> None:
    address, _ = server
    expected = windows(published / "labeled/train")
    for tars in ("copy", "remote"):
        folder = stage(f"{address}/moved/labeled/train", tmp_path / tars, "--tars", tars)
        assert np.array_equal(windows(folder), expected)


@pytest.mark.parametrize("kind", ["loop", "stolen"])
def test_an_address_that_redirects_nowhere_is_refused(kind: str, server, tmp_path: Path) -> None:
    address, _ = server
    with pytest.raises(PipelineError, match=rf"{address}/{kind}/labeled/train/manifest\.json: cannot be read"):
        stage(f"{address}/{kind}/labeled/train", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


HOSTILE = {
    "parent": {"shard": "../00000", "tar": "../00000.tar"},
    "absolute": {"shard": "/tmp/00000", "tar": "/tmp/00000.tar"},
    "other name": {"tar": "../../.bashrc"},
    "hidden": {"shard": ".ssh", "tar": ".ssh.tar"},
    "empty": {"shard": "", "tar": ".tar"},
    "newline": {"shard": "00000\n", "tar": "00000\n.tar"},
    "number": {"shard": 7, "tar": "7.tar"},
    "list": {"shard": ["00000"], "tar": ["00000.tar"]},
    "size in words": {"bytes": "many"},
    "checksum of another kind": {"sha256": None},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_shard_entries_that_lead_elsewhere_are_refused(case: str, server, published: Path, tmp_path: Path) -> None:
    address, asked = server
    path = published / "labeled/train/manifest.json"
    summary = read_json(path)
    summary["shards"][0] |= HOSTILE[case]
    path.write_text(json.dumps(summary))
    with pytest.raises(PipelineError, match=rf"^{address}/labeled/train/manifest\.json: .*shard"):
        stage(f"{address}/labeled/train", tmp_path / "inner" / "copy")
    assert [Path(path).name for path in asked] == ["manifest.json"]
    assert not (tmp_path / "inner").exists()


def test_names_that_lead_elsewhere_are_refused_in_a_folder_too(server, tmp_path: Path) -> None:
    address, _ = server
    folder = stage(f"{address}/labeled/train", tmp_path / "train", "--tars", "remote")
    summary = read_json(folder / "manifest.json")
    summary["shards"][0] |= {"shard": "../outside", "tar": "../outside.tar"}
    (folder / "manifest.json").write_text(json.dumps(summary))
    with pytest.raises(PipelineError, match=r"manifest\.json: '\.\./outside\.tar' is not the name of a shard's tar"):
        verify(folder, shards=None, quick=False)


def test_copied_shards_are_read_here_although_the_publisher_reads_them_from_afar(
    server, published: Path, tmp_path: Path
) -> None:
    address, _ = server
    path = published / "labeled/train/manifest.json"
    path.write_text(json.dumps(read_json(path) | {"address": "http://127.0.0.1:1/elsewhere"}))
    folder = stage(f"{address}/labeled/train", tmp_path / "copy")
    assert "address" not in read_json(folder / "manifest.json")
    assert len(windows(folder)) == 24
