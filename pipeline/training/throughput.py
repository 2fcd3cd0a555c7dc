"""How much arithmetic a training step is, and what share of the device's peak it reaches."""

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
"""Dense bfloat16 operations a second of GPUs by the words in their names, the first that fits; NVIDIA's data sheets."""


def flop_counter() -> FlopCounterMode:
    """torch's counter of the floating-point operations of matrix products, convolutions and attention.

    Enter it around a step; `get_total_flops()` counts a multiplication and an addition as two, attention as if it were
    not causal, and no element-wise operation and no FFT. torch 2.11 has no formula for attention on a CPU (its issue
    195460): it gets the one of the GPU's kernels.
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
    """A device's peak for bfloat16 matrix products, in operations a second; None where it is not known.

    Nor is it known of a slice of a GPU (MIG), which bears the name of the whole.
    """
    words = set(device_name.replace("-", " ").split())
    if "MIG" in words:
        return None
    return next((peak for name, peak in PEAK_FLOPS.items() if words.issuperset(name.split())), None)


def utilization(flops_per_s: float, gpus: Sequence[str]) -> float | None:
    """The share of these GPUs' peaks, by the names that drivers give; None without GPUs, or with unknown ones."""
    peaks = [peak for name in gpus if (peak := peak_flops(name)) is not None]
    return flops_per_s / sum(peaks) if peaks and len(peaks) == len(gpus) else None
