from __future__ import annotations

import os
from pathlib import Path

import pytest

from monai_xtiny.deploy.targets import find_targets
from tests.conftest import write_dicom_series


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def found(images: object, reads: str = "images", in_channels: int = 1) -> dict[str, int]:
    """Names of the cases, and how many files each has."""
    targets = find_targets(str(images), reads=reads, in_channels=in_channels)
    assert not targets.problems
    return {case.name: len(case.files) for case in targets.cases}


def test_find_targets_keeps_the_structure_of_folders(tmp_path) -> None:
    touch(tmp_path, "a.png", "p1/b.PNG", "p1/deep/c.tif", ".hidden/d.png", "notes.txt")
    assert found(tmp_path) == {"a": 1, "p1/b": 1, "p1/deep/c": 1}
    assert found(tmp_path / "p1" / "b.PNG") == {"b": 1}
    assert found(tmp_path / "p*" / "**" / "*.tif") == {"p1/deep/c": 1}


def test_find_targets_numbers_channels_as_inference_does(tmp_path) -> None:
    touch(tmp_path, "x/a_0000.nii.gz", "x/a_0001.nii.gz", "y/a_0000.nii.gz", "y/a_0001.nii.gz")
    assert found(tmp_path, "volumes", 2) == {"x/a": 2, "y/a": 2}
    root = touch(tmp_path / "set", "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz")
    assert found(root, "volumes") == {"b": 1}


def test_find_targets_goes_on_after_what_is_unclear(tmp_path) -> None:
    touch(tmp_path, "good.png", "twice.png", "twice.jpg", "a\nb.png", "x/a_0001.png")
    os.mkfifo(tmp_path / "pipe.png")
    targets = find_targets(tmp_path, reads="images", in_channels=1)
    assert [case.name for case in targets.cases] == ["good", "x/a_0001"]
    lines = sorted(targets.problems)
    assert len(lines) == 3
    assert "pipe.png' is a pipe" in lines[0] and "would have one result" in lines[1]
    assert "holds a control character" in lines[2]
    missing = find_targets(
        touch(tmp_path / "two", "a_0000.png", "a_0001.png"), reads="images", in_channels=3
    )
    assert "2 files, not 1 or one for each of 3 channels" in missing.problems[0]


def test_find_targets_takes_series_of_dicom(tmp_path) -> None:
    write_dicom_series(tmp_path / "p1" / "ct")
    write_dicom_series(tmp_path / "p2" / "ct")
    assert found(tmp_path, "volumes") == {"p1/ct": 1, "p2/ct": 1}
    assert found(tmp_path / "p1" / "ct", "slices") == {"ct": 1}
    assert found(str(tmp_path / "p*"), "volumes") == {"p1/ct": 1, "p2/ct": 1}
    flat = find_targets(tmp_path, reads="images", in_channels=1)
    assert not flat.cases and "reads 2D images" in flat.problems[0]
    file = next((tmp_path / "p1" / "ct").iterdir())
    with pytest.raises(ValueError, match="give the folder of its series"):
        find_targets(file, reads="volumes", in_channels=1)


def test_find_targets_refuses_where_nothing_is(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image in .*: this bundle reads .nii, .nii.gz"):
        find_targets(touch(tmp_path, "a.png"), reads="volumes", in_channels=1)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_targets(tmp_path / "nothing", reads="volumes", in_channels=1)
    with pytest.raises(FileNotFoundError, match="nothing matches the pattern"):
        find_targets(f"{tmp_path}/*.nii", reads="volumes", in_channels=1)


def test_find_targets_refuses_masks_beside_images(tmp_path) -> None:
    touch(tmp_path, "a.png", "a_mask.png", "b.png")
    with pytest.raises(ValueError, match="looks like a mask beside the image"):
        find_targets(tmp_path, reads="images", in_channels=1)


def test_find_targets_leaves_out_its_results(tmp_path) -> None:
    touch(tmp_path, "a.png", "out/a.png")
    targets = find_targets(
        tmp_path, reads="images", in_channels=1, without=(tmp_path / "out").resolve()
    )
    assert [case.name for case in targets.cases] == ["a"]
