"""The parts of the msclap package that the models use; its import must not silence all warnings of the process."""

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

# HTS-AT calls it without `indexing`; torch keeps the default that it needs.
warnings.filterwarnings("ignore", message="torch.meshgrid")


def read_settings(version: str) -> dict[str, Any]:
    """Return msclap's configuration of a version."""
    file = Path(msclap.__file__).parent / "configs" / f"config_{version}.yml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))
