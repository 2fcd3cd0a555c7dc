"""The audio-text models: loading and saving. Importing this package does not import torch; its functions do."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_of, write_atomically, write_json
from pipeline.models.backbones import BACKBONES

if TYPE_CHECKING:
    from pipeline.models.clap import ClapModel

FORMAT_VERSION = 1

MODEL_FILES = ("model.safetensors", "tokenizer.json", "model.json")
"""The files of a saved model; they determine its embeddings."""

CHECKED_FILES = ("model.safetensors", "tokenizer.json")
"""Those whose checksums model.json records; `load_model` checks them."""


def load_model(
    name_or_folder: str | Path,
    weights: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str = "cpu",
) -> ClapModel:
    """Return a model in evaluation mode: a backbone by its name in `BACKBONES`, or a folder of `save_model`.

    weights: for ms-clap a checkpoint in its format; for laion-clap a folder with transformers' ClapModel or a name on
        the Hugging Face hub; None downloads the published weights.
    tokenizer: a folder or file of the tokenizer of the text encoder (GPT-2's, BERT's, RoBERTa's). None downloads it,
        or reads the one next to laion-clap's weights, or gives the mini one token per byte.
    The mini has no pretrained weights: torch's seed determines them.

    Raises PipelineError with the file that is missing, damaged or of another model.
    """
    name = str(name_or_folder)
    if name not in BACKBONES:
        if weights is not None or tokenizer is not None:
            raise PipelineError(f"{name}: a saved model has its own weights and tokenizer; give neither")
        model = _load_saved(Path(name_or_folder))
    else:
        model = _module_of(name).load(weights, tokenizer)
    return model.eval().to(device)


def _module_of(backbone: str) -> ModuleType:
    return import_module(f"pipeline.models.{BACKBONES[backbone].module}")


def save_model(model: ClapModel, folder: str | Path) -> None:
    """Write model.safetensors, tokenizer.json and then model.json atomically; equal models give equal bytes."""
    from safetensors.torch import save

    folder = Path(folder)
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    with write_atomically(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save(state))  # not save_file: it writes to a hidden file of another name
    with write_atomically(folder / "tokenizer.json") as temporary:
        model.tokenizer.save(str(temporary))
    write_json(
        {
            "format_version": FORMAT_VERSION,
            "backbone": model.backbone,
            "sample_rate_hz": model.sample_rate_hz,
            "window_s": model.window_s,
            "short_clips": model.short_clips,
            "channels": model.channels,
            "embedding_dim": model.embedding_dim,
            "token_dim": model.token_dim,
            "architecture": model.architecture,
            "files_sha256": {name: sha256_of(folder / name) for name in CHECKED_FILES},
            "a2t": None if model.a2t is None else model.a2t.arguments(),
        },
        folder / "model.json",
    )


def _load_saved(folder: Path) -> ClapModel:
    from pipeline.data.audio import CHANNELS, SHORT_CLIPS

    known_values = {"short_clips": SHORT_CLIPS, "channels": CHANNELS}
    file = _present(folder / "model.json")
    settings = read_json(file)
    try:
        version, backbone = settings["format_version"], settings["backbone"]
        # Older versions had one size per backbone, one pseudo-token and one way to read a file; they recorded none.
        reading = {name: settings.get(name, ways[0]) for name, ways in known_values.items()}
        architecture = dict(settings.get("architecture", {}))
        a2t = settings["a2t"]
        known_arguments = {"hidden_layers", "dropout", "tokens", "kind", "layers", "heads"}
        if a2t is not None and not ("dropout" in a2t and a2t.keys() <= known_arguments):
            raise ValueError(f"a2t is {a2t}")
        if a2t is not None and a2t.get("kind", "mlp") not in ("mlp", "decoder"):
            raise ValueError(f"the kind of a2t is {a2t['kind']}")
    except (ValueError, TypeError, KeyError) as error:
        raise PipelineError(
            f"{file}: is not the description of a saved model ({error!r}); make the model again"
        ) from error
    for name, value in reading.items():
        if value not in known_values[name]:
            raise PipelineError(f"{file}: {name} is {value!r}; this version knows {', '.join(known_values[name])}")
    if version != FORMAT_VERSION or backbone not in BACKBONES:
        raise PipelineError(
            f"{file}: format {version} of backbone {backbone!r}; this version reads format {FORMAT_VERSION} of "
            f"{', '.join(BACKBONES)}"
        )

    check_files(folder, settings)

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from pipeline.models.initialization import WithoutInitialization
    from pipeline.models.tokenization import read_tokenizer

    module = _module_of(backbone)
    tokenizer = read_tokenizer(_present(folder / "tokenizer.json"), module.TEXT)
    with WithoutInitialization():
        model = module.build(tokenizer, **architecture)
        if a2t is not None:
            model.add_a2t(**a2t)
    model.short_clips, model.channels = reading["short_clips"], reading["channels"]
    file = _present(folder / "model.safetensors")
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise PipelineError(f"{file}: damaged weights ({error}); make the model again") from error
    model.load_weights(state, file)
    return model


def check_files(folder: Path, description: Mapping[str, Any]) -> None:
    """Raise PipelineError unless weights and tokenizer are those that model.json was written for.

    description: the contents of model.json; those of earlier versions record no checksums.
    """
    recorded = description.get("files_sha256", {})
    for name in CHECKED_FILES:
        if name in recorded and sha256_of(_present(folder / name)) != recorded[name]:
            raise PipelineError(
                f"{folder / name}: is damaged or of another model, its SHA-256 is not that in model.json; make the "
                "model again"
            )


def _present(file: Path) -> Path:
    if not file.is_file():
        raise PipelineError(
            f"{file}: no such file; a saved model is a folder with model.json, model.safetensors and tokenizer.json, "
            f"and a backbone is one of {', '.join(BACKBONES)}"
        )
    return file
