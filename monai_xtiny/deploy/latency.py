"""How long a width takes on this machine, before there is a bundle of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import ignite.distributed as idist

from monai_xtiny.bundle.folder import data_kind
from monai_xtiny.deploy.onnx_model import write_onnx
from monai_xtiny.deploy.segmenter import InputFormat, import_deploy
from monai_xtiny.deploy.timing import ONNX, EngineModel, benchmark_engines
from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.plan.unet_plan import UNetPlan


def check_latency(max_latency_ms: float | None) -> None:
    """Refuse, before anything is scored, a limit of latency that cannot be measured here.

    Args:
        max_latency_ms: the limit, ms; ``None`` is none.

    Raises:
        ImportError: the extra ``deploy`` is not installed.
    """
    if max_latency_ms is not None:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            import_deploy(name)


def measure_latency(
    plan: UNetPlan, max_features: int, *, progress: Callable[[str], object] | None = None
) -> float:
    """Time one forward pass of a width on one patch, in ONNX Runtime on the CPU.

    The network at its initialization is exported, as ``deploy`` exports a trained one, and timed in
    a process of its own with one intra-op thread and with two: the faster counts. Under
    ``torchrun`` the first process measures, and all return what it found.

    Args:
        plan: of the full network.
        max_features: width cap.
        progress: is told, in the process that measures, what is being done.

    Returns:
        Median over the runs, ms.

    Raises:
        ImportError: the extra ``deploy`` is not installed.
        ValueError: the network cannot be exported.
        RuntimeError: ONNX Runtime failed.
    """
    latency = 0.0
    if idist.get_rank() == 0:
        if progress is not None:
            progress(f"measuring the latency of width {max_features}")
        latency = _timed(plan, max_features)
    if idist.get_world_size() > 1:  # all ranks choose alike
        latency = float(cast(float, idist.broadcast(latency, src=0)))
    return latency


def _timed(plan: UNetPlan, max_features: int) -> float:
    """The latency, measured by this process."""
    labels = tuple(str(number) for number in range(plan.out_channels))
    form = InputFormat(data_kind(plan), plan.in_channels, plan.patch_size, plan.divisor, labels)
    with tempfile.TemporaryDirectory(prefix="monai_xtiny_") as folder:
        path = Path(folder, "model.onnx")
        write_onnx(build_network(plan, max_features, seed=0).eval(), form, path)
        model = EngineModel(f"width {max_features}", max_features, ONNX, path)
        timings = benchmark_engines([model], form, (), plan.patch_size)
    return min(timing.network_ms for timing in timings)
