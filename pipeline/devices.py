"""The device that a stage computes on: what it was told, else a GPU where there is one."""

from __future__ import annotations

import argparse
import logging
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """`--device cpu|cuda`; a rule of the workflow passes what its `gpu` resource asks for."""
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to compute (default: cuda where there is one)")


def choose_device(asked: str | None) -> torch.device:
    """The device by name; under torchrun each process of a machine takes the GPU of its own local rank."""
    import torch  # here, so that a stage parses its options without it

    if asked == "cuda" and not torch.cuda.is_available():
        raise PipelineError("asked for a GPU, but torch finds none; set gpu to 0 in the profile, or check the driver")
    if asked == "cpu" and torch.cuda.is_available():
        logger.warning("computing on the CPU, as asked, although there is a GPU; profiles/gpus shows how to ask for it")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`, without waiting for the GPU: from memory that is not pinned a copy would wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def device_name(device: torch.device) -> str:
    """What computes: the GPU's name, or the processor's as the kernel knows it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
