"""ms-clap 2023: HTS-AT and GPT-2 in full size with msclap's configuration, and the published checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2Model

from pipeline.models.clap import ClapModel
from pipeline.models.htsat import HtsatEncoder
from pipeline.models.initialization import WithoutInitialization
from pipeline.models.msclap_parts import HTSAT_Swin_Transformer, Projection, htsat_config, read_settings
from pipeline.models.published import from_hub, read_msclap_checkpoint
from pipeline.models.text import FUSED_GELU, TextEncoder
from pipeline.models.tokenization import GPT2_TEXT as TEXT
from pipeline.models.tokenization import check_vocabulary, read_tokenizer

NAME = "msclap-2023"
WEIGHTS_FILE = "CLAP_weights_2023.pth"
# The causal mask, a constant that transformers wrote into state dicts until 4.30.
CONSTANTS = re.compile(r"caption_encoder\.base\.h\.\d+\.attn\.(bias|masked_bias)")


def build(tokenizer: Tokenizer) -> ClapModel:
    """Return the full-size model, initialised randomly from torch's seed.

    Raises PipelineError if the tokenizer is not GPT-2's, whose ids the weights use.
    """
    config = GPT2Config(activation_function=FUSED_GELU)  # the rest of the hub's gpt2 is the default
    check_vocabulary(tokenizer, TEXT, NAME, config.vocab_size, config.eos_token_id)
    # msclap passes this module to HTS-AT; the weights were trained with its 32 kHz and fmax 14000. The sample rate and
    # fmax of config_2023.yml are not used. A namespace of its values, because a module cannot be copied or pickled.
    front_end = SimpleNamespace(**{name: value for name, value in vars(htsat_config).items() if name[0] != "_"})
    htsat, gpt2 = HTSAT_Swin_Transformer(config=front_end), GPT2Model(config)
    embedding_dim = read_settings("2023")["d_proj"]
    return ClapModel(
        backbone=NAME,
        audio_encoder=HtsatEncoder(htsat, embedding_dim),
        caption_encoder=TextEncoder(
            gpt2,
            Projection(config.n_embd, embedding_dim),
            kind=TEXT,
            pooled_at="last",
            positions=config.n_positions,
        ),
        embedding_dim=embedding_dim,
        tokenizer=tokenizer,
    )


def load(weights: str | Path | None, tokenizer: str | Path | None) -> ClapModel:
    """Return the pretrained model from a checkpoint in ms-clap's format and GPT-2's tokenizer; None downloads either.

    Raises PipelineError if a file is not available or not readable, or belongs to another model.
    """
    if tokenizer is None:
        tokenizer = from_hub("gpt2", "tokenizer.json", "a folder with GPT-2's tokenizer files as `tokenizer`")
    if weights is None:
        weights = from_hub("microsoft/msclap", WEIGHTS_FILE, f"{WEIGHTS_FILE} (also Zenodo 8378278) as `weights`")
    read = read_tokenizer(tokenizer, TEXT)
    state = read_msclap_checkpoint(weights, NAME, WEIGHTS_FILE, CONSTANTS)
    with WithoutInitialization():
        model = build(read)
    model.load_weights(state, weights)
    return model
