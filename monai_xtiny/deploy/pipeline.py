"""A trained bundle in real time: ONNX, int8, their Dice, and how fast which engine is."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from monai_xtiny.bundle.exclusive import exclusive
from monai_xtiny.bundle.folder import DEPLOYMENT, ONNX_STANDALONE, SPLIT, WEIGHTS, Bundle
from monai_xtiny.bundle.folder import ONNX as ONNX_FILE
from monai_xtiny.bundle.imported import is_imported
from monai_xtiny.data.cases import find_cases, sample_cases
from monai_xtiny.deploy.onnx_model import (
    OPSET,
    input_format,
    quantize_onnx,
    remove_stale,
    weights_facts,
    write_onnx,
)
from monai_xtiny.deploy.segmenter import WEIGHTS_FILE, InputFormat, import_deploy, load_segmenter
from monai_xtiny.deploy.standalone import (
    check_standalone,
    measure_whole_image,
    write_standalone,
)
from monai_xtiny.deploy.timing import (
    EAGER,
    INT8,
    ONNX,
    TORCHSCRIPT,
    EngineModel,
    EngineTiming,
    benchmark_engines,
)
from monai_xtiny.deploy.windows import sample_windows
from monai_xtiny.networks.dynunet import build_network, network_config
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.selection.choice import Selection
from monai_xtiny.system.devices import device_name, select_device
from monai_xtiny.system.files import digest_file, write_text
from monai_xtiny.training.evaluate import evaluate_held_out
from monai_xtiny.training.labeled import data_options

FULL_WIDTH, SELECTED = "full-width", "selected"
_FORMAT_VERSION = 1
# What docs/deploy.json calls them since version 1.
_JSON_NAMES = {"image_ms": "picture_ms", "image_p95_ms": "picture_p95_ms"}


@dataclass(frozen=True)
class Deployment:
    """What ``deploy`` made and measured.

    Args:
        files: ONNX files that were written.
        max_difference: largest difference of a logit between ONNX Runtime and PyTorch.
        dice: mean Dice of ``model.onnx`` on the held-out cases, if there were labeled data.
        dice_int8: the same of ``model_int8.onnx``.
        num_cases: number of cases held out.
        size: of the image that engines were timed on.
        timings: of the full-width and of the selected network.
        device: name of the device that they were timed on.
        num_large: with a file that stands alone and images, how many of 16 are larger than the
            patch.
        large_difference: share of their pixels whose label is another than with sliding windows.
    """

    files: tuple[Path, ...]
    max_difference: float
    dice: float | None = None
    dice_int8: float | None = None
    num_cases: int = 0
    size: tuple[int, ...] = ()
    timings: tuple[EngineTiming, ...] = ()
    device: str = ""
    num_large: int = 0
    large_difference: float | None = None


@exclusive
def deploy_bundle(
    bundle: Bundle,
    *,
    images: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    int8: bool = False,
    standalone: bool = False,
    dtype: str = "uint8",
    layout: str = "NHWC",
    benchmark: bool = True,
    device: str = "cpu",
    size: Sequence[int] | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Deployment:
    """Export a bundle's network to ONNX, and measure it.

    Args:
        bundle: the bundle, or its folder; ``models/model.onnx``, on request
            ``models/model_int8.onnx`` and ``models/model_standalone.onnx``, and
            ``docs/deploy.json`` are written. Such models of other weights are deleted.
        images: unlabeled images, whatever the search takes: ONNX Runtime is compared with PyTorch
            on 16 of them, and int8 calibrated.
        data: nnU-Net data set root with labels, whose held-out cases the Dice is measured on.
        int8: quantize too.
        standalone: write one file from raw pixels to labels too, of a bundle of 2D images; with
            ``images``, its one pass over large ones is compared with sliding windows.
        dtype: of the pixels that it takes.
        layout: of them, ``NHWC`` or ``NCHW``.
        benchmark: time four engines, with one intra-op thread and with two, on the selected network
            and on the full-width one at its initialization.
        device: to time them on, ``cpu`` or a ``cuda`` one: there with one thread, without int8, and
            with ONNX Runtime where onnxruntime-gpu is installed.
        size: of the image to time, ``(*spatial)`` (default: the patch size).
        output: JSON file to write in place of ``docs/deploy.json``.
        progress: is told what is being done.

    Returns:
        What was made and measured.

    Raises:
        BlockingIOError: another process writes the bundle.
        FileNotFoundError: there is no bundle, or no images or data.
        ImportError: the extra ``deploy`` is not installed.
        ValueError: a case cannot be read, outputs differ, int8 has no images, Dice is asked of an
            untrained bundle, the size has other dimensions, or there is no such device.
    """
    if is_imported(bundle.selection):
        raise ValueError(
            f"{str(bundle.root)!r} was imported from nnU-Net, whose processing of images "
            "the exported segmenter does not have: run configs/inference.json, or nnU-Net"
        )
    for name in ("onnx", "onnxruntime", "onnxscript"):
        import_deploy(name)
    computed_on = _check_device(device)
    timed_size = _check_size(size, bundle.plan)
    _check_inputs(bundle, images, data, int8)
    if standalone:
        check_standalone(bundle.kind, dtype, layout)
    say = progress or (lambda _: None)
    network, form = bundle.network(), input_format(bundle)
    windows = () if images is None else sample_windows(bundle, images)
    deployment = Deployment(*_write_models(network, form, bundle, windows, int8, say))
    if data is not None:
        deployment = _with_dice(deployment, bundle, data, say)
    networks = deployment.files
    if standalone:
        deployment = _with_standalone(deployment, bundle, images, dtype, layout, say)
    if benchmark:
        timings = _time_engines(
            network, bundle.selection, form, networks, timed_size, computed_on, say
        )
        measured_on = device_name(computed_on)
        deployment = replace(deployment, size=timed_size, timings=timings, device=measured_on)
    target = Path(output) if output is not None else bundle.path(DEPLOYMENT)
    _write(deployment, target, digest_file(bundle.path(WEIGHTS)))
    return deployment


def deployment_table(deployment: Deployment) -> str:
    """The timings as a Markdown table; the last column compares with the full width."""
    full = {
        (row.engine, row.num_threads): row for row in deployment.timings if row.network != SELECTED
    }
    lines = [
        "| network | engine | threads | file, KiB | network, ms (p95) | file to labels, ms (p95) "
        "| frames/s | peak, MiB | times as fast as the full width |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in deployment.timings:
        wide = full[row.engine, row.num_threads]
        from_file = "-"
        if row.image_ms is not None:
            from_file = f"{row.image_ms:.1f} ({row.image_p95_ms:.1f})"
        lines.append(
            f"| {row.network}, cap {row.max_features} | {row.engine} | {row.num_threads} "
            f"| {row.num_bytes / 1024:,.0f} | {row.network_ms:.1f} ({row.network_p95_ms:.1f}) "
            f"| {from_file} | {row.frames_per_second:.1f} | {row.peak_mib:.0f} "
            f"| {wide.network_ms / row.network_ms:.1f} |"
        )
    return "\n".join(lines)


def _check_device(name: str) -> torch.device:
    """The device to time engines on."""
    device = select_device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r}: engines are timed on cpu or cuda")
    return device


def _check_size(size: Sequence[int] | None, plan: UNetPlan) -> tuple[int, ...]:
    """The size of the image to time."""
    timed = plan.patch_size if size is None else tuple(size)
    if len(timed) != plan.spatial_dims or min(timed) < 1:
        raise ValueError(f"size {timed}: give {plan.spatial_dims} positive numbers, as the plan")
    return timed


def _check_inputs(
    bundle: Bundle,
    images: str | os.PathLike[str] | None,
    data: str | os.PathLike[str] | None,
    int8: bool,
) -> None:
    """Refuse int8 without images, data that are not there, and a bundle that holds none out."""
    if int8 and images is None:
        raise ValueError("int8 is calibrated on images: give --images")
    if data is None:
        return
    data_options(data, None)
    if not bundle.path(SPLIT).is_file():
        raise ValueError(
            f"{str(bundle.root)!r} has no {SPLIT}, which training writes: train it first, or leave "
            "out --data"
        )


def _write_models(
    network: torch.nn.Module,
    form: InputFormat,
    bundle: Bundle,
    windows: Sequence[NDArray[np.float32]],
    int8: bool,
    say: Callable[[str], None],
) -> tuple[tuple[Path, ...], float]:
    """Write the ONNX files; which they are, and the largest difference of a logit."""
    say("exporting to ONNX")
    model = bundle.path(ONNX_FILE)
    difference = write_onnx(network, form, model, inputs=windows, source=weights_facts(bundle))
    remove_stale(bundle)
    if not int8:
        return (model,), difference
    say("quantizing to int8")
    return (model, quantize_onnx(model, windows)), difference


def _with_dice(
    deployment: Deployment,
    bundle: Bundle,
    data: str | os.PathLike[str],
    say: Callable[[str], None],
) -> Deployment:
    """The deployment with the mean Dice of each of its files on the held-out cases."""
    found = []
    for file in deployment.files:
        say(f"Dice of {file.name}")
        found.append(evaluate_held_out(bundle, data=data, predict=_tensor_predictor(file))[0])
    return replace(
        deployment,
        dice=found[0].mean_dice,
        dice_int8=found[1].mean_dice if len(found) > 1 else None,
        num_cases=len(found[0].cases),
    )


def _with_standalone(
    deployment: Deployment,
    bundle: Bundle,
    images: str | os.PathLike[str] | None,
    dtype: str,
    layout: str,
    say: Callable[[str], None],
) -> Deployment:
    """The deployment with the file that stands alone, and what it is worth on large images."""
    say("writing the file that stands alone")
    network = deployment.files[0]
    path = write_standalone(network, bundle.path(ONNX_STANDALONE), dtype=dtype, layout=layout)
    deployment = replace(deployment, files=(*deployment.files, path))
    if images is None:
        return deployment
    cases = sample_cases(find_cases(images), 16, seed=369)
    count, share = measure_whole_image(network, cases)
    return replace(deployment, num_large=count, large_difference=share)


def _tensor_predictor(model: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model in ONNX Runtime, from tensors to tensors on the same device."""
    segmenter = load_segmenter(model)

    def predict(windows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(segmenter.predict(windows.cpu().numpy())).to(windows.device)

    return predict


def _time_engines(
    network: torch.nn.Module,
    selection: Selection,
    form: InputFormat,
    files: Sequence[Path],
    size: tuple[int, ...],
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[EngineTiming, ...]:
    """Both networks in all engines, from files in a folder that is thrown away."""
    plan = selection.table.plan
    runtimes = _available_runtimes(files, device, say)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wide = build_network(plan, seed=0).eval()
        wide_files: Sequence[Path] = ()
        if runtimes:
            say("exporting the full-width network")
            wide_files = _export_wide(wide, form, folder, size, int8=INT8 in runtimes)
        models = [
            EngineModel(name, cap, engine, path)
            for name, cap, item, exported in (
                (FULL_WIDTH, plan.features_per_stage[-1], wide, wide_files),
                (SELECTED, selection.max_features, network, files[: len(runtimes)]),
            )
            for engine, path in (
                *_save_for_pytorch(item, network_config(plan, cap), folder / name),
                *zip(runtimes, exported, strict=True),
            )
        ]
        images = _draw_image(form, size, folder) if form.kind == "images" else ()
        threads = (1, 2) if device.type == "cpu" else (1,)
        return benchmark_engines(
            models, form, images, size, device=str(device), threads=threads, progress=say
        )


def _available_runtimes(
    files: Sequence[Path], device: torch.device, say: Callable[[str], None]
) -> tuple[str, ...]:
    """The engines that read the exported files on a device; int8 is one of CPUs."""
    if device.type == "cpu":
        return (ONNX, INT8)[: len(files)]
    try:
        load_segmenter(files[0], device=str(device))
    except ValueError as error:
        say(f"ONNX Runtime is not timed on {device}: {error}")
        return ()
    return (ONNX,)


def _export_wide(
    network: torch.nn.Module, form: InputFormat, folder: Path, size: Sequence[int], *, int8: bool
) -> tuple[Path, ...]:
    """ONNX files of the full width, which need not segment well: int8 is calibrated on noise."""
    model = folder / Path(ONNX_FILE).name
    write_onnx(network, form, model)
    if not int8:
        return (model,)
    shape = (1, form.in_channels, *form.padded(size))
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return model, quantize_onnx(model, [noise])


def _save_for_pytorch(
    network: torch.nn.Module, arguments: Mapping[str, Any], stem: Path
) -> tuple[tuple[str, Path], ...]:
    """The files that PyTorch's engines read, each with the name of its engine."""
    eager, script = stem.with_suffix(".pt"), stem.with_suffix(".ts")
    torch.save({"arguments": arguments, "state_dict": network.state_dict()}, eager)
    torch.jit.script(network).save(script)
    return (EAGER, eager), (TORCHSCRIPT, script)


def _draw_image(form: InputFormat, size: tuple[int, ...], folder: Path) -> tuple[Path, ...]:
    """A smooth image with noise as PNG: one file for 1 or 3 channels, else one per channel."""
    generator = np.random.default_rng(0)
    num_channels = form.in_channels
    x, y = (np.linspace(0, 6, edge) for edge in size)
    smooth = 110 + 80 * np.sin(x)[None, :] * np.cos(y)[:, None]
    pixels = smooth[..., None] + generator.normal(0, 8, (*smooth.shape, num_channels))
    gray = pixels.clip(0, 255).astype(np.uint8)
    layers = [gray] if num_channels == 3 else [gray[..., index] for index in range(num_channels)]
    paths = tuple(folder / f"image_{index:04d}.png" for index in range(len(layers)))
    for layer, path in zip(layers, paths, strict=True):
        Image.fromarray(layer).save(path)
    return paths


def _write(deployment: Deployment, path: Path, weights: str) -> None:
    """``deploy.json``: what was measured, of which weights (SHA-256), and with which versions."""
    content: dict[str, Any] = {
        "format_version": _FORMAT_VERSION,
        **asdict(deployment),
        WEIGHTS_FILE: weights,
    }
    content["timings"] = [
        {_JSON_NAMES.get(name, name): value for name, value in asdict(row).items()}
        for row in deployment.timings
    ]
    content["files"] = [file.name for file in deployment.files]
    content["opset"] = OPSET
    packages = ("torch", "monai", "onnx", "onnxscript", "numpy", "pillow")
    content["environment"] = {
        **{name: version(name) for name in packages},
        # Its distribution is onnxruntime or onnxruntime-gpu.
        "onnxruntime": import_deploy("onnxruntime").__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "num_cores": os.cpu_count(),
    }
    write_text(path, json.dumps(content, indent=4, allow_nan=False) + "\n")
