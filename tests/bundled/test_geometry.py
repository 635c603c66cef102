from __future__ import annotations

import nibabel
import numpy as np
import pytest

from monai_xtiny.bundled.geometry import on_grid_of

AFFINE = np.array([[0, -1.2, 0, 9], [0, 0, 1.0, -4], [1.5, 0, 0, 3], [0, 0, 0, 1]])


def image(shape: tuple[int, ...]) -> nibabel.Nifti2Image:
    found = nibabel.Nifti2Image(np.zeros(shape, np.int16), AFFINE)
    found.set_qform(np.diag([2.0, 2.0, 3.0, 1.0]), code=2)
    found.header.set_xyzt_units("micron")
    return found


@pytest.mark.parametrize("trailing", [(), (3,)], ids=["label", "channels"])
def test_on_grid_of_keeps_where_the_image_lies(trailing) -> None:
    source = image((4, 5, 6))
    found = on_grid_of(source, np.ones((4, 5, 6, *trailing), np.uint8))
    assert type(found) is nibabel.Nifti2Image and found.shape == (4, 5, 6, *trailing)
    assert np.array_equal(found.get_sform(), source.get_sform())
    assert np.array_equal(found.get_qform(), source.get_qform())
    assert found.header["qform_code"] == 2 and found.header.get_xyzt_units()[0] == "micron"
    assert found.get_data_dtype() == np.uint8


def test_on_grid_of_refuses_another_grid() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 5, 6\), its result \(5, 4, 6, 2\)"):
        on_grid_of(image((4, 5, 6)), np.zeros((5, 4, 6, 2)))
