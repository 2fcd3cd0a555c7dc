"""Byte-level BPE tokenizers in the forms in which GPT-2's is published."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.errors import PipelineError

END_OF_TEXT = "<|endoftext|>"
VOCABULARY_AND_MERGES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def byte_level_bpe(model: models.BPE) -> Tokenizer:
    """GPT-2's splitting of text around a BPE model, with the end-of-text token; no padding, no truncation."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, or in a folder holding one, or holding a vocabulary and its merges.

    Raises PipelineError where no such file is found, where one is damaged, or where it has no end-of-text token.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    pair = next((p for p in VOCABULARY_AND_MERGES if all((path / name).is_file() for name in p)), None)
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        elif pair is not None:
            file = path / pair[0]
            tokenizer = byte_level_bpe(models.BPE.from_file(str(file), str(path / pair[1])))
        else:
            names = " or ".join(" + ".join(pair) for pair in (("tokenizer.json",), *VOCABULARY_AND_MERGES))
            raise PipelineError(f"{path}: no tokenizer found; expected a folder with {names}, or a tokenizer.json")
    except PipelineError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise PipelineError(f"{file}: not a readable tokenizer ({error})") from error
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise PipelineError(f"{file}: the tokenizer has no {END_OF_TEXT} token; a GPT-2 style tokenizer is needed")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
