"""Write a pretrained base model in this pipeline's format: weights, description and tokenizer in one folder."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pipeline.models import load_model, save_model
from pipeline.models.backbones import PUBLISHED
from pipeline.stages import run

log = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    """Read a checkpoint in its publisher's format and write `model.safetensors`, `model.json`, `tokenizer.json`."""
    parser = argparse.ArgumentParser(prog="import_weights", description=__doc__)
    parser.add_argument("--backbone", required=True, choices=PUBLISHED, help="the model that the weights are of")
    parser.add_argument(
        "--weights",
        help="CLAP_weights_2022.pth or CLAP_weights_2023.pth; for laion-clap a folder of transformers' ClapModel, or "
        "its name on the Hugging Face hub (default: from the hub)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="a folder with the files of the text encoder's tokenizer (default: from the hub)"
    )
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    arguments = parser.parse_args(argv)

    model = load_model(arguments.backbone, weights=arguments.weights, tokenizer=arguments.tokenizer)
    save_model(model, arguments.out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("%s: %s, %.1f M parameters", arguments.out, model.backbone, parameters / 1e6)


if __name__ == "__main__":
    run(main)
