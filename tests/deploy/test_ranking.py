from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy.committee import Committee
from monai_xtiny.deploy.ranking import LIST, SHEET, rank_images
from monai_xtiny.scores.uncertainty import image_uncertainty
from tests.conftest import write_dicom_series, write_nifti, write_png
from tests.deploy.deployed import write_bundle
from tests.shared import made_once

pytestmark = pytest.mark.search


@pytest.fixture(scope="module")
def pictures() -> Bundle:
    made = made_once("ranking", lambda folder: write_bundle("pictures", folder))
    return Bundle.open(made / "pictures_segmentation")


@pytest.fixture
def images(tmp_path) -> Path:
    """Five images, of which one is a copy of another, and two files that are none."""
    folder = tmp_path / "images"
    for index in range(3):
        write_png(folder / f"c{index}.png", (32, 48), index)
    write_png(folder / "deep" / "c.png", (40, 70), 5)
    pixels = np.asarray(Image.open(folder / "c1.png")).copy()
    pixels[0, 0] += 1
    Image.fromarray(pixels).save(folder / "deep" / "copy.png")
    (folder / "torn.png").write_bytes((folder / "c0.png").read_bytes()[:200])
    Image.new("L", (30, 30), 7).save(folder / "deep" / "flat.png")
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_rank_images_lists_the_most_uncertain_first_and_a_copy_last(
    pictures, images, tmp_path
) -> None:
    said: list[str] = []
    ranking = rank_images(pictures, images, tmp_path / "out", num=2, say=said.append)
    names = [item.case.name for item in ranking.cases]
    assert sorted(names) == ["c0", "c1", "c2", "deep/c", "deep/copy"]
    assert names[-1] in ("c1", "deep/copy")
    assert [item.rank for item in ranking.cases] == [1, 2, 3, 4, 5]
    committee = Committee(pictures)
    expected = {
        item.case.name: image_uncertainty(committee(item.case.files).probabilities)
        for item in ranking.cases
    }
    assert {item.case.name: item.uncertainty for item in ranking.cases} == expected
    assert max(expected, key=lambda name: expected[name]) == names[0]
    problems = "\n".join(ranking.problems)
    assert len(ranking.problems) == 2 and "torn.png" in problems and "flat.png" in problems
    assert said == [f"uncertainty of {committee.description}"]
    assert ranking.table.splitlines()[1].split()[:2] == ["1", names[0]]
    assert len(ranking.table.splitlines()) == 3 and "5 ranked, 2 not: " in ranking.summary

    content = json.loads((tmp_path / "out" / LIST).read_text())
    assert [case["case"] for case in content["cases"]] == names
    assert content["num"] == 2 and content["problems"] == list(ranking.problems)
    assert names_in(tmp_path / "out") == {LIST, SHEET}


def test_rank_images_gives_the_same_files_again(pictures, images, tmp_path) -> None:
    contents = []
    for _ in range(2):
        rank_images(pictures, images, tmp_path / "out", say=lambda _: None)
        contents.append([(tmp_path / "out" / name).read_bytes() for name in (LIST, SHEET)])
    assert contents[0] == contents[1]


def test_rank_images_leaves_out_what_has_a_label(pictures, images, tmp_path) -> None:
    labels = tmp_path / "labels"
    write_png(labels / "c0.png")
    write_png(labels / "deep" / "c.png")
    said: list[str] = []
    ranking = rank_images(pictures, images, tmp_path / "out", labeled=labels, say=said.append)
    assert {item.case.name for item in ranking.cases} == {"c1", "c2", "deep/copy"}
    assert said[0] == f"left out: 2 with a label in {labels}"
    with pytest.raises(ValueError, match=r"each of the 1 images in '.*c0.png' has a label"):
        rank_images(pictures, images / "c0.png", tmp_path / "o", labeled=labels, say=said.append)


def test_rank_images_refuses_before_any_work(pictures, searched, images, tmp_path) -> None:
    with pytest.raises(ValueError, match="--num is 0: give at least 1"):
        rank_images(pictures, images, tmp_path / "out", num=0)
    with pytest.raises(ValueError, match=r"was never trained, .* give --untrained"):
        rank_images(Bundle.open(searched), images, tmp_path / "out")
    with pytest.raises(FileExistsError, match="which label-next has not written"):
        rank_images(pictures, images, images)
    with pytest.raises(FileExistsError, match="lies in the bundle"):
        rank_images(pictures, images, pictures.root / "next")
    assert not (tmp_path / "out").exists()


def test_rank_images_writes_nothing_where_no_image_can_be_read(pictures, images, tmp_path) -> None:
    ranking = rank_images(pictures, images / "torn.png", tmp_path / "out", say=lambda _: None)
    assert (len(ranking.problems), ranking.files) == (1, ())
    assert not (tmp_path / "out").exists()


def test_rank_images_reads_volumes_and_series(tmp_path) -> None:
    from dataclasses import replace

    from monai_xtiny.bundle.writer import export_bundle
    from monai_xtiny.scores.table import ScoreTable
    from monai_xtiny.selection.choice import Selection
    from tests.deploy.deployed import PLANS

    rung = Bundle.open(write_bundle("volumes", tmp_path)).selection.rung
    plan = replace(PLANS["volumes"], in_channels=1)
    table = ScoreTable(
        plan, (rung,), (5,), ("a", "b"), {"load": 1.0, "score": 1.0, "total": 2.0}, {}
    )
    bundle = export_bundle(
        Selection("paper", 4, {4: 1.0}, None, table), tmp_path / "y_segmentation"
    )
    patients = tmp_path / "patients"
    write_dicom_series(patients / "ct")
    write_nifti(patients / "v.nii.gz", affine=np.diag([1.0, 1.0, 4.0, 1.0]))
    ranking = rank_images(
        Bundle.open(bundle), patients, tmp_path / "out", untrained=True, say=lambda _: None
    )
    assert not ranking.problems
    assert {item.case.name for item in ranking.cases} == {"ct", "v"}
    assert {Path(item.case.files[0]).name for item in ranking.cases} == {"ct", "v.nii.gz"}


def test_rank_images_leaves_former_files_where_the_sheet_fails(
    pictures, images, tmp_path, monkeypatch
) -> None:
    from monai_xtiny.deploy import contact_sheet

    output = tmp_path / "out"
    rank_images(pictures, images, output, say=lambda _: None)
    former = [(output / name).read_bytes() for name in (LIST, SHEET)]
    shutil.rmtree(images / "deep")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(contact_sheet, "draw_contact_sheet", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        rank_images(pictures, images, output, say=lambda _: None)
    assert str(caught.value.filename) == str(output / SHEET)
    assert [(output / name).read_bytes() for name in (LIST, SHEET)] == former
    assert names_in(output) == {LIST, SHEET}
