"""How much memory scoring a network takes, and how much there is. Gigabytes of 1e9 bytes."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from math import floor
from pathlib import Path

import torch

from monai_xtiny.networks.cost import network_cost, num_activations
from monai_xtiny.plan.unet_plan import UNetPlan

# Measured: the outputs of the convolutions, what normalizes them and their gradients, of packed
# networks little more than the outputs; weights once more in the layout of the kernels; work space.
COPIES_OF_ACTIVATIONS, COPIES_OF_PACKED, COPIES_OF_WEIGHTS, WORK_SPACE_GB = 3, 1.25, 2, 0.1
# Without a limit, networks are scored side by side as long as they take less than this for each
# core together, and less than half of the free memory.
GB_PER_CORE = 1.0
# Weights of a network, float32, from which on what it leaves behind is given back at once.
_MANY_WEIGHTS = 1_000_000


def scoring_memory_gb(
    plan: UNetPlan, max_features: int, batch_size: int = 1, *, is_packed: bool = False
) -> float:
    """Memory that a forward pass and the gradient to the images take, in float32.

    An estimate within a third of the measured peak (2D and 3D, narrow and full).

    Args:
        plan: of the full network.
        max_features: width cap.
        batch_size: images at a time.
        is_packed: in a :class:`monai_xtiny.networks.packed.PackedNetwork`.
    """
    per_activation = COPIES_OF_PACKED if is_packed else COPIES_OF_ACTIVATIONS
    activations = num_activations(plan, max_features) * batch_size
    weights = network_cost(plan, max_features).num_parameters
    copies = per_activation * activations + COPIES_OF_WEIGHTS * weights
    return 4 * copies / 1e9 + WORK_SPACE_GB


def free_memory_gb(device: torch.device) -> float:
    """Memory that this process could still get; infinite where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    free = [float("inf")]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        container = Path("/sys/fs/cgroup")
        limit, used = (container / name for name in ("memory.max", "memory.current"))
        free.append(int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii")))
    except (OSError, ValueError):  # another system, no container, or no limit
        pass
    return max(0.0, min(free)) / 1e9


def scoring_limit_gb(device: torch.device, max_memory_gb: float | None = None) -> float:
    """What all networks that are scored side by side may take together.

    Args:
        device: that computes.
        max_memory_gb: what the process may hold in all; default: ``GB_PER_CORE`` or half of what is
            free. What it holds already counts in steps of half a gigabyte, so that the same
            command gives the same limit.

    Raises:
        ValueError: the process holds more than ``max_memory_gb`` already.
    """
    if max_memory_gb is None:
        return min(GB_PER_CORE * torch.get_num_threads(), free_memory_gb(device) / 2)
    held = _held_gb(device)
    if max_memory_gb <= held:
        raise ValueError(
            f"max_memory_gb is {max_memory_gb:g}, and the process holds {held:.1f} before it "
            "begins: give more"
        )
    # Steps around 0.5: what torch and MONAI take by themselves is in the middle of one.
    counted = floor(2 * held + 0.5) / 2 + 0.25
    return max(max_memory_gb - counted, 0.0)


def release_network(plan: UNetPlan, max_features: int) -> None:
    """Give back what a scored network of many weights leaves behind.

    Each DynUNet is in a cycle of references (its constructor has a recursive function), so that
    only the garbage collector frees its weights; and glibc keeps for each thread what it has freed.
    """
    if network_cost(plan, max_features).num_parameters < _MANY_WEIGHTS:
        return
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every C library
        if trim is not None:
            trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # What PyTorch's allocator on CPU, oneDNN, cuBLAS and cuDNN say as RuntimeError. Where memory
    # runs out in one of cuDNN's kernels, PyTorch tries the next one, to the last.
    signs = (
        "DefaultCPUAllocator",
        "out of memory",
        "could not create a memory",
        "ALLOC_FAILED",
        "unable to find an engine to execute this computation",
    )
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _held_gb(device: torch.device) -> float:
    """Memory that this process holds now; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) / 1e9
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
