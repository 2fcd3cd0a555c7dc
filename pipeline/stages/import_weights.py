"""Convert a published model to this pipeline's format: weights, description and tokenizer in one folder."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pipeline.models import load_model, save_model
from pipeline.models.backbones import PUBLISHED
from pipeline.stages import run

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", required=True, choices=PUBLISHED, help="name of the published model")
    parser.add_argument(
        "--weights",
        help="CLAP_weights_2022.pth or CLAP_weights_2023.pth; for laion-clap a folder of transformers' ClapModel, or "
        "its name on the Hugging Face hub (default: from the hub)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="folder with the files of the text encoder's tokenizer (default: from the hub)"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    args = parser.parse_args(argv)

    model = load_model(args.backbone, weights=args.weights, tokenizer=args.tokenizer)
    save_model(model, args.out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%s: %s, %.1f M parameters", args.out, model.backbone, parameters / 1e6)


if __name__ == "__main__":
    run(main)
