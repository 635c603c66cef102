from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.data import CacheDataset, Dataset, MetaTensor
from torch import nn

from monai_xtiny.bundled.cases import find_images, find_labeled_cases
from monai_xtiny.bundled.checks import (
    check_cases,
    check_evaluation,
    check_held_out,
    check_images,
    check_output_dir,
    check_patch,
    check_start,
    check_unused,
    warn_of_missing_classes,
)
from monai_xtiny.bundled.splits import Split, write_split
from tests.bundled.labeled import NIFTI, PNG, find, of_patients, touch


def test_check_images_refuses_data_of_anothers_whose_labels_would_be_one_file(tmp_path) -> None:
    found = find_images(touch(tmp_path, "a.png"), **PNG)
    for second in ("p2/a.png", "p2/a.nii.gz"):
        data = [{"image": "p1/a.png"}, {"image": [second]}]
        with pytest.raises(ValueError, match=f"the labels of p1/a.png and {second} would be one"):
            check_images(found, Dataset(data), file_endings=["png"])
    check_images(
        found, Dataset([{"image": "p1/a.png"}, {"image": "p1/b.png"}]), file_endings=["png"]
    )


def test_check_cases_names_labels_without_their_images(tmp_path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii", "labelsTr/a.nii", "labelsTr/b.nii")
    found = find(tmp_path, {**NIFTI, "in_channels": 3})
    with pytest.raises(ValueError, match=r"the labels b in .*/labelsTr need .*3 channels.*\[0\]"):
        check_cases(found, found.cases, **NIFTI | {"in_channels": 3})


def test_check_cases_refuses_an_empty_data_set(tmp_path) -> None:
    found = find(tmp_path, NIFTI)
    with pytest.raises(ValueError, match=r"no labeled image in .*as nii.gz nii, or pass --data"):
        check_cases(found, found.cases, **NIFTI)
    check_cases(found, [{"image": "a", "label": "b"}], **NIFTI)  # of another's


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
    check_unused(find(tmp_path, PNG))
    touch(tmp_path, name)
    with pytest.raises(ValueError, match=message):
        check_unused(find(tmp_path, PNG))


def test_check_evaluation_needs_cases_with_images(tmp_path) -> None:
    found = find(touch(tmp_path, "imagesTr/a.png", "labelsTr/a.png"), PNG)
    check_evaluation(found, found.cases)
    with pytest.raises(ValueError, match="no labeled image to evaluate in"):
        check_evaluation(found, [])
    touch(tmp_path, "imagesTr/a.bmp")
    with pytest.raises(ValueError, match=r"two files are of one case: rename or remove .*a\.bmp"):
        check_evaluation(find(tmp_path, PNG), found.cases)
    (tmp_path / "imagesTr/a.bmp").unlink()
    found = find(touch(tmp_path, "labelsTr/b.png"), PNG)
    with pytest.raises(ValueError, match="no image, or not one for each channel, for the labels b"):
        check_evaluation(found, found.cases)


def test_check_images_says_what_is_wrong_with_the_folder(tmp_path) -> None:
    found = find_images(tmp_path, **NIFTI)
    with pytest.raises(ValueError, match=r"no image in .* or its imagesTr \(looked for nii.gz nii"):
        check_images(found, found.data, file_endings=NIFTI["file_endings"])
    found = find_images(touch(tmp_path, "a.nii"), **NIFTI)
    check_images(found, found.data, file_endings=NIFTI["file_endings"])
    found = find_images(touch(tmp_path, "a.nii.gz"), **NIFTI)
    with pytest.raises(ValueError, match=r"two images would give one label file: rename .*a\.nii"):
        check_images(found, found.data, file_endings=NIFTI["file_endings"])


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
    found = find_images(tmp_path / dataset, **PNG)
    with pytest.raises(ValueError, match="among the images or labels: give another --output_dir"):
        check_output_dir(found, tmp_path / output)
    for other in ("out", "none/yet", "set/predicted"):
        check_output_dir(found, tmp_path / other)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_check_output_dir_refuses_a_folder_of_links_to_images(tmp_path, link) -> None:
    touch(tmp_path, "images/a.png", "out/b.png", "file")
    found = find_images(tmp_path / "images", **PNG)
    check_output_dir(found, tmp_path / "out")
    link(tmp_path / "out" / "a.png", tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match=r"out/a\.png' is a link to an image or a label"):
        check_output_dir(found, tmp_path / "out")
    with pytest.raises(ValueError, match="file' is a file: give another --output_dir"):
        check_output_dir(found, tmp_path / "file")


def test_check_output_dir_knows_labeled_cases_too(tmp_path) -> None:
    touch(tmp_path, "x/i/a.png", "x/l/a.png", "x/l/b.png", "eval/metrics.csv")
    entries = [{"image": f"x/i/{name}.png", "label": f"x/l/{name}.png"} for name in "ab"]
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"training": entries[:1], "validation": entries[1:]}))
    found = find_labeled_cases(tmp_path, datalist, tmp_path, **PNG)
    check_output_dir(found, tmp_path / "eval")
    for folder in ("x/i", "x/l"):
        with pytest.raises(ValueError, match="would lie among the images or labels"):
            check_output_dir(found, tmp_path / folder)


def test_check_patch_says_which_sizes_fit() -> None:
    network = SimpleNamespace(strides=[1, (2, 1), (2, 2)])
    check_patch(network, patch_size=(8, 2), crop_size=[4, 4])
    check_patch(nn.Conv2d(1, 1, 1), patch_size=(1, 1))
    for size in ([4, 2], [6, 4], [8], [8, 2, 2], [0, 2], [8.0, 2]):
        with pytest.raises(ValueError, match=r"--crop_size is .* multiples of \[4, 2\], above"):
            check_patch(network, patch_size=(8, 2), crop_size=size)


def test_check_held_out_names_cases_that_were_trained_on(tmp_path) -> None:
    file = tmp_path / "split.json"
    write_split(Split(of_patients("a"), of_patients("b")), file, ".")
    check_held_out(of_patients("b", "c"), [file, tmp_path / "none.json"], ".")
    with pytest.raises(ValueError, match="the network was trained on a.png, as .*split.json says"):
        check_held_out(of_patients("b", "a"), [file], ".")


def test_check_held_out_says_where_nobody_knows(tmp_path, capsys) -> None:
    check_held_out(of_patients("a"), [tmp_path / "none.json"], ".")
    assert "warning: no datalist lies beside the weights" in capsys.readouterr().out
    check_held_out(of_patients("a"), [], ".", external=True)
    write_split(Split(of_patients("a"), []), tmp_path / "split.json", ".")
    check_held_out(of_patients("b"), [tmp_path / "split.json"], ".")
    assert capsys.readouterr().out == ""


def test_check_held_out_knows_a_datalist_of_a_folder_above(tmp_path) -> None:
    # The training's paths begin at the data, those to evaluate one folder higher.
    write_split(Split(of_patients("a"), []), tmp_path / "split.json", ".")
    cases = [{"image": "x", "label": f"DATA/l/{name}.png"} for name in ("b", "a")]
    with pytest.raises(ValueError, match=r"was trained on a\.png, as .*split\.json says"):
        check_held_out(cases, [tmp_path / "split.json"], ".")
    check_held_out([{"image": "x", "label": "DATA/a.png"}], [tmp_path / "split.json"], ".")


def test_check_start_refuses_weights_that_have_seen_what_is_held_out(tmp_path) -> None:
    (tmp_path / "configs").mkdir()
    write_split(Split(of_patients("a"), []), tmp_path / "configs" / "datalist.json", ".")
    check_start(str(tmp_path / "models" / "model.pt"), of_patients("b"), ".")
    with pytest.raises(
        ValueError, match=r"trained on a\.png, .*: give --checkpoint FILE of weight"
    ):
        check_start(str(tmp_path / "models" / "model.pt"), of_patients("a"), ".")


def test_check_held_out_says_which_external_cases_are_called_as_trained_ones(
    tmp_path, capsys
) -> None:
    file = tmp_path / "split.json"
    write_split(Split(of_patients("a"), of_patients("b")), file, ".")
    check_held_out(of_patients("b"), [file], ".", external=True)
    assert capsys.readouterr().out == ""
    check_held_out(of_patients("b", "a"), [file], ".", external=True)
    assert "1 of 2 labels are called as ones that the network was" in capsys.readouterr().out


def test_warn_of_missing_classes_names_them(capsys) -> None:
    meta = {"filename_or_obj": "/data/b.nii"}
    cases = [
        {"label": torch.tensor([[0, 2]])},
        {"label": MetaTensor(torch.tensor([[0, 0]]), meta=meta)},
    ]
    warn_of_missing_classes(cases, 3)
    assert "no held-out case has voxels of class 1, which" in capsys.readouterr().out
    warn_of_missing_classes(cases[1:], 3)
    assert "none of the 1 held-out cases has any foreground (b.nii)" in capsys.readouterr().out
    warn_of_missing_classes([*cases, {"label": torch.tensor([[1]])}], 3)
    assert "1 of 3 held-out cases have no foreground" in capsys.readouterr().out
    warn_of_missing_classes([], 3)
    warn_of_missing_classes([{"label": torch.tensor([[1, 2]])}], 3)
    assert capsys.readouterr().out == ""


def test_an_empty_cached_set_lacks_no_class(capsys) -> None:
    warn_of_missing_classes(CacheDataset([], lambda item: item, progress=False), 2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("listed", ["p1\\a.png", "data/p1/a.png", "./p1/a.png"])
def test_check_held_out_knows_a_path_however_it_is_written(tmp_path, listed) -> None:
    content = {"training": [{"image": "x", "label": listed}], "validation": []}
    (tmp_path / "list.json").write_text(json.dumps(content))
    cases = [{"image": "x", "label": str(tmp_path / "data" / "p1" / "a.png")}]
    with pytest.raises(ValueError, match=r"was trained on a\.png"):
        check_held_out(cases, [tmp_path / "list.json"], tmp_path / "data")
    other = [{"image": "x", "label": str(tmp_path / "data" / "p2" / "a.png")}]
    check_held_out(other, [tmp_path / "list.json"], tmp_path / "data")
