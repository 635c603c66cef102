from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from monai_xtiny.__main__ import main
from monai_xtiny.zoo import package_bundle


@pytest.fixture
def bundle(tmp_path, png_folder) -> Path:
    path = tmp_path / "x_segmentation"
    main(["search", "--images", str(png_folder), "--bundle", str(path)])
    return path


def test_package_bundle_gives_the_same_bytes_for_the_same_bundle(tmp_path, bundle) -> None:
    first = package_bundle(bundle, tmp_path / "first.zip")
    copy = tmp_path / "elsewhere" / bundle.name
    shutil.copytree(bundle, copy, copy_function=shutil.copyfile)
    for path in copy.rglob("*"):
        path.chmod(0o700)
        os.utime(path, (1, 1))
    (copy / "eval").mkdir()
    (copy / "eval" / "result.csv").write_text("not part of the bundle")
    second = package_bundle(copy, tmp_path / "second.zip")
    assert first.read_bytes() == second.read_bytes()


def test_package_bundle_holds_one_folder_with_every_file(bundle) -> None:
    target = package_bundle(bundle)
    assert target.name == "x_segmentation_v0.1.0.zip"
    with zipfile.ZipFile(target) as archive:
        names = set(archive.namelist())
    files = {f"{bundle.name}/{p.relative_to(bundle)}" for p in bundle.rglob("*") if p.is_file()}
    assert names == files


@pytest.mark.parametrize("name", ["LICENSE", "configs/metadata.json", "models/model.pt"])
def test_package_bundle_refuses_an_incomplete_bundle(bundle, name) -> None:
    (bundle / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"it has no {name}"):
        package_bundle(bundle)
    assert not list(bundle.parent.glob("*.zip")) and not list(bundle.parent.glob(".*.part"))
