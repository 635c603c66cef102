from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from monai_xtiny.data.dicom import read_slices, series_image
from monai_xtiny.deploy.dicom_seg import SCHEME, Labeler, dicom_text, write_dicom_seg
from monai_xtiny.deploy.results import write_labels
from tests.data.test_dicom import changed, write_volume

highdicom = pytest.importorskip("highdicom")

NAMES = ("background", "Größe \\ 海馬", "posterior " * 9, "third")
LABELER = Labeler("x_segmentation", "0.1.0", "ab" * 32, tuple(map(dicom_text, NAMES)))
TURN = np.array([[0.6, 0, -0.8], [0, 1, 0], [0.8, 0, 0.6]])
# Voxels to RAS: axial as scanners write it; coronal, slices from front to back; oblique.
AXES = {
    "axial": np.diag([-0.7, -0.9, 2.0]),
    "coronal downwards": np.array([[-0.7, 0, 0], [0, 0, -2.0], [0, -0.9, 0]]),
    "oblique": TURN @ np.diag([-0.7, -0.9, 2.0]),
}


def write_series(folder: Path, axes: np.ndarray) -> Path:
    """A series of 6 slices of 7 rows and 9 columns, whose files are in no order."""
    affine = nibabel.affines.from_matvec(axes, [12.5, -30, 7])
    voxels = np.random.default_rng(0).integers(0, 99, (9, 7, 6)).astype(np.float32)
    write_volume(nibabel.Nifti1Image(voxels, affine), folder)
    paths = sorted(folder.iterdir())
    random.Random(3).shuffle(paths)
    for number, path in enumerate(paths):
        path.rename(folder / f"IM{number:04d}.dcm")
    return folder


def draw_labels() -> np.ndarray:
    """Labels of four classes; a plane at either end has none, and the last class nowhere is."""
    labels = np.random.default_rng(1).integers(0, 3, (9, 7, 6)).astype(np.uint8)
    labels[..., [0, 5]] = 0
    return labels


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_dicom_seg_has_the_voxels_of_the_nifti_file_in_the_same_places(tmp_path, axes) -> None:
    series, labels = write_series(tmp_path / "ct", axes), draw_labels()
    nibabel.save(series_image(str(series)), tmp_path / "ct.nii")
    write_labels(labels, str(tmp_path / "ct.nii"), tmp_path / "label.nii.gz")
    write_dicom_seg(labels, str(series), LABELER, tmp_path / "ct.seg.dcm")
    nifti = nibabel.load(tmp_path / "label.nii.gz")
    volume = highdicom.seg.segread(tmp_path / "ct.seg.dcm").get_volume(combine_segments=True)
    assert volume.array.shape == (4, 7, 9) and len(np.unique(volume.array)) == 3
    assert volume.array.astype(bool).sum() == np.asarray(nifti.dataobj).astype(bool).sum()
    # Every voxel of the one, by its place in the patient, is that of the other.
    places = np.argwhere(np.ones(volume.array.shape))
    ras = nibabel.affines.apply_affine(np.diag([-1, -1, 1, 1]) @ volume.affine, places)
    indices = nibabel.affines.apply_affine(np.linalg.inv(nifti.affine), ras)
    np.testing.assert_allclose(indices, np.rint(indices), atol=1e-3)
    found = np.asarray(nifti.dataobj)[tuple(np.rint(indices).astype(int).T)]
    np.testing.assert_array_equal(found, volume.array.ravel())


def test_dicom_seg_refers_to_the_slices_that_it_labels(tmp_path) -> None:
    series, labels = write_series(tmp_path / "ct", AXES["oblique"]), draw_labels()
    write_dicom_seg(labels, str(series), LABELER, tmp_path / "ct.seg.dcm")
    slices = read_slices(str(series))
    seg = highdicom.seg.segread(tmp_path / "ct.seg.dcm")
    assert seg.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert seg.StudyInstanceUID == slices[0].StudyInstanceUID
    assert seg.SeriesInstanceUID != slices[0].SeriesInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == slices[0].SeriesInstanceUID
    found = seg.get_pixels_by_source_instance(
        [item.SOPInstanceUID for item in slices],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(found.transpose(2, 1, 0), labels)


def test_dicom_seg_says_what_each_segment_is_and_what_made_it(tmp_path) -> None:
    series = write_series(tmp_path / "ct", AXES["axial"])
    for path in series.iterdir():
        import pydicom

        item = pydicom.dcmread(path)
        item.SpecificCharacterSet, item.PatientName = "ISO_IR 100", "Müller^Jörg"
        item.PatientSex, item.SeriesNumber = "unknown", 4
        item.save_as(path)
    write_dicom_seg(draw_labels(), str(series), LABELER, tmp_path / "ct.seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "ct.seg.dcm")
    segments = [seg.get_segment_description(number) for number in seg.segment_numbers]
    assert [item.segment_number for item in segments] == [1, 2, 3]
    labels = [item.segment_label for item in segments]
    assert labels == ["Größe / 海馬", ("posterior " * 9)[:64].rstrip(), "third"]
    for item in segments:
        kind, code = item.segmented_property_category, item.segmented_property_type
        assert (kind.value, kind.scheme_designator) == ("85756007", "SCT")
        assert (code.scheme_designator, code.meaning) == (SCHEME, item.segment_label)
        (algorithm,) = item.algorithm_identification
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("x_segmentation", "0.1.0")
        assert item.algorithm_type.value == "AUTOMATIC"
    assert seg.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == SCHEME
    assert (seg.PatientName, seg.SeriesNumber) == ("Müller^Jörg", 1004)
    assert seg.DeviceSerialNumber == LABELER.weights_sha256


def test_dicom_seg_of_nothing_found_is_whole_and_empty(tmp_path, caplog) -> None:
    series = write_series(tmp_path / "ct", AXES["axial"])
    write_dicom_seg(np.zeros((9, 7, 6), np.uint8), str(series), LABELER, tmp_path / "ct.seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "ct.seg.dcm")
    assert not seg.get_volume(combine_segments=True).array.any() and not caplog.records
    assert seg.number_of_segments == 3


def test_dicom_seg_refuses_a_series_that_it_cannot_refer_to(tmp_path) -> None:
    def lose(item, _: int) -> None:
        del item.FrameOfReferenceUID

    series = changed(tmp_path / "ct", lose)
    with pytest.raises(ValueError, match="no FrameOfReferenceUID, .* leave --dicom_seg out"):
        write_dicom_seg(np.ones((16, 12, 5), np.uint8), str(series), LABELER, tmp_path / "x.dcm")
    assert not (tmp_path / "x.dcm").exists()


@pytest.mark.parametrize("tag", ["PatientID", "StudyInstanceUID", "SOPInstanceUID"])
def test_dicom_seg_refuses_slices_of_several_patients_or_without_names_of_their_own(
    tmp_path, tag
) -> None:
    def spoil(item, number: int) -> None:
        setattr(item, tag, "1.2.3" if tag == "SOPInstanceUID" or number > 1 else "1.2.4")

    series = changed(tmp_path / "ct", spoil)
    with pytest.raises(ValueError, match=f"its slices have (several|one) {tag}|have one {tag}"):
        write_dicom_seg(np.ones((16, 12, 5), np.uint8), str(series), LABELER, tmp_path / "x.dcm")
    assert not (tmp_path / "x.dcm").exists()


def test_labeler_is_the_bundle_in_text_that_dicom_takes() -> None:
    bundle = SimpleNamespace(
        name="x\nsegmentation",
        label_names=("background", "a\\b"),
        config=lambda name: {"version": "0.2"},
    )
    labeler = Labeler.of(bundle, "ab" * 32)  # type: ignore[arg-type]
    assert (labeler.name, labeler.version) == ("x segmentation", "0.2")
    assert labeler.label_names == ("background", "a/b") and labeler.weights_sha256 == "ab" * 32
