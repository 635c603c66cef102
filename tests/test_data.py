from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged

from monai_xtiny.data import (
    CheckImaged,
    check_config_text,
    check_image,
    find_cases,
    load_sample,
    read_headers,
    read_label_names,
    sample_cases,
)
from tests.conftest import write_nifti, write_png


def names(cases) -> list[str]:
    return [case.name for case in cases]


def write_dicom_series(folder: Path, slices: int = 5, series: str = "1.2.3") -> Path:
    """An axial CT series: 12 rows, 16 columns, 0.5 x 0.75 mm, slices 3 mm apart."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    for index in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series}.{index}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, f"{series}.{index}"
        item.SeriesInstanceUID, item.Modality = series, "CT"
        item.InstanceNumber = index + 1
        item.ImagePositionPatient = [0, 0, 3 * index]
        item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        item.PixelSpacing = [0.75, 0.5]
        item.Rows, item.Columns, item.SamplesPerPixel = 12, 16, 1
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
        item.PhotometricInterpretation = "MONOCHROME2"
        voxels = np.random.default_rng(index).integers(0, 900, (12, 16), dtype=np.uint16)
        item.PixelData = voxels.tobytes()
        pydicom.dcmwrite(folder / f"slice{slices - index}.dcm", item)
    return folder


def test_find_cases_of_a_folder(png_folder) -> None:
    (png_folder / "notes.txt").write_text("no image")
    (png_folder / ".hidden.png").write_text("no image")
    cases = find_cases(png_folder)
    assert names(cases) == [f"case{i}.png" for i in range(6)]
    assert {case.reader for case in cases} == {"PILReader"}


def test_find_cases_stacks_the_channels_of_an_nnunet_root(tmp_path) -> None:
    for case in ("b", "a_0001x", "c"):
        for channel in range(2):
            write_nifti(tmp_path / "imagesTr" / f"{case}_{channel:04d}.nii.gz", seed=channel)
    cases = find_cases(tmp_path)
    assert names(cases) == [f"imagesTr/{case}_0000.nii.gz" for case in ("a_0001x", "b", "c")]
    assert [len(case.images) for case in cases] == [2, 2, 2]
    assert read_headers(cases)[0].in_channels == 2
    image = load_sample(cases[:1], LoadImaged("image", ensure_channel_first=True)).images[0]
    assert image.shape == (2, 20, 24, 18)


def test_find_cases_takes_numbered_photographs_for_images(tmp_path) -> None:
    for index in range(4):
        write_png(tmp_path / f"IMG_{index:04d}.png", seed=index)
    assert len(find_cases(tmp_path)) == 4


def test_find_cases_of_an_msd_datalist(tmp_path) -> None:
    write_nifti(tmp_path / "imagesTr" / "la 1.nii.gz")
    content = {"training": [{"image": "./imagesTr/la 1.nii.gz", "label": "./labelsTr/la 1.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert names(find_cases(tmp_path / "dataset.json")) == ["imagesTr/la 1.nii.gz"]
    assert names(find_cases(tmp_path)) == ["imagesTr/la 1.nii.gz"]


def test_find_cases_of_a_glob(png_folder) -> None:
    cases = find_cases(f"{png_folder}/case[135].png")
    assert names(cases) == ["case1.png", "case3.png", "case5.png"]


def test_find_cases_of_one_image(png_folder) -> None:
    assert names(find_cases(png_folder / "case2.png")) == ["case2.png"]


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "tif", "bmp"])
def test_every_raster_format_is_found_and_loaded(tmp_path, suffix) -> None:
    write_png(tmp_path / f"Größe 1.{suffix}", (20, 24, 3))
    cases = find_cases(tmp_path)
    assert read_headers(cases)[0].shape == (24, 20)
    transform = LoadImaged("image", reader=cases[0].reader, ensure_channel_first=True)
    assert load_sample(cases, transform).images[0].shape == (3, 24, 20)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_nifti_headers_are_in_ras_order(tmp_path, suffix) -> None:
    affine = np.array([[0, 0.9, 0, 0], [0, 0, -1.1, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    write_nifti(tmp_path / f"a.{suffix}", (6, 20, 30), affine=affine)
    header = read_headers(find_cases(tmp_path))[0]
    assert header.shape == (20, 30, 6)
    assert header.spacing == (0.9, 1.1, 5.0)


def test_dicom_series_headers_agree_with_monais_reader(tmp_path) -> None:
    write_dicom_series(tmp_path / "patient 1" / "ct")
    write_dicom_series(tmp_path / "patient 2" / "ct", slices=7, series="1.2.4")
    cases = find_cases(tmp_path)
    assert names(cases) == ["patient 1/ct", "patient 2/ct"]
    headers = read_headers(cases)
    assert headers[0].shape == (16, 12, 5)
    assert headers[0].spacing == (0.5, 0.75, 3.0)
    transform = LoadImaged("image", reader=cases[0].reader, ensure_channel_first=True)
    for case, header in zip(cases, headers, strict=True):
        assert load_sample([case], transform).images[0].shape[1:] == header.shape


def test_dicom_headers_refuse_two_series_in_one_folder(tmp_path) -> None:
    write_dicom_series(tmp_path / "ct")
    write_dicom_series(tmp_path / "ct", slices=3, series="1.2.4")
    with pytest.raises(ValueError, match="2 DICOM series in one folder"):
        read_headers(find_cases(tmp_path))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda folder: None, FileNotFoundError, "no images in"),
        (lambda folder: folder.joinpath("imagesTr").mkdir(), FileNotFoundError, "no images in"),
        (
            lambda folder: (write_png(folder / "a.png"), write_nifti(folder / "b.nii")),
            ValueError, "different formats",
        ),
        (
            lambda folder: [write_png(folder / "imagesTr" / f"{n}.png")
                            for n in ("a_0000", "a_0001", "b_0000")],
            ValueError, "every case needs the same channels",
        ),
        (
            lambda folder: [write_png(folder / "imagesTr" / f"{n}.png")
                            for n in ("a_0000", "a_0002")],
            ValueError, "expected _0000, _0001",
        ),
    ],
    ids=["empty", "empty imagesTr", "mixed formats", "channels differ", "channel missing"],
)  # fmt: skip
def test_find_cases_refuses(tmp_path, make, error, message) -> None:
    make(tmp_path)
    with pytest.raises(error, match=message):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [("{", "is not JSON"), ('{"training": []}', "lists no images"), ("[1]", "lists no images"),
     ('{"training": [{"image": 3}]}', r"training\[0\] has no 'image' path"),
     ('{"training": [{"image": "a.doc"}]}', "is no image")],
)  # fmt: skip
def test_find_cases_refuses_bad_datalists(tmp_path, text, message) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_cases(tmp_path / "list.json")


@pytest.mark.parametrize("name", ["nowhere", "*.png"])
def test_find_cases_refuses_what_is_not_there(tmp_path, name) -> None:
    with pytest.raises(FileNotFoundError, match=name.replace("*", r"\*")):
        find_cases(tmp_path / name)


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda p: write_nifti(p / "a.nii.gz", (8, 8, 8, 3)), "a 4D volume of shape"),
        (lambda p: p.joinpath("a.nii.gz").write_bytes(b"\0" * 100), "cannot be read"),
        (lambda p: p.joinpath("a.png").write_bytes(b"no png"), "cannot be read"),
        (lambda p: p.joinpath("a.nii.gz").symlink_to("nowhere"), "cannot be read"),
        (
            lambda p: (write_nifti(p / "a.nii.gz"), write_nifti(p / "b.nii.gz", (20, 20))),
            "is 2D, but",
        ),
        (lambda p: (write_png(p / "a.png"), write_png(p / "b.png", (20, 24, 3))), "3 channels"),
        (
            lambda p: (write_nifti(p / "imagesTr/a_0000.nii"),
                       write_nifti(p / "imagesTr/a_0001.nii", (5, 5, 5))),
            "the channels differ in shape",
        ),
    ],
    ids=["4D", "no NIfTI", "no PNG", "dangling link", "dimensions", "channels", "channel shapes"],
)  # fmt: skip
def test_read_headers_refuses_naming_the_case(tmp_path, write, message) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        read_headers(find_cases(tmp_path))
    assert "case '" in str(caught.value)


def test_read_headers_takes_a_fourth_axis_of_one(tmp_path) -> None:
    write_nifti(tmp_path / "a.nii.gz", (8, 9, 10, 1))
    assert read_headers(find_cases(tmp_path))[0].shape == (8, 9, 10)


def test_read_headers_never_reads_voxels(tmp_path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", (64, 64, 64))
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:1000]))
    assert read_headers(find_cases(tmp_path))[0].shape == (64, 64, 64)


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_load_sample_names_a_truncated_case(tmp_path) -> None:
    write_nifti(tmp_path / "good.nii.gz")
    truncated(write_nifti(tmp_path / "half.nii.gz", seed=1))
    with pytest.raises(ValueError, match=r"case 'half.nii.gz': cannot be read, EOFError"):
        load_sample(find_cases(tmp_path), LoadImaged("image", ensure_channel_first=True))


def test_load_sample_refuses_differing_shapes(tmp_path) -> None:
    write_png(tmp_path / "a.png")
    write_png(tmp_path / "b.png", (30, 20))
    with pytest.raises(ValueError, match="crop and pad to one patch size"):
        load_sample(find_cases(tmp_path), LoadImaged("image", ensure_channel_first=True))


@pytest.mark.parametrize(
    "value, message", [(np.nan, "1 voxels are NaN"), (np.inf, "NaN or infinite")]
)
def test_check_image_refuses_non_finite_voxels(value, message) -> None:
    image = torch.randn(1, 4, 4)
    image[0, 0, 0] = value
    with pytest.raises(ValueError, match=message):
        check_image(image, "a.png")


def test_check_image_names_the_constant_channel() -> None:
    with pytest.raises(ValueError, match="channel 1 is constant"):
        check_image(torch.stack([torch.randn(4, 4), torch.ones(4, 4)]), "a.png")


def test_check_imaged_passes_good_images_on(png_folder) -> None:
    transform = Compose(
        [LoadImaged("image", ensure_channel_first=True), CheckImaged("image", 2, 1)]
    )
    assert len(load_sample(find_cases(png_folder), transform).images) == 6


@pytest.mark.parametrize(
    "arguments, message", [((3, None), "2 spatial dimensions, not 3"), ((2, 4), "1 channels")]
)
def test_check_imaged_refuses_other_dimensions_and_channels(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        CheckImaged("image", *arguments)({"image": torch.randn(1, 4, 4)})


def test_sample_cases_is_seeded_sorted_and_leaves_the_generators(png_folder) -> None:
    import random

    cases = find_cases(png_folder)
    before = random.getstate()
    drawn = sample_cases(cases, 3, seed=1)
    assert random.getstate() == before
    assert drawn == sample_cases(cases, 3, seed=1)
    assert list(drawn) == sorted(drawn, key=lambda case: case.name)
    assert {sample_cases(cases, 3, seed=seed) for seed in range(20)} != {drawn}
    assert sample_cases(cases, None) == sample_cases(cases, 99) == cases


def test_sample_cases_refuses_none() -> None:
    with pytest.raises(ValueError, match="num_images is 0"):
        sample_cases([], 0)


def test_find_cases_and_sample_cases_look_at_names_only(tmp_path, monkeypatch) -> None:
    image = write_png(tmp_path / "source" / "image.png")
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(2000):
        os.symlink(image, folder / f"case{index}.png")
    opened: list[str] = []
    real_stat = os.stat
    monkeypatch.setattr(
        os, "stat", lambda *a, **k: (opened.append(str(a[0])), real_stat(*a, **k))[1]
    )
    assert len(sample_cases(find_cases(folder), 4)) == 4
    assert not [name for name in opened if os.path.basename(name).startswith("case")]


@pytest.mark.parametrize(
    "labels, expected",
    [
        ({"background": 0, "Anterior": 1, "Posterior": 2}, ("background", "Anterior", "Posterior")),
        ({"0": "background", "1": "liver"}, ("background", "liver")),
        ({}, ("background", "foreground")),
    ],
    ids=["nnU-Net", "MSD", "none"],
)
def test_read_label_names_of_a_data_set(tmp_path, labels, expected) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert read_label_names(tmp_path) == expected


@pytest.mark.parametrize(
    "labels, message",
    [({"background": 0, "a": 2}, "not 0, 1, 2"), ({"background": 0, "a": [1, 2]}, "no plain labels"),
     ({"background": 0, "$import os": 1}, "which MONAI's configs evaluate")],
)  # fmt: skip
def test_read_label_names_refuses_a_data_sets_labels(tmp_path, labels, message) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(ValueError, match=message):
        read_label_names(tmp_path)


@pytest.mark.parametrize("given", ["one", "a,a", "a,,b", ""])
def test_read_label_names_needs_two_different_names(tmp_path, given) -> None:
    with pytest.raises(ValueError, match="two or more different ones"):
        read_label_names(tmp_path, given)


@pytest.mark.parametrize("text", ["$a", "@a", "%a", "a#b", "a::b", "a\nb", "a\x00b"])
def test_check_config_text_refuses_code(text) -> None:
    with pytest.raises(ValueError, match="rename it"):
        check_config_text(text, "label name")


@pytest.mark.parametrize("text", ["nucleus", "Größe 1", "a$b", "50%", "a@b", "a:b", "脳"])
def test_check_config_text_passes_text_on(text) -> None:
    assert check_config_text(text, "label name") == text
