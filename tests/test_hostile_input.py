"""Files and names that someone made to do harm are refused with one line."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import yaml

from pipeline.commands import main
from pipeline.errors import PipelineError
from pipeline.models import load_model, mini, save_model
from pipeline.study import Study

ROOT = Path(__file__).parents[1]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(mini.build(mini.train_tokenizer(["a tone hums"], 300)), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("length", [2**63, 2**40, 200_000_000, 0])
def test_a_safetensors_header_of_absurd_length_is_named(saved: Path, length: int) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", length) + weights.read_bytes()[8:])
    for read in (lambda: load_model(saved), lambda: main(["inspect", str(saved)])):
        with pytest.raises(PipelineError, match=r"model\.safetensors: "):
            read()


@pytest.mark.parametrize("name", ["../up", "/abs", "-x", "a b", "$(touch x)", "a\n", "{x}", "\\\\input{x}", "é", ""])
@pytest.mark.parametrize("key", ["datasets", "runs", "tables", "curves"])
def test_a_name_that_is_a_path_or_a_command_is_refused(key: str, name: str) -> None:
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    curve = {"target": "clotho", "against": "labeled_clips", "lines": {"a": ["clotho_finetune"]}}
    config["curves"] = {"kept": curve}
    config[key] = {**config[key], name: next(iter(config[key].values()))}
    with pytest.raises(PipelineError, match=rf"- {key}[.:]"):
        Study.of_config(config)


@pytest.mark.parametrize("name", ["../up", "a/b", "a b", "$(x)", "a\n", "{x}", ""])
def test_a_split_that_is_a_path_or_a_command_is_refused(name: str) -> None:
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    config["datasets"]["clotho"]["splits"]["test"] = name
    with pytest.raises(PipelineError, match=r"datasets\.clotho\.splits\.test"):
        Study.of_config(config)


@pytest.mark.parametrize("name", ["{run}.csv", "<x>.csv"])
def test_an_input_that_snakemake_would_rewrite_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    config["study"]["published"] = str(tmp_path / name)
    with pytest.raises(PipelineError, match=r"study\.published: .* which Snakemake replaces in its inputs; rename it"):
        Study.of_config(config)
