"""What scripts/web/e2e.mjs takes: pages of the shipped bundles, real images, and Python's labels.

usage: python scripts/web_e2e.py DATA OUTPUT
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image

from monai_xtiny.bundle.folder import WEIGHTS, Bundle
from monai_xtiny.cli.commands import main as run_command
from monai_xtiny.deploy.onnx_model import export_onnx
from monai_xtiny.deploy.standalone import write_standalone
from monai_xtiny.deploy.web import write_site
from monai_xtiny.system.config_text import PlainPath

ROOT = Path(__file__).resolve().parent.parent
MRI, NUCLEI = "hippocampus_mri_xtiny_segmentation", "nuclei_fluorescence_xtiny_segmentation"
SLICES = "hippocampus_slices_segmentation"
RUNTIME = ROOT / "scripts/web/node_modules/onnxruntime-web/dist"


def draw_volumes(folder: Path, data: Path) -> list[Path]:
    """A hippocampus as it is; turned, on another spacing, with margins; larger than the patch."""
    first, second, third = sorted((data / "Dataset004_Hippocampus/imagesTr").glob("*.nii.gz"))[:3]
    plain = Path(shutil.copy(first, folder / "plain.nii.gz"))
    image: Any = nibabel.load(second)
    voxels = np.asarray(image.dataobj, np.float32)
    padded = np.pad(voxels, ((3, 5), (0, 4), (2, 0)))
    turned = padded[::-1].transpose(2, 0, 1)
    flip = np.array([[-1, 0, 0, len(padded) - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    affine = (image.affine @ flip)[:, [2, 0, 1, 3]]
    nibabel.save(nibabel.Nifti1Image(turned, affine), folder / "turned.nii")
    other: Any = nibabel.load(third)
    voxels = np.asarray(other.dataobj, np.float32)
    cosine, sine = np.cos(0.3), np.sin(0.3)
    oblique = np.eye(4)
    oblique[:3, :3] = [[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]] @ np.diag([1.7, 0.8, 1.3])
    nibabel.save(nibabel.Nifti1Image(voxels[::2], oblique), folder / "spaced.nii.gz")
    large = np.tile(voxels, (2, 1, 1))
    nibabel.save(nibabel.Nifti1Image(large, other.affine), folder / "large.nii.gz")
    return [plain, *(folder / name for name in ("turned.nii", "spaced.nii.gz", "large.nii.gz"))]


def draw_images(folder: Path, data: Path) -> list[Path]:
    """A fluorescence image as it is; as JPG; larger than the patch, and with dark margins."""
    files = sorted((data / "Dataset076_DSB2018Fluo/imagesTr").glob("*.png"))
    plain = Path(shutil.copy(files[0], folder / "plain.png"))
    pixels = np.asarray(Image.open(plain))
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=95)
    wide = np.concatenate([np.asarray(Image.open(file)) for file in files[:2]], axis=1)
    Image.fromarray(wide).save(folder / "wide.png")
    deep = np.pad(pixels[:150, :90].astype(np.uint16) * 200, ((9, 20), (31, 4)))
    Image.fromarray(deep).save(folder / "deep.png")
    return [plain, *(folder / name for name in ("photo.jpg", "wide.png", "deep.png"))]


def refused_files(folder: Path, *, is_volume: bool) -> list[dict[str, str]]:
    """Wrong files, and what the page is to say of each."""
    folder.mkdir()
    flat, text, empty = folder / "flat.png", folder / "notes.txt", folder / "empty.png"
    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(flat)
    text.write_text("nothing")
    empty.touch()
    found = {text: "of no kind that this page reads", empty: "is empty"}
    if is_volume:
        broken, nan = folder / "broken.nii.gz", folder / "nan.nii"
        broken.write_bytes(b"\x1f\x8b\x08 broken")
        nibabel.save(nibabel.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.eye(4)), nan)
        short = folder / "short.nii"
        short.write_bytes(nan.read_bytes()[:900])
        found |= {
            flat: "takes NIfTI volumes",
            broken: "cannot be read",
            nan: "NaN",
            short: "before its last voxel",
        }
    else:
        color, clear = folder / "color.png", folder / "clear.png"
        noise = np.random.default_rng(0).integers(0, 255, (30, 30, 4), np.uint8)
        Image.fromarray(noise[..., :3]).save(color)
        Image.fromarray(noise).save(clear)
        damaged = folder / "damaged.png"
        damaged.write_bytes(color.read_bytes()[:200])
        hidden = folder / "<img src=x onerror=alert(1)>.png"
        hidden.write_bytes(b"no image")
        found |= {
            flat: "7 everywhere",
            color: "3 channels, and this network takes 1",
            clear: "alpha channel",
            damaged: "cannot be read",
            hidden: "neither PNG nor JPG",
        }
    return [{"file": str(file), "says": says} for file, says in found.items()]


def search_slices(folder: Path, data: Path) -> Path:
    """A bundle of slices across the first axis; its weights are drawn: nobody judges the labels."""
    images, bundle = folder / "searched", folder / SLICES
    images.mkdir(parents=True)
    for file in sorted((data / "Dataset004_Hippocampus/imagesTr").glob("*.nii.gz"))[:6]:
        stored: Any = nibabel.load(file)
        thick = nibabel.Nifti1Image(np.asarray(stored.dataobj, np.float32), np.diag([3.0, 1, 1, 1]))
        nibabel.save(thick, images / file.name)
    typed = ["search", "--images", str(images), "--bundle", str(bundle), "--spatial_dims", "2"]
    classes = "background,anterior,posterior"
    run_command([*typed, "--method", "paper", "--num_images", "2", "--label_names", classes])
    weights = bundle / WEIGHTS
    drawn = torch.Generator().manual_seed(0)
    state = torch.load(weights, weights_only=True)
    for value in state.values():
        if value.ndim == 1:  # of normalization, which are 0 and 1 at the start
            value += torch.randn(value.shape, generator=drawn) / 2
    torch.save(state, weights)
    return bundle


def prepare_slices(data: Path, output: Path) -> dict[str, Any]:
    """A page of slices of volumes, and labels of volumes that are turned and resampled."""
    folder = output / SLICES
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    files = draw_volumes(images, data)[:3]
    bundle = Bundle.open(search_slices(folder, data))
    pairs = label_files(bundle, files, images, labels)
    write_site(bundle, folder / "site")
    return {
        "name": SLICES,
        **pairs[0],
        "others": pairs[1:],
        "labels": bundle.label_names,
        "voxel_ml": 0.001,
        "site": f"{SLICES}/site",
        "brief": True,
    }


def label_files(
    bundle: Bundle, files: list[Path], images: Path, labels: Path
) -> list[dict[str, Any]]:
    """Label files with the bundle's own ``inference.json``."""
    options = {"dataset_dir": PlainPath(str(images)), "output_dir": str(labels), "num_workers": 0}
    bundle.workflow(("inference",), options).run()
    ending = ".png" if bundle.kind == "images" else ".nii.gz"
    return [
        {"images": [str(file)], "label": str(labels / f"{file.name.split('.')[0]}{ending}")}
        for file in files
    ]


def prepare(name: str, data: Path, output: Path) -> dict[str, Any]:
    """Pages of a bundle, its images, and their labels by inference.json."""
    is_volume = name == MRI
    folder = output / name
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    files = (draw_volumes if is_volume else draw_images)(images, data)
    bundle = Bundle.open(shutil.copytree(ROOT / "bundle" / name, folder / name))
    pairs = label_files(bundle, files, images, labels)
    model = export_onnx(bundle)
    write_site(bundle, folder / "site")
    single = write_site(bundle, folder / "single", single_file=True)
    if not is_volume:
        alone = output / "standalone"
        alone.mkdir()
        (alone / "index.html").write_text("<!doctype html><title>ONNX Runtime</title>")
        for file in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
            shutil.copy(RUNTIME / file, alone)
        write_standalone(model, alone / "model_standalone.onnx")
    return {
        "name": name,
        **pairs[0],
        "others": pairs[1:],
        "labels": bundle.label_names,
        "voxel_ml": 0.001 if is_volume else None,
        "site": f"{name}/site",
        "single_file": str(single.relative_to(output)),
        "standalone": not is_volume,
        "refused": refused_files(folder / "refused", is_volume=is_volume),
    }


def main(data: str, output: str) -> None:
    """Prepare the shipped bundles, and one of slices."""
    folder = Path(output).resolve()
    cases = [prepare(name, Path(data), folder) for name in (MRI, NUCLEI)]
    cases.append(prepare_slices(Path(data), folder))
    (folder / "cases.json").write_text(json.dumps(cases, indent=4))


if __name__ == "__main__":
    main(*sys.argv[1:])
