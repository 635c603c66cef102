"""The Python that travels in bundles, as the module of the package that it is a copy of."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader, MeanDice, StatsHandler, from_engine
from torch import nn

from monai_xtiny import __version__
from monai_xtiny.bundle import workflow
from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.templates import SCRIPTS, script_sources
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.system.config_text import PlainPath
from monai_xtiny.system.errors import innermost
from tests.data.test_masks import PAIRS

NIFTI = {"file_endings": ["nii.gz", "nii"], "in_channels": 2}
FUTURE = "from __future__ import annotations\n"
PNG = {"file_endings": ["png", "bmp"], "in_channels": 1}


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def find(root: Path, form: dict, **options) -> workflow.LabeledCases:
    return workflow.find_labeled_cases(root, None, root, **form, **options)


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
    found = workflow.find_labeled_cases(tmp_path / "none", datalist, tmp_path, **NIFTI)
    assert [case["image"] for case in found.cases] == [f"{tmp_path}/i/{name}.nii" for name in "ab"]
    assert [case["label"] for case in found.validation] == [f"{tmp_path}/l/c.nii"]
    assert found.source == str(datalist)
    datalist.write_text(json.dumps({"training": cases}))
    found = workflow.find_labeled_cases(tmp_path / "none", datalist, tmp_path, **NIFTI)
    assert (len(found.cases), found.validation) == (3, [])


def refused_datalist(tmp_path: Path, content: object, **write: str) -> str:
    """What is said of a datalist."""
    datalist = tmp_path / "list.json"
    text = content if isinstance(content, str) else json.dumps(content)
    datalist.write_text(text, **write)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        workflow.find_labeled_cases(tmp_path / "none", datalist, tmp_path, **NIFTI)
    assert str(datalist) in str(caught.value) or "mask" in str(caught.value)
    return str(caught.value)


def entry(image: object, label: str) -> dict:
    return {"image": image, "label": label}


def test_find_labeled_cases_reads_datalists_of_windows(tmp_path) -> None:
    touch(tmp_path, "i/a.nii", "i/b.nii", "l/a.nii", "l/b.nii", "i/c\\d.nii", "l/c.nii")
    cases = [entry(".\\i\\a.nii", "l\\a.nii"), entry(["i\\b.nii"], "l\\b.nii")]
    datalist = tmp_path / "list.json"
    cases.append(entry("i/c\\d.nii", "l/c.nii"))  # a name that is there as it is
    datalist.write_text(json.dumps({"training": cases, "fold": 3}), encoding="utf-8-sig")
    found = workflow.find_labeled_cases(tmp_path / "none", datalist, tmp_path, **NIFTI)
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
        ([{"label": "a.nii"}], [], r"training\[0\] names no 'image'"),
        ([entry(3, "a.nii")], [], r"training\[0\] has 3 where the path of a file should be"),
        (["a.nii"], [], r"training\[0\] names no 'image'"),
        ([], [], "lists no cases: it needs a 'training' list"),
    ],
    ids=["case", "channel", "label", "twice", "link", "image as label", "mask", "no image",
         "number", "text", "empty"],
)  # fmt: skip
def test_find_labeled_cases_refuses_a_datalist(tmp_path, training, validation, message) -> None:
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.nii")
    content = {"training": training, "validation": validation}
    assert re.search(message, refused_datalist(tmp_path, content))


def test_find_labeled_cases_takes_one_label_of_two_images_to_train_on(tmp_path) -> None:
    cases = [entry("a.nii", "l.nii"), entry("b.nii", "l.nii")]
    (tmp_path / "list.json").write_text(json.dumps({"training": cases}))
    found = workflow.find_labeled_cases("", tmp_path / "list.json", tmp_path, **NIFTI)
    assert len(found.cases) == 2


def test_find_labeled_cases_needs_a_datalist_that_can_be_read(tmp_path) -> None:
    assert "is not JSON" in refused_datalist(tmp_path, "{")
    (tmp_path / "list.json").unlink()
    os.mkfifo(tmp_path / "list.json")
    with pytest.raises(FileNotFoundError, match="no such file: .*list.json: check --datalist"):
        workflow.find_labeled_cases("", tmp_path / "list.json", tmp_path, **NIFTI)


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_no_pipe_is_opened_and_no_name_is_passed_over(tmp_path, folder) -> None:
    root = touch(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png")

    def refuse(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            find(root, PNG)
        if folder == "imagesTr":
            with pytest.raises(ValueError, match=message):
                workflow.find_images(root, **PNG)

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
        workflow.find_labeled_cases("", tmp_path / "list.json", tmp_path, **NIFTI)


@pytest.mark.parametrize("image, mask", PAIRS, ids=" ".join)
def test_masks_beside_images_are_refused(tmp_path, image, mask) -> None:
    root = touch(tmp_path, f"imagesTr/{image}.png", f"imagesTr/{mask}.png", "imagesTr/other.png")
    message = re.escape(f"{mask}.png looks like a mask beside the image {image}.png: move the")
    with pytest.raises(ValueError, match=message):
        find(root, PNG)
    found = workflow.find_images(root, **PNG)
    with pytest.raises(ValueError, match=message):
        workflow.check_images(found, found.data, file_endings=["png"])
    (root / "imagesTr" / f"{mask}.png").unlink()
    found = workflow.find_images(root, **PNG)
    workflow.check_images(found, found.data, file_endings=["png"])


def test_check_images_refuses_data_of_anothers_whose_labels_would_be_one_file(tmp_path) -> None:
    found = workflow.find_images(touch(tmp_path, "a.png"), **PNG)
    for second in ("p2/a.png", "p2/a.nii.gz"):
        data = [{"image": "p1/a.png"}, {"image": [second]}]
        with pytest.raises(ValueError, match=f"the labels of p1/a.png and {second} would be one"):
            workflow.check_images(found, Dataset(data), file_endings=["png"])
    workflow.check_images(
        found, Dataset([{"image": "p1/a.png"}, {"image": "p1/b.png"}]), file_endings=["png"]
    )


def test_find_data_root_is_the_datalists_folder_unless_another_is_given(tmp_path) -> None:
    datalist, default = tmp_path / "list.json", "bundle/dataset"
    assert workflow.find_data_root(default, datalist, default) == str(tmp_path)
    assert workflow.find_data_root("elsewhere", datalist, default) == "elsewhere"
    assert workflow.find_data_root("elsewhere", None, default) == "elsewhere"


def test_find_images_joins_channels_of_complete_cases_only(tmp_path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b.nii", "c_0000.nii", "c_0001.nii")
    touch(tmp_path, "c_0002.nii", "d_0001.nii")  # numbered otherwise than channels
    found = workflow.find_images(tmp_path, **NIFTI)
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
    assert list(workflow.find_images(tmp_path, **PNG).cases) == ["a"]
    touch(tmp_path, "b.png")
    assert list(workflow.find_images(tmp_path, **PNG).cases) == ["b"]
    assert workflow.find_images(tmp_path / "nowhere", **PNG).cases == {}


def test_find_images_says_what_is_unclear(tmp_path) -> None:
    touch(tmp_path, "a_0000.nii", "b.nii", "b.nii.gz", "c.nii", "c_0000.nii", "c_0001.nii")
    found = workflow.find_images(tmp_path, **{**NIFTI, "in_channels": 2})
    assert found.unclear == ["c"]
    assert [Path(item["image"][0]).name for item in found.data] == ["a_0000.nii", "b.nii.gz"]
    with pytest.raises(SystemExit, match="(?s)1 of 1 not labeled:.*c: 3 files, not 1 or one for"):
        workflow.CaseByCase(found, 2).finish()
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
    assert workflow.find_images(tmp_path, **form).output_ext == ending


def test_image_cases_name_labels_by_case(tmp_path) -> None:
    touch(tmp_path, "a.b_0000.nii.gz", "a.b_0001.nii.gz")
    found = workflow.find_images(tmp_path, **NIFTI)
    first = found.cases["a.b"][0]
    # SaveImage takes off one ending.
    assert found.name_output({"filename_or_obj": first}, None) == {"subject": "a.b.nii"}
    assert found.name_output({"filename_or_obj": "other"}, None) == {"subject": "other"}


def labeled(count: int, validation: int = 0) -> workflow.LabeledCases:
    cases = [
        {"image": [f"imagesTr/c{i}.png"], "label": f"labelsTr/c{i}.png"}
        for i in range(count + validation)
    ]
    return workflow.LabeledCases("data", cases[:count], cases[count:], {}, [], [])


def numbers(cases: list[dict]) -> list[int]:
    return [int(Path(case["label"]).stem[1:]) for case in cases]


def test_split_cases_is_the_split_of_earlier_bundles() -> None:
    split = workflow.split_cases(labeled(10), fold=1, val_fraction=0.2, split_seed=0)
    assert numbers(split.training) == [2, 8, 1, 6, 7, 3, 0, 5]
    assert numbers(split.validation) == [4, 9]


@pytest.mark.parametrize("count", [2, 5, 6, 7, 11, 15])
def test_split_cases_holds_every_case_out_once(count) -> None:
    held_out = []
    for fold in range(5):
        split = workflow.split_cases(labeled(count), fold=fold, val_fraction=0.2, split_seed=3)
        assert sorted(numbers(split.training + split.validation)) == list(range(count))
        held_out += numbers(split.validation)
    assert sorted(held_out) == list(range(count))


def test_split_cases_trains_on_one_case_at_least() -> None:
    split = workflow.split_cases(labeled(3), fold=0, val_fraction=1.0, split_seed=0)
    assert (len(split.training), len(split.validation)) == (1, 2)
    split = workflow.split_cases(labeled(1), fold=0, val_fraction=0.2, split_seed=0)
    assert (len(split.training), len(split.validation)) == (1, 0)


def test_split_cases_holds_out_what_the_datalist_does() -> None:
    split = workflow.split_cases(labeled(4, 2), fold=3, val_fraction=0.2, split_seed=0)
    assert sorted(numbers(split.training)) == [0, 1, 2, 3]
    assert numbers(split.validation) == [4, 5]
    assert split.label_names()[1] == ["c4.png", "c5.png"]


@pytest.mark.parametrize(
    "labels, names",
    [
        (["d/labelsTr/a.png", "d/labelsTr/b.png"], ["a.png", "b.png"]),  # as those of earlier files
        (["d/p1/seg.png", "d/p2/seg.png"], ["p1/seg.png", "p2/seg.png"]),
        (["d/p1/seg.png"], ["seg.png"]),
    ],
    ids=["one folder", "folders", "one"],
)
def test_label_names_tell_equal_names_in_folders_apart_wherever_the_data_lie(labels, names) -> None:
    for root in ("", "/elsewhere/"):
        cases = [{"image": "x", "label": root + label} for label in labels]
        assert workflow.Split(cases[:1], cases[1:]).label_names() == [names[:1], names[1:]]
        assert workflow.Split([], []).label_names() == [[], []]


def of_patients(*names: str) -> list[dict]:
    return [{"image": [f"i/{name}_0000.png"], "label": f"l/{name}.png"} for name in names]


@pytest.mark.parametrize(
    "group, expected",
    [
        (None, ["0", "1", "2"]),
        ("^p[0-9]+", ["p1", "p1", "p2"]),
        ("p([0-9])_(.)", ["1", "1", "2"]),
        ("map.json", ["A", "A", "7"]),
    ],
    ids=["none", "match", "group", "map"],
)
def test_find_patients_takes_an_expression_or_a_map(tmp_path, monkeypatch, group, expected) -> None:
    monkeypatch.chdir(tmp_path)
    Path("map.json").write_text(json.dumps({"p1_a": "A", "p1_b": "A", "p2_a": 7, "more": "B"}))
    assert workflow.find_patients(of_patients("p1_a", "p1_b", "p2_a"), group) == expected


@pytest.mark.parametrize(
    "group, message",
    [
        ("^p[0-9]+", "finds no patient for the cases other: extend it"),
        ("map.json", "map.json finds no patient for the cases other: extend it"),
        ("list.json", "list.json is no JSON object of cases and their patients"),
        ("(", "is no regular expression: missing"),
        (["a"], r"--group is read as \['a'\]: put it in two pairs of quotes"),
    ],
    ids=str,
)
def test_find_patients_names_what_it_cannot_tell(tmp_path, monkeypatch, group, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("map.json").write_text(json.dumps({"p1": "A"}))
    Path("list.json").write_text("[]")
    with pytest.raises(ValueError, match=message):
        workflow.find_patients(of_patients("p1", "other"), group)


def test_split_cases_never_divides_a_patient() -> None:
    cases = of_patients(*(f"p{number}_{letter}" for number in range(7) for letter in "abc"))
    found = workflow.LabeledCases("data", cases, [], {}, [], [])
    held_out = []
    for fold in range(4):
        options = {"fold": fold, "val_fraction": 0.25, "split_seed": 3, "group": "p[0-9]"}
        split = workflow.split_cases(found, **options)
        sides = [set(workflow.find_patients(side, "p[0-9]")) for side in vars(split).values()]
        assert not sides[0] & sides[1]
        assert len(split.training) + len(split.validation) == len(cases)
        held_out += split.validation
    assert sorted(map(str, held_out)) == sorted(map(str, cases))


def test_split_cases_holds_real_patients_out_whole(real_data) -> None:
    root = real_data / "Dataset078_SunnybrookLV"
    found = find(root, {"file_endings": ["png"], "in_channels": 1})
    options = {"fold": 0, "val_fraction": 0.2, "split_seed": 0}
    for group, is_divided in ((None, True), ("(.*)-[0-9]+", False)):
        split = workflow.split_cases(found, **options, group=group)
        sides = [
            {workflow.case_name(case).rpartition("-")[0] for case in side}
            for side in (split.training, split.validation)
        ]
        assert bool(sides[0] & sides[1]) == is_divided
        assert len(split.validation) > 30


def test_split_cases_refuses_a_datalist_that_divides_a_patient() -> None:
    cases = of_patients("p1_a", "p2_a", "p1_b")
    found = workflow.LabeledCases("list.json", cases[:2], cases[2:], {}, [], [])
    with pytest.raises(ValueError, match="the patient p1 is in the training and in the validation"):
        workflow.split_cases(found, fold=0, val_fraction=0.2, split_seed=0, group="p[0-9]")


def test_write_split_is_a_datalist_relative_to_the_data(tmp_path) -> None:
    root = touch(tmp_path / "data", *(f"imagesTr/{name}.png" for name in "ab"))
    touch(root, *(f"labelsTr/{name}.png" for name in "ab"))
    split = workflow.split_cases(find(root, PNG), fold=0, val_fraction=0.5, split_seed=0)
    file = tmp_path / "split.json"
    workflow.write_split(split, file, root)
    assert file.read_text().endswith("}\n") and [p.name for p in tmp_path.glob("*.part")] == []
    assert [path.name for path in file.parent.glob(".*")] == []
    found = workflow.find_labeled_cases(root, file, root, **PNG)
    assert workflow.split_cases(found, fold=0, val_fraction=0.5, split_seed=9) == workflow.Split(
        split.training, split.validation
    )
    content = json.loads(file.read_text())
    assert set(content) == {"description", "training", "validation"}
    assert content["training"][0]["label"] in ("labelsTr/a.png", "labelsTr/b.png")


def test_write_split_takes_one_image_as_text(tmp_path) -> None:
    split = workflow.Split([{"image": "d/i/a.nii", "label": "d/l/a.nii"}], [])
    workflow.write_split(split, tmp_path / "s.json", "d")
    assert json.loads((tmp_path / "s.json").read_text())["training"] == [
        {"image": ["i/a.nii"], "label": "l/a.nii"}
    ]


def test_check_cases_names_labels_without_their_images(tmp_path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii", "labelsTr/a.nii", "labelsTr/b.nii")
    found = find(tmp_path, {**NIFTI, "in_channels": 3})
    with pytest.raises(ValueError, match=r"the labels b in .*/labelsTr need .*3 channels.*\[0\]"):
        workflow.check_cases(found, found.cases, **NIFTI | {"in_channels": 3})


def test_check_cases_refuses_an_empty_data_set(tmp_path) -> None:
    found = find(tmp_path, NIFTI)
    with pytest.raises(ValueError, match=r"no labeled image in .*as nii.gz nii, or pass --data"):
        workflow.check_cases(found, found.cases, **NIFTI)
    workflow.check_cases(found, [{"image": "a", "label": "b"}], **NIFTI)  # of another's


@pytest.mark.parametrize(
    "name, message",
    [
        ("imagesTr/b_0000.png", r"no label in labelsTr for the images .*b_0000\.png: add"),
        ("imagesTr/a_0000.bmp", r"two files are of one case: rename or remove .*a_0000\.bmp"),
        ("labelsTr/a.bmp", r"two files are of one case: rename or remove .*a\.bmp"),
    ],
)
def test_check_unused_names_what_would_be_left_out(tmp_path, name, message) -> None:
    touch(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png")
    workflow.check_unused(find(tmp_path, PNG))
    touch(tmp_path, name)
    with pytest.raises(ValueError, match=message):
        workflow.check_unused(find(tmp_path, PNG))


def test_check_fold_names_the_folds_that_there_are() -> None:
    options = {"fold": 5, "val_fraction": 0.2}
    split = workflow.split_cases(labeled(7), **options, split_seed=0)
    with pytest.raises(ValueError, match=r"fold 5 holds out none of the 7 cases: give --fold .* 4"):
        workflow.check_fold(split, **options)
    for count, fraction in ((7, 0.0), (1, 0.2)):
        options = {"fold": 0, "val_fraction": fraction}
        workflow.check_fold(
            workflow.split_cases(labeled(count), **options, split_seed=0), **options
        )


def test_check_evaluation_needs_cases_with_images(tmp_path) -> None:
    found = find(touch(tmp_path, "imagesTr/a.png", "labelsTr/a.png"), PNG)
    workflow.check_evaluation(found, found.cases)
    with pytest.raises(ValueError, match="no labeled image to evaluate in"):
        workflow.check_evaluation(found, [])
    touch(tmp_path, "imagesTr/a.bmp")
    with pytest.raises(ValueError, match=r"two files are of one case: rename or remove .*a\.bmp"):
        workflow.check_evaluation(find(tmp_path, PNG), found.cases)
    (tmp_path / "imagesTr/a.bmp").unlink()
    found = find(touch(tmp_path, "labelsTr/b.png"), PNG)
    with pytest.raises(ValueError, match="no image, or not one for each channel, for the labels b"):
        workflow.check_evaluation(found, found.cases)


def test_check_images_says_what_is_wrong_with_the_folder(tmp_path) -> None:
    found = workflow.find_images(tmp_path, **NIFTI)
    with pytest.raises(ValueError, match=r"no image in .* or its imagesTr \(looked for nii.gz nii"):
        workflow.check_images(found, found.data, file_endings=NIFTI["file_endings"])
    found = workflow.find_images(touch(tmp_path, "a.nii"), **NIFTI)
    workflow.check_images(found, found.data, file_endings=NIFTI["file_endings"])
    found = workflow.find_images(touch(tmp_path, "a.nii.gz"), **NIFTI)
    with pytest.raises(ValueError, match=r"two images would give one label file: rename .*a\.nii"):
        workflow.check_images(found, found.data, file_endings=NIFTI["file_endings"])


@pytest.mark.parametrize(
    ("dataset", "output"),
    [
        ("images", "images"), ("images", "images/../images"), ("images", "link"),
        ("link", "images"), ("set", "set/imagesTr"), ("set", "set"), ("set", "set/labelsTr"),
        ("set/imagesTr", "set/labelsTr"), ("set/imagesTs", "set/labelsTs"),
    ],
)  # fmt: skip
def test_check_output_dir_refuses_folders_of_the_data_set(tmp_path, dataset, output) -> None:
    touch(tmp_path, "images/a.png", "set/imagesTr/a.png", "set/labelsTr/a.png")
    touch(tmp_path, "set/imagesTs/b.png", "set/labelsTs/b.png", "out/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    found = workflow.find_images(tmp_path / dataset, **PNG)
    with pytest.raises(ValueError, match="among the images or labels: give another --output_dir"):
        workflow.check_output_dir(found, tmp_path / output)
    for other in ("out", "none/yet", "set/predicted"):
        workflow.check_output_dir(found, tmp_path / other)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_check_output_dir_refuses_a_folder_of_links_to_images(tmp_path, link) -> None:
    touch(tmp_path, "images/a.png", "out/b.png", "file")
    found = workflow.find_images(tmp_path / "images", **PNG)
    workflow.check_output_dir(found, tmp_path / "out")
    link(tmp_path / "out" / "a.png", tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match=r"out/a\.png' is a link to an image or a label"):
        workflow.check_output_dir(found, tmp_path / "out")
    with pytest.raises(ValueError, match="file' is a file: give another --output_dir"):
        workflow.check_output_dir(found, tmp_path / "file")


def test_check_output_dir_knows_labeled_cases_too(tmp_path) -> None:
    touch(tmp_path, "x/i/a.png", "x/l/a.png", "x/l/b.png", "eval/metrics.csv")
    entries = [{"image": f"x/i/{name}.png", "label": f"x/l/{name}.png"} for name in "ab"]
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"training": entries[:1], "validation": entries[1:]}))
    found = workflow.find_labeled_cases(tmp_path, datalist, tmp_path, **PNG)
    workflow.check_output_dir(found, tmp_path / "eval")
    for folder in ("x/i", "x/l"):
        with pytest.raises(ValueError, match="would lie among the images or labels"):
            workflow.check_output_dir(found, tmp_path / folder)


def test_write_split_names_the_file_of_a_full_disk_and_follows_no_link(tmp_path, monkeypatch):
    file, victim = tmp_path / "datalist.json", touch(tmp_path, "victim") / "victim"
    (tmp_path / "datalist.json.part").symlink_to(victim)
    (tmp_path / ".datalist.json.tmp.killed").mkdir()
    workflow.write_split(workflow.Split([], []), file, tmp_path)
    assert victim.read_text() == ""
    assert sorted(path.name for path in tmp_path.glob("*data*")) == [file.name, f"{file.name}.part"]

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match=r"datalist\.json' cannot be written .*is the disk full"):
        workflow.write_split(workflow.Split([], []), file, tmp_path)
    assert file.read_bytes() == before


def test_check_weights_takes_a_bare_state_dict_and_one_under_model(tmp_path) -> None:
    network, file = nn.Linear(2, 3), str(tmp_path / "model.pt")
    for content in (network.state_dict(), {"model": network.state_dict()}):
        torch.save(content, file)
        workflow.check_weights(file, nn.Linear(2, 3))
        with pytest.raises(ValueError, match="are of another network than network_def"):
            workflow.check_weights(file, nn.Linear(2, 4))


def test_check_loss_stops_where_the_loss_is_not_a_number() -> None:
    def trainer(loss: float) -> SimpleNamespace:
        return SimpleNamespace(state=SimpleNamespace(output={"loss": torch.tensor(loss)}, epoch=7))

    workflow.check_loss(trainer(1e30))
    with pytest.raises(ValueError, match="the loss is not a number in epoch 7: lower --learning_r"):
        workflow.check_loss(trainer(float("nan")))


def test_handlers_of_rank_drops_logs_on_other_ranks(monkeypatch, tmp_path) -> None:
    handlers = [StatsHandler(), CheckpointLoader(str(tmp_path), {"a": nn.Linear(1, 1)})]
    assert workflow.handlers_of_rank(handlers) == handlers
    monkeypatch.setattr(workflow.idist, "get_rank", lambda: 1)
    assert workflow.handlers_of_rank(handlers) == handlers[1:]


class Setup:
    """A tiny training: one voxel, two classes, a convolution."""

    def __init__(self, folder: Path, *, epochs: int, lr: float = 0.1, decay: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        data = [
            {
                "image": torch.randn(1, 4, 4, generator=generator),
                "label": torch.randint(0, 2, (1, 4, 4), generator=generator),
            }
            for _ in range(4)
        ]
        torch.manual_seed(1)
        self.network = nn.Conv2d(1, 2, 1)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr, weight_decay=decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda epoch: 1 / (1 + epoch)
        )
        loader = DataLoader(data, batch_size=2, num_workers=0)
        cpu = torch.device("cpu")
        self.trainer = SupervisedTrainer(
            cpu, epochs, loader, self.network, self.optimizer,
            lambda logits, label: nn.functional.cross_entropy(logits, label[:, 0]),
        )  # fmt: skip
        self.evaluator = SupervisedEvaluator(
            cpu, loader, self.network,
            key_val_metric={"dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
        )  # fmt: skip
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.scheduler.step())
        self.trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: self.evaluator.run(self.trainer.state.epoch)
        )
        self.file = str(folder / "deep" / "state.pt")
        self.split = workflow.split_cases(labeled(4), fold=0, val_fraction=0.5, split_seed=0)

    def state(self, **options) -> workflow.TrainingState:
        options = {"split": self.split, "network": self.network, "resume": True, **options}
        return workflow.TrainingState(self.file, **options)

    def run(self, *, save: bool = True, resume: bool = True) -> workflow.TrainingState:
        state = self.state(resume=resume)
        state.check(self.trainer.state.max_epochs)
        state.attach(
            self.trainer, self.evaluator, self.optimizer, self.scheduler, seed=0, save=save
        )
        self.trainer.run()
        return state


def test_training_state_goes_on_as_if_it_had_not_stopped(tmp_path) -> None:
    whole = Setup(tmp_path / "whole", epochs=3)
    whole.run()
    for epochs in (1, 3):
        parts = Setup(tmp_path / "parts", epochs=epochs)
        state = parts.run()
    assert state.former_epoch == 1
    assert parts.trainer.state.epoch == 3 and parts.trainer.state.iteration == 6
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, parts.network.state_dict()[name]), name
    assert vars(whole.evaluator.state)["best_metric"] == parts.evaluator.state.best_metric
    assert not list(tmp_path.rglob("*.part"))


def test_training_state_keeps_the_best_of_the_former_run(tmp_path) -> None:
    Setup(tmp_path, epochs=1).run()
    content = torch.load(tmp_path / "deep" / "state.pt", weights_only=True)
    content["best"] = {"best_metric": 1e9, "best_metric_epoch": 1}
    torch.save(content, tmp_path / "deep" / "state.pt")
    later = Setup(tmp_path, epochs=2)
    later.run()
    assert (later.evaluator.state.best_metric, later.evaluator.state.best_metric_epoch) == (1e9, 1)


def test_training_state_takes_the_settings_of_this_run(tmp_path) -> None:
    Setup(tmp_path, epochs=2).run()
    later = Setup(tmp_path, epochs=3, lr=0.7, decay=0.3)
    rates = []
    later.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: rates.append(later.optimizer.param_groups[0]["lr"])
    )
    later.run()
    group = later.optimizer.param_groups[0]
    assert rates == [0.7 / 3] * 2  # the factor of the third epoch
    assert (group["initial_lr"], group["weight_decay"]) == (0.7, 0.3)


def test_training_state_neither_reads_nor_writes_unless_asked_to(tmp_path) -> None:
    Setup(tmp_path, epochs=1).run(save=False)
    assert list(tmp_path.rglob("*")) == []
    Setup(tmp_path, epochs=1).run()
    anew = Setup(tmp_path, epochs=1)
    assert anew.run(resume=False).former == {}
    assert anew.trainer.state.iteration == 2


@pytest.mark.parametrize(
    "options, max_epochs, message",
    [
        (
            {"split": workflow.Split(labeled(2).cases, [])}, 9,
            "is of other cases or of another split: pass another --output_dir, or --resume False",
        ),
        ({"network": nn.Conv2d(1, 3, 1)}, 9, "is of another network: pass another --output_dir"),
        ({}, 1, "has 2 epochs already: give --epochs above that, or --resume False to start anew"),
    ],
    ids=["split", "network", "epochs"],
)  # fmt: skip
def test_training_state_refuses_another_training(tmp_path, options, max_epochs, message) -> None:
    setup = Setup(tmp_path, epochs=2)
    setup.state().check(0)  # nothing there
    setup.run()
    setup.state().check(2)
    with pytest.raises(ValueError, match=f"the training in .*state.pt {message}"):
        setup.state(**options).check(max_epochs)


def test_best_weights_are_those_of_the_best_validation(tmp_path) -> None:
    setup, file = Setup(tmp_path, epochs=4), tmp_path / "models" / "model.pt"
    # Without a metric of its own.
    setup.evaluator = SupervisedEvaluator(
        torch.device("cpu"), setup.trainer.data_loader, setup.network
    )
    scores = iter([0.5, 0.9, 0.7, 0.8])
    weights = {}

    def judge() -> None:
        state = setup.evaluator.state
        if (score := next(scores)) > state.best_metric:
            state.best_metric, state.best_metric_epoch = score, state.epoch
        weights[state.epoch] = {k: v.clone() for k, v in setup.network.state_dict().items()}

    setup.evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: judge())
    best = workflow.BestWeights(setup.network, str(file))
    best.attach(setup.evaluator)
    setup.trainer.run()
    found = torch.load(file, weights_only=True)
    assert all(torch.equal(found[name], weights[2][name]) for name in found)
    best.save_unless_validated(setup.evaluator)
    assert all(torch.equal(torch.load(file, weights_only=True)[k], found[k]) for k in found)
    assert [path.name for path in file.parent.iterdir()] == ["model.pt"]


def test_best_weights_are_the_last_without_a_validation(tmp_path) -> None:
    network, file = nn.Linear(2, 2), tmp_path / "model.pt"
    evaluator = SimpleNamespace(state=SimpleNamespace(best_metric_epoch=-1))
    workflow.BestWeights(network, str(file)).save_unless_validated(evaluator)
    assert torch.equal(torch.load(file, weights_only=True)["weight"], network.weight)


def test_best_weights_are_the_last_where_nothing_can_be_measured(tmp_path) -> None:
    setup, file = Setup(tmp_path, epochs=3), tmp_path / "models" / "model.pt"
    for item in setup.evaluator.data_loader.dataset:
        item["label"].zero_()
    metric = MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
    setup.evaluator = SupervisedEvaluator(
        torch.device("cpu"), setup.trainer.data_loader, setup.network,
        key_val_metric={"dice": metric},
    )  # fmt: skip
    workflow.BestWeights(setup.network, str(file)).attach(setup.evaluator)
    setup.trainer.run()
    assert setup.evaluator.state.best_metric_epoch == -1
    found = torch.load(file, weights_only=True)
    assert all(torch.equal(found[k], value) for k, value in setup.network.state_dict().items())


def test_a_kill_between_two_writes_loses_no_trained_weights(tmp_path, monkeypatch) -> None:
    class Killed(BaseException):
        pass

    writes = {
        (workflow.shutil, "copy2"), (workflow.torch, "save"), (workflow.os, "replace"),
        (Path, "unlink"), (Path, "write_text"), (Path, "replace"), (Path, "mkdir"),
    }  # fmt: skip
    split = workflow.Split(of_patients("a"), of_patients("b"))

    def train(root: Path, value: float, kill_at: int) -> int:
        """A training that dies before a write; the number of writes."""
        network = nn.Linear(1, 3)
        nn.init.uniform_(network.weight, value, value)
        nn.init.uniform_(network.bias, value, value)
        number = 0
        with monkeypatch.context() as patch:

            def count(write, *args, **options) -> object:
                nonlocal number
                number += 1
                if number == kill_at:
                    raise Killed
                return write(*args, **options)

            def counted(write) -> Callable[..., object]:
                return lambda *args, **options: count(write, *args, **options)

            for owner, name in writes:
                patch.setattr(owner, name, counted(getattr(owner, name)))
            workflow.BestWeights(
                network, str(root / "models" / "model.pt"), split=split,
                split_file=str(root / "configs" / "datalist.json"),
            ).save()  # fmt: skip
        return number

    def kept(root: Path) -> set[float]:
        """Trained weights that lie beside the split that they were trained on."""
        folders = [root, *root.glob("former_training_*")]
        files = [(item / "models/model.pt", item / "configs/datalist.json") for item in folders]
        return {
            float(torch.load(weights, weights_only=True)["bias"][0])
            for weights, names in files
            if weights.is_file() and names.is_file()
        }

    for kill_at in range(1, 100):
        root = tmp_path / str(kill_at)
        for folder in ("models", "configs"):
            (root / folder).mkdir(parents=True)
        train(root, 0.25, 0)
        try:
            train(root, 0.5, kill_at)
        except Killed:
            assert 0.25 in kept(root), kill_at
            train(root, 0.75, 0)
            assert {0.25, 0.75} <= kept(root), kill_at
        else:
            break
    assert kept(root) == {0.25, 0.5} and kill_at > 6


class SignalingLoader:
    """What sends SIGINT from its destructor, where Python drops exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interruption_is_not_dropped_in_a_destructor(tmp_path, monkeypatch) -> None:
    setup = Setup(tmp_path, epochs=5)

    def destroy() -> None:
        if setup.trainer.state.iteration == 3:
            SignalingLoader()

    setup.trainer.add_event_handler(Events.ITERATION_COMPLETED, destroy)
    workflow.Interruption().attach(setup.trainer, setup.evaluator)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            setup.trainer.run()
    finally:
        signal.signal(signal.SIGINT, former)
    assert setup.trainer.state.iteration == 4


def seen_signal(seen: list) -> None:
    seen.append(signal.getsignal(signal.SIGINT))


def test_interruption_gives_the_signal_back(tmp_path) -> None:
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(2):
            setup = Setup(tmp_path, epochs=1)
            interruption = workflow.Interruption()
            interruption.attach(setup.trainer, setup.evaluator)
            seen: list[object] = []
            setup.trainer.add_event_handler(Events.EPOCH_STARTED, seen_signal, seen)
            setup.trainer.run()
            assert seen == [interruption._remember]
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)


def test_fold_files_are_those_of_the_folds_or_the_one_given() -> None:
    assert workflow.fold_files("m.pt", None, "own.pt") == ["own.pt"]
    assert workflow.fold_files("m.pt", [0, 2], "m.pt") == ["m.pt", "m_fold2.pt"]
    assert workflow.fold_files("m.pt", 1, "m_fold1.pt") == ["m_fold1.pt"]
    for folds in ([], [0, 0], [-1], "all", [True]):
        with pytest.raises(ValueError, match="give numbers of folds"):
            workflow.fold_files("m.pt", folds, "m.pt")
    with pytest.raises(ValueError, match="and own.pt are given: give one of them"):
        workflow.fold_files("m.pt", [0, 1], "own.pt")


RIGHT = {
    "epochs": 1, "val_interval": 301, "fold": 0, "num_workers": 0, "val_fraction": 0,
    "overlap": 0.5, "cache_rate": 1, "learning_rate": 1e-3, "weight_decay": 0, "resume": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", 0), ("epochs", -3), ("epochs", 1.5), ("epochs", True), ("epochs", "ten"),
        ("val_interval", 0), ("fold", -1), ("fold", 0.0), ("num_workers", None), ("seed", 2**32),
        ("val_fraction", 1), ("val_fraction", -0.1), ("val_fraction", "0,2"), ("overlap", 1.0),
        ("cache_rate", 1.1), ("learning_rate", 0), ("learning_rate", float("nan")),
        ("learning_rate", float("inf")), ("weight_decay", -1e-3), ("resume", "no"), ("resume", 1),
    ],
)  # fmt: skip
def test_check_options_says_what_an_option_may_be(name, value) -> None:
    workflow.check_options(RIGHT)
    with pytest.raises(ValueError, match=f"^--{name} is .*: give (a|True)"):
        workflow.check_options({**RIGHT, name: value})


@pytest.mark.parametrize(
    "options, unknown",
    [
        (["--epochs", "3", "--run_id=run", "--meta_file", "m", "--logging_file", "False"], None),
        (["--train#trainer#max_epochs", "3", "--other::key", "3"], None),
        (["--val-interval", "3", "--noresume", "--", "--trace"], None),
        (["--own", "3", "--epochs", "$@own + 1"], None),
        (["--tracking", "mlflow", "--experiment_name", "x"], None),
        (["--epoch", "3"], "epoch"),
        (["--epochs", "1", "--folder=x"], "folder"),
        (["--experiment_name", "x"], "experiment_name"),
    ],
    ids=str,
)
@pytest.mark.parametrize("files", ["{0}", "['{0}']", "{0},{0}"])
def test_check_options_names_unknown_ones(tmp_path, monkeypatch, options, unknown, files) -> None:
    config = tmp_path / "train.json"
    config.write_text(json.dumps({"epochs": 3, "fold": 0, "val_interval": 1, "resume": True}))
    given = ["--config_file", files.format(config), *options]
    monkeypatch.setattr(sys, "argv", ["/lib/monai/bundle/__main__.py", "run", *given])
    if unknown is None:
        workflow.check_options({})
    else:
        with pytest.raises(ValueError, match=f"no option --{unknown} in "):
            workflow.check_options({})
    monkeypatch.setattr(sys, "argv", ["own_script.py", "run", *given])
    workflow.check_options({})


def test_check_patch_says_which_sizes_fit() -> None:
    network = SimpleNamespace(strides=[1, (2, 1), (2, 2)])
    workflow.check_patch(network, patch_size=(8, 2), crop_size=[4, 4])
    workflow.check_patch(nn.Conv2d(1, 1, 1), patch_size=(1, 1))
    for size in ([4, 2], [6, 4], [8], [8, 2, 2], [0, 2], [8.0, 2]):
        with pytest.raises(ValueError, match=r"--crop_size is .* multiples of \[4, 2\], above"):
            workflow.check_patch(network, patch_size=(8, 2), crop_size=size)


def test_check_held_out_names_cases_that_were_trained_on(tmp_path) -> None:
    file = tmp_path / "split.json"
    workflow.write_split(workflow.Split(of_patients("a"), of_patients("b")), file, ".")
    workflow.check_held_out(of_patients("b", "c"), [file, tmp_path / "none.json"], ".")
    with pytest.raises(ValueError, match="the network was trained on a.png, as .*split.json says"):
        workflow.check_held_out(of_patients("b", "a"), [file], ".")


def test_warn_of_missing_classes_names_them(capsys) -> None:
    meta = {"filename_or_obj": "/data/b.nii"}
    cases = [
        {"label": torch.tensor([[0, 2]])},
        {"label": MetaTensor(torch.tensor([[0, 0]]), meta=meta)},
    ]
    workflow.warn_of_missing_classes(cases, 3)
    assert "no held-out case has voxels of class 1, which" in capsys.readouterr().out
    workflow.warn_of_missing_classes(cases[1:], 3)
    assert "none of the 1 held-out cases has any foreground (b.nii)" in capsys.readouterr().out
    workflow.warn_of_missing_classes([*cases, {"label": torch.tensor([[1]])}], 3)
    assert "1 of 3 held-out cases have no foreground" in capsys.readouterr().out
    workflow.warn_of_missing_classes([], 3)
    workflow.warn_of_missing_classes([{"label": torch.tensor([[1, 2]])}], 3)
    assert capsys.readouterr().out == ""


def test_gradient_clipping_scales_gradients_to_the_norm(tmp_path) -> None:
    setup = Setup(tmp_path, epochs=1)
    norms = []

    def norm() -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in setup.network.parameters()]).norm()

    workflow.GradientClipping(setup.network, setup.optimizer, 1e-3).attach(setup.trainer)
    setup.trainer.add_event_handler(
        workflow.IterationEvents.BACKWARD_COMPLETED, lambda: norms.append(float(norm()))
    )
    setup.trainer.run()
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_gradient_clipping_takes_the_scale_of_mixed_precision_out_first(tmp_path) -> None:
    setup = Setup(tmp_path, epochs=1)
    seen = []

    class Scaler:
        def unscale_(self, optimizer) -> None:
            seen.append(optimizer)
            for parameter in setup.network.parameters():
                parameter.grad = torch.full_like(parameter, 1.0)

    setup.trainer.scaler = Scaler()
    workflow.GradientClipping(setup.network, setup.optimizer, 1.0)(setup.trainer)
    assert seen == [setup.optimizer]
    squares = [float((p.grad**2).sum()) for p in setup.network.parameters()]
    assert sum(squares) == pytest.approx(1.0, rel=1e-3)


def test_files_are_written_by_rank_0_alone(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("ignite.distributed.utils.get_rank", lambda: 1)
    workflow.BestWeights(nn.Linear(1, 1), str(tmp_path / "model.pt")).save()
    workflow.write_split(workflow.Split([], []), tmp_path / "split.json", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_former_file(monkeypatch, tmp_path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"trained for days")

    def fail(content, path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full, on purpose")

    monkeypatch.setattr(workflow.torch, "save", fail)
    with pytest.raises(OSError, match="on purpose"):
        workflow.BestWeights(nn.Linear(1, 1), str(file)).save()
    assert file.read_bytes() == b"trained for days"


def test_workflow_imports_nothing_that_a_bundle_lacks() -> None:
    allowed = {"numpy", "torch", "monai", "ignite", "nibabel", "PIL", *sys.stdlib_module_names}
    tree = ast.parse("".join(source.replace(FUTURE, "") for source in script_sources().values()))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module.split(".")[0])
    assert {"torch", "monai"} < found <= allowed


def test_export_bundle_writes_this_file_and_who_wrote_it(tmp_path, selection) -> None:
    bundle = export_bundle(selection, tmp_path / "x_segmentation")
    package = Path(workflow.__file__).parent.parent
    for module in SCRIPTS:
        text = (bundle / "scripts" / Path(module).name).read_text(encoding="utf-8")
        header, source = text.split("\n", 1)
        assert header == f"# Written by monai_xtiny {__version__}, which need not be installed."
        assert source == (package / module).read_text(encoding="utf-8")
    found = sorted(path.name for path in (bundle / "scripts").iterdir())
    assert found == ["gate.py", "workflow.py"]


def loaded(bundle: Path, **options) -> SimpleNamespace:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"bundle_root": str(bundle), **options})
    return parser.get_parsed_content("workflow")


def test_two_bundles_in_one_process_have_their_own_workflow(
    tmp_path, selection, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = export_bundle(selection, tmp_path / "a_segmentation")
    second = export_bundle(selection, tmp_path / "b_segmentation")
    file = second / "scripts" / "workflow.py"
    file.write_text(file.read_text() + "\n\ndef check_loss(trainer):\n    return 'changed'\n")
    before, path = set(sys.modules), list(sys.path)
    spaces = [loaded(first), loaded(second)]
    assert set(sys.modules) == before and sys.path == path
    assert spaces[1].check_loss(None) == "changed"
    with pytest.raises(AttributeError):
        spaces[0].check_loss(None)
    assert spaces[0].Split is not spaces[1].Split
    moved = first.rename(tmp_path / "moved_segmentation")
    assert loaded(moved).find_rotated_axes([9, 9, 1]) == [2]
    assert not list(tmp_path.rglob("__pycache__"))


def test_workflow_runs_where_monai_xtiny_cannot_be_imported(
    tmp_path, selection, monkeypatch
) -> None:
    bundle = export_bundle(selection, tmp_path / "x_segmentation")
    for name in [name for name in sys.modules if name.split(".")[0] == "monai_xtiny"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai_xtiny", None)
    space = runpy.run_path(os.fspath(bundle / "scripts" / "workflow.py"))
    assert space["find_rotated_axes"]([3, 3]) == [0, 1]


@pytest.mark.parametrize("name", ["train", "inference"])
@pytest.mark.parametrize(
    ("path", "message"),
    [(123, "is 123, which is no path: write ./NAME"), ("a#b", "is 'a::b', and MONAI reads '#'")],
    ids=["digits", "hash"],
)
def test_check_paths_stops_a_workflow_before_it_reads_or_writes(
    tmp_path, selection, monkeypatch, name, path, message
) -> None:
    bundle = Bundle.open(export_bundle(selection, tmp_path / "x_segmentation"))
    monkeypatch.chdir(tmp_path)
    file = "split_file" if name == "train" else "checkpoint"
    for option in ("dataset_dir", "output_dir", "ckpt_dir", file):
        with pytest.raises(RuntimeError) as stop:
            bundle.workflow((name,), {option: path})
        assert message in str(innermost(stop.value)) and f"--{option}" in str(innermost(stop.value))
    assert bundle.workflow((name,), {"dataset_dir": PlainPath("a#b")})
    assert [item.name for item in tmp_path.iterdir()] == ["x_segmentation"]


def test_an_empty_cached_set_lacks_no_class(capsys) -> None:
    workflow.warn_of_missing_classes(CacheDataset([], lambda item: item, progress=False), 2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("listed", ["p1\\a.png", "data/p1/a.png", "./p1/a.png"])
def test_check_held_out_knows_a_path_however_it_is_written(tmp_path, listed) -> None:
    content = {"training": [{"image": "x", "label": listed}], "validation": []}
    (tmp_path / "list.json").write_text(json.dumps(content))
    cases = [{"image": "x", "label": str(tmp_path / "data" / "p1" / "a.png")}]
    with pytest.raises(ValueError, match=r"was trained on a\.png"):
        workflow.check_held_out(cases, [tmp_path / "list.json"], tmp_path / "data")
    other = [{"image": "x", "label": str(tmp_path / "data" / "p2" / "a.png")}]
    workflow.check_held_out(other, [tmp_path / "list.json"], tmp_path / "data")


def test_check_trained_refuses_an_initialization_beside_trained_folds(tmp_path, capsys) -> None:
    file = str(tmp_path / "model.pt")
    torch.save(nn.InstanceNorm2d(2, affine=True).state_dict(), file)
    workflow.check_trained([file])
    assert f"warning: {file} was not trained" in capsys.readouterr().out
    torch.save({"model": {"weight": torch.rand(2)}}, tmp_path / "model_fold1.pt")
    workflow.check_trained([str(tmp_path / "model_fold1.pt")])
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"was not trained, but model_fold1\.pt beside it"):
        workflow.check_trained([file])


def test_case_by_case_names_every_image_of_a_batch_that_fails(tmp_path) -> None:
    labeling = workflow.CaseByCase(workflow.find_images(tmp_path, **PNG), 1)

    def fail(*_arguments: object) -> None:
        raise RuntimeError("out of memory")

    meta = {"filename_or_obj": ["a.png", "b.png"]}
    batch = {"image": SimpleNamespace(meta=meta)}
    assert labeling(SimpleNamespace(_iteration=fail), batch) == {}
    assert labeling.problems == ["'a.png': out of memory", "'b.png': out of memory"]
    sizes = [
        {"image": MetaTensor(torch.zeros(1, 4, size), meta={"filename_or_obj": f"{size}.png"})}
        for size in (4, 5)
    ]
    assert len(labeling.collate(sizes)["problems"]) == 2


def test_check_options_wants_no_workers_that_are_not_forked(monkeypatch) -> None:
    monkeypatch.setattr(workflow.multiprocessing, "get_start_method", lambda: "spawn")
    workflow.check_options({"num_workers": 0})
    with pytest.raises(ValueError, match="--num_workers is 2: workers that are not forked"):
        workflow.check_options({"num_workers": 2})


def test_find_patients_looks_at_folders_where_names_repeat(tmp_path) -> None:
    labels = ("p1/a/seg.nii.gz", "p1/b/seg.nii.gz", "p2/a/seg.nii.gz")
    cases = [{"image": "x", "label": str(tmp_path / label)} for label in labels]
    assert workflow.find_patients(cases, "^p[0-9]+") == ["p1", "p1", "p2"]
    assert workflow.find_patients(cases[:1], "seg") == ["seg"]


def test_check_shared_memory_names_what_is_not_there(monkeypatch) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    workflow.check_shared_memory()
    monkeypatch.setattr(workflow.multiprocessing, "Lock", fail)
    with pytest.raises(OSError, match=r"no shared memory \(No space .*: give /dev/shm some room"):
        workflow.check_shared_memory()
