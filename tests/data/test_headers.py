from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
from monai.transforms import LoadImaged
from PIL import Image

from monai_xtiny.data.case import Case
from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.headers import read_headers
from monai_xtiny.data.images import load_sample
from tests.conftest import write_dicom_series, write_nifti, write_png


def names(cases) -> list[str]:
    return [case.name for case in cases]


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


@pytest.mark.parametrize("qform_code", [0, 1])
def test_nifti_spacing_is_that_of_monais_reader(tmp_path, qform_code) -> None:
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    image = nibabel.load(write_nifti(tmp_path / "a.nii.gz", affine=affine))
    header = image.header.copy()
    header.set_sform(affine, code=1)
    header.set_qform(np.diag([3.0, 3.0, 3.0, 1.0]), code=qform_code)
    header.set_zooms((5.0, 5.0, 5.0))  # pixdim and sform disagree
    spoilt = nibabel.Nifti1Image(np.array(image.dataobj), None, header)
    spoilt.to_filename(tmp_path / "a.nii.gz")
    cases = find_cases(tmp_path)
    loaded = LoadImaged("image", ensure_channel_first=True)({"image": list(cases[0].images)})
    assert read_headers(cases)[0].spacing == tuple(loaded["image"].pixdim.tolist())


def test_read_headers_refuses_palettes(tmp_path) -> None:
    Image.new("P", (24, 20)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="indices into a palette"):
        read_headers(find_cases(tmp_path))


def test_dicom_headers_refuse_slices_out_of_order(tmp_path) -> None:
    folder = write_dicom_series(tmp_path / "ct")
    import pydicom

    path = folder / "slice5.dcm"
    item = pydicom.dcmread(path)
    item.ImagePositionPatient = [0, 0, 7]
    item.save_as(path)
    with pytest.raises(ValueError, match="unevenly spaced or numbered out of order"):
        read_headers(find_cases(tmp_path))


@pytest.mark.parametrize(
    "tag, values",
    [("ImageOrientationPatient", ["0.99999999999999999", "0", "0", "0", "1", "0"]),
     ("ImagePositionPatient", ["-120.0000000000001", "0", "12"]),
     ("PixelSpacing", ["0.48828125000000001", "0.5"])],
)  # fmt: skip
def test_dicom_headers_refuse_numbers_longer_than_dicoms(tmp_path, tag, values) -> None:
    import pydicom

    path = write_dicom_series(tmp_path / "ct") / "slice1.dcm"
    item = pydicom.dcmread(path)
    # pydicom does not write such numbers; scanners and converters do.
    element = pydicom.dataelem.DataElement(tag, "DS", "\\".join(values), already_converted=True)
    item[tag] = element
    with pydicom.config.disable_value_validation():
        item.save_as(path)
    with pytest.raises(ValueError, match=f"{tag} {values[0]} has more than DICOM's 16 characters"):
        read_headers(find_cases(tmp_path))


def test_dicom_headers_refuse_what_monais_reader_would_stumble_over(tmp_path) -> None:
    folder = write_dicom_series(tmp_path / "ct")
    (folder / "more").mkdir()
    with pytest.raises(ValueError, match="a folder, 'more', beside the slices; move it out"):
        read_headers(find_cases(tmp_path))
    (folder / "more").rmdir()
    (folder / "._slice1.dcm").write_bytes(b"of a Mac")  # which it passes over
    (folder / "notes.txt").write_text("no DICOM")
    assert read_headers(find_cases(tmp_path))[0].shape == (16, 12, 5)
    with pytest.raises(ValueError, match="a folder without a DICOM file"):
        (tmp_path / "empty").mkdir()
        read_headers([Case("ct", (str(tmp_path / "empty"),), "dicom")])


@pytest.mark.parametrize("number", [None, 2])
def test_dicom_headers_refuse_slices_that_monais_reader_would_drop(tmp_path, number) -> None:
    import pydicom

    path = write_dicom_series(tmp_path / "ct") / "slice1.dcm"
    item = pydicom.dcmread(path)
    del item.InstanceNumber
    if number is not None:
        item.InstanceNumber = number
    item.save_as(path)
    with pytest.raises(ValueError, match="slices without a number or with the same"):
        read_headers(find_cases(tmp_path))
