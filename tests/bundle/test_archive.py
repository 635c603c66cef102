from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from monai_xtiny.bundle import large_files
from monai_xtiny.bundle.archive import package_bundle
from tests.processes import run_module


@pytest.fixture
def bundle(searched_copy) -> Path:
    return searched_copy


@pytest.fixture
def packaged(made_once, searched) -> Path:
    """The folder of that bundle with its TorchScript, and of its zip; to be read only."""

    def make(folder: Path) -> None:
        copy = shutil.copytree(searched, folder / searched.name)
        package_bundle(copy, folder / "first.zip", torchscript=True)

    return made_once("packaged", make)


def test_package_bundle_gives_the_same_bytes_for_the_same_bundle(tmp_path, bundle) -> None:
    first = package_bundle(bundle, tmp_path / "first.zip")
    copy = tmp_path / "elsewhere" / bundle.name
    shutil.copytree(bundle, copy, copy_function=shutil.copyfile)
    for path in copy.rglob("*"):
        path.chmod(0o700)
        os.utime(path, (1, 1))
    (copy / "eval").mkdir()
    (copy / "eval" / "result.csv").write_text("not part of the bundle")
    (copy / "models" / "model.pt.part").write_text("cut off by a kill")
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


def test_package_bundle_with_torchscript_gives_the_same_bytes(tmp_path, bundle, packaged) -> None:
    first = packaged / "first.zip"
    # Another process, which hashes otherwise; and the one that it starts would too, if let.
    done = run_module(
        "monai_xtiny", "package", bundle, "--torchscript",
        cwd=tmp_path, env={"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    second = Path(done.stdout.strip())
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(second) as archive:
        assert f"{bundle.name}/models/model.ts" in archive.namelist()
    # What is there is taken as it is.
    assert package_bundle(bundle, tmp_path / "third.zip").read_bytes() == first.read_bytes()


def test_package_bundle_refuses_torchscript_of_other_weights(
    tmp_path, packaged, script_in_forks
) -> None:
    bundle = Path(shutil.copytree(packaged / "x_segmentation", tmp_path / "x_segmentation"))
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    weights[next(iter(weights))] += 1  # trained since
    torch.save(weights, bundle / "models" / "model.pt")
    with pytest.raises(ValueError, match="model.ts' does not hold the weights of model.pt"):
        package_bundle(bundle, tmp_path / "second.zip")
    assert not (tmp_path / "second.zip").exists()
    package_bundle(bundle, tmp_path / "second.zip", torchscript=True)
    renewed = torch.jit.load(bundle / "models" / "model.ts").state_dict()
    assert all(torch.equal(renewed[name], weights[name]) for name in weights)


def test_package_bundle_leaves_a_bundle_as_it_is_when_scripting_fails(
    tmp_path, bundle, script_in_forks
) -> None:
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["network_def"]["out_channels"] += 1
    path.write_text(json.dumps(config))
    before = sorted(item for item in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"exported as TorchScript .*: check network_def"):
        package_bundle(bundle, torchscript=True)
    assert sorted(item for item in tmp_path.rglob("*")) == before


def test_package_bundle_takes_large_files_and_not_their_list(tmp_path, bundle, monkeypatch) -> None:
    monkeypatch.setattr(large_files, "MAX_BYTES", 1000)
    target = package_bundle(bundle)
    with zipfile.ZipFile(target) as archive:
        names = archive.namelist()
    assert f"{bundle.name}/models/model.pt" in names
    assert f"{bundle.name}/large_files.yml" not in names
    assert "models/model.pt" in (bundle / "large_files.yml").read_text()


def test_package_bundle_refuses_a_bundle_whose_large_files_are_elsewhere(bundle) -> None:
    listed = {"large_files": [{"path": "models/extra.pt", "url": "https://example.com/extra.pt"}]}
    (bundle / "large_files.yml").write_text(json.dumps(listed))
    with pytest.raises(FileNotFoundError, match="has no models/extra.pt, which .*: download it"):
        package_bundle(bundle)


@pytest.mark.parametrize("version", ["../../x", "", "1/2", None, ["0.1.0"], "a\nb", "/etc/x"])
def test_package_bundle_writes_no_file_outside_by_the_version(bundle, version) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
    before = sorted(bundle.parent.parent.rglob("*"))
    with pytest.raises(ValueError, match=r"version in configs/metadata\.json is .*: give digits"):
        package_bundle(bundle)
    assert sorted(bundle.parent.parent.rglob("*")) == before


def test_package_bundle_takes_a_bundle_by_any_path(bundle, monkeypatch) -> None:
    expected = package_bundle(bundle).read_bytes()
    monkeypatch.chdir(bundle / "configs")
    target = package_bundle("..")
    assert target == bundle.with_name("x_segmentation_v0.1.0.zip")
    assert target.read_bytes() == expected


def test_package_bundle_leaves_hidden_folders_out(tmp_path, bundle) -> None:
    expected = package_bundle(bundle, tmp_path / "first.zip").read_bytes()
    for name in (".git", "docs/.git", "configs/.ipynb_checkpoints", "scripts/__pycache__"):
        (bundle / name).mkdir()
        (bundle / name / "secret").write_text("mine")
    assert package_bundle(bundle, tmp_path / "second.zip").read_bytes() == expected


@pytest.mark.parametrize("name", ["docs/notes", "models/model.pt", "configs", "LICENSE"])
def test_package_bundle_refuses_links_that_leave_the_bundle(tmp_path, bundle, name) -> None:
    outside = tmp_path / "outside"
    place = bundle / name
    if place.exists():
        place.rename(outside)
    else:
        outside.write_text("secret")
    place.symlink_to(outside)
    with pytest.raises(ValueError, match=f"{name}.* is a link to '{outside}"):
        package_bundle(bundle, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_package_bundle_never_holds_itself(bundle) -> None:
    for name in ("x.zip", "docs/x.zip", "models/../docs/x.zip"):
        with pytest.raises(ValueError, match="lies in the bundle that it would hold"):
            package_bundle(bundle, bundle / name)
    assert not list(bundle.rglob("*.zip"))


def empty(models: Path) -> None:
    (models / "model.pt").write_bytes(b"")


def no_tensors(models: Path) -> None:
    torch.save({}, models / "model.pt")


def pickled(models: Path) -> None:
    torch.save(Path("x"), models / "model.pt")


def pickled_besides(models: Path) -> None:
    torch.save(Path("x"), models / "old.pt")


def plain_pickle(models: Path) -> None:
    (models / "model.pkl").write_bytes(b"cposix\nsystem\n.")


def not_finite(models: Path) -> None:
    weights = torch.load(models / "model.pt", weights_only=True)
    next(iter(weights.values())).fill_(float("nan"))
    torch.save(weights, models / "model.pt")


def of_another_width(models: Path) -> None:
    weights = torch.load(models / "model.pt", weights_only=True)
    wider = {name: torch.cat([value, value]) for name, value in weights.items()}
    torch.save(wider, models / "model_fold1.pt")


def of_another_network(models: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, models / "model.pt")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty, r"model\.pt' is empty"),
        (no_tensors, r"model\.pt' holds no state dict"),
        (pickled, r"model\.pt' holds no weights that can be read safely"),
        (pickled_besides, r"old\.pt' holds no weights that can be read safely"),
        (plain_pickle, r"model\.pkl' is a pickle, which is code"),
        (not_finite, r"model\.pt' holds weights that are NaN or infinite"),
        (of_another_width, r"model_fold1\.pt' holds the weights of another network"),
        (of_another_network, r"model\.pt' holds the weights of another network"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_package_bundle_refuses_weights_that_nobody_can_use(bundle, spoil, message) -> None:
    spoil(bundle / "models")
    with pytest.raises(ValueError, match=message) as stop:
        package_bundle(bundle)
    assert "weights_only" not in str(stop.value)
    assert not list(bundle.parent.glob("*.zip"))
