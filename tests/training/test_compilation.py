"""Training with the audio encoder compiled: the same steps but for rounding, resumable to the bit, files as without."""

from __future__ import annotations

import re
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from test_training import arguments, assert_same_weights, finish, launch, stopped_in_step

from pipeline.models import mini, save_model
from pipeline.stages import train
from pipeline.training.trainer import Trainer


@pytest.fixture
def two_blocks(tmp_path, monkeypatch):
    """A mini whose HTS-AT has two of its six blocks, for which g++ takes a third of the time."""
    whole = mini.HTSAT_Swin_Transformer
    few = {"depths": [2], "num_heads": [2]}
    monkeypatch.setattr(mini, "HTSAT_Swin_Transformer", lambda **sizes: whole(**{**sizes, **few}))
    # Of its own: a kill leaves damaged kernels in the one that all processes of a machine share.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    torch.manual_seed(0)
    save_model(mini.build(mini.byte_tokenizer()), tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.mark.slow  # g++ compiles the kernels of forward and backward pass
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_a_compiled_training_takes_the_steps_of_a_plain_one_and_goes_on_to_the_bit(
    tiny_study, two_blocks, tmp_path, monkeypatch
):
    """With SpecAugment, DropPath and dropout, which hit the same values."""
    flags = ["--encoder-regularisation", f"--pretrained={two_blocks}"]
    train.main(arguments(tiny_study, tmp_path / "plain", "finetune", *flags))
    train.main(arguments(tiny_study, tmp_path / "compiled", "finetune", *flags, "--compile=1"))
    plain, compiled = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    assert not all(torch.equal(plain[name], compiled[name]) for name in plain), "nothing was compiled"
    logs = [
        torch.tensor(pq.read_table(tmp_path / name / "training.parquet")["loss"].to_pylist())
        for name in ("plain", "compiled")
    ]
    torch.testing.assert_close(logs[1], logs[0], rtol=1e-4, atol=1e-4)

    monkeypatch.setattr(Trainer, "take_step", stopped_in_step(2))
    with pytest.raises(SystemExit):
        train.main(arguments(tiny_study, tmp_path / "stopped", "finetune", *flags, "--compile=1"))
    torch.compiler.reset()  # as a process of its own would begin
    train.main(arguments(tiny_study, tmp_path / "stopped", "finetune", *flags, "--compile=1"))
    assert_same_weights(tmp_path / "compiled", tmp_path / "stopped")


@pytest.mark.slow  # torch traces the model before it asks for the compiler
def test_a_missing_compiler_is_named(tiny_study, tmp_path):
    words = ["-m", "pipeline.stages.train", *arguments(tiny_study, tmp_path / "run", "finetune", "--compile=1")]
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    output = finish(launch(words, fresh=True, CXX="no-such-compiler", **caches), 1)
    message = r"needs a C\+\+ compiler \(g\+\+\): install it, .*no-such-compiler"
    assert re.search(message, output.splitlines()[-1])
