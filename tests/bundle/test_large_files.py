from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml
from monai.apps.utils import HashCheckError, download_url
from monai.bundle import ConfigParser

from monai_xtiny.bundle import large_files
from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.large_files import read_large_files, write_large_files
from monai_xtiny.bundle.writer import export_bundle
from tests.exports import exported


@pytest.fixture
def bundle(tmp_path, selection) -> Path:
    """A bundle of one file over the limit and one under it."""
    path = exported(selection, tmp_path / "x_segmentation")
    (path / "models" / "small.pt").write_bytes(bytes(large_files.MAX_BYTES))
    (path / "models" / "model.pt").write_bytes(bytes(large_files.MAX_BYTES + 1))
    return path


def fetch_as_the_zoo_does(bundle: Path) -> None:
    """What the Zoo's checks do with the list before anything else."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "large_files.yml"))
    for entry in parser.get()["large_files"]:
        path = entry.pop("path")
        download_url(**entry, filepath=str(bundle / path), progress=False)


def test_write_large_files_lists_what_passes_25_mb(bundle) -> None:
    path = write_large_files(Bundle.open(bundle))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    digest = hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    assert content == {
        "large_files": [
            {
                "path": "models/model.pt",
                "url": "FILL-IN-THE-URL-OF-models/model.pt",
                "hash_val": digest,
                "hash_type": "sha256",
            }
        ]
    }
    fetch_as_the_zoo_does(bundle)  # the file is there and whole: the address is not looked at


def test_write_large_files_writes_nothing_for_small_files(bundle) -> None:
    (bundle / "models" / "model.pt").unlink()
    assert write_large_files(Bundle.open(bundle)) is None
    assert not (bundle / "large_files.yml").exists()


def test_write_large_files_renews_what_training_changed(bundle) -> None:
    path = write_large_files(Bundle.open(bundle))
    url = "https://example.com/model.pt"
    path.write_text(path.read_text().replace("FILL-IN-THE-URL-OF-models/model.pt", url))
    edited = path.read_bytes()
    write_large_files(Bundle.open(bundle))
    assert path.read_bytes() == edited  # the same file is still at its address
    (bundle / "models" / "model.pt").write_bytes(b"1" * (large_files.MAX_BYTES + 1))
    with pytest.raises(HashCheckError, match="hash check of existing file failed"):
        fetch_as_the_zoo_does(bundle)
    write_large_files(Bundle.open(bundle))
    fetch_as_the_zoo_does(bundle)
    assert read_large_files(Bundle.open(bundle))[0]["url"].startswith("FILL-IN-THE-URL-OF-")


def test_write_large_files_keeps_entries_of_files_that_are_elsewhere(bundle) -> None:
    other = {"path": "models/other.pt", "url": "https://example.com/other.pt"}
    listed = {"large_files": [other, {"path": "models/model.pt", "url": "u", "hash_val": ""}]}
    (bundle / "large_files.yml").write_text(yaml.safe_dump(listed))
    write_large_files(Bundle.open(bundle))
    kept, own = read_large_files(Bundle.open(bundle))
    assert kept == other
    assert (own["path"], own["url"], own["hash_type"]) == ("models/model.pt", "u", "sha256")


@pytest.mark.parametrize("text", ["large_files: 3", "- a", "large_files: [{path: 3}]", "a: ["])
def test_read_large_files_refuses_another_list(bundle, text) -> None:
    (bundle / "large_files.yml").write_text(text)
    with pytest.raises(ValueError, match="is no list of large files"):
        write_large_files(Bundle.open(bundle))


def test_write_large_files_refuses_an_unknown_hash(bundle) -> None:
    (bundle / "large_files.yml").write_text(
        "large_files: [{path: models/model.pt, hash_type: crc32}]"
    )
    with pytest.raises(ValueError, match="the hash type 'crc32': give sha256, or none"):
        write_large_files(Bundle.open(bundle))


def test_export_bundle_lists_large_weights(tmp_path, selection, monkeypatch) -> None:
    assert not (export_bundle(selection, tmp_path / "a", report=False) / "large_files.yml").exists()
    monkeypatch.setattr(large_files, "MAX_BYTES", 1000)
    bundle = export_bundle(selection, tmp_path / "b", report=False)
    assert [entry["path"] for entry in read_large_files(Bundle.open(bundle))] == ["models/model.pt"]
