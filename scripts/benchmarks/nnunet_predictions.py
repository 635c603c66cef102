"""Compare imported bundles with nnU-Net itself, voxel by voxel, and write the table.

usage: python scripts/benchmarks/nnunet_predictions.py --nnunet PYTHON_OF_NNUNET --data DATA
           [--work DIR] [--output docs/benchmarks/nnunet.md] [--only NAME ...]
example: python scripts/benchmarks/nnunet_predictions.py --nnunet .venv-nnunet/bin/python
             --data DATA

The trained reference bundles are exported to nnU-Net. Their plans are then changed so that every
step of nnU-Net has something to do, nnU-Net predicts, and so does the bundle that each model folder
is imported to. The weights were trained for other intensities and spacings in some of them: what
counts is that both predict the same, and foreground.

A second table compares the reference bundles themselves with nnU-Net that predicts with what they
were exported to: there the two resample, normalize and place windows in their own ways.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.nnunet.checkpoint import network_axes, weights_to_nnunet
from monai_xtiny.nnunet.exporting import export_to_nnunet
from monai_xtiny.nnunet.importing import import_checkpoint
from monai_xtiny.system.config_text import PlainPath

TABLE = (
    "| | voxels | foreground | differ | largest logit | its difference |",
    "|---|---:|---:|---:|---:|---:|",
)
ROOT = Path(__file__).parents[2]
HIPPOCAMPUS = ROOT / "bundle" / "hippocampus_mri_xtiny_segmentation"
NUCLEI = ROOT / "bundle" / "nuclei_fluorescence_xtiny_segmentation"
SPLINES = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
LINEAR = {**SPLINES, "order": 1}


@dataclass(frozen=True)
class Variant:
    """One way to predict.

    Args:
        name: for the table.
        bundle: whose weights.
        settings: of the configuration that are replaced.
        plans: keys of the plans that are replaced.
        mirror_axes: of nnU-Net's network, whose flips are averaged.
        channels: of the network; the weights of one are shared out.
        spacing: mm (x, y, z) that the files are given.
        flat: images that are stacked to volumes.
        change: of the voxels of a file.
        as_exported: the bundle itself is compared with nnU-Net, with the plans of its export.
    """

    name: str
    bundle: Path
    settings: dict[str, Any] = field(default_factory=dict)
    plans: dict[str, Any] = field(default_factory=dict)
    mirror_axes: tuple[int, ...] = ()
    channels: int = 1
    spacing: tuple[float, float, float] | None = None
    flat: bool = False
    change: Callable[[np.ndarray], np.ndarray] | None = None
    as_exported: bool = False


def framed(volume: np.ndarray) -> np.ndarray:
    """A volume with zeros around and a hole within, as after skull stripping."""
    found = np.pad(volume, 6)
    middle = [size // 2 for size in found.shape]
    found[tuple(slice(at, at + 3) for at in middle)] = 0
    return found


def doubled(volume: np.ndarray) -> np.ndarray:
    """A volume and its mirror image, side by side."""
    return np.concatenate([volume, volume[:, ::-1]], axis=1)


SITK = {"image_reader_writer": "SimpleITKIO"}
PLAIN = {"resampling_fn_data_kwargs": SPLINES, "resampling_fn_probabilities_kwargs": LINEAR}
CT = {
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": 300.0, "std": 120.0, "percentile_00_5": 20.0, "percentile_99_5": 600.0}
    }
}
VARIANTS = [
    Variant("3D, one window", HIPPOCAMPUS, PLAIN, SITK),
    Variant("3D, one window, flips", HIPPOCAMPUS, PLAIN, SITK, mirror_axes=(0, 1, 2)),
    Variant("3D, several windows", HIPPOCAMPUS, {**PLAIN, "patch_size": [24, 32, 24]}, SITK),
    Variant("3D, several windows, flips", HIPPOCAMPUS, {**PLAIN, "patch_size": [24, 32, 24]}, SITK,
            mirror_axes=(0,)),
    Variant("3D, resampled", HIPPOCAMPUS, PLAIN, SITK, spacing=(0.9, 1.2, 1.1)),
    Variant("3D, resampled slice by slice", HIPPOCAMPUS, {**PLAIN, "spacing": [3.5, 1.0, 1.0]},
            SITK, spacing=(1.1, 0.9, 3.9)),
    Variant("3D, anisotropic, not resampled", HIPPOCAMPUS, {**PLAIN, "spacing": [3.5, 1.0, 1.0]},
            SITK, spacing=(1.0, 1.0, 3.5)),
    Variant("3D, CT", HIPPOCAMPUS, {**PLAIN, "normalization_schemes": ["CTNormalization"]},
            {**SITK, **CT}),
    Variant("3D, nonzero mask", HIPPOCAMPUS, {**PLAIN, "use_mask_for_norm": [True]}, SITK,
            change=framed),
    Variant("3D, two channels", HIPPOCAMPUS,
            {**PLAIN, "normalization_schemes": ["ZScoreNormalization", "RescaleTo01Normalization"],
             "use_mask_for_norm": [False, False]}, SITK, channels=2),
    Variant("3D, transposed", HIPPOCAMPUS, PLAIN,
            {**SITK, "transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]},
            spacing=(0.9, 1.2, 1.1)),
    Variant("3D, turned to RAS", HIPPOCAMPUS, PLAIN, {}, spacing=(-1.0, 1.0, 1.0)),
    Variant("2D, one window", NUCLEI, PLAIN),
    Variant("2D, one window, flips", NUCLEI, PLAIN, mirror_axes=(0, 1)),
    Variant("2D, several windows", NUCLEI, {**PLAIN, "patch_size": [128, 192]}),
    Variant("2D, volumes slice by slice", NUCLEI, PLAIN,
            {**SITK, "original_median_shape_after_transp": [3, 256, 256]}, flat=True),
    Variant("2D, volumes slice by slice, resampled", NUCLEI, PLAIN,
            {**SITK, "original_median_shape_after_transp": [3, 256, 256]}, flat=True,
            spacing=(0.9, 1.2, 3.0)),
]  # fmt: skip
EXPORTS = [
    Variant("3D", HIPPOCAMPUS, as_exported=True),
    Variant("3D, several windows", HIPPOCAMPUS, change=doubled, as_exported=True),
    Variant("3D, resampled", HIPPOCAMPUS, spacing=(0.9, 1.2, 1.1), as_exported=True),
    Variant("3D, resampled, turned to RAS", HIPPOCAMPUS, spacing=(-0.9, -1.2, 1.1),
            as_exported=True),
    Variant("2D", NUCLEI, as_exported=True),
]  # fmt: skip


def main() -> None:
    """Predict both ways, compare, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs="*", default=())
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    work = options.work or Path(tempfile.mkdtemp())
    variants = [
        item for item in VARIANTS + EXPORTS if not options.only or item.name in options.only
    ]
    jobs = [make(item, work / str(number), options.data) for number, item in enumerate(variants)]
    (work / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    reference = Path(__file__).with_name("nnunet_reference.py")
    subprocess.run(
        [options.nnunet, str(reference), str(work / "jobs.json")],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    lines: dict[bool, list[str]] = {False: [], True: []}
    for item, job in zip(variants, jobs, strict=True):
        lines[item.as_exported].append(compare(item.name, job))
        print(lines[item.as_exported][-1], flush=True)
    command = [options.nnunet, "-c", "from importlib.metadata import version as v;"
               "print(v('nnunetv2'), v('torch'))"]  # fmt: skip
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    head = [
        "# Imported bundles against nnU-Net",
        "",
        f"`python scripts/benchmarks/nnunet_predictions.py`, {time.strftime('%Y-%m-%d')}, "
        f"{platform.machine()} CPU, nnunetv2 {found[0]} with torch {found[1]}, monai "
        f"{version('monai')} with torch {version('torch')}.",
        "",
        "Three cases each, with the weights of the reference bundles; voxels of all three. Logits "
        "are compared on the grid of the network, in float16 as nnU-Net has them.",
        "",
    ]
    between = [
        "",
        "# Exported bundles against themselves in nnU-Net",
        "",
        "The reference bundles, and nnU-Net with what they were exported to: what its resampling, "
        "the order of normalization and resampling, and its windows change.",
        "",
    ]
    text = [*head, *TABLE, *lines[False], *between, *TABLE, *lines[True], ""]
    if options.output is not None:
        options.output.write_text("\n".join(text), encoding="utf-8")


def make(variant: Variant, folder: Path, data: Path) -> dict[str, Any]:
    """The model folder, the images and the imported bundle of a variant."""
    if folder.exists():
        shutil.rmtree(folder)
    model = export_to_nnunet(variant.bundle, folder / "model").path
    if variant.as_exported:
        images = folder / "images"
        images.mkdir()
        write_images(variant, images, data)
        return {"model": str(model), "images": str(images), "output": str(folder / "nnunet"),
                "bundle": str(variant.bundle), "mirroring": False}  # fmt: skip
    bundle = Bundle.open(variant.bundle)
    plans = json.loads((model / "plans.json").read_text(encoding="utf-8"))
    (configuration,) = plans["configurations"].values()
    configuration.update(variant.settings)
    plans.update(variant.plans)
    dataset = json.loads((model / "dataset.json").read_text(encoding="utf-8"))
    order = plans["transpose_forward"]
    dims = len(configuration["patch_size"])
    axes = network_axes(order, dims)
    if order != [0, 1, 2]:
        configuration["patch_size"] = [configuration["patch_size"][axis] for axis in order]
    plan = replace(bundle.plan, features_per_stage=bundle.selection.rung.features_per_stage,
                   in_channels=variant.channels)  # fmt: skip
    weights = bundle.weights()
    first = "input_block.conv1.conv.weight"
    weights[first] = torch.cat([weights[first] / variant.channels] * variant.channels, dim=1)
    dataset["channel_names"] = {str(index): f"c{index}" for index in range(variant.channels)}
    intensities = plans["foreground_intensity_properties_per_channel"]
    intensities.update({str(index): {} for index in range(1, variant.channels)})
    if variant.flat:
        dataset["file_ending"] = ".nii.gz"
    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["network_weights"] = weights_to_nnunet(weights, plan, axes)
    checkpoint["inference_allowed_mirroring_axes"] = variant.mirror_axes or None
    torch.save(checkpoint, file)
    for name, content in (("plans", plans), ("dataset", dataset)):
        (model / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    images = folder / "images"
    images.mkdir()
    write_images(variant, images, data)
    made = import_checkpoint(file, folder / "x_segmentation")
    return {"model": str(model), "images": str(images), "output": str(folder / "nnunet"),
            "bundle": str(made), "mirroring": bool(variant.mirror_axes)}  # fmt: skip


def write_images(variant: Variant, folder: Path, data: Path) -> None:
    """Three cases."""
    if variant.bundle == NUCLEI:
        files = sorted((data / "Dataset076_DSB2018Fluo" / "imagesTr").glob("*.png"))
        arrays = [np.asarray(Image.open(file)) for file in files]
        if variant.flat:
            flat = [array for array in arrays if array.shape == (256, 256)]
            for number in range(3):
                stack = np.stack([image.T for image in flat[3 * number : 3 * number + 3]], axis=-1)
                save_volume(
                    stack, folder / f"case{number}_0000.nii.gz", variant.spacing or (1, 1, 1)
                )
            return
        for number, array in enumerate(arrays[:3]):
            Image.fromarray(array).save(folder / f"case{number}_0000.png")
        return
    files = sorted((data / "Dataset004_Hippocampus" / "imagesTr").glob("*.nii.gz"))
    generator = np.random.default_rng(0)
    for number, file in enumerate(files[:3]):
        volume = np.asarray(nibabel.load(file).dataobj).astype(np.float32)
        volume = volume if variant.change is None else variant.change(volume)
        for channel in range(variant.channels):
            noise = generator.normal(0, volume.std() / 20, volume.shape) * (channel > 0)
            name = f"case{number}_{channel:04d}.nii.gz"
            shown = (volume + noise).astype(np.float32)
            save_volume(shown, folder / name, variant.spacing or (1, 1, 1))


def save_volume(volume: np.ndarray, file: Path, spacing: Sequence[float]) -> None:
    """A NIfTI file with a spacing; a negative one stores the axis the other way round."""
    turned = tuple(slice(None, None, -1 if size < 0 else 1) for size in spacing)
    nibabel.save(nibabel.Nifti1Image(volume[turned], np.diag([*map(float, spacing), 1.0])), file)


def compare(name: str, job: dict[str, Any]) -> str:
    """Predict with the bundle, and a row of the table."""
    output = Path(job["output"]).with_name("bundle_labels")
    workflow = Bundle.open(job["bundle"]).workflow(
        ("inference",),
        {"dataset_dir": PlainPath(job["images"]), "output_dir": PlainPath(str(output))},
    )
    inferer = workflow.parser.get_parsed_content("inferer")
    predict, logits = getattr(inferer, "predict", None), []

    def noted(*arguments: Any) -> torch.Tensor:
        logits.append(predict(*arguments))
        return logits[-1]

    if predict is not None:
        inferer.predict = noted
    workflow.run()
    stored = np.load(Path(job["output"]) / "logits.npz")
    theirs = [stored[key].astype(np.float32) for key in stored.files]
    ours = [item.float().numpy() for item in logits]
    both = zip(ours, theirs, strict=bool(ours))
    differences = [float(np.abs(one - other).max()) for one, other in both]
    difference = f"{max(differences):.2g}" if differences else ""
    pairs = [
        (read_label(file), read_label(output / file.name))
        for file in sorted(Path(job["output"]).iterdir())
        if file.name.endswith((".nii.gz", ".png"))
    ]
    voxels, foreground, differ = (
        sum(int(count(*pair)) for pair in pairs)
        for count in (
            lambda a, _: a.size,
            lambda a, _: (a > 0).sum(),
            lambda a, b: (a != b).sum(),
        )
    )
    if len(pairs) != 3 or not foreground:
        raise ValueError(f"{name}: {len(pairs)} cases with {foreground} voxels of foreground")
    largest = max(float(np.abs(item).max()) for item in theirs)
    return (
        f"| {name} | {voxels:,} | {foreground:,} | {differ} ({differ / voxels:.4%}) | "
        f"{largest:.1f} | {difference} |"
    )


def read_label(file: Path) -> np.ndarray:
    """Labels of a file."""
    if file.suffix == ".png":
        return np.asarray(Image.open(file))
    return np.asarray(nibabel.load(file).dataobj)


if __name__ == "__main__":
    main()
