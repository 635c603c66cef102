"""Inference of a folder: labels lie where their images lie, and bad files are named."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundled.geometry import _GEOMETRY
from monai_xtiny.system.config_text import PlainPath
from tests.conftest import texture
from tests.data.odd_files import write_png_of_16_bits
from tests.end_to_end.test_one_preprocessing import make_dataset

pytestmark = pytest.mark.search


def run_inference(bundle: Path, images: Path, labels: Path, **options) -> None:
    """Run the emitted config in this process."""
    paths = {"dataset_dir": PlainPath(str(images)), "output_dir": PlainPath(str(labels))}
    Bundle.open(bundle).workflow(("inference",), {**paths, **options}).run()


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    """An untrained bundle for volumes of one channel."""
    return make_dataset("volumes", tmp_path_factory.mktemp("volumes"), channels=1).bundle


@pytest.fixture(scope="module")
def gray(tmp_path_factory) -> Path:
    """An untrained bundle for 2D images."""
    return make_dataset("gray", tmp_path_factory.mktemp("gray")).bundle


def write_placed(path: Path, shape: tuple[int, ...], sform_code: int, qform_code: int) -> Path:
    """An image whose sform and qform differ, of micrometers."""
    path.parent.mkdir(exist_ok=True)
    image = nibabel.Nifti1Image(texture(shape, 3).astype(np.int16), None)
    turned = np.diag([-1.2, 1.0, 1.5, 1.0])[[1, 0, 2, 3]]
    turned[:3, 3] = 10, -20, 30
    image.header.set_zooms((1.2, 1.0, 1.5)[: len(shape)])
    image.header.set_qform(np.diag([1.2, 1.0, 1.5, 1.0]), code=1)
    image.header.set_sform(turned, code=1)
    image.header["sform_code"], image.header["qform_code"] = sform_code, qform_code
    image.header.set_xyzt_units("micron")
    nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), path)
    return path


CODES = [(1, 1), (2, 0), (0, 1), (0, 0)]


@pytest.mark.parametrize("kind, shape", [("volumes", (20, 18, 16)), ("gray", (40, 44))])
def test_labels_carry_the_header_of_their_image(kind, shape, request, tmp_path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    for number, codes in enumerate(CODES):
        write_placed(images / f"c{number}.nii.gz", shape, *codes)
    write_placed(images / "big.nii", shape, 1, 1)
    image = nibabel.load(images / "big.nii")
    swapped = image.header.as_byteswapped(">")
    data = np.asarray(image.dataobj).astype(">i2")
    (images / "big.nii").write_bytes(swapped.binaryblock + bytes(4) + data.tobytes(order="F"))
    run_inference(request.getfixturevalue(kind), images, labels)
    assert len(list(labels.iterdir())) == len(CODES) + 1
    for path in images.iterdir():
        image = nibabel.load(path)
        label = nibabel.load(labels / f"{path.name.split('.')[0]}.nii.gz")
        assert label.shape == image.shape and label.get_data_dtype() == np.uint8
        assert np.array_equal(label.affine, image.affine)
        for name in _GEOMETRY:
            assert np.array_equal(label.header[name], image.header[name]), (path.name, name)
        assert np.array_equal(label.header["pixdim"][:4], image.header["pixdim"][:4])
        # Of the image's intensities the label's header says nothing.
        assert np.isnan(label.header["scl_slope"]) or label.header["scl_slope"] in (0, 1)


def test_a_volume_with_one_bad_voxel_is_named_and_the_others_are_labeled(volumes, tmp_path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    for name in ("a", "b", "c", "flat", "wide"):
        write_placed(images / f"{name}.nii.gz", (20, 18, 16), 1, 1)
    spoilt = nibabel.load(images / "b.nii.gz").get_fdata(dtype=np.float32)
    spoilt[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(spoilt, np.eye(4)), images / "b.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full((9, 9, 9), 5.0), np.eye(4)), images / "flat.nii.gz")
    nibabel.save(nibabel.Nifti1Image(spoilt[..., 0], np.eye(4)), images / "wide.nii.gz")
    (images / "torn.nii.gz").write_bytes((images / "a.nii.gz").read_bytes()[:900])
    with pytest.raises(SystemExit, match="^4 of 6 not labeled:\n") as caught:
        run_inference(volumes, images, labels)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 4
    for line, name, problem in zip(
        lines,
        ("b", "flat", "torn", "wide"),
        ("1 voxels are NaN", "channel 0 is constant", "torn.nii.gz", "has 2 dimensions"),
        strict=True,
    ):
        assert f"{name}.nii.gz" in line and problem in line
    assert sorted(path.name for path in labels.iterdir()) == ["a.nii.gz", "c.nii.gz"]


@pytest.mark.parametrize("num_workers, batch_size", [(0, 1), (2, 2)])
def test_images_of_every_kind_are_labeled_or_named(gray, tmp_path, num_workers, batch_size) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    field = Image.fromarray(texture((40, 56), 1))
    for name in ("a", "z"):
        field.save(images / f"{name}.png")
    Image.new("L", (56, 40)).save(images / "black.png")
    field.convert("RGB").save(images / "color.png")
    field.convert("P").save(images / "palette.png")
    write_png_of_16_bits(images / "rgb16.png", np.ones((40, 56, 3), np.uint16))
    options = {"num_workers": num_workers, "batch_size": batch_size}
    with pytest.raises(SystemExit, match="^4 of 6 not labeled:") as caught:
        run_inference(gray, images, labels, **options)
    lines = str(caught.value).splitlines()[1:]
    assert ["black", "color", "palette", "rgb16"] == sorted(
        next(name for name in ("black", "color", "palette", "rgb16") if f"{name}.png" in line)
        for line in lines
    )
    assert sorted(path.name for path in labels.iterdir()) == ["a.png", "z.png"]


def test_a_border_of_zeros_gets_no_label_and_changes_none(gray, tmp_path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    field = np.maximum(texture((40, 56), 1), 1)
    Image.fromarray(field).save(images / "tight.png")
    Image.fromarray(np.pad(field, ((3, 9), (8, 0)))).save(images / "wide.png")
    run_inference(gray, images, labels)
    tight, wide = (np.asarray(Image.open(labels / f"{name}.png")) for name in ("tight", "wide"))
    assert tight.any() and np.array_equal(wide, np.pad(tight, ((3, 9), (8, 0))))
