"""The full-size model against msclap itself, on the same weights: loaded from a checkpoint, and exported to one.

One file, because the processes that run the tests share no model, and a model of this size takes seconds to build.
"""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import msclap
import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.models import load_model, mini, msclap2023, save_model
from pipeline.models.clap import AudioToText
from pipeline.models.htsat import bicubic, stretched
from pipeline.models.initialization import WithoutInitialization
from pipeline.models.tokenization import read_tokenizer
from pipeline.results.export import export_run
from pipeline.stages import train

from .conftest import FullSize
from .small import CAPTIONS


@pytest.fixture(scope="module")
def hub(full: FullSize) -> Path:
    """A folder with the folder "gpt2", which msclap's own model asks for."""
    shutil.copy(full.tokenizer / "encoder.json", full.gpt2 / "vocab.json")
    shutil.copy(full.tokenizer / "vocab.bpe", full.gpt2 / "merges.txt")
    return full.gpt2.parent


@pytest.fixture(scope="module")
def reference(full: FullSize, hub: Path) -> msclap.CLAP:
    """msclap's own model of the same checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub)
        with WithoutInitialization():
            return msclap.CLAP(model_fp=full.checkpoint, version="2023")


@pytest.fixture(scope="module")
def saved(full: FullSize, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AudioToText]:
    """The folder of the full-size model saved with f_a2t, and that f_a2t."""
    folder = tmp_path_factory.mktemp("saved")
    full.model.add_a2t()
    a2t = full.model.a2t
    assert a2t is not None
    try:
        save_model(full.model, folder)
    finally:
        full.model.a2t = None
    return folder, a2t


@pytest.fixture(scope="module")
def exported(saved: tuple[Path, AudioToText], tiny_study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved model, beside the records of a training, exported."""
    run = tmp_path_factory.mktemp("msclap") / "results" / "runs" / "birds" / "seed0"
    words = ["--pretrained", tiny_study.pretrained, "--pairs", tiny_study.pairs("finetune"), "--shards"]
    train.main(list(map(str, [*words, tiny_study.shards, "--seed", 0, "--out", run])))
    for path in saved[0].iterdir():
        (run / path.name).unlink()
        (run / path.name).hardlink_to(path)
    export_run(run, run.parents[3] / "out")
    return run.parents[3] / "out"


def test_window_and_rate_are_those_of_msclap(full: FullSize, reference: msclap.CLAP) -> None:
    assert full.model.sample_rate_hz == reference.args.sampling_rate
    assert full.model.window_s == reference.args.duration
    assert (full.model.embedding_dim, full.model.token_dim) == (1024, 768)


def test_parameters_have_the_names_and_values_of_msclap(full: FullSize, reference: msclap.CLAP) -> None:
    ours, theirs = full.model.state_dict(), reference.clap.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_audio_embeddings_are_those_of_msclap(full: FullSize, reference: msclap.CLAP) -> None:
    frames = full.model.window_frames
    time_s = torch.arange(frames) / full.model.sample_rate_hz
    bursts = 0.3 * torch.randn(frames) * (torch.sin(3 * time_s) > 0)  # half of it silent
    chord = sum(0.1 * torch.sin(2 * torch.pi * hz * time_s) for hz in (220, 277, 330)) + 1e-3 * torch.randn(frames)
    samples_BS = torch.stack([0.1 * torch.randn(frames), torch.zeros(frames), bursts, chord])
    with torch.no_grad():
        ours = full.model.encode_audio(samples_BS)
    theirs = reference._get_audio_embeddings(samples_BS[:, None])
    assert theirs.std(dim=0).mean() > 0.1  # the four differ
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_stretching_on_a_gpu_is_the_interpolation_of_msclap() -> None:
    """Its values and its gradient; also computed on the CPU, where the model itself interpolates."""
    mel_B1TM = torch.randn(2, 1, 965, 64, requires_grad=True)
    gradient = torch.randn(2, 1, 1024, 64)
    expected, found = bicubic(mel_B1TM, 1024), stretched(mel_B1TM, 1024)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    (expected_gradient,) = torch.autograd.grad(expected, mel_B1TM, gradient)
    (found_gradient,) = torch.autograd.grad(found, mel_B1TM, gradient)
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=0, atol=2e-5)


def test_text_embeddings_are_those_of_msclap(full: FullSize, reference: msclap.CLAP) -> None:
    with torch.no_grad():
        ours = full.model.encode_text(CAPTIONS)
    torch.testing.assert_close(ours, reference.get_text_embeddings(CAPTIONS), rtol=0, atol=1e-5)


def test_captions_with_exclamation_marks_are_pooled_at_their_end(full: FullSize, reference: msclap.CLAP) -> None:
    captions = ["a dog barks!", "stop! a man shouts"]
    inputs = reference.preprocess_text(captions)
    ends = inputs["attention_mask"].sum(dim=-1) - 1
    with torch.no_grad():
        states = reference.clap.caption_encoder.base(inputs["input_ids"])[0]
        at_end = reference.clap.caption_encoder.projection(states[torch.arange(2), ends])
        ours = full.model.encode_text(captions)
    torch.testing.assert_close(ours, at_end, rtol=0, atol=1e-5)
    # ms-clap counts the tokens that are not 0, the number of "!", and so takes an earlier one.
    assert (reference.get_text_embeddings(captions) - at_end).abs().amax(dim=-1).min() > 0.1


def test_captions_become_the_tokens_of_gpt2(full: FullSize) -> None:
    assert full.model._token_ids(["a dog barks", ""]) == [[64, 3290, 2318, 591, 220, 50256], [220, 50256]]


def test_import_writes_a_folder_that_loads_in_evaluation_mode(full: FullSize) -> None:
    names = sorted(path.name for path in full.imported.iterdir())
    assert names == ["model.json", "model.safetensors", "tokenizer.json"]
    assert not full.model.training


def test_entries_that_are_missing_extra_or_misshapen_are_named(full: FullSize, tmp_path: Path) -> None:
    state = dict(full.model.state_dict())
    del state["audio_encoder.projection.linear1.weight"]
    state["caption_encoder.base.h.12.ln_1.weight"] = torch.zeros(768)
    state["logit_scale"] = torch.zeros(2)
    with pytest.raises(PipelineError) as raised:
        full.model.load_weights(state, "x.pth")
    assert str(raised.value) == (
        "x.pth: not the weights of msclap-2023: 1 missing: audio_encoder.projection.linear1.weight; "
        "1 unexpected: caption_encoder.base.h.12.ln_1.weight; 1 of another shape: logit_scale (2,) instead of ()"
    )


def test_checkpoint_without_a_model_entry_is_refused(full: FullSize, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"state_dict": {}, "epoch": 3}, file)
    with pytest.raises(PipelineError, match=r"other\.pth: .*under \"model\".*found state_dict, epoch"):
        load_model("msclap-2023", weights=file, tokenizer=full.tokenizer)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_damaged_checkpoint_is_named(full: FullSize, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "cut.pth"
    file.write_bytes(content)
    with pytest.raises(PipelineError, match=r"cut\.pth: not a readable checkpoint"):
        load_model("msclap-2023", weights=file, tokenizer=full.tokenizer)


def test_checkpoint_that_runs_code_is_refused(full: FullSize, tmp_path: Path) -> None:
    file = tmp_path / "code.pth"
    torch.save({"model": {"x": Fraction(1, 2)}}, file)  # a class that unpickling would import and call
    with pytest.raises(PipelineError, match=r"code\.pth: not a readable checkpoint"):
        load_model("msclap-2023", weights=file, tokenizer=full.tokenizer)


def test_missing_checkpoint_is_named(full: FullSize, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"gone\.pth: no such file.*CLAP_weights_2023\.pth"):
        load_model("msclap-2023", weights=tmp_path / "gone.pth", tokenizer=full.tokenizer)


def test_without_the_hub_the_error_says_what_to_get(
    gpt2_vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PipelineError, match=r"CLAP_weights_2023\.pth .*microsoft/msclap.*Zenodo 8378278"):
        load_model("msclap-2023", tokenizer=gpt2_vocabulary)
    with pytest.raises(PipelineError, match=r"tokenizer\.json .*gpt2.*`tokenizer`"):
        load_model("msclap-2023", weights=tmp_path / "any.pth")


def test_other_tokenizers_than_gpt2s_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"50257 tokens with <\|endoftext\|> at 50256; the one given has 257"):
        msclap2023.build(mini.byte_tokenizer())


def test_tokenizer_files_of_all_names_give_the_same_tokens(gpt2_vocabulary: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    shutil.copy(gpt2_vocabulary / "encoder.json", renamed / "vocab.json")
    shutil.copy(gpt2_vocabulary / "vocab.bpe", renamed / "merges.txt")
    tokenizers = [read_tokenizer(gpt2_vocabulary), read_tokenizer(renamed)]
    tokenizers[0].save(str(tmp_path / "tokenizer.json"))
    tokenizers += [read_tokenizer(tmp_path), read_tokenizer(tmp_path / "tokenizer.json")]
    text = "Rain's falling; 3 dogs bark — très fort <|endoftext|>"
    assert len({tuple(tokenizer.encode(text).ids) for tokenizer in tokenizers}) == 1


def test_full_size_model_with_f_a2t_is_saved_whole(saved: tuple[Path, AudioToText]) -> None:
    folder, a2t = saved
    loaded, expected = load_model(folder).a2t, a2t.state_dict()
    assert loaded is not None
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_msclap_gives_the_embeddings_of_the_exported_model(
    exported: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hub)
    with WithoutInitialization():
        wrapper = msclap.CLAP(model_fp=exported / "CLAP_weights_2023.pth", version="2023")
    model = load_model(exported)

    theirs = wrapper.clap.state_dict()  # its strict=False would hide a missing name
    ours = {name: value for name, value in model.state_dict().items() if not name.startswith("a2t.")}
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    samples_BS = 0.1 * torch.randn(2, model.window_frames)
    with torch.no_grad():
        audio_BD, text_BD = model.encode_audio(samples_BS), model.encode_text(CAPTIONS)
    torch.testing.assert_close(audio_BD, wrapper._get_audio_embeddings(samples_BS[:, None]), rtol=0, atol=1e-5)
    torch.testing.assert_close(text_BD, wrapper.get_text_embeddings(CAPTIONS), rtol=0, atol=1e-5)


def test_the_card_names_the_checkpoint_and_the_licence_of_the_weights(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert 'CLAP(model_fp="path/to/this/folder/CLAP_weights_2023.pth", version="2023")' in card
    assert "license: other" in card and "publisher's terms" in card and "CC BY-SA" not in card
