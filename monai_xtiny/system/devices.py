"""The device that computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ignite.distributed as idist
import torch


def select_device(device: str = "auto") -> torch.device:
    """Resolve a device name; ``auto`` takes CUDA where there is one, one GPU per rank of a machine.

    Raises:
        ValueError: the name is unknown, or the machine has no such device.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", idist.get_local_rank() if idist.get_world_size() > 1 else 0)
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {device!r} is unknown or not available here: give auto, cpu or cuda"
        ) from error
    return resolved


def device_name(device: torch.device) -> str:
    """What a GPU calls itself; of other devices the type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def exact_kernels(device: torch.device) -> Iterator[None]:
    """On CUDA, convolutions that repeat bit for bit, in float32 and not in TF32.

    The settings are the process's, and are put back: networks are scored one at a time there.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    # PyTorch 2.9 put a precision of each kind of operation in the place of allow_tf32.
    has_precision = hasattr(cudnn, "conv")
    settings = [
        (cudnn, "deterministic", True),
        (cudnn, "benchmark", False),
        (cudnn.conv, "fp32_precision", "ieee") if has_precision else (cudnn, "allow_tf32", False),
    ]
    former = [getattr(holder, name) for holder, name, _ in settings]
    try:
        for holder, name, value in settings:
            setattr(holder, name, value)
        yield
    finally:
        for (holder, name, _), value in zip(settings, former, strict=True):
            setattr(holder, name, value)
