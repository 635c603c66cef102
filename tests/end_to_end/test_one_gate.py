"""Whatever a file holds, all that read it see the same, or refuse it in one line."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.headers import read_headers
from monai_xtiny.deploy.onnx_model import input_format
from monai_xtiny.deploy.segmenter import Segmenter, _content, z_score
from monai_xtiny.system.errors import root_cause
from tests.conftest import texture
from tests.data.odd_files import write_png_of_16_bits, write_tiff
from tests.end_to_end.test_one_preprocessing import Dataset, config, make_dataset, until_normalized

# Files of each kind, of which about half are refused.
NUM_FILES = 150
Read = Callable[[str], torch.Tensor]


def reads_of(dataset: Dataset) -> dict[str, Read]:
    """The readers of a data set's search and bundle."""
    known = find_cases(dataset.root / "imagesTr")[0]
    search = until_normalized(dataset.search.get_parsed_content("preprocessing"))
    inference = until_normalized(config(dataset, "inference").get_parsed_content("preprocessing"))
    training = config(dataset, "train")
    with_label = until_normalized(training.get_parsed_content("train#preprocessing"))
    reads = {
        "search": lambda file: search_reads(file, known, search),
        "inference": lambda file: inference({"image": [file]})["image"],
        "training": lambda file: with_label({"image": [file], "label": label_of(file)})["image"],
    }
    if dataset.kind == "gray":
        segmenter = Segmenter(lambda images: images, input_format(Bundle.open(dataset.bundle)))
        reads["segmenter"] = lambda file: segmenter_reads(file, segmenter)
    return reads


def search_reads(file: str, known, transform) -> torch.Tensor:
    cases = find_cases(file)
    read_headers([known, *cases])
    return transform({"image": list(cases[0].images)})["image"]


def segmenter_reads(file: str, segmenter: Segmenter) -> torch.Tensor:
    image = segmenter.read(file)
    return torch.as_tensor(z_score(image[(slice(None), *_content(image))]))


def label_of(file: str) -> str:
    """A label on the grid of an image, as far as the image can be read."""
    path = Path(file)
    label = path.parent / "labels" / path.name
    label.parent.mkdir(exist_ok=True)
    try:
        if ".nii" in path.name:
            image = nibabel.load(path)
            header = image.header.copy()
            header.set_data_dtype(np.uint8)
            header.set_slope_inter(1, 0)
            blank = np.zeros([edge for edge in image.shape if edge != 1][:3], np.uint8)
            blank = np.zeros(image.shape[:3], np.uint8) if blank.ndim < 3 else blank
            nibabel.save(type(image)(blank.reshape(image.shape[:3]), None, header), label)
        else:
            with Image.open(path) as image:
                size = image.size
            label = label.with_suffix(".png")
            Image.new("L", size).save(label)
    except Exception:
        label.write_bytes(b"")
    return str(label)


def write_odd_volume(path: Path, rng: np.random.Generator) -> None:
    """A NIfTI file with a header and voxels as programs, and broken disks, leave them."""
    shape = tuple(rng.choice([1, 6, 9, 12], size=rng.choice([2, 3, 3, 3, 3, 4, 5])))
    if rng.random() < 0.7:
        shape = (9, 8, 7, *([1] * rng.integers(0, 2)))
    dtype = np.dtype(rng.choice(["u1", "i1", "i2", "u2", "i4", "f4", "f8", "c8", "i8"]))
    field = texture((12, 12, 12), int(rng.integers(100))) // 3
    values = np.resize(field, shape).astype(dtype)
    if dtype.kind == "f" and rng.random() < 0.3:
        values.flat[rng.integers(values.size)] = rng.choice([np.nan, np.inf])
    if rng.random() < 0.1:
        values[:] = 7
    if rng.random() < 0.3:
        values[:3] = 0
    affine = np.diag([*rng.choice([0.7, 1.0, 2.5], 3), 1.0])
    affine[:3] = affine[rng.permutation(3)]
    affine[:3, 3] = rng.normal(size=3) * 20
    kind = nibabel.Nifti2Image if rng.random() < 0.2 else nibabel.Nifti1Image
    image = kind(values, affine, dtype=dtype)
    header = image.header
    header["sform_code"], header["qform_code"] = rng.choice([0, 1, 2], 2)
    if rng.random() < 0.2:
        header["pixdim"][1 + rng.integers(3)] = rng.choice([0, np.nan, 5, -1])
    if rng.random() < 0.1:
        header["srow_x"][rng.integers(4)] = np.nan
    if rng.random() < 0.2 and dtype.kind == "u":
        header["scl_slope"], header["scl_inter"] = rng.choice([2, 0, np.nan]), 3
    header["vox_offset"] = header.sizeof_hdr + 4
    content = header.binaryblock + bytes(4) + values.tobytes(order="F")
    if rng.random() < 0.1:
        content = content[: rng.integers(1, len(content))]
    if rng.random() < 0.1:
        spoilt = bytearray(content)
        spoilt[rng.integers(min(300, len(content)))] = rng.integers(256)
        content = bytes(spoilt)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_odd_image(path: Path, rng: np.random.Generator) -> None:
    """A PNG, JPG, TIFF or BMP file of any mode, whole or not."""
    field = texture((40, 48), int(rng.integers(100)))
    if rng.random() < 0.1:
        field[:] = rng.choice([0, 9])
    if rng.random() < 0.2:
        field[:7] = 0
    color = np.stack([field, 255 - field, field // 2, field], -1)
    if path.suffix == ".tif" and rng.random() < 0.7:
        samples = int(rng.choice([0, 0, 0, 2, 3, 4]))
        dtype = np.dtype(rng.choice(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "c8"]))
        pixels = (color[..., :samples] if samples else field).astype(dtype)
        if dtype.kind == "f" and rng.random() < 0.3:
            pixels.flat[9] = np.nan
        write_tiff(path, pixels, byteorder=str(rng.choice(["<", ">"])))
    elif path.suffix == ".png" and rng.random() < 0.2:
        write_png_of_16_bits(path, color[..., :3].astype(np.uint16) * 257)
    else:
        modes = {".jpg": ["L", "RGB", "CMYK"], ".bmp": ["1", "L", "P", "RGB"]}.get(
            path.suffix, ["1", "L", "L", "P", "RGB", "RGBA", "LA", "I;16"]
        )
        mode = str(rng.choice(modes))
        wide = field.astype(np.uint16) * 250
        image = Image.fromarray(wide if mode == "I;16" else color[..., :3])
        exif = Image.Exif()
        exif[274] = int(rng.choice([1, 1, 3, 8, 99]))
        options = {} if path.suffix == ".bmp" else {"exif": exif}
        (image if mode == "I;16" else image.convert(mode)).save(path, **options)
    content = path.read_bytes()
    if rng.random() < 0.1:
        content = content[: rng.integers(1, len(content))]
    if rng.random() < 0.1:
        spoilt = bytearray(content)
        spoilt[rng.integers(min(300, len(content)))] = rng.integers(256)
        content = bytes(spoilt)
    path.write_bytes(content)


WRITERS = {
    "volumes": (write_odd_volume, (".nii", ".nii.gz")),
    "gray": (write_odd_image, (".png", ".png", ".jpg", ".tif", ".tif", ".bmp")),
}


def outcome(read: Read, file: str) -> torch.Tensor | str:
    """The tensor, or the line that refuses the file."""
    try:
        return torch.as_tensor(read(file)).as_subclass(torch.Tensor)
    except Exception as error:
        return str(root_cause(error))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_the_same_tensor_everywhere_or_refused_in_one_line(kind, tmp_path) -> None:
    dataset = make_dataset(kind, tmp_path, channels=1)
    reads = reads_of(dataset)
    write, endings = WRITERS[kind]
    num_read = 0
    for seed in range(NUM_FILES):
        rng = np.random.default_rng(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = folder / f"x{seed}{rng.choice(endings)}"
        write(path, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = {name: outcome(read, str(path)) for name, read in reads.items()}
        refused = {name: line for name, line in found.items() if isinstance(line, str)}
        assert len(refused) in (0, len(found)), (seed, refused)
        assert not any("\n" in line or not line for line in refused.values()), (seed, refused)
        for name, image in found.items():
            if not refused:
                assert torch.allclose(image, found["inference"], atol=1e-4), (seed, name)
        num_read += not refused
    # The generator draws both sorts.
    assert NUM_FILES / 5 < num_read < NUM_FILES * 4 / 5, num_read
