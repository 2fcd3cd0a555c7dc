"""Tokenizers of the text encoders in their published formats, and the special tokens around a caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from pipeline.errors import PipelineError

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's only special token."""
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@dataclass(frozen=True, kw_only=True)
class TextKind:
    """A kind of text encoder: the files of its tokenizer and the tokens around a caption."""

    name: str
    vocabulary_files: tuple[tuple[str, ...], ...]
    """Names of the files of a tokenizer in older formats than tokenizer.json."""
    from_vocabulary: Callable[..., Tokenizer]
    """Makes the tokenizer from the paths of these files."""
    start: str | None
    """Special token before a caption."""
    end: str
    """Special token after a caption."""
    before_end: str = ""
    """Text between the caption and `end`."""
    special: tuple[str, ...]
    """Every special token. In a caption they are replaced with a space, because they could end it early."""
    max_tokens: int
    """Maximum of tokens per caption, with the special tokens."""


def byte_level_bpe(model: models.BPE, special: Sequence[str] = (END_OF_TEXT,)) -> Tokenizer:
    """Return a tokenizer with GPT-2's splitting of text for a BPE model; no padding, no truncation."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def gpt2_bpe(vocabulary: str, merges: str) -> Tokenizer:
    """Return GPT-2's tokenizer from its vocabulary and merges."""
    return byte_level_bpe(models.BPE.from_file(vocabulary, merges))


def roberta_bpe(vocabulary: str, merges: str) -> Tokenizer:
    """Return RoBERTa's tokenizer from its vocabulary and merges: GPT-2's splitting, other special tokens."""
    return byte_level_bpe(models.BPE.from_file(vocabulary, merges), ROBERTA_SPECIAL)


def wordpiece(vocabulary: str) -> Tokenizer:
    """Return the tokenizer of BERT's uncased models from a vocab.txt."""
    tokenizer = Tokenizer(models.WordPiece.from_file(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    return tokenizer


GPT2_TEXT = TextKind(
    name="GPT-2",
    vocabulary_files=(("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")),
    from_vocabulary=gpt2_bpe,
    start=None,
    end=END_OF_TEXT,
    before_end=" ",  # as ms-clap 2023 writes it
    special=(END_OF_TEXT,),
    max_tokens=77,  # `text_len` of ms-clap 2023
)
BERT_TEXT = TextKind(
    name="BERT",
    vocabulary_files=(("vocab.txt",),),
    from_vocabulary=wordpiece,
    start="[CLS]",
    end="[SEP]",
    special=BERT_SPECIAL,
    max_tokens=100,  # `text_len` of ms-clap 2022
)
ROBERTA_TEXT = TextKind(
    name="RoBERTa",
    vocabulary_files=(("vocab.json", "merges.txt"),),
    from_vocabulary=roberta_bpe,
    start="<s>",
    end="</s>",
    special=ROBERTA_SPECIAL,
    max_tokens=77,  # as LAION-CLAP in training and inference
)


def read_tokenizer(path: str | Path, kind: TextKind = GPT2_TEXT) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`, or of a folder with that file or with vocabulary files.

    Raises PipelineError if no such file exists, if it is damaged, or if it lacks the special tokens of the kind.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    names = next((files for files in kind.vocabulary_files if all((path / name).is_file() for name in files)), None)
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        elif names is not None:
            file = path / names[0]
            tokenizer = kind.from_vocabulary(*(str(path / name) for name in names))
        else:
            forms = " or ".join(" + ".join(files) for files in (("tokenizer.json",), *kind.vocabulary_files))
            raise PipelineError(f"{path}: no tokenizer found; expected a folder with {forms}, or a tokenizer.json")
    except PipelineError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise PipelineError(f"{file}: not a readable tokenizer ({error})") from error
    for token in filter(None, (kind.start, kind.end)):
        if tokenizer.token_to_id(token) is None:
            raise PipelineError(f"{file}: the tokenizer has no {token} token; a {kind.name} style tokenizer is needed")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, kind: TextKind, backbone: str, size: int, end: int | None) -> None:
    """Raise PipelineError unless a tokenizer has the `size` and the id `end` of the end token that the weights need."""
    found = (tokenizer.get_vocab_size(), tokenizer.token_to_id(kind.end))
    if found != (size, end):
        raise PipelineError(
            f"{backbone} needs {kind.name}'s tokenizer, of {size} tokens with {kind.end} at {end}; "
            f"the one given has {found[0]} tokens with {kind.end} at {found[1]}"
        )
