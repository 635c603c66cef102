from __future__ import annotations

import pytest
from monai.transforms import LoadImage

from monai_xtiny.data.case import Case


@pytest.mark.parametrize("kind", ["nifti", "raster", "dicom"])
def test_reader_of_a_case_is_a_reader_of_monai(kind) -> None:
    # MONAI falls back on other readers where it does not know the name, with a warning.
    reader = Case("a", ("a",), kind).reader
    assert type(LoadImage(reader=reader).readers[-1]).__name__ == reader
