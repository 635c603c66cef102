"""The processes of one search that ``torchrun`` started."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from ignite import distributed

# A rank that is done waits for the slowest one; torchrun ends the others where one dies.
TIMEOUT = timedelta(days=1)


def start_processes() -> None:
    """Join the processes through ``ignite.distributed``: NCCL on GPUs, gloo on CPUs.

    Raises:
        ValueError: there are more processes on this machine than GPUs.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < num_gpus < num_processes:
        raise ValueError(
            f"{num_processes} processes on a machine of {num_gpus} GPUs: start "
            f"--nproc_per_node={num_gpus}, or hide the GPUs by CUDA_VISIBLE_DEVICES='' and search "
            "on the cores"
        )
    distributed.initialize("nccl" if num_gpus else "gloo", timeout=TIMEOUT)
