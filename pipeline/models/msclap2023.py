"""ms-clap 2023 at full size, in msclap's own configuration, and its checkpoint."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2Model

from pipeline.errors import PipelineError
from pipeline.models.clap import FUSED_GELU, ClapModel
from pipeline.models.tokenization import END_OF_TEXT, read_tokenizer

# After clap.py, which keeps msclap's import from silencing warnings.
import msclap  # isort: skip
from msclap.models import config as htsat_config  # isort: skip
from msclap.models.htsat import HTSAT_Swin_Transformer  # isort: skip

WEIGHTS_FILE = "CLAP_weights_2023.pth"
# The causal mask, a constant that transformers wrote into state dicts until 4.30.
CONSTANT_BUFFERS = re.compile(r"caption_encoder\.base\.h\.\d+\.attn\.(bias|masked_bias)")


def build(tokenizer: Tokenizer) -> ClapModel:
    """The full-size model, randomly initialised from torch's seed.

    Raises PipelineError where the tokenizer is not GPT-2's, whose token numbers the weights are for.
    """
    gpt2_config = GPT2Config(activation_function=FUSED_GELU)  # the rest of the hub's gpt2 is the default
    expected = (gpt2_config.vocab_size, gpt2_config.eos_token_id)
    found = (tokenizer.get_vocab_size(), tokenizer.token_to_id(END_OF_TEXT))
    if found != expected:
        raise PipelineError(
            f"msclap-2023 needs GPT-2's tokenizer, of {expected[0]} tokens with {END_OF_TEXT} at {expected[1]}; "
            f"the one given has {found[0]} tokens with {END_OF_TEXT} at {found[1]}"
        )
    settings = yaml.safe_load((Path(msclap.__file__).parent / "configs" / "config_2023.yml").read_text())
    # msclap gives HTS-AT this module, whose 32 kHz and fmax 14000 the weights were trained with; the sampling rate and
    # fmax of config_2023.yml do not reach it. Its values, because a module cannot be copied or pickled.
    front_end = SimpleNamespace(**{name: value for name, value in vars(htsat_config).items() if name[0] != "_"})
    return ClapModel(
        backbone="msclap-2023",
        htsat=HTSAT_Swin_Transformer(config=front_end),
        gpt2=GPT2Model(gpt2_config),
        embedding_dim=settings["d_proj"],
        tokenizer=tokenizer,
    )


def load(weights: str | Path | None, tokenizer: str | Path | None) -> ClapModel:
    """The pretrained model from a checkpoint in ms-clap's format and GPT-2's tokenizer; None asks the hub for either.

    Raises PipelineError where a file cannot be had or read, or where its content is not this model's.
    """
    if tokenizer is None:
        tokenizer = _from_hub("gpt2", "tokenizer.json", "a folder with GPT-2's tokenizer files as `tokenizer`")
    if weights is None:
        weights = _from_hub("microsoft/msclap", WEIGHTS_FILE, f"{WEIGHTS_FILE} (also Zenodo 8378278) as `weights`")
    model = build(read_tokenizer(tokenizer))
    model.load_weights(_read_checkpoint(Path(weights)), weights)
    return model


def _from_hub(repository: str, file: str, instead: str) -> str:
    try:
        return hf_hub_download(repository, file)
    except OSError as error:  # the hub's own errors, a missing network and its offline mode are all OSError
        reason = str(error).splitlines()[0]
        raise PipelineError(
            f"{file} of the Hugging Face hub's {repository} is not to be had ({reason}); "
            f"get it where there is a network, and give {instead}"
        ) from error


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint without the constants that older transformers put there."""
    if not path.is_file():
        raise PipelineError(f"{path}: no such file; the weights of msclap-2023 are ms-clap's {WEIGHTS_FILE}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PipelineError(f"{path}: not a readable checkpoint ({reason}); get the file again") from error
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        found = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise PipelineError(f'{path}: expected a state dict under "model", as in {WEIGHTS_FILE}; found {found}')
    return {name: value for name, value in state.items() if not CONSTANT_BUFFERS.fullmatch(name)}
