"""The commands end with one line and a status, and refuse paths that they cannot use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from audio_files import assert_refused, index_arguments, make_catalog, make_shards, run_stage, write_folder
from outputs import flip, refused, verified

from pipeline.stages import index_shards
from tests.forks import run_python


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "pipeline", *arguments)


def test_the_command_exits_with_0_or_with_1_and_one_line(split: Path) -> None:
    finished = command("verify", split)
    assert (finished.returncode, finished.stderr) == (0, "") and finished.stdout.count("\n") == 1
    flip(split / "00000.tar", 2000)
    finished = command("verify", split)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"python -m pipeline: {split}: 1 of 2 shards and 1 of 48 members damaged")
    assert finished.stderr.count("\n") == 1


def test_a_message_is_one_line_for_any_file_name(tmp_path: Path) -> None:
    folder = tmp_path / "-a\n'b\" \x1b[2J\udcff"
    finished = command("inspect", f"{folder}")
    assert finished.returncode == 1 and finished.stdout == ""
    assert finished.stderr.startswith(f"python -m pipeline: {tmp_path}/-a\\n'b\" \\x1b[2J\\udcff: not found; give ")
    assert finished.stderr.count("\n") == 1
    write_folder(raw := tmp_path / "raw", clips=2)
    shards = make_shards(make_catalog(raw, tmp_path / "catalog.parquet"), tmp_path / "a\n\x1b[2J", 2)
    for verb in ("verify", "inspect"):
        assert f"{tmp_path}/a\\n\\x1b[2J" in command(verb, shards).stdout.splitlines()[0]
    assert_refused(
        run_stage("index_audio", ["--dataset", "d", "--split", "s", "--adapter", "folder", "--root", str(folder)]
                  + ["--labeled", "--catalog", str(tmp_path / "catalog.parquet")]
                  + ["--clips-per-shard", "9", "--plan", str(tmp_path / "catalog.shards.parquet")]),
        "index_audio", r"-a\n'b",
    )  # fmt: skip


def test_a_training_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "a run whose training has not ended; logs/train/" in refused("inspect", tmp_path / "run")


def test_other_paths_are_refused_with_their_contents(tiny_study, tmp_path: Path) -> None:
    (tmp_path / "text.csv").write_text("file_name,caption\n")
    (tmp_path / "empty").touch()
    (tmp_path / "other.json").write_text('{"sky": "blue"}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "nothing").mkdir()
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "other.parquet")
    rows = tiny_study.shards / "labeled" / "train" / "00000.parquet"
    for path, found in {
        tmp_path / "absent": "not found",
        tmp_path / "text.csv": "begins with b'file_name,captio', neither Parquet nor JSON",
        tmp_path / "empty": "a file that is empty",
        tmp_path / "list.json": "begins with b'[1]'",
        tmp_path / "other.json": "a JSON file with sky",
        tmp_path / "other.parquet": "a Parquet file with the columns a, b",
        tmp_path / "nothing": "a folder that is empty",
        tiny_study.shards: "a folder that holds labeled, unlabeled",
    }.items():
        for verb in ("inspect", "verify"):
            message = refused(verb, path)
            assert found in message and "give a folder of shards" in message
    assert "the rows of one shard" in refused("inspect", rows)
    assert "a run, which has no checksums" in refused("verify", tiny_study.pretrained)
    assert "a catalog, which has no checksums" in refused(
        "verify", tiny_study.folder / "catalogs/labeled/train.parquet"
    )
    assert "shards, not a pairs file" in refused("listen", rows.parent, "--out", tmp_path / "out")


def test_a_split_made_again_verifies(tiny_study, split: Path, capsys) -> None:
    """The advice in the message helps: the stage's own output is whole."""
    (split / "manifest.json").unlink()
    index_shards.main(index_arguments(tiny_study.folder / "catalogs/labeled/train.parquet", split, 20))
    assert ": ok: " in verified(capsys, split)


def test_no_torch_is_imported(tiny_study) -> None:
    code = "import sys; from pipeline.__main__ import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    line = [sys.executable, "-c", code, "inspect", str(tiny_study.pairs("composed")), "--json"]
    assert subprocess.run(line, capture_output=True, timeout=60).returncode == 0
