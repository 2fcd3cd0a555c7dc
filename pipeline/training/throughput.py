"""The arithmetic of a training step, and the share of the device's peak that it reaches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,  # SXM; after the two above, whose names contain it
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Dense bfloat16 operations/s of GPUs (NVIDIA's data sheets) by words in their names; the first match is used."""


def flop_counter() -> FlopCounterMode:
    """Return torch's counter of floating-point operations in matrix products, convolutions and attention.

    Enter it around a step. `get_total_flops()` counts a multiplication and an addition as two operations, and attention
    as if it were not causal. It counts no element-wise operations and no FFT. torch 2.11 has no formula for attention
    on a CPU (its issue 195460), so the one of the GPU kernels is used.
    """
    return FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(
                *shapes[:3]
            ),
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
                sdpa_backward_flop_count(*shapes[:4])
            ),
        },
    )


def peak_flops(device_name: str) -> float | None:
    """Return a device's peak for bfloat16 matrix products, in operations per second; None if it is unknown.

    It is also unknown for a slice of a GPU (MIG), which has the name of the whole GPU.
    """
    words = set(device_name.replace("-", " ").split())
    if "MIG" in words:
        return None
    return next((peak for name, peak in PEAK_FLOPS.items() if words.issuperset(name.split())), None)


def utilization(flops_per_s: float, gpus: Sequence[str]) -> float | None:
    """Return the share of these GPUs' peaks, by driver names; None without GPUs or for unknown ones."""
    peaks = [peak for name in gpus if (peak := peak_flops(name)) is not None]
    return flops_per_s / sum(peaks) if peaks and len(peaks) == len(gpus) else None
