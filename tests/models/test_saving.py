"""Models on disk: what is saved is what is loaded, and a folder that is not whole is named."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.files import read_json, write_json
from pipeline.models import load_model, mini, save_model
from pipeline.models.clap import ClapModel
from pipeline.models.tokenization import END_OF_TEXT, read_tokenizer
from tests.forks import run_python

from .conftest import CAPTIONS


def test_saved_model_loads_to_the_bit(small: ClapModel, samples: Tensor, tmp_path: Path) -> None:
    small.set_training_mode(batch_norm="batch")
    small.encode_audio(samples)  # so that BatchNorm's statistics are not those of a new model
    save_model(small.eval(), tmp_path)
    loaded = load_model(tmp_path)
    assert not loaded.training and loaded.backbone == "mini"
    assert loaded.state_dict().keys() == small.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in small.state_dict().items())
    assert torch.equal(loaded.encode_audio(samples), small.encode_audio(samples))
    assert torch.equal(loaded.encode_text(CAPTIONS), small.encode_text(CAPTIONS))


DECODER = {"kind": "decoder", "layers": 3, "heads": 4, "dropout": 0.25, "tokens": 5}


@pytest.mark.parametrize("sizes", [None, {"hidden_layers": 3, "dropout": 0.25, "tokens": 2}, DECODER])
def test_f_a2t_is_saved_with_its_sizes(tmp_path: Path, sizes: dict | None) -> None:
    model = load_model("mini")
    if sizes is not None:
        model.add_a2t(**sizes)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path).a2t
    if sizes is None:
        assert loaded is None
    else:
        assert loaded is not None
        assert loaded.arguments() == sizes
        assert loaded.state_dict().keys() == model.a2t.state_dict().keys()


def test_f_a2t_saved_without_a_number_of_tokens_gives_one(small: ClapModel, tmp_path: Path) -> None:
    save_model(small, tmp_path)
    settings = read_json(tmp_path / "model.json")
    del settings["a2t"]["tokens"]  # as older versions wrote it
    (tmp_path / "model.json").write_text(json.dumps(settings))
    loaded = load_model(tmp_path).a2t
    assert loaded is not None and loaded.tokens == 1


def test_how_a_model_hears_a_file_is_saved_and_known_without_an_entry(small: ClapModel, tmp_path: Path) -> None:
    small.short_clips, small.channels = "pad", "first"
    save_model(small, tmp_path)
    loaded, new = load_model(tmp_path), load_model("mini")
    assert (loaded.short_clips, loaded.channels) == ("pad", "first")
    settings = read_json(tmp_path / "model.json")
    del settings["short_clips"], settings["channels"]  # as older versions wrote it
    (tmp_path / "model.json").write_text(json.dumps(settings))
    older = load_model(tmp_path)
    assert (older.short_clips, older.channels) == (new.short_clips, new.channels) == ("repeat", "mean")


def test_equal_models_give_equal_files(small: ClapModel, tmp_path: Path) -> None:
    save_model(small, tmp_path / "a")
    save_model(load_model(tmp_path / "a"), tmp_path / "b")
    for name in ("model.safetensors", "model.json", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "tokenizer.json"])
def test_missing_file_is_named(small: ClapModel, tmp_path: Path, name: str) -> None:
    save_model(small, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(PipelineError, match=rf"{tmp_path}/{name}: no such file"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "tokenizer.json"])
def test_file_cut_in_half_is_named(small: ClapModel, tmp_path: Path, name: str) -> None:
    save_model(small, tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(PipelineError, match=rf"{tmp_path}/{name}: "):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_version", 2),
        ("backbone", "laion"),
        ("a2t", {"width": 3}),
        ("a2t", [1]),
        ("a2t", {"kind": "lstm", "dropout": 0.1}),
        ("short_clips", "zeros"),
        ("channels", 2),
    ],
)
def test_description_of_another_version_is_refused(small: ClapModel, tmp_path: Path, key: str, value: object) -> None:
    save_model(small, tmp_path)
    settings = read_json(tmp_path / "model.json")
    (tmp_path / "model.json").write_text(json.dumps({**settings, key: value}))
    with pytest.raises(PipelineError, match=rf"{tmp_path}/model\.json: "):
        load_model(tmp_path)


def test_weights_of_another_vocabulary_are_refused(small: ClapModel, tmp_path: Path) -> None:
    save_model(small, tmp_path)
    mini.byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    description = read_json(tmp_path / "model.json")
    del description["files_sha256"]  # as of models of earlier versions
    write_json(description, tmp_path / "model.json")
    with pytest.raises(PipelineError, match=r"of another shape: caption_encoder\.base\.wte\.weight \(\d+, 128\)"):
        load_model(tmp_path)


def test_name_that_is_neither_backbone_nor_folder_lists_the_backbones(tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"nano/model\.json: no such file.*mini, msclap-2022, msclap-2023, laion-clap"
    ):
        load_model(tmp_path / "nano")


def test_weights_beside_a_model_that_has_its_own_are_refused(small: ClapModel, tmp_path: Path) -> None:
    save_model(small, tmp_path)
    with pytest.raises(PipelineError, match="has its own weights and tokenizer"):
        load_model(tmp_path, weights=tmp_path / "model.safetensors")
    with pytest.raises(PipelineError, match="no pretrained weights"):
        load_model("mini", weights=tmp_path / "model.safetensors")


def test_byte_tokenizer_reads_any_text() -> None:
    tokenizer = mini.byte_tokenizer()
    text = "Chuck-will's-widow — ぱちぱち 🔥"
    ids = tokenizer.encode(f"{text} {END_OF_TEXT}").ids
    assert len(ids) == len(text.encode()) + 2
    assert tokenizer.decode(ids) == f"{text} "


def test_trained_tokenizer_is_the_same_every_time_and_shorter_than_bytes() -> None:
    scenes = itertools.product(("dog", "cat", "bird"), ("barks", "sings"), ("river", "road", "house"))
    captions = [f"a {animal} {verb} near the {place}" for animal, verb, place in scenes]
    learnt = {mini.train_tokenizer(order, 300).to_str() for order in (captions, captions[::-1]) for _ in range(3)}
    assert len(learnt) == 1
    tokenizer = mini.train_tokenizer(captions, 300)
    assert 257 < tokenizer.get_vocab_size() <= 300
    assert len(tokenizer.encode(captions[0]).ids) < len(mini.byte_tokenizer().encode(captions[0]).ids) / 2
    assert tokenizer.decode(tokenizer.encode("an unseen 猫").ids) == "an unseen 猫"


def test_trained_tokenizer_is_taken_for_the_mini(tmp_path: Path) -> None:
    mini.train_tokenizer(CAPTIONS, 280).save(str(tmp_path / "tokenizer.json"))
    model = load_model("mini", tokenizer=tmp_path)
    assert model.tokenizer.to_str() == read_tokenizer(tmp_path).to_str()
    assert len(model.caption_encoder.base.wte.weight) == model.tokenizer.get_vocab_size()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable tokenizer"),
        (None, "no tokenizer found; expected a folder with tokenizer.json or vocab.json"),
    ],
)
def test_unusable_tokenizer_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(PipelineError, match=message):
        load_model("mini", tokenizer=tmp_path)


def test_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PipelineError, match=r"tokenizer\.json: the tokenizer has no <\|endoftext\|>"):
        load_model("mini", tokenizer=tmp_path)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, pipeline.models, pipeline.stages.import_weights; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


WARNS_AFTER_THE_IMPORT = """
import sys, warnings

for name in [name for name in sys.modules if name.split(".")[0] == "msclap"]:
    del sys.modules[name]  # this process may be a fork of one that has it, which turns warnings off
import pipeline.models.msclap2023, pipeline.models.mini

with warnings.catch_warnings(record=True) as seen:
    warnings.warn("still here")
print(len(seen))
"""


def test_importing_the_models_leaves_warnings_on() -> None:
    assert run_python("-c", WARNS_AFTER_THE_IMPORT).stdout == "1\n"
