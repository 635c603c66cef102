from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from monai_xtiny.bundled.cases import find_data_root, find_images, find_labeled_cases
from monai_xtiny.bundled.labeling import CaseByCase
from monai_xtiny.bundled.splits import Split, write_split
from tests.bundled.labeled import NIFTI, PNG, find, touch


def named(cases: list[dict]) -> list[tuple[list[str], str]]:
    """File names of cases."""
    return [
        ([Path(file).name for file in case["image"]], Path(case["label"]).name) for case in cases
    ]


def test_find_labeled_cases_takes_a_file_per_channel_or_one_with_all(tmp_path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    touch(tmp_path, "imagesTr/b_0000.nii", "labelsTr/b.NII.GZ")
    touch(tmp_path, "imagesTr/notes.txt", "imagesTr/.nii", "labelsTr/.hidden.nii")
    found = find(tmp_path, NIFTI)
    assert named(found.cases) == [
        (["a_0000.nii.gz", "a_0001.nii.gz"], "a.nii.gz"),
        (["b_0000.nii"], "b.NII.GZ"),
    ]
    assert (found.unmatched, found.unlabeled, found.duplicates) == ({}, [], [])
    assert found.source == str(tmp_path)


def test_find_labeled_cases_says_what_fits_no_case(tmp_path) -> None:
    touch(tmp_path, "imagesTr/a_0000.png", "imagesTr/a_0000.bmp", "labelsTr/a.png")
    touch(tmp_path, "labelsTr/without.png", "imagesTr/alone_0000.png")
    found = find(tmp_path, PNG)
    assert named(found.cases) == [(["a_0000.png"], "a.png"), ([], "without.png")]
    assert list(found.unmatched) == ["without"]
    assert [Path(file).name for file in found.unlabeled] == ["alone_0000.png"]
    assert [Path(file).name for file in found.duplicates] == ["a_0000.bmp"]


def test_find_labeled_cases_reads_both_sections_of_a_datalist(tmp_path) -> None:
    cases = [{"image": f"./i/{name}.nii", "label": f"./l/{name}.nii"} for name in "abc"]
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"training": cases[:2], "validation": cases[2:]}))
    found = find_labeled_cases(tmp_path / "none", datalist, tmp_path, **NIFTI)
    assert [case["image"] for case in found.cases] == [f"{tmp_path}/i/{name}.nii" for name in "ab"]
    assert [case["label"] for case in found.validation] == [f"{tmp_path}/l/c.nii"]
    assert found.source == str(datalist)
    datalist.write_text(json.dumps({"training": cases}))
    found = find_labeled_cases(tmp_path / "none", datalist, tmp_path, **NIFTI)
    assert (len(found.cases), found.validation) == (3, [])


def test_find_labeled_cases_reads_the_labeled_cases_of_a_test_section(tmp_path) -> None:
    touch(tmp_path, *(f"{name}.png" for name in ("i", "l", "i2", "l2", "i3")))
    file = tmp_path / "list.json"
    content = {
        "training": [entry("i.png", "l.png")],
        "test": ["i3.png", {"image": "i3.png"}, entry("i2.png", "l2.png")],
    }
    file.write_text(json.dumps(content))
    found = find_labeled_cases(tmp_path, file, tmp_path, **PNG)
    assert named([{**case, "image": [case["image"]]} for case in found.test]) == [
        (["i2.png"], "l2.png")
    ]
    assert found.every == [*found.cases, *found.test] and len(found.every) == 2
    content["test"] = [entry("i2.png", "l.png")]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"training\[0\] and test\[0\] share l\.png"):
        find_labeled_cases(tmp_path, file, tmp_path, **PNG)


def refused_datalist(tmp_path: Path, content: object, **write: str) -> str:
    """What is said of a datalist."""
    datalist = tmp_path / "list.json"
    text = content if isinstance(content, str) else json.dumps(content)
    datalist.write_text(text, **write)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        find_labeled_cases(tmp_path / "none", datalist, tmp_path, **NIFTI)
    assert str(datalist) in str(caught.value) or "mask" in str(caught.value)
    return str(caught.value)


def entry(image: object, label: object) -> dict:
    return {"image": image, "label": label}


def test_find_labeled_cases_reads_datalists_of_windows(tmp_path) -> None:
    touch(tmp_path, "i/a.nii", "i/b.nii", "l/a.nii", "l/b.nii", "i/c\\d.nii", "l/c.nii")
    cases = [entry(".\\i\\a.nii", "l\\a.nii"), entry(["i\\b.nii"], "l\\b.nii")]
    datalist = tmp_path / "list.json"
    cases.append(entry("i/c\\d.nii", "l/c.nii"))  # a name that is there as it is
    datalist.write_text(json.dumps({"training": cases, "fold": 3}), encoding="utf-8-sig")
    found = find_labeled_cases(tmp_path / "none", datalist, tmp_path, **NIFTI)
    assert found.cases == [
        entry(f"{tmp_path}/i/a.nii", f"{tmp_path}/l/a.nii"),
        entry([f"{tmp_path}/i/b.nii"], f"{tmp_path}/l/b.nii"),
        entry(f"{tmp_path}/i/c\\d.nii", f"{tmp_path}/l/c.nii"),
    ]


@pytest.mark.parametrize(
    "training, validation, message",
    [
        ([entry("a.nii", "la.nii")], [entry("./a.nii", "la.nii")],
         r"training\[0\] and validation\[0\] share .* trained on and held out: list each"),
        ([entry("a.nii", "la.nii")], [entry(["a0.nii", "a.nii"], "lb.nii")], "share a.nii"),
        ([entry("a.nii", "la.nii")], [entry("b.nii", "la.nii")], "share la.nii"),
        ([entry("a.nii", "la.nii"), entry("a.nii", "lb.nii")], [], r"and training\[1\] share"),
        ([entry("link.nii", "la.nii")], [entry("a.nii", "lb.nii")], "share a.nii"),
        ([entry("a.nii", "a.nii")], [], r"training\[0\] has its image as label"),
        ([entry("a.nii", "l.nii"), entry("a_seg.nii", "m.nii")], [], "a_seg.nii looks like a mask"),
        ([entry("a.nii", ["a.nii"])], [], r"training\[0\] has its image as label"),
        ([entry("a.nii", "la.nii")], [entry("b.nii", ["la.nii"])], "share la.nii"),
        ([entry("a.nii", ["la.nii", "lb.nii"])], [],
         r"training\[0\] has \['la.nii', 'lb.nii'\] as its label: give the path of one file"),
        ([entry("a.nii", [["la.nii"]])], [], r"training\[0\] has \[\['la.nii'\]\] as its label"),
        ([entry("a.nii", [3])], [], r"training\[0\] has 3 where the path of a file should be"),
        ([{"label": "a.nii"}], [], r"training\[0\] names no 'image'"),
        ([entry(3, "a.nii")], [], r"training\[0\] has 3 where the path of a file should be"),
        (["a.nii"], [], r"training\[0\] names no 'image'"),
        ([], [], "lists no cases: it needs a 'training' list"),
    ],
    ids=["case", "channel", "label", "twice", "link", "image as label", "mask", "listed image",
         "listed label", "two labels", "nested label", "listed number", "no image", "number",
         "text", "empty"],
)  # fmt: skip
def test_find_labeled_cases_refuses_a_datalist(tmp_path, training, validation, message) -> None:
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.nii")
    content = {"training": training, "validation": validation}
    assert re.search(message, refused_datalist(tmp_path, content))


def test_find_labeled_cases_takes_a_label_out_of_its_list(tmp_path) -> None:
    file = tmp_path / "list.json"
    sections = ("training", "validation", "test")
    content = {name: [entry([f"{name}.nii"], [f"l/{name}.nii"])] for name in sections}
    file.write_text(json.dumps(content))
    found = find_labeled_cases(tmp_path, file, tmp_path, **NIFTI)
    assert found.every == [
        entry([f"{tmp_path}/{name}.nii"], f"{tmp_path}/l/{name}.nii") for name in sections
    ]
    # What a training writes of them is read again.
    write_split(Split(found.cases, found.validation), file, tmp_path)
    again = find_labeled_cases(tmp_path, file, tmp_path, **NIFTI)
    assert (again.cases, again.validation) == (found.cases, found.validation)


def test_find_labeled_cases_takes_one_label_of_two_images_to_train_on(tmp_path) -> None:
    cases = [entry("a.nii", "l.nii"), entry("b.nii", "l.nii")]
    (tmp_path / "list.json").write_text(json.dumps({"training": cases}))
    found = find_labeled_cases("", tmp_path / "list.json", tmp_path, **NIFTI)
    assert len(found.cases) == 2


def test_find_labeled_cases_needs_a_datalist_that_can_be_read(tmp_path) -> None:
    assert "is not JSON" in refused_datalist(tmp_path, "{")
    (tmp_path / "list.json").unlink()
    os.mkfifo(tmp_path / "list.json")
    with pytest.raises(FileNotFoundError, match="no such file: .*list.json: check --datalist"):
        find_labeled_cases("", tmp_path / "list.json", tmp_path, **NIFTI)


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_no_pipe_is_opened_and_no_name_is_passed_over(tmp_path, folder) -> None:
    root = touch(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png")

    def refuse(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            find(root, PNG)
        if folder == "imagesTr":
            with pytest.raises(ValueError, match=message):
                find_images(root, **PNG)

    os.mkfifo(root / folder / "b.png")
    refuse("b.png is a pipe, socket or device, no file: remove it")
    (root / folder / "b.png").unlink()
    (root / folder / "c.png").symlink_to("/dev/zero")
    refuse("c.png is a pipe, socket or device, no file: remove it")
    (root / folder / "c.png").unlink()
    for name in ("b\nc.png", "\udce9.png"):
        touch(root, f"{folder}/{name}")
        refuse("holds a control character or is not UTF-8: rename it")
        (root / folder / name).unlink()
    find(root, PNG)


def test_a_datalist_may_name_no_pipe(tmp_path) -> None:
    os.mkfifo(tmp_path / "a.nii")
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry("a.nii", "l.nii")]}))
    with pytest.raises(ValueError, match="a.nii is a pipe, socket or device"):
        find_labeled_cases("", tmp_path / "list.json", tmp_path, **NIFTI)


def test_find_data_root_is_the_datalists_folder_unless_another_is_given(tmp_path) -> None:
    datalist, default = tmp_path / "list.json", "bundle/dataset"
    assert find_data_root(default, datalist, default) == str(tmp_path)
    assert find_data_root("elsewhere", datalist, default) == "elsewhere"
    assert find_data_root("elsewhere", None, default) == "elsewhere"


def test_find_images_joins_channels_of_complete_cases_only(tmp_path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b.nii", "c_0000.nii", "c_0001.nii")
    touch(tmp_path, "c_0002.nii", "d_0001.nii")  # numbered otherwise than channels
    found = find_images(tmp_path, **NIFTI)
    files = {case: [Path(file).name for file in files] for case, files in found.cases.items()}
    assert files == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b": ["b.nii"],
        **{name: [f"{name}.nii"] for name in ("c_0000", "c_0001", "c_0002", "d_0001")},
    }
    assert (found.unclear, found.duplicates) == ([], [])
    assert found.data == [{"image": files} for files in found.cases.values()]


def test_find_images_looks_into_images_tr_where_the_folder_holds_none(tmp_path) -> None:
    touch(tmp_path, "imagesTr/a_0000.png", "dataset.json")
    assert list(find_images(tmp_path, **PNG).cases) == ["a"]
    touch(tmp_path, "b.png")
    assert list(find_images(tmp_path, **PNG).cases) == ["b"]
    assert find_images(tmp_path / "nowhere", **PNG).cases == {}


def test_find_images_says_what_is_unclear(tmp_path) -> None:
    touch(tmp_path, "a_0000.nii", "b.nii", "b.nii.gz", "c.nii", "c_0000.nii", "c_0001.nii")
    found = find_images(tmp_path, **{**NIFTI, "in_channels": 2})
    assert found.unclear == ["c"]
    assert [Path(item["image"][0]).name for item in found.data] == ["a_0000.nii", "b.nii.gz"]
    with pytest.raises(SystemExit, match="(?s)1 of 1 not labeled:.*c: 3 files, not 1 or one for"):
        CaseByCase(found, 2).finish()
    assert [Path(file).name for file in found.duplicates] == ["b.nii"]


@pytest.mark.parametrize(
    "names, ending",
    [
        (["a.png"], ".png"),
        (["a.nii"], ".nii.gz"),
        (["a.NII.GZ", "b.png"], ".nii.gz"),
        ([], ".png"),
        (["scan.nii.png"], ".png"),
        (["x.nii.d/a.png"], ".png"),
    ],
    ids=str,
)
def test_image_cases_write_nifti_where_there_is_nifti(tmp_path, names, ending) -> None:
    touch(tmp_path, *names)
    form = {"file_endings": ["nii.gz", "nii", "png"], "in_channels": 1}
    assert find_images(tmp_path, **form).output_ext == ending


def test_image_cases_name_labels_by_case(tmp_path) -> None:
    touch(tmp_path, "a.b_0000.nii.gz", "a.b_0001.nii.gz")
    found = find_images(tmp_path, **NIFTI)
    first = found.cases["a.b"][0]
    # SaveImage takes off one ending.
    assert found.name_output({"filename_or_obj": first}, None) == {"subject": "a.b.nii"}
    assert found.name_output({"filename_or_obj": "other"}, None) == {"subject": "other"}
