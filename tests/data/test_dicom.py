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
