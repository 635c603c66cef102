from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.cli.commands import main
from monai_xtiny.training.check import _patient_warnings, check_bundle
from tests.cli.typed import refused
from tests.conftest import write_nifti, write_png


@pytest.fixture
def labeled(tmp_path) -> Path:
    """An nnU-Net data set of four labeled pictures."""
    root = tmp_path / "data#1 $x"
    for index in range(4):
        write_png(root / "imagesTr" / f"c{index}_0000.png", seed=index)
        write_label(root, f"c{index}", np.zeros((20, 24), dtype=np.uint8))
    return root


@pytest.fixture
def bundle(searched_copy) -> Path:
    """The bundle of a search on images like these."""
    return searched_copy


def write_label(root: Path, case: str, values: np.ndarray) -> None:
    (root / "labelsTr").mkdir(exist_ok=True)
    Image.fromarray(values).save(root / "labelsTr" / f"{case}.png")


def test_check_bundle_passes_what_fits(capsys, bundle, labeled) -> None:
    found = check_bundle(bundle, data=labeled)
    assert (found.num_cases, found.problems) == (4, ())
    main(["check", "--bundle", str(bundle), "--data", str(labeled)])
    out = capsys.readouterr().out
    assert "4 labeled cases fit the bundle" in out
    first = (
        "found 4 cases with 1 channel (c0_0000.png), 2D, median size 24 x 20 pixels\npatch 24 x 20"
    )
    assert out.startswith(first)


def masks_beside_images(root: Path) -> None:
    write_png(root / "imagesTr" / "c2_mask.png")


def newline_in_a_name(root: Path) -> None:
    write_png(root / "imagesTr" / "c2\n.png")


def a_pipe(root: Path) -> None:
    os.mkfifo(root / "labelsTr" / "c9.png")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (masks_beside_images, "c2_mask.png looks like a mask beside the image"),
        (newline_in_a_name, "holds a control character or is not UTF-8: rename it"),
        (a_pipe, "c9.png is a pipe, socket or device"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_check_refuses_names_and_files_in_one_line(capsys, bundle, labeled, spoil, message) -> None:
    spoil(labeled)
    with pytest.raises(SystemExit) as stop:
        main(["check", "--bundle", str(bundle), "--data", str(labeled)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_check_refuses_a_datalist_that_holds_out_what_it_trains_on(
    capsys, bundle, labeled, tmp_path
) -> None:
    case = {"image": "imagesTr/c1_0000.png", "label": "labelsTr/c1.png"}
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"training": [case], "validation": [case]}))
    with pytest.raises(SystemExit) as stop:
        main(
            ["check", "--bundle", str(bundle), "--data", str(labeled), "--datalist", str(datalist)]
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "training[0] and validation[0] share" in error


def test_check_bundle_names_classes_without_voxels(capsys, bundle, labeled) -> None:
    name = Bundle.open(bundle).label_names[1]
    found = check_bundle(bundle, data=labeled)
    assert found.warnings == tuple(
        f"none of the {number} cases {part} has voxels of {name}: label more cases, or split them "
        "otherwise by --fold or --split_seed"
        for number, part in ((3, "to train on"), (1, "held out"))
    )
    for index in range(4):
        write_label(labeled, f"c{index}", np.full((20, 24), index > 0, dtype=np.uint8))
    found = [check_bundle(bundle, data=labeled, fold=fold).warnings for fold in range(4)]
    assert sorted(map(len, found)) == [0, 0, 0, 1]  # the fold that holds out c0
    main(["check", "--bundle", str(bundle), "--data", str(labeled), "--fold", "3"])
    assert "4 labeled cases fit the bundle" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--fold", "9"], "fold 9 holds out none of the 4 cases: give --fold from 0 to 3"),
        (
            ["--group", "(c)"],
            "fold 0 holds out none of the 4 cases of 1 patient: give a --group that tells patients "
            "apart, or --val_fraction 0 to train on all",
        ),
    ],
    ids=["fold", "one patient"],
)
def test_check_command_refuses_a_fold_that_training_would_refuse(
    capsys, bundle, labeled, options, message
) -> None:
    assert refused(capsys, "check", bundle, "--data", labeled, *options) == f"error: {message}"


def test_check_command_warns_of_files_of_one_patient(capsys, bundle, tmp_path) -> None:
    root = tmp_path / "cine"
    for name in ("p1_f01", "p1_f02", "p2_f01", "p2_f02"):
        write_png(root / "imagesTr" / f"{name}_0000.png")
        write_label(root, name, np.ones((20, 24), dtype=np.uint8))
    command = ["check", "--bundle", str(bundle), "--data", str(root)]
    main(command)
    out = capsys.readouterr().out
    assert "warning: cases such as p1_f01 and p1_f02 look like files of one patient (2 pat" in out
    advised = out.partition("--group '")[2].partition("'")[0]
    main([*command, "--group", advised])
    assert "warning" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([*command, "--group", "p1"])
    assert stop.value.code == 2
    assert "--group p1 finds no patient for the cases p2_f01" in capsys.readouterr().err
    with pytest.raises(ValueError, match="^--group p1 finds no patient for the cases p2_f01"):
        check_bundle(bundle, data=root, group="p1")


@pytest.mark.parametrize(
    "name, is_cine",
    [
        ("Dataset078_SunnybrookLV", True),
        ("Dataset004_Hippocampus", False),
        ("Dataset070_BUSIhalf", False),
        ("Dataset076_DSB2018Fluo", False),
        ("Dataset077_DSB2018Stain", False),
    ],
)
def test_patient_warnings_know_cine_images(real_data, name, is_cine) -> None:
    cases = [{"label": str(path)} for path in sorted((real_data / name / "labelsTr").iterdir())]
    assert bool(_patient_warnings(cases)) == is_cine


def no_label(root: Path) -> None:
    (root / "labelsTr" / "c2.png").unlink()


def no_image(root: Path) -> None:
    (root / "imagesTr" / "c2_0000.png").unlink()


def unknown_value(root: Path) -> None:
    write_label(root, "c2", np.full((20, 24), 255, dtype=np.uint8))


def another_shape(root: Path) -> None:
    write_label(root, "c2", np.zeros((24, 20), dtype=np.uint8))


def other_channels(root: Path) -> None:
    write_png(root / "imagesTr" / "c2_0000.png", (20, 24, 3))


def label_of_colors(root: Path) -> None:
    write_label(root, "c2", np.zeros((20, 24, 3), dtype=np.uint8))


def twice(root: Path) -> None:
    write_png(root / "imagesTr" / "c2_0000.bmp", (20, 24))


def tiny_image(root: Path) -> None:
    write_png(root / "imagesTr" / "c2_0000.png", (8, 24))
    write_label(root, "c2", np.zeros((8, 24), dtype=np.uint8))


def broken_label(root: Path) -> None:
    (root / "labelsTr" / "c2.png").write_bytes(b"nothing")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (no_label, "has no label"),
        (no_image, "label 'c2' has no image"),
        (unknown_value, "the label holds 255.0, and the classes are 0 to 1"),
        (another_shape, r"the image has shape \(24, 20\), the label \(20, 24\)"),
        (other_channels, "the image has 3 channels, and the network takes 1"),
        (label_of_colors, "the label has 3 channels: save class indices as one"),
        (twice, "is of the same case as another"),
        (tiny_image, r"\(24, 8\) voxels are less than half of the patch"),
        (broken_label, "repair it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_check_bundle_names_the_case_and_the_remedy(
    capsys, bundle, labeled, spoil, message
) -> None:
    spoil(labeled)
    found = check_bundle(bundle, data=labeled)
    assert len(found.problems) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found.problems[0])
    assert "c2" in found.problems[0]
    with pytest.raises(SystemExit) as stop:
        main(["check", "--bundle", str(bundle), "--data", str(labeled)])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_check_bundle_notices_weights_of_another_width(bundle, labeled) -> None:
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({k: v[..., :1] for k, v in weights.items()}, bundle / "models" / "model.pt")
    assert "does not hold the network" in check_bundle(bundle, data=labeled).problems[0]


def test_check_bundle_reads_an_msd_datalist(bundle, labeled) -> None:
    entries = [
        {"image": f"imagesTr/c{i}_0000.png", "label": f"labelsTr/c{i}.png"} for i in range(2)
    ]
    (labeled / "list.json").write_text(json.dumps({"training": entries}))
    assert check_bundle(bundle, datalist=labeled / "list.json").num_cases == 2


def test_check_bundle_reads_the_validation_section_of_a_datalist(bundle, labeled) -> None:
    entries = [
        {"image": f"imagesTr/c{i}_0000.png", "label": f"labelsTr/c{i}.png"} for i in range(3)
    ]
    unknown_value(labeled)
    content = {"training": entries[:2], "validation": entries[2:]}
    (labeled / "list.json").write_text(json.dumps(content))
    found = check_bundle(bundle, datalist=labeled / "list.json")
    assert found.num_cases == 3
    assert len(found.problems) == 1 and "the label holds 255.0" in found.problems[0]


def test_check_bundle_counts_images_that_are_padded(capsys, bundle, labeled) -> None:
    write_png(labeled / "imagesTr" / "c2_0000.png", (19, 24))
    write_label(labeled, "c2", np.zeros((19, 24), dtype=np.uint8))
    found = check_bundle(bundle, data=labeled)
    assert found.problems == () and found.num_padded >= 1
    main(["check", "--bundle", str(bundle), "--data", str(labeled)])
    assert f"{found.num_padded} are smaller than the patch" in capsys.readouterr().out


def test_check_bundle_needs_labeled_cases(bundle, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no labeled case in"):
        check_bundle(bundle, data=tmp_path / "empty")


def test_check_bundle_names_a_bundle_of_an_earlier_version(bundle, labeled) -> None:
    path = bundle / "configs" / "train.json"
    content = json.loads(path.read_text())
    del content["labeled_cases"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train\.json' was written by an earlier version"):
        check_bundle(bundle, data=labeled)


def test_check_bundle_needs_a_bundle_and_data(bundle, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="is no bundle"):
        check_bundle(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such data"):
        check_bundle(bundle, data=tmp_path / "nowhere")


@pytest.fixture
def volumes(made_once, tmp_path) -> tuple[Path, Path]:
    """Volumes of two channels, to be spoilt, and the bundle searched on them."""

    def make(folder: Path) -> None:
        root, bundle = folder / "volumes", folder / "v_segmentation"
        for index in range(3):
            for channel in range(2):
                write_nifti(root / "imagesTr" / f"v{index}_000{channel}.nii.gz", seed=2 * index)
            label = np.zeros((20, 24, 18), dtype=np.uint8)
            write_nifti(root / "labelsTr" / f"v{index}.nii.gz", values=label)
        command = ["search", "--images", str(root), "--bundle", str(bundle)]
        main([*command, "--method", "paper", "--num_images", "1"])
        assert check_bundle(bundle, data=root).problems == ()

    folder = made_once("volumes_of_two_channels", make)
    shutil.copytree(folder / "volumes", tmp_path / "volumes")
    return tmp_path / "volumes", folder / "v_segmentation"


def no_channel(root: Path) -> None:
    (root / "imagesTr" / "v2_0001.nii.gz").unlink()


def no_channels(root: Path) -> None:
    no_channel(root)
    (root / "imagesTr" / "v2_0000.nii.gz").unlink()


def unknown_class(root: Path) -> None:
    write_nifti(root / "labelsTr" / "v2.nii.gz", values=np.full((20, 24, 18), 3, np.uint8))


def label_elsewhere(root: Path) -> None:
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    label = np.zeros((20, 24, 18), np.uint8)
    write_nifti(root / "labelsTr" / "v2.nii.gz", values=label, affine=affine)


def not_finite(root: Path) -> None:
    values = np.ones((20, 24, 18), np.float32)
    values[0, 0, 0] = np.inf
    write_nifti(root / "imagesTr" / "v2_0001.nii.gz", values=values)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (no_channel, "the image has 1 channels, and the network takes 2"),
        (no_channels, "label 'v2' has no image with the plan's channels"),
        (unknown_class, "the label holds 3.0"),
        (label_elsewhere, "the label lies 38.0 voxels away from its image"),
        (not_finite, "voxels are NaN or infinite"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_check_bundle_names_the_volume_and_the_remedy(volumes, spoil, message) -> None:
    root, bundle = volumes
    spoil(root)
    found = check_bundle(bundle, data=root)
    assert len(found.problems) == 1
    assert message in found.problems[0] and "v2" in found.problems[0]
