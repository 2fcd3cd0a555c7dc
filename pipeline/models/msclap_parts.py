"""What is used of the msclap package, whose import silences all warnings of the process unless it is fenced in."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import yaml

with warnings.catch_warnings():
    import msclap
    from msclap.models import config as htsat_config
    from msclap.models.audio import Cnn14
    from msclap.models.clap import Projection
    from msclap.models.htsat import HTSAT_Swin_Transformer

__all__ = ["Cnn14", "HTSAT_Swin_Transformer", "Projection", "htsat_config", "read_settings"]

# HTS-AT calls it without `indexing`; its result is the one that torch keeps as the default.
warnings.filterwarnings("ignore", message="torch.meshgrid")


def read_settings(version: str) -> dict[str, Any]:
    """msclap's own configuration of a version."""
    file = Path(msclap.__file__).parent / "configs" / f"config_{version}.yml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))
