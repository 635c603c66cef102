"""From a folder to cases, headers and preprocessed images."""

from __future__ import annotations

from monai_xtiny.system.lazy import lazy_names

_HOMES = {
    "Case": "case",
    "Header": "case",
    "Sample": "case",
    "find_cases": "cases",
    "sample_cases": "cases",
    "is_dicom": "cases",
    "load_sample": "images",
    "measure_nonzero": "images",
    "image_reader": "images",
    "check_image": "..bundled.gate",
    "CheckImaged": "images",
    "MiddleSliced": "images",
    "LoadOnced": "loading",
    "measure_orientation": "orientation",
    "shared_orientation": "orientation",
    "read_headers": "headers",
    "read_label_names": "labels",
}
__getattr__ = lazy_names(__name__, _HOMES)
