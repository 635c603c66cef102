"""Labels of a DICOM series as a DICOM Segmentation, which viewers and archives lay over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.data.dicom import read_slices, series_affine
from monai_xtiny.system.files import atomic_write

# Classes have a name and no code of a terminology. DICOM lets everybody have codes of their own
# under a designator that begins with 99 (PS3.16, 8.1); the category is true of any class.
SCHEME, _SCHEME_NAME = "99XTINY", "class names of the network"
_TISSUE = ("85756007", "SCT", "Tissue")  # CID 7150
_INTELLIGENCE = ("123110", "DCM", "Artificial Intelligence")  # CID 7162
_UNICODE = "ISO_IR 192"
_LONGEST = 64  # characters of DICOM's LO
# What a segmentation must say of its series, and what it may leave empty.
_NEEDED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
)  # fmt: skip
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime",
)  # fmt: skip
_SEXES = ("M", "F", "O")


@dataclass(frozen=True)
class Labeler:
    """What made labels, as a segmentation says it.

    Args:
        name: of the bundle.
        version: of the bundle.
        weights_sha256: digest of the weights that compute.
        label_names: of the classes, background first.
    """

    name: str
    version: str
    weights_sha256: str
    label_names: tuple[str, ...]

    @classmethod
    def of(cls, bundle: Bundle, weights_sha256: str) -> Labeler:
        """Of a bundle and the weights that compute, in text that DICOM takes."""
        return cls(
            dicom_text(bundle.name),
            dicom_text(str(bundle.config("metadata").get("version") or "unknown")),
            weights_sha256,
            tuple(dicom_text(name) for name in bundle.label_names),
        )


def check_highdicom() -> None:
    """Refuse, before any work, where segmentations cannot be written.

    Raises:
        ImportError: the extra ``dicom`` is not installed.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "--dicom_seg needs highdicom, which cannot be imported: pip install monai-xtiny[dicom]"
        ) from error


def write_dicom_seg(
    labels: NDArray[np.uint8], series: str, labeler: Labeler, path: str | Path
) -> None:
    """Write labels as a binary DICOM Segmentation in the frame of reference of their series.

    One segment per class but the background, numbered and named as the classes; each frame says
    where it lies and of which instance it is. Planes without label are left out.

    Args:
        labels: class indices, (columns, rows, slices) in the order of
            :func:`monai_xtiny.data.dicom.read_slices`.
        series: folder of the series.
        labeler: what made them.
        path: to write.

    Raises:
        ImportError: the extra ``dicom`` is not installed.
        ValueError: the series lacks what a segmentation must say of it.
    """
    check_highdicom()
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.seg import Segmentation, SegmentationTypeValues
    from highdicom.uid import UID

    from monai_xtiny import __version__

    slices = _referable(read_slices(series))
    first = slices[0]
    made = Segmentation(
        source_images=slices,
        pixel_array=np.ascontiguousarray(labels.transpose(2, 1, 0)),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=_describe_segments(labeler),
        series_instance_uid=UID(),
        series_number=1000 + max(0, int(first.get("SeriesNumber") or 0)),
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="monai_xtiny",
        manufacturer_model_name=labeler.name,
        software_versions=__version__,
        device_serial_number=labeler.weights_sha256,
        omit_empty_frames=bool(labels.any()),
        content_label="SEGMENTATION",
        content_description=dicom_text(f"by {labeler.name}"),
        specific_character_set=_UNICODE,
        series_description=dicom_text(f"Segmentation by {labeler.name}"),
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name=_SCHEME_NAME)],
    )
    with atomic_write(path, clears=False) as part:
        made.save_as(part)


def dicom_text(text: str) -> str:
    r"""Text as DICOM's LO takes it: a line of at most 64 characters without a backslash.

    >>> dicom_text("left\\right")
    'left/right'
    """
    plain = "".join(character if character.isprintable() else " " for character in text)
    return plain.replace("\\", "/").strip()[:_LONGEST].rstrip() or "unnamed"


def _describe_segments(labeler: Labeler) -> list[Any]:
    """A segment per class but the background."""
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from highdicom.sr import CodedConcept

    algorithm = AlgorithmIdentificationSequence(
        name=labeler.name,
        family=CodedConcept(*_INTELLIGENCE),
        version=labeler.version,
        source="monai_xtiny",
        parameters={"weights_sha256": labeler.weights_sha256},
    )
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=CodedConcept(*_TISSUE),
            segmented_property_type=CodedConcept(f"class{number}", SCHEME, name),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(labeler.label_names[1:], start=1)
    ]


def _referable(slices: Sequence[Any]) -> Sequence[Any]:
    """Slices with all that a segmentation takes from them, empty where that is allowed.

    Raises:
        ValueError: something is missing.
    """
    distance = float(np.linalg.norm(series_affine(list(slices))[:3, 2]))
    for item in slices:
        missing = next((tag for tag in _NEEDED if not item.get(tag)), None)
        if missing is not None:
            raise ValueError(
                f"its slices have no {missing}, which a DICOM Segmentation must refer to: leave "
                "--dicom_seg out"
            )
        for tag in _MAY_BE_EMPTY:
            if tag not in item:
                setattr(item, tag, None)
        if item.PatientSex not in _SEXES:
            item.PatientSex = None
        # One grid, as the labels have it: some scanners round each slice by itself, and what they
        # say of the distance is not what the positions say.
        item.ImageOrientationPatient = slices[0].ImageOrientationPatient
        item.SliceThickness = item.get("SliceThickness") or distance
        item.pop("SpacingBetweenSlices", None)
    for tag in ("FrameOfReferenceUID", "PatientID", "StudyInstanceUID"):
        if len({str(item.get(tag)) for item in slices}) > 1:
            raise ValueError(f"its slices have several {tag}s: leave --dicom_seg out")
    if len({str(item.SOPInstanceUID) for item in slices}) < len(slices):
        raise ValueError(
            "some of its slices have one SOPInstanceUID, so that a DICOM Segmentation cannot refer "
            "to each: leave --dicom_seg out"
        )
    return slices
