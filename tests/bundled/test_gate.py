"""What a reader takes wrongly is refused; what is read is what the file holds."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import correct_nifti_header_if_necessary
from monai.transforms import LoadImaged
from PIL import Image

from monai_xtiny.bundled import gate
from monai_xtiny.bundled.gate import (
    check_files,
    check_grids,
    check_image,
    check_read_image,
    check_read_label,
    inspect_file,
    is_nifti,
    measure_misplacement,
    settle_affine,
)
from monai_xtiny.bundled.labeling import ChannelReader
from monai_xtiny.deploy import segmenter
from tests.conftest import write_nifti
from tests.data.odd_files import write_png_of_16_bits, write_tiff

GRID = np.array([[0, -1.2, 0, 9], [0, 0, 1.0, -4], [1.5, 0, 0, 3], [0, 0, 0, 1]])
FORM = {"in_channels": 1, "num_classes": 3, "spatial_dims": 3}


def case(**changes) -> dict:
    """A volume and its label on one grid."""
    image = torch.linspace(0, 1, 60).reshape(1, 3, 4, 5)
    content = {"image": image, "label": torch.arange(60).reshape(1, 3, 4, 5) % 3, **changes}
    affine = {"image": GRID, "label": changes.pop("affine", GRID)}
    return {
        key: MetaTensor(
            content[key],
            affine=torch.as_tensor(affine[key]),
            meta={"filename_or_obj": f"/data/{key}/" + changes.get("name", "c1.nii.gz")},
        )
        for key in ("image", "label")
    }


def shifted(distance: float) -> np.ndarray:
    """The grid, moved along its last axis by so many voxels."""
    affine = GRID.copy()
    affine[:3, 3] += distance * GRID[:3, 2]
    return affine


def check(data: dict, *, num_classes: int = 3, **form) -> dict:
    return check_read_label(check_read_image(data, **form), num_classes=num_classes)


def test_checks_of_a_case_return_what_they_were_given() -> None:
    data = case()
    before = {key: value.clone() for key, value in data.items()}
    assert check(data, **FORM) is data
    assert all(torch.equal(data[key], before[key]) for key in before)
    check(case(affine=shifted(0.05)), **FORM)
    check(case(affine=shifted(5), name="c1.png"), **FORM)  # PNG has no place
    check(case(affine=shifted(5), name="c1.nii.png"), **FORM)


@pytest.mark.parametrize(
    "changes, form, message",
    [
        ({}, {"in_channels": 2}, "the image has 1 channels, and the network takes 2: convert the"),
        ({"label": torch.zeros(3, 3, 4, 5)}, {}, "the label has 3 channels: save class indices as"),
        ({}, {"spatial_dims": 2}, "the image has 3 dimensions, and the bundle reads images of 2"),
        (
            {"label": torch.zeros(1, 3, 5, 4)}, {},
            r"the image has shape \(3, 4, 5\), the label \(3, 5, 4\): resample the label to the",
        ),
        ({"affine": shifted(3)}, {}, r"the label lies 3\.0 voxels away from its image \(their aff"),
        ({}, {"num_classes": 2}, r"the label holds 2\.0, and the classes are 0 to 1: renumber"),
        ({"label": torch.full((1, 3, 4, 5), 0.5)}, {}, r"the label holds 0\.5, and the classes"),
        ({"image": torch.full((1, 3, 4, 5), torch.inf)}, {}, "60 voxels are NaN or infinite"),
    ],
    ids=["channels", "label_channels", "axes", "shape", "place", "class", "half", "not_finite"],
)  # fmt: skip
def test_checks_of_a_case_name_the_case_and_the_remedy(changes, form, message) -> None:
    with pytest.raises(ValueError, match=r"^case c1\.nii\.gz: .*" + message):
        check(case(**changes), **{**FORM, **form})


def test_misplacement_is_the_largest_shift_of_a_corner_along_an_axis_in_voxels() -> None:
    # A label turned round its first axis by 0.1 rad about the first corner, in 2D.
    affine = torch.eye(4, dtype=torch.float64)
    turned = affine.clone()
    turned[:2, :2] = torch.tensor([[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]])
    expected = 10 * (1 - np.cos(0.1)) + 20 * np.sin(0.1)  # of the far corner, along x
    found = measure_misplacement((11, 21), affine.numpy(), turned.numpy())
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_image_refuses_one_voxel_that_is_not_finite(value) -> None:
    image = torch.rand(2, 5, 6)
    check_image(image, "a")
    image[1, 2, 3] = value
    with pytest.raises(ValueError, match="a: 1 voxels are NaN or infinite"):
        check_image(image, "a")


def write_image(path: Path, mode: str) -> Path:
    """Random pixels in one of Pillow's modes."""
    field = np.random.default_rng(0).integers(0, 255, (12, 10, 4)).astype(np.uint8)
    Image.fromarray(field[..., :3]).convert(mode).save(path)
    return path


def write_pages(path: Path) -> None:
    first = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    first.save(path, save_all=True, append_images=[first])


def write_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path, exif=exif)


def pixels(dtype: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("a.png", lambda p: write_image(p, "P"), "indices into a palette"),
        ("a.png", lambda p: write_image(p, "RGBA"), "its pixels are RGBA: save it as gray or RGB"),
        ("a.png", lambda p: write_image(p, "LA"), "its pixels are LA: save it as gray or RGB"),
        ("a.jpg", lambda p: write_image(p, "CMYK"), "its pixels are CMYK"),
        ("a.tif", write_pages, "a stack of 2 pages: save each as an image"),
        ("a.jpg", write_turned, r"EXIF orientation \(6\) .*: save it upright"),
        ("a.png", lambda p: write_png_of_16_bits(p, pixels("u2", 5, 6, 3)), "colors have 16 bits"),
        ("a.tif", lambda p: write_tiff(p, pixels("u2", 5, 6, 3)), "colors have more than 8 bits"),
        ("a.tif", lambda p: write_tiff(p, pixels("u1", 5, 6, 4)), "4 samples, of which 3 would be"),
        # Pillow 12 cannot even open it.
        ("a.tif", lambda p: write_tiff(p, pixels("u1", 5, 6, 2)), "(?:2 samples, |cannot be read)"),
        ("a.tif", lambda p: write_tiff(p, pixels("i1", 5, 6)), "signed numbers of 8 bits"),
        ("a.tif", lambda p: write_tiff(p, pixels("u4", 5, 6)), "unsigned numbers of 32 bits"),
        ("a.tif", lambda p: write_tiff(p, pixels("c8", 5, 6)), "cannot be read"),
        ("a.png", lambda p: p.write_bytes(b""), "cannot be read"),
        ("a.png", lambda p: None, r"cannot be read \(No such file"),
        ("a.png", os.mkfifo, "a pipe, socket or device"),
        ("a.nii", os.mkfifo, "a pipe, socket or device"),
        ("a.nii", lambda p: p.write_bytes(b""), "cannot be read"),
        ("a.nii", lambda p: write_volume(p, (5, 6, 7), dtype=np.complex64), "type complex64"),
        ("a.nii", lambda p: write_volume(p, (5, 6, 7, 1, 1)), r"5 axes, \(5, 6, 7, 1, 1\)"),
        ("a.nii", lambda p: write_volume(p, (5, 0, 7)), "an axis of no voxels"),
        ("a.nii", lambda p: write_volume(p, (5, 6, 7), pixdim=(1, 0, 2)), "measure 1, 0, 2 mm"),
        ("a.nii", lambda p: write_volume(p, (5, 6), pixdim=(1, np.nan, 2)), "measure 1, nan mm"),
        ("a.nii", lambda p: write_volume(p, (5, 6, 7), sform=np.nan), "says not where it lies"),
        ("a.nii", lambda p: write_volume(p, (5, 6, 7), sform=0), "says not where it lies"),
    ],
)  # fmt: skip
def test_files_that_would_be_read_wrongly_are_refused(tmp_path, name, write, message) -> None:
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match=f"a.{name[2:]}.*{message}") as caught:
        check_files({"image": str(path)})
    assert "\n" not in str(caught.value)


def write_volume(path: Path, shape, dtype=np.float32, pixdim=None, sform=None) -> None:
    """A NIfTI file with a header as asked for."""
    image = nibabel.Nifti1Image(np.ones(shape, dtype), np.diag([2.0, 2.0, 3.0, 1.0]))
    if sform is not None:
        for name in ("srow_x", "srow_y", "srow_z"):
            image.header[name] = sform
    image.header["sform_code"] = 1
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    header, data = image.header, image.get_fdata(dtype=dtype)
    path.write_bytes(header.binaryblock + bytes(4) + data.tobytes(order="F"))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7), (5, 6, 7, 1), (5, 6, 7, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "f4", "f8"])
def test_volumes_of_real_numbers_are_read_as_they_are(tmp_path, shape, dtype) -> None:
    path = tmp_path / "a.nii.gz"
    values = pixels(dtype, *shape)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    inspect_file(path)
    assert np.array_equal(np.asarray(nibabel.load(path).dataobj), values)


@pytest.mark.parametrize("value", [1e20, -3.4028e38])
def test_check_image_refuses_a_value_beside_which_all_others_vanish(value) -> None:
    image = torch.rand(1, 20, 20)
    image[0, 3, 3] = value
    with pytest.raises(ValueError, match="a: channel 0 reaches from .* nothing else can be told"):
        check_image(image, "a")


def test_an_unset_qform_never_takes_the_place_of_the_sform(tmp_path) -> None:
    # MONAI takes it, the identity, where pixdim and sform disagree a little.
    turned = np.array([[0, 0, -0.9375, 9], [-0.9375, 0, 0, -4], [0, 1.5, 0, 3], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(pixels("i2", 6, 7, 8), turned)
    image.header["pixdim"][1:4] = 0.94, 1.5, 0.94
    image.header["qform_code"], image.header["sform_code"] = 0, 1
    for name in ("quatern_b", "quatern_c", "quatern_d"):
        image.header[name] = 0
    header, data = image.header, np.asarray(image.dataobj)
    header["vox_offset"] = 352
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + bytes(4) + data.tobytes(order="F"))
    with pytest.raises(ValueError, match="a.nii.*its spacing .* disagree, and its qform points"):
        check_files({"image": str(path)})


def test_a_label_that_is_a_word_is_no_file(tmp_path) -> None:
    path = str(write_nifti(tmp_path / "a.nii"))
    data = {"image": path, "label": "spleen"}
    assert gate.check_image_files(data) is data


def test_voxels_of_nanometers_are_read(tmp_path) -> None:
    image = nibabel.Nifti1Image(pixels("u1", 5, 6, 7), np.diag([6.5e-5, 6.5e-5, 2e-4, 1.0]))
    nibabel.save(image, tmp_path / "a.nii")
    assert np.allclose(inspect_file(tmp_path / "a.nii").affine, image.affine, rtol=1e-6, atol=0)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "f4"])
def test_gray_tiff_is_read_as_it_is(tmp_path, dtype, byteorder) -> None:
    values = pixels(dtype, 7, 5) * np.array(-90 if dtype[0] in "if" else 2, dtype)
    path = write_tiff(tmp_path / "a.tif", values, byteorder=byteorder)
    inspect_file(path)
    read = LoadImaged("image", reader="PILReader")({"image": str(path)})["image"]
    assert np.array_equal(read.numpy(), values.T.astype(np.float32))


def test_indices_of_a_palette_are_labels_and_no_image(tmp_path) -> None:
    path = str(write_image(tmp_path / "a.png", "P"))
    assert check_files({"label": path}) == {"label": path}
    with pytest.raises(ValueError, match="palette"):
        check_files({"image": path})


@pytest.mark.parametrize("shift, refused", [(0.0, False), (0.05, False), (0.2, True)])
def test_channels_may_lie_a_tenth_of_a_voxel_apart(tmp_path, shift, refused) -> None:
    affines = [np.diag([2.0, 2.0, 2.0, 1.0]) for _ in range(2)]
    affines[1][0, 3] = 2 * shift
    files = [
        str(write_nifti(tmp_path / f"c_000{index}.nii", affine=affine, seed=index))
        for index, affine in enumerate(affines)
    ]
    if refused:
        with pytest.raises(ValueError, match="c_0001.nii': the channels lie 0.2 voxels apart"):
            check_files({"image": files})
        return
    check_files({"image": files})
    read = LoadImaged("image", reader=ChannelReader)({"image": files})["image"]
    assert np.array_equal(read.affine.numpy(), affines[0])
    for channel, file in zip(read, files, strict=True):
        assert np.array_equal(channel.numpy(), nibabel.load(file).get_fdata(dtype=np.float32))


def test_channels_of_one_shape_each_are_needed(tmp_path) -> None:
    files = [write_nifti(tmp_path / "c_0000.nii"), write_nifti(tmp_path / "c_0001.nii", (3, 4, 5))]
    with pytest.raises(ValueError, match="c_0001.nii': the channels differ in shape"):
        check_grids(files, list(map(nibabel.load, files)))


def test_a_label_with_the_affine_of_its_image_lies_on_it(tmp_path) -> None:
    # pixdim and sform of the image disagree, so that MONAI corrects its affine and not the label's.
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    values = pixels("i2", 6, 7, 8)
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_sform(affine, code=1)
    image.header.set_qform(np.diag([3.0, 3.0, 3.0, 1.0]), code=1)
    spoilt = nibabel.Nifti1Image(values, None, image.header)
    nibabel.save(spoilt, tmp_path / "image.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones_like(values), affine), tmp_path / "label.nii")
    read = LoadImaged(["image", "label"], reader=ChannelReader, ensure_channel_first=True)(
        {key: str(tmp_path / f"{key}.nii") for key in ("image", "label")}
    )
    assert check_read_label(read, num_classes=2) is read


def drawn_header(seed: int) -> nibabel.Nifti1Image:
    """An image whose pixdim, sform and qform need not agree."""
    rng = np.random.default_rng(seed)
    shape = ((4, 5, 6), (4, 5), (4, 5, 6, 2))[seed % 3]
    image = nibabel.Nifti1Image(np.zeros(shape, np.uint8), None)
    for set_form in (image.set_sform, image.set_qform):
        spacing = [1.0, 2.0, 3.0] if rng.random() < 0.5 else rng.choice([1.5, 2.5], 3)
        affine = np.diag([*spacing, 1.0])[rng.permutation(3).tolist() + [3]]
        set_form(affine, code=int(rng.choice([0, 1, 2])))
    if rng.random() < 0.7:
        image.header["pixdim"][1:4] = [1.0, 2.0, 3.0]
    return nibabel.Nifti1Image.from_bytes(image.to_bytes())


def test_settle_affine_is_monais() -> None:
    num_changed = 0
    for seed in range(200):
        before = drawn_header(seed).affine
        expected = correct_nifti_header_if_necessary(drawn_header(seed)).affine
        assert np.array_equal(settle_affine(drawn_header(seed)).affine, expected), seed
        num_changed += not np.array_equal(before, expected)
    assert num_changed > 10


@pytest.mark.search
def test_gate_needs_no_pytorch() -> None:
    code = "import sys, monai_xtiny.bundled.gate as _; print({'torch', 'monai'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_gate_knows_nifti_by_its_ending_alone() -> None:
    assert is_nifti("a.nii") and is_nifti(Path("b.NII.GZ"))
    assert not is_nifti("scan.nii.png") and not is_nifti("x.nii/a.png")


# What the segmenter's one file repeats of the gate, under names of its own.
REPEATED = {
    "_find_raster_problem": "_find_pixel_problem",
    "_find_orientation": "_find_turn",
    "_find_png_problem": "_find_png_fault",
    "_find_tiff_problem": "_find_tiff_fault",
    "_values": "_tag_values",
}


@pytest.mark.parametrize("name, repeated", REPEATED.items())
def test_the_segmenter_judges_images_as_the_gate_does(name, repeated) -> None:
    source = inspect.getsource(getattr(gate, name))
    for mine, other in REPEATED.items():
        source = source.replace(mine, other)
    assert inspect.getsource(getattr(segmenter, repeated)) == source
    for constant in ("_MODES", "_ORIENTATION", "_BITS", "_SAMPLES", "_SAMPLE_FORMAT"):
        assert getattr(segmenter, constant) == getattr(gate, constant)
