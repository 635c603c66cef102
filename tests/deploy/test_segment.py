from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy.segment import RECORD, Segmented, segment_images
from monai_xtiny.deploy.sources import JOURNAL
from tests.conftest import write_dicom_series, write_png
from tests.deploy.deployed import exported_bundle
from tests.exports import exported

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.search


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Bundle:
    return Bundle.open(exported_bundle("pictures", tmp_path_factory.mktemp("pictures")))


@pytest.fixture
def images(tmp_path) -> Path:
    """Three images, of which one in a folder, and three files that are none."""
    folder = tmp_path / "images"
    write_png(folder / "a.png", (40, 50))
    write_png(folder / "b.png", (48, 32), 1)
    write_png(folder / "deep" / "er" / "a.png", (30, 70), 2)
    write_png(folder / "color.png", (30, 30, 3))
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:200])
    Image.new("L", (30, 30), 7).save(folder / "deep" / "flat.png")
    return folder


def names_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_segment_goes_on_after_bad_files_and_lists_them(pictures, images, tmp_path) -> None:
    output = tmp_path / "out"
    found = segment_images(pictures, images, output, probabilities=True, overlay=True)
    assert (found.num_done, found.num_kept, found.engine) == (3, 0, "onnx")
    problems = "\n".join(sorted(found.problems))
    assert len(found.problems) == 3 == len(problems.splitlines())
    assert "color.png' has 3 channels, the network takes 1" in problems
    assert "flat.png': channel 0 is constant" in problems and "torn.png" in problems
    cases = ("a", "b", "deep/er/a")
    endings = (".png", "_overlay.png", "_probability_1.png")
    made = {f"{case}{end}" for case in cases for end in endings}
    assert names_in(output) == {RECORD, JOURNAL} | made
    label = np.asarray(Image.open(output / "deep/er/a.png"))
    share = np.asarray(Image.open(output / "deep/er/a_probability_1.png")) / 65535
    assert label.shape == (30, 70)
    assert np.array_equal(label[share != 0.5], share[share != 0.5] > 0.5)
    assert "3 segmented, 3 not" in found.summary


def test_segment_goes_on_where_it_was(pictures, images, tmp_path) -> None:
    output = tmp_path / "out"
    assert segment_images(pictures, images, output).num_done == 3
    states = {name: (output / name).stat().st_mtime_ns for name in names_in(output)}
    again = segment_images(pictures, images, output)
    assert (again.num_done, again.num_kept) == (0, 3)
    assert states == {name: (output / name).stat().st_mtime_ns for name in names_in(output)}
    (output / "b.png").unlink()
    (output / ".b.png.tmp.killed").mkdir()  # what a kill leaves
    os.utime(images / "a.png", ns=(2**61, 2**61))  # another image of that name
    later = segment_images(pictures, images, output)
    assert (later.num_done, later.num_kept) == (2, 1)
    assert names_in(output) == set(states) and not list(output.glob(".*"))


def test_segment_mixes_no_results(pictures, images, tmp_path) -> None:
    output = tmp_path / "out"
    segment_images(pictures, images / "a.png", output)
    with pytest.raises(FileExistsError, match=r"labels of another run \(tta in segment.json"):
        segment_images(pictures, images, output, tta=True)
    with pytest.raises(FileExistsError, match="holds '.*', which segment has not written"):
        segment_images(pictures, images, images / "deep")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(FileExistsError, match="is a file"):
        segment_images(pictures, images, file)
    with pytest.raises(FileExistsError, match="lies in the bundle"):
        segment_images(pictures, images, pictures.root / "models")
    assert names_in(output) == {RECORD, JOURNAL, "a.png"}


def test_segment_may_write_below_the_images(pictures, images) -> None:
    output = images / "out"
    assert segment_images(pictures, images, output).num_done == 3
    assert segment_images(pictures, images, output).num_kept == 3
    every = f"{images}/**/*.png"
    assert segment_images(pictures, every, output).num_kept == 3
    assert "out/a.png" not in names_in(output)


def test_segment_takes_no_label_for_that_of_another_image(pictures, images, tmp_path) -> None:
    output, other = tmp_path / "out", tmp_path / "other"
    segment_images(pictures, images / "a.png", output)
    before = (output / "a.png").read_bytes()
    other.mkdir()
    shutil.copy2(images / "b.png", other / "a.png")
    os.utime(other / "a.png", ns=(1, 1))
    found = segment_images(pictures, other, output)
    assert (found.num_done, found.num_kept) == (0, 0)
    assert "labels of another image of this name: give another --output" in found.problems[0]
    assert (output / "a.png").read_bytes() == before
    (images / "gone.png").symlink_to(images / "nowhere.png")
    later = segment_images(pictures, images, output)
    assert (later.num_done, later.num_kept) == (2, 1)
    assert any("gone.png" in problem for problem in later.problems)


def test_segment_writes_no_label_over_a_probability(pictures, images, tmp_path) -> None:
    shutil.copy2(images / "b.png", images / "a_probability_1.png")
    output = tmp_path / "out"
    found = segment_images(pictures, f"{images}/[ab]*.png", output, probabilities=True)
    assert found.num_done == 1 and len(found.problems) == 1
    assert "would both have the result 'a_probability_1.png': rename or" in found.problems[0]
    assert names_in(output) == {RECORD, JOURNAL, "b.png", "b_probability_1.png"}
    assert segment_images(pictures, f"{images}/[ab]*.png", tmp_path / "labels").num_done == 3


def test_segment_averages_over_flips(pictures, images, tmp_path) -> None:
    plain, tta = tmp_path / "plain", tmp_path / "tta"
    segment_images(pictures, images / "a.png", plain, probabilities=True)
    segment_images(pictures, images / "a.png", tta, probabilities=True, tta=True)
    one, other = (
        np.asarray(Image.open(folder / "a_probability_1.png")).astype(int)
        for folder in (plain, tta)
    )
    assert (one != other).any()
    assert json.loads((tta / RECORD).read_text())["tta"] is True


def test_segment_refuses_a_bundle_never_trained(searched, images, tmp_path) -> None:
    bundle = Bundle.open(searched)
    with pytest.raises(ValueError, match="was never trained, .* give --untrained"):
        segment_images(bundle, images, tmp_path / "out", say=lambda _: None)
    assert not (tmp_path / "out").exists()
    found = segment_images(
        bundle, images / "a.png", tmp_path / "out", untrained=True, say=lambda _: None
    )
    assert (found.num_done, found.engine) == (1, "torch")


def test_segment_writes_a_series_back_where_it_lay(tmp_path) -> None:
    # Two channels are no series: a bundle of one channel is needed, at its initialization.
    from dataclasses import replace

    from monai_xtiny.scores.table import ScoreTable
    from monai_xtiny.selection.choice import Selection
    from tests.deploy.deployed import PLANS, write_bundle

    rung = Bundle.open(write_bundle("volumes", tmp_path)).selection.rung
    plan = replace(PLANS["volumes"], in_channels=1)
    table = ScoreTable(
        plan, (rung,), (5,), ("a", "b"), {"load": 1.0, "score": 1.0, "total": 2.0}, {}
    )
    bundle = exported(Selection("paper", 4, {4: 1.0}, None, table), tmp_path / "y_segmentation")
    write_dicom_series(tmp_path / "patient" / "ct")
    output = tmp_path / "out"
    has_highdicom = find_spec("highdicom") is not None
    found = segment_images(
        Bundle.open(bundle),
        tmp_path / "patient",
        output,
        dicom_seg=has_highdicom,
        untrained=True,
        say=lambda _: None,
    )
    assert not found.problems
    label = nibabel.load(output / "ct.nii.gz")
    expected = np.diag([-0.5, -0.75, 3.0, 1.0])  # LPS to RAS
    np.testing.assert_allclose(label.affine, expected, atol=1e-6)
    assert label.shape == (16, 12, 5)
    if has_highdicom:
        from highdicom.seg import segread

        made = segread(output / "ct.seg.dcm")
        names = [made.get_segment_description(number).segment_label for number in (1, 2)]
        assert names == list(Bundle.open(bundle).label_names[1:])
        assert made.get_segment_description(1).algorithm_identification.name == "y_segmentation"


def test_segment_refuses_dicom_seg_without_a_series_or_highdicom(
    pictures, images, tmp_path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "highdicom", None)
        with pytest.raises(ImportError, match=r"pip install monai-xtiny\[dicom\]"):
            segment_images(pictures, images, tmp_path / "out", dicom_seg=True)
    pytest.importorskip("highdicom")
    with pytest.raises(ValueError, match="there is no DICOM series in .*: leave it out"):
        segment_images(pictures, images, tmp_path / "out", dicom_seg=True)
    assert not (tmp_path / "out").exists()


def test_segment_waits_for_no_other_process(pictures, images, tmp_path) -> None:
    fcntl = pytest.importorskip("fcntl")
    output = tmp_path / "out"
    output.mkdir()
    handle = os.open(output, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError, match="another process writes to"):
        segment_images(pictures, images, output)
    os.close(handle)
    assert not names_in(output)


def test_segment_refuses_an_empty_folder(pictures, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in"):
        segment_images(pictures, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_summary_says_what_became_of_the_cases() -> None:
    assert Segmented(2, 1, ["x"], {"read": 1.0}).summary == (
        "2 segmented, 1 done before, 1 not (read 1.0 s)"
    )
