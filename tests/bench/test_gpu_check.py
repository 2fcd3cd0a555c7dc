"""The GPU check's report of working and failed parts; no test asserts its measurements."""

import pytest
import torch

from bench.gpu_check import PARTS, PartFailed, command, main, report_lines


def test_a_failed_command_is_reported_with_its_last_line(tmp_path):
    words = ["-c", "print('one'); print('two'); raise SystemExit(3)"]
    with pytest.raises(PartFailed, match=r"exit status 3; see part\.log: two"):
        command(words, tmp_path / "part.log", 60)
    assert (tmp_path / "part.log").read_text() == "one\ntwo\n"


def test_a_command_that_hangs_is_ended(tmp_path):
    with pytest.raises(PartFailed, match="not done after 1 s"):
        command(["-c", "import time; time.sleep(60)"], tmp_path / "part.log", 1)


def test_the_report_names_what_failed():
    parts = {"tests": {"failed": "exit status 1"}, "step": {"largest_relative_difference": 0.00016638}}
    text = "\n".join(report_lines({"machine": {"hardware": "a card"}, "seconds": 9.0, "study_s": 1.0, "parts": parts}))
    assert "- hardware: a card" in text
    assert "## tests\n\n**Failed**: exit status 1" in text
    assert "- largest_relative_difference: 0.0001664" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_the_script_itself_can_be_tried(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "out"), "--only", PARTS[0]])
    assert "--device cpu --tiny tries the script" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
