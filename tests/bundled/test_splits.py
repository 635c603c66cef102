from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from monai_xtiny.bundled.cases import LabeledCases, find_labeled_cases
from monai_xtiny.bundled.splits import (
    Split,
    case_name,
    check_fold,
    find_patients,
    split_cases,
    split_to_evaluate,
    write_split,
)
from tests.bundled.labeled import PNG, find, labeled, numbers, of_patients, touch


def test_split_cases_is_the_split_of_earlier_bundles() -> None:
    split = split_cases(labeled(10), fold=1, val_fraction=0.2, split_seed=0)
    assert numbers(split.training) == [2, 8, 1, 6, 7, 3, 0, 5]
    assert numbers(split.validation) == [4, 9]


@pytest.mark.parametrize("count", [2, 5, 6, 7, 11, 15])
def test_split_cases_holds_every_case_out_once(count) -> None:
    held_out = []
    for fold in range(5):
        split = split_cases(labeled(count), fold=fold, val_fraction=0.2, split_seed=3)
        assert sorted(numbers(split.training + split.validation)) == list(range(count))
        held_out += numbers(split.validation)
    assert sorted(held_out) == list(range(count))


def test_split_to_evaluate_holds_out_what_is_asked_for() -> None:
    options = {"fold": 0, "val_fraction": 0.2, "split_seed": 0}
    cases = labeled(5).cases
    found = LabeledCases("list.json", cases[:2], cases[2:3], {}, [], [], cases[3:])
    assert split_to_evaluate(found, **options) == split_cases(found, **options)
    assert split_to_evaluate(found, section="test", **options) == Split([], cases[3:])
    assert split_to_evaluate(found, external=True, **options) == Split([], cases)
    with pytest.raises(ValueError, match="list.json has no test section with labels: add one"):
        split_to_evaluate(LabeledCases("list.json", cases, [], {}, [], []), section="test")
    with pytest.raises(ValueError, match="--section is 'training': give validation or test"):
        split_to_evaluate(found, section="training")
    with pytest.raises(ValueError, match="--external is 'yes': give True or False"):
        split_to_evaluate(found, external="yes")


def test_split_cases_trains_on_one_case_at_least() -> None:
    split = split_cases(labeled(3), fold=0, val_fraction=1.0, split_seed=0)
    assert (len(split.training), len(split.validation)) == (1, 2)
    split = split_cases(labeled(1), fold=0, val_fraction=0.2, split_seed=0)
    assert (len(split.training), len(split.validation)) == (1, 0)


def test_split_cases_holds_out_what_the_datalist_does() -> None:
    split = split_cases(labeled(4, 2), fold=3, val_fraction=0.2, split_seed=0)
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
        assert Split(cases[:1], cases[1:]).label_names() == [names[:1], names[1:]]
        assert Split([], []).label_names() == [[], []]


@pytest.mark.parametrize(
    "group, expected",
    [
        (None, ["0", "1", "2"]),
        ("^p[0-9]+", ["p1", "p1", "p2"]),
        ("p([0-9])_(.)", ["1", "1", "2"]),
        ("map.json", ["A", "A", "0"]),
    ],
    ids=["none", "match", "group", "map"],
)
def test_find_patients_takes_an_expression_or_a_map(tmp_path, monkeypatch, group, expected) -> None:
    monkeypatch.chdir(tmp_path)
    Path("map.json").write_text(json.dumps({"p1_a": "A", "p1_b": "A", "p2_a": 0, "more": "B"}))
    assert find_patients(of_patients("p1_a", "p1_b", "p2_a"), group) == expected


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
        find_patients(of_patients("p1", "other"), group)


def test_split_cases_never_divides_a_patient() -> None:
    cases = of_patients(*(f"p{number}_{letter}" for number in range(7) for letter in "abc"))
    found = LabeledCases("data", cases, [], {}, [], [])
    held_out = []
    for fold in range(4):
        options = {"fold": fold, "val_fraction": 0.25, "split_seed": 3, "group": "p[0-9]"}
        split = split_cases(found, **options)
        sides = [set(find_patients(side, "p[0-9]")) for side in vars(split).values()]
        assert not sides[0] & sides[1]
        assert len(split.training) + len(split.validation) == len(cases)
        held_out += split.validation
    assert sorted(map(str, held_out)) == sorted(map(str, cases))


def test_split_cases_holds_real_patients_out_whole(real_data) -> None:
    root = real_data / "Dataset078_SunnybrookLV"
    found = find(root, {"file_endings": ["png"], "in_channels": 1})
    options = {"fold": 0, "val_fraction": 0.2, "split_seed": 0}
    for group, is_divided in ((None, True), ("(.*)-[0-9]+", False)):
        split = split_cases(found, **options, group=group)
        sides = [
            {case_name(case).rpartition("-")[0] for case in side}
            for side in (split.training, split.validation)
        ]
        assert bool(sides[0] & sides[1]) == is_divided
        assert len(split.validation) > 30


def test_split_cases_refuses_a_datalist_that_divides_a_patient() -> None:
    cases = of_patients("p1_a", "p2_a", "p1_b")
    found = LabeledCases("list.json", cases[:2], cases[2:], {}, [], [])
    with pytest.raises(ValueError, match="the patient p1 is in the training and in the validation"):
        split_cases(found, fold=0, val_fraction=0.2, split_seed=0, group="p[0-9]")


def in_folders(**letters: str) -> list[dict]:
    """Cases p1/a, p1/b, ... of patients."""
    names = [f"{patient}/{letter}" for patient, found in letters.items() for letter in found]
    return [{"image": [f"i/{name}.png"], "label": f"l/{name}.png"} for name in names]


def test_split_cases_refuses_a_datalist_that_divides_the_folder_of_a_patient() -> None:
    sections = in_folders(p1="ab", p2="ab", p3="ab"), in_folders(p1="cd")
    found = LabeledCases("list.json", *sections, {}, [], [])
    with pytest.raises(ValueError, match="the patient p1 is in the training and in the validation"):
        split_cases(found, fold=0, val_fraction=0.2, split_seed=0, group="^([^/]+)")


def test_find_patients_of_held_out_cases_is_that_among_all_cases(tmp_path) -> None:
    cases = in_folders(p1="ab", p2="ab", p3="ab")
    found = LabeledCases("list.json", cases, [], {}, [], [])
    for fold in range(3):
        options = {"fold": fold, "val_fraction": 1 / 3, "split_seed": 0, "group": "^(p[0-9])/"}
        split = split_cases(found, **options)
        expected = [Path(case["label"]).parent.name for case in split.validation]
        assert len(expected) == 2
        assert find_patients(split.validation, "^([^/]+)", labeled=found) == expected
        # As an evaluation finds them, which reads the datalist of the training.
        write_split(split, tmp_path / "split.json", ".")
        again = find_labeled_cases(".", tmp_path / "split.json", ".", **PNG)
        assert find_patients(again.validation, "^(p[0-9])/", labeled=again) == expected


def test_find_patients_of_other_cases_is_that_beside_the_data() -> None:
    found = LabeledCases("list.json", in_folders(p1="ab", p2="a"), in_folders(p3="a"), {}, [], [])
    assert find_patients(in_folders(p4="de"), "^(.*)/", labeled=found) == ["p4", "p4"]


def test_write_split_is_a_datalist_relative_to_the_data(tmp_path) -> None:
    root = touch(tmp_path / "data", *(f"imagesTr/{name}.png" for name in "ab"))
    touch(root, *(f"labelsTr/{name}.png" for name in "ab"))
    split = split_cases(find(root, PNG), fold=0, val_fraction=0.5, split_seed=0)
    file = tmp_path / "split.json"
    write_split(split, file, root)
    assert file.read_text().endswith("}\n") and [p.name for p in tmp_path.glob("*.part")] == []
    assert [path.name for path in file.parent.glob(".*")] == []
    found = find_labeled_cases(root, file, root, **PNG)
    assert split_cases(found, fold=0, val_fraction=0.5, split_seed=9) == Split(
        split.training, split.validation
    )
    content = json.loads(file.read_text())
    assert set(content) == {"description", "training", "validation"}
    assert content["training"][0]["label"] in ("labelsTr/a.png", "labelsTr/b.png")


def test_write_split_takes_one_image_as_text(tmp_path) -> None:
    split = Split([{"image": "d/i/a.nii", "label": "d/l/a.nii"}], [])
    write_split(split, tmp_path / "s.json", "d")
    assert json.loads((tmp_path / "s.json").read_text())["training"] == [
        {"image": ["i/a.nii"], "label": "l/a.nii"}
    ]


@pytest.mark.parametrize(
    "count, fold, val_fraction, group, message",
    [
        (7, 5, 0.2, None, "none of the 7 cases: give --fold from 0 to 4"),
        (3, 2, 0.2, None, "none of the 3 cases: give --fold 0, 1, 3"),
        (7, 1, 0.9, None, "none of the 7 cases: give --fold 0"),
        (7, 1, 0.0, None, "none of the 7 cases: give --fold 0"),
        (1, 1, 0.2, None, "none of the 1 cases: give --fold 0"),
        (20, 1, 0.2, "(c1?)", "none of the 20 cases of 2 patients: give --fold 0, 2"),
        (7, 0, 0.2, "(c)", "none of the 7 cases of 1 patient: give a --group that tells patients"),
    ],
    ids=["few", "gap", "most", "no share", "one case", "patients", "one patient"],
)
def test_check_fold_names_the_folds_that_hold_cases_out(
    count, fold, val_fraction, group, message
) -> None:
    options = {"fold": fold, "val_fraction": val_fraction, "group": group}
    split = split_cases(labeled(count), **options, split_seed=0)
    with pytest.raises(ValueError, match=f"^fold {fold} holds out {re.escape(message)}"):
        check_fold(split, **options)


def test_check_fold_advises_folds_that_hold_every_case_out_once() -> None:
    for count, val_fraction in ((3, 0.2), (4, 0.3), (7, 0.15), (5, 0.25)):
        options = {"val_fraction": val_fraction, "split_seed": 0}
        splits = [split_cases(labeled(count), fold=fold, **options) for fold in range(12)]
        held_out = {fold: numbers(split.validation) for fold, split in enumerate(splits)}
        folds = [fold for fold, found in held_out.items() if found]
        assert sorted(sum(held_out.values(), [])) == list(range(count))
        with pytest.raises(ValueError, match="give --fold") as caught:
            check_fold(splits[11], fold=11, val_fraction=val_fraction)
        advice = str(caught.value).partition("give --fold ")[2]
        advised = [int(number) for number in re.findall("[0-9]+", advice)]
        advised = list(range(advised[1] + 1)) if "from" in advice else advised
        assert advised == folds[: len(advised)] and len(advised) >= min(5, len(folds))


def test_check_fold_lets_all_cases_be_trained_on_where_that_is_asked_for() -> None:
    for count, fraction in ((7, 0.0), (1, 0.2)):
        options = {"fold": 0, "val_fraction": fraction}
        split = split_cases(labeled(count), **options, split_seed=0)
        check_fold(split, **options)
        assert len(split.training) == count and not split.validation


def test_write_split_names_the_file_of_a_full_disk_and_follows_no_link(tmp_path, monkeypatch):
    file, victim = tmp_path / "datalist.json", touch(tmp_path, "victim") / "victim"
    (tmp_path / "datalist.json.part").symlink_to(victim)
    (tmp_path / ".datalist.json.tmp.killed").mkdir()
    write_split(Split([], []), file, tmp_path)
    assert victim.read_text() == ""
    assert sorted(path.name for path in tmp_path.glob("*data*")) == [file.name, f"{file.name}.part"]

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match=r"datalist\.json' cannot be written .*is the disk full"):
        write_split(Split([], []), file, tmp_path)
    assert file.read_bytes() == before


def test_find_patients_looks_at_folders_where_names_repeat(tmp_path) -> None:
    labels = ("p1/a/seg.nii.gz", "p1/b/seg.nii.gz", "p2/a/seg.nii.gz")
    cases = [{"image": "x", "label": str(tmp_path / label)} for label in labels]
    assert find_patients(cases, "^p[0-9]+") == ["p1", "p1", "p2"]
    assert find_patients(cases[:1], "seg") == ["seg"]
