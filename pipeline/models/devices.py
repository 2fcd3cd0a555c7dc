"""The device of a stage: the requested one, otherwise a GPU if there is one."""

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
    """Add `--device cpu|cuda`; a rule of the workflow sets it from its resource `gpu`."""
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="device to compute on (default: cuda if there is one)"
    )


def choose_device(asked: str | None) -> torch.device:
    """Return the device by name; under torchrun each process takes the GPU of its local rank."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise PipelineError("asked for a GPU, but torch finds none; set gpu to 0 in the profile, or check the driver")
    if asked == "cpu" and torch.cuda.is_available():
        logger.warning("computing on the CPU, as asked, although there is a GPU; profiles/gpus shows how to request it")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on `device`, copied from pinned memory so that the copy does not wait for the GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor from the kernel."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
