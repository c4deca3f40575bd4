"""How much of a device's arithmetic a training uses: model FLOP utilisation.

A token takes 2 operations a parameter forward and 4 backward, half of these for the gradients of weights that are
trained (Kaplan et al., "Scaling Laws for Neural Language Models", 2020; the utilisation is that of Chowdhery et al.,
"PaLM", 2022, without attention's own products). With all parameters trained that is 6 a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Operations a second of dense bfloat16 products, by a part of the device's name: NVIDIA's data sheets of "A100 Tensor
# Core GPU", "H100 Tensor Core GPU", "H200 Tensor Core GPU", "L4", "L40S", "DGX B200" and "GB200 NVL72", half of those
# that count on sparsity. The first that fits counts, so special forms come before their kin.
_PEAKS = (
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
)


def peak_of(device_name: str) -> float | None:
    """bfloat16 operations a second of a device, by what torch calls it; None where it is not known."""
    words = device_name.replace("-", " ").split()
    for name, peak in _PEAKS:
        wanted = name.split()
        if any(words[begin : begin + len(wanted)] == wanted for begin in range(len(words))):
            return peak
    return None


@dataclass(frozen=True)
class Work:
    """What a token asks of a device whose peak is known."""

    operations: int  # forward and backward
    peak: float  # operations a second

    def utilisation(self, tokens: float, seconds: float) -> float:
        """Of a device that took so many tokens in so long."""
        return self.operations * tokens / seconds / self.peak


def operations_of(parameters: int, trained: int) -> int:
    """Of one token, forward and backward."""
    return 4 * parameters + 2 * trained


def work_of(parameters: int, trained: int, device: torch.device) -> Work | None:
    """None where the device's peak is not known."""
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else Work(operations_of(parameters, trained), peak)
