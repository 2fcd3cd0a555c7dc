"""The saved model that `pipeline.load` returns, ready to embed sounds and texts."""

# N = sounds, M = texts, D = joint width

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.evaluation.embedding import embed_sounds, embed_texts, name_of
from pipeline.evaluation.vectors import check_vectors, unit_rows
from pipeline.evaluation.windows import BATCH_SIZE
from pipeline.models import load_model
from pipeline.models.backbones import BACKBONES
from pipeline.models.clap import ClapModel
from pipeline.models.devices import choose_device


class AudioTextModel:
    """A model that embeds sounds and texts in one space; `pipeline.load` returns it.

    Its scores equal those of the stages `embed` and `evaluate` and of `pipeline.search`.
    """

    def __init__(self, folder: Path, network: ClapModel) -> None:
        self.folder = folder
        self.network = network
        """The torch module, in evaluation mode."""

    def __repr__(self) -> str:
        return (
            f"AudioTextModel({str(self.folder)!r}, {self.network.backbone}, {self.sample_rate_hz} Hz, "
            f"{self.embedding_dim} dimensions)"
        )

    @property
    def sample_rate_hz(self) -> int:
        """The model's sample rate; sounds at other rates are resampled."""
        return self.network.sample_rate_hz

    @property
    def embedding_dim(self) -> int:
        """The number of values per embedding, D."""
        return self.network.embedding_dim

    def embed_audio(
        self, sounds: Sequence[str | Path | tuple[Any, int]], *, windows: str = "mean", batch_size: int = BATCH_SIZE
    ) -> NDArray[np.float32]:
        """Return the embeddings of sounds, (N, D), each of length 1.

        Args:
            sounds: audio files of any format, rate and length, or pairs (samples, rate in Hz). Samples are an array
                (samples,) or (samples, channels) of integers, or of floats between -1 and 1.
            windows: `mean` averages windows that cover the whole sound; `first` and `center` take one window.
            batch_size: windows per batch.

        Raises:
            PipelineError: no sounds, a missing file, or a sound that cannot be decoded, is silent or is cut off.

        Example:
            >>> model.embed_audio(["dog.wav", "rain.flac"]).shape  # doctest: +SKIP
            (2, 1024)
            >>> model.embed_audio([(samples, 44_100)]).shape  # doctest: +SKIP
            (1, 1024)
        """
        if isinstance(sounds, str | Path | tuple):
            raise PipelineError(f"embed_audio takes a list of sounds; give [{sounds!r}]")
        if len(sounds) == 0:
            raise PipelineError("embed_audio got an empty list; give at least one sound")
        made = [sound if isinstance(sound, tuple) else Path(sound) for sound in sounds]
        vectors_ND = embed_sounds(self.network, made, windows, batch_size, self.network.channels)
        check_vectors(vectors_ND, lambda row: name_of(made[row], row))
        return unit_rows(vectors_ND)

    def embed_text(self, texts: Sequence[str], *, batch_size: int = BATCH_SIZE) -> NDArray[np.float32]:
        """Return the embeddings of texts, (M, D), each of length 1.

        Raises:
            PipelineError: no texts, or a blank one.

        Example:
            >>> audio, text = model.embed_audio(["dog.wav"]), model.embed_text(["a dog barks"])  # doctest: +SKIP
            >>> text @ audio.T  # the cosine of every text with every sound, (M, N)  # doctest: +SKIP
        """
        if isinstance(texts, str):
            raise PipelineError(f"embed_text takes a list of texts; give [{texts!r}]")
        if len(texts) == 0:
            raise PipelineError("embed_text got an empty list; give at least one text")
        for row, text in enumerate(texts):
            if not text.strip():
                raise PipelineError(f"text {row} is blank; leave it out")
        vectors_MD = embed_texts(self.network, texts, batch_size)
        check_vectors(vectors_MD, lambda row: repr(texts[row]))
        return unit_rows(vectors_MD)


def load(folder: str | Path, *, device: str | None = None) -> AudioTextModel:
    """Return the model in a folder: of a run, of a pretrained model, or one that `composed-text export` made.

    Args:
        folder: for example `results/runs/clotho_composed_audioset/seed0`.
        device: `cpu` or `cuda`; by default a GPU if there is one.

    Raises:
        PipelineError: the folder holds no model, or a file is missing or damaged.

    Example:
        >>> import pipeline
        >>> model = pipeline.load("results/runs/clotho_composed_audioset/seed0")  # doctest: +SKIP
    """
    folder = Path(folder).expanduser()
    check_model_folder(folder)
    return AudioTextModel(folder, load_model(folder.absolute(), device=str(choose_device(device))))


def check_model_folder(folder: Path) -> None:
    """Raise PipelineError unless a folder holds a saved model; the message describes its content."""
    advice = "give the folder of a run (results/runs/RUN/seed0), of a pretrained model or of an export"
    if not folder.is_dir():
        if str(folder) in BACKBONES:
            raise PipelineError(f"{folder}: is a backbone's name, not a folder; {advice}")
        raise PipelineError(f"{folder}: {'is not a folder' if folder.exists() else 'not found'}; {advice}")
    if (folder / "model.json").is_file():
        return
    if (folder / "checkpoints").is_dir():
        raise PipelineError(f"{folder}: the training has not finished; run the same training again to finish it")
    if (folder / "manifest.json").is_file():
        raise PipelineError(f"{folder}: holds the shards of a split, not a model; {advice}")
    inside = sorted(path.parent.name for path in folder.glob("*/model.json"))
    if inside:
        raise PipelineError(f"{folder}: holds no model.json; give one of its subfolders: {', '.join(inside[:5])}")
    raise PipelineError(f"{folder}: is not a saved model, because it holds no model.json; {advice}")
