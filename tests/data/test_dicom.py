from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.transforms import LoadImage

from monai_xtiny.data.dicom import read_slices, series_affine, series_image
from tests.conftest import write_dicom_series


def changed(folder: Path, change) -> Path:
    """A series whose slices were changed, each with its number."""
    import pydicom

    write_dicom_series(folder)
    for path in folder.iterdir():
        item = pydicom.dcmread(path)
        change(item, int(item.InstanceNumber))
        item.save_as(path)
    return folder


def tilt(item, number: int) -> None:
    """Oblique, from head to foot, with intensities in Hounsfield units."""
    item.ImageOrientationPatient = [0.8, 0.6, 0, 0, 0, -1]
    item.ImagePositionPatient = [10 + 1.8 * number, -20 - 2.4 * number, 30]
    item.RescaleSlope, item.RescaleIntercept = 2, -1024


@pytest.mark.parametrize("change", [lambda *_: None, tilt], ids=["axial", "oblique"])
def test_series_image_is_what_monai_reads(tmp_path, change) -> None:
    folder = changed(tmp_path / "ct", change)
    found = series_image(str(folder))
    expected = LoadImage(reader="PydicomReader")(str(folder))
    rows = np.eye(4)[[1, 0, 2, 3]]  # MONAI's reader swaps the first axes, its affine too
    for axes in (np.eye(4), rows):
        if found.shape == tuple(np.array(expected.shape)[axes[:3, :3].argmax(0)]):
            break
    np.testing.assert_array_equal(found.get_fdata(), expected.numpy())
    np.testing.assert_allclose(found.affine, expected.affine.numpy(), atol=1e-5)


def test_series_image_lies_where_the_patient_lay(tmp_path) -> None:
    found = series_image(str(changed(tmp_path / "ct", tilt)))
    # Of column 4 and row 2 in slice 3, by DICOM's equation, from LPS to RAS.
    position = np.array([10 + 1.8 * 4, -20 - 2.4 * 4, 30])
    column, row = np.array([0.8, 0.6, 0]), np.array([0, 0, -1.0])
    expected = (position + 4 * 0.5 * column + 2 * 0.75 * row) * [-1, -1, 1]
    place = nibabel.affines.apply_affine(found.affine, [4, 2, 3])
    np.testing.assert_allclose(place, expected, atol=1e-4)
    assert found.header.get_xyzt_units()[0] == "mm"


def write_volume(volume: nibabel.Nifti1Image, folder: Path) -> Path:
    """A volume as a series: its first axis along the columns, the second along the rows."""
    import pydicom

    voxels = np.asarray(volume.dataobj)
    to_lps = np.diag([-1.0, -1.0, 1.0]) @ volume.affine[:3]
    sizes = np.linalg.norm(to_lps[:, :3], axis=0)
    write_dicom_series(folder, slices=voxels.shape[2], shape=voxels.shape[1::-1])
    for path in folder.iterdir():
        item = pydicom.dcmread(path)
        index = int(item.InstanceNumber) - 1
        place = to_lps @ [0, 0, index, 1]
        directions = (to_lps[:, :2] / sizes[:2]).T.ravel()
        item.ImagePositionPatient = [f"{value:.8g}" for value in place]
        item.ImageOrientationPatient = [f"{value:.8g}" for value in directions]
        item.PixelSpacing = [f"{sizes[1]:.8g}", f"{sizes[0]:.8g}"]
        item.PixelData = voxels[..., index].T.astype(np.uint16).tobytes()
        item.save_as(path)
    return folder


def test_series_image_gives_a_real_volume_back_in_the_coordinates_of_the_world(
    real_data, tmp_path
) -> None:
    file = min((real_data / "Dataset004_Hippocampus" / "imagesTr").iterdir())
    stored = nibabel.load(file)
    turn = np.array([[0.6, 0, -0.8], [0, 1, 0], [0.8, 0, 0.6]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([-1.0, 1.2, 0.9]), [12.5, -30, 7]
    shown = np.rint(stored.get_fdata() % 60_000)
    volume = nibabel.Nifti1Image(shown.astype(np.float32), affine)
    found = series_image(str(write_volume(volume, tmp_path / "mr")))
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)
    assert np.array_equal(found.get_fdata(), volume.get_fdata())


def test_series_image_refuses_what_makes_no_volume(tmp_path) -> None:
    with pytest.raises(ValueError, match="a single slice"):
        series_image(str(write_dicom_series(tmp_path / "one", slices=1)))

    def lose_place(item, number: int) -> None:
        del item.ImagePositionPatient

    with pytest.raises(ValueError, match="do not say where they lie"):
        series_image(str(changed(tmp_path / "nowhere", lose_place)))

    def stay(item, number: int) -> None:
        item.ImagePositionPatient = [0, 0, 0]

    with pytest.raises(ValueError, match="missing, unevenly spaced"):
        series_affine(read_slices(str(changed(tmp_path / "still", stay))))


def lut(item, number: int) -> None:
    import pydicom

    item.ModalityLUTSequence = pydicom.Sequence([pydicom.Dataset()])


def turn(item, number: int) -> None:
    if number > 3:
        item.ImageOrientationPatient = [0.0, 1.0, 0.0, -1.0, 0.0, 0.0]


def enlarge(item, number: int) -> None:
    item.PixelSpacing = [0.75, 0.5 + 0.01 * (number > 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda item, _: setattr(item, "PhotometricInterpretation", "MONOCHROME1"),
            "MONOCHROME1, which",
        ),
        (
            lambda item, _: setattr(item, "PhotometricInterpretation", "PALETTE COLOR"),
            "no intensities",
        ),
        (lut, "ModalityLUTSequence; convert"),
        (turn, "differ in ImageOrientationPatient"),
        (enlarge, "differ in PixelSpacing"),
    ],
)
@pytest.mark.parametrize("with_pixels", [False, True])
def test_read_slices_refuses_what_monai_would_misread(
    tmp_path, change, message, with_pixels
) -> None:
    folder = changed(tmp_path / "ct", change)
    with pytest.raises(ValueError, match=message):
        read_slices(str(folder), with_pixels=with_pixels)


def test_read_slices_takes_directions_that_differ_by_rounding(tmp_path) -> None:
    def jitter(item, number: int) -> None:
        item.ImageOrientationPatient = [1.0, round(1e-6 * number, 7), 0.0, 0.0, 1.0, 0.0]

    assert len(read_slices(str(changed(tmp_path / "ct", jitter)))) > 3
