from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy.already_labeled import Unlabeled, without_labeled
from monai_xtiny.deploy.targets import find_targets
from tests.conftest import write_dicom_series


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """As much of a bundle as is looked at: its name, and where its files are."""
    root = tmp_path / "b_segmentation"
    (root / "configs").mkdir(parents=True)
    return cast(Bundle, SimpleNamespace(name=root.name, path=lambda name: root / name))


def make_files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write_datalist(bundle: Bundle, name: str = "datalist.json", **sections: list[object]) -> None:
    bundle.path(f"configs/{name}").write_text(json.dumps(sections))


def split(bundle: Bundle, images: Path | str, labeled: Path | None = None) -> Unlabeled:
    found = find_targets(images, reads="images", in_channels=1)
    return without_labeled(found.cases, bundle, labeled)


def names_of(unlabeled: Unlabeled) -> list[str]:
    return [case.name for case in unlabeled.cases]


def names_left_out(unlabeled: Unlabeled) -> dict[str, tuple[str, ...]]:
    left_out = unlabeled.left_out.items()
    return {place: tuple(case.name for case in cases) for place, cases in left_out}


def test_cases_with_a_label_in_labels_tr_are_left_out(bundle, tmp_path, monkeypatch) -> None:
    data = make_files(
        tmp_path / "data", "imagesTr/a_0000.png", "imagesTr/b_0000.png", "labelsTr/a.png"
    )
    for images in (data, data / "imagesTr", f"{data}/imagesTr/*.png"):
        found = split(bundle, images)
        assert names_of(found) == ["b"]
        assert names_left_out(found) == {str(data / "labelsTr"): ("a",)}
    monkeypatch.chdir(data / "imagesTr")
    assert names_of(split(bundle, ".")) == ["b"]
    elsewhere = make_files(tmp_path / "more", "a_0000.png")
    assert names_of(split(bundle, elsewhere)) == ["a"]


def test_cases_with_a_label_in_a_given_folder_are_left_out(bundle, tmp_path) -> None:
    images = make_files(tmp_path / "images", "a.png", "p1/a.png", "p1/b.png", "p2/d_0000.png")
    labels = make_files(tmp_path / "done", "p1/a.nii.gz", "p1/notes.txt", "c.png", "p2/d_0000.png")
    found = split(bundle, images, labels)
    assert names_of(found) == ["a", "p1/b"]
    assert names_left_out(found) == {str(labels): ("p1/a", "p2/d")}
    with pytest.raises(FileNotFoundError, match="no such folder of labels: '.*nowhere'"):
        split(bundle, images, tmp_path / "nowhere")


def test_cases_that_a_bundle_was_trained_on_are_left_out(bundle, tmp_path) -> None:
    images = make_files(tmp_path / "imagesTr", "a_0000.png", "b_0000.png", "c.png", "d.png")
    # In a folder of that name elsewhere.
    entry = {"image": ["../x/imagesTr/a_0000.png"], "label": "l.png"}
    write_datalist(bundle, training=[entry], validation=[])
    assert names_of(split(bundle, images)) == ["a", "b", "c", "d"]
    entry = {"image": ["imagesTr/a_0000.png"], "label": "l.png"}
    write_datalist(bundle, training=[entry, {"image": 5}, "no entry"], validation=[{}])
    fold = {"image": f"../../{images.name}/c.png", "label": "l.png"}
    write_datalist(bundle, "datalist_fold1.json", training=[], validation=[fold])
    found = split(bundle, images)
    assert names_of(found) == ["b", "d"]
    assert names_left_out(found) == {"b_segmentation/configs/datalist.json": ("a", "c")}


def test_a_mere_file_name_of_a_datalist_names_no_file_in_a_deeper_folder(bundle, tmp_path) -> None:
    images = make_files(tmp_path / "images", "a.png", "p1/a.png")
    write_datalist(bundle, training=[{"image": "a.png", "label": "l.png"}])
    assert names_of(split(bundle, images)) == ["p1/a"]


def test_names_of_series_are_those_of_their_folders(bundle, tmp_path, monkeypatch) -> None:
    for name in ("1.2.3.4", "1.2.3.5"):
        write_dicom_series(tmp_path / "series" / name)
    labels = make_files(tmp_path / "labels", "1.2.3.nii.gz", "1.2.3.5.nii.gz")
    monkeypatch.chdir(tmp_path / "series" / "1.2.3.4")
    for images, left in (("..", ["1.2.3.4"]), (".", ["1.2.3.4"]), ("../1.2.3.5", [])):
        found = find_targets(images, reads="volumes", in_channels=1)
        assert names_of(without_labeled(found.cases, bundle, labels)) == left
