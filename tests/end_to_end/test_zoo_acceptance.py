"""What the Model Zoo's checks and guide ask of a bundle, for each kind of data.

The files, properties, weights and exports themselves are tested in test_bundle.py.
"""

# ruff: noqa: F811

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from monai.bundle import (
    ConfigParser,
    ckpt_export,
    create_workflow,
    verify_metadata,
    verify_net_in_out,
)
from packaging.version import Version

from monai_xtiny.bundle.archive import package_bundle
from tests.bundle.test_figures import HEADINGS
from tests.conftest import DATA
from tests.end_to_end.test_emitted import Emitted, emitted  # noqa: F401

pytestmark = pytest.mark.slow

INFERENCE_KEYS = ("bundle_root", "device", "network_def", "inferer", "output_dir")
TRAIN_KEYS = (
    "bundle_root", "device", "dataset_dir", "output_dir", "val_interval", "train#trainer",
    "train#trainer#max_epochs", "train#dataset", "train#dataset#data", "train#handlers",
    "train#preprocessing", "train#postprocessing", "train#inferer", "train#key_metric",
    "validate#evaluator", "validate#handlers", "validate#dataset", "validate#dataset#data",
    "validate#preprocessing", "validate#postprocessing", "validate#inferer", "validate#key_metric",
)  # fmt: skip
TEXT = {".json", ".md", ".txt", ".yml", ".conf", ".py", ""}


def texts(emitted: Emitted) -> dict[Path, str]:
    """Every text file of the bundle, and its test."""
    files = [*emitted.bundle.rglob("*"), *emitted.bundle.parent.glob("test_*.py")]
    return {
        path: path.read_text(encoding="utf-8")
        for path in files
        if path.is_file() and path.suffix in TEXT
    }


@pytest.mark.parametrize(
    "name, keys", [("inference", INFERENCE_KEYS), ("train", TRAIN_KEYS)], ids=lambda value: ""
)
def test_configs_have_the_keys_that_the_zoo_asks_for(emitted, name, keys) -> None:
    parser = ConfigParser()
    parser.read_config(str(emitted.bundle / "configs" / f"{name}.json"))
    assert [key for key in keys if parser.get(key) is None] == []
    if name == "train":
        handlers = parser["train#handlers"]
        interval = [h["interval"] for h in handlers if h["_target_"] == "ValidationHandler"]
        assert interval == ["@val_interval"]


def test_json_has_four_spaces_and_a_final_newline(emitted) -> None:
    found = {path: text for path, text in texts(emitted).items() if path.suffix == ".json"}
    assert len(found) == 6
    for path, text in found.items():
        expected = json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n"
        assert text == expected, path.name


def test_readme_has_the_zoos_headings_in_order(emitted) -> None:
    lines = (emitted.bundle / "docs" / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and len(lines[0]) > 2
    headings = [line[3:] for line in lines if line.startswith("## ")]
    assert [heading for heading in headings if heading in HEADINGS] == list(HEADINGS)


def test_no_text_names_a_path_of_this_machine(emitted) -> None:
    ours = (str(emitted.bundle.parent), str(emitted.dataset), sys.prefix, str(Path.home()) + "/")
    absolute = re.compile(r"(?<![\w.])/(home|root|Users|tmp|mnt|opt)/|\b[A-Z]:[\\/]")
    assert absolute.search("see " + "/".join(("", "home", "me"))) and absolute.search("in C:\\me")
    for path, text in texts(emitted).items():
        assert not [place for place in ours if place in text], path
        assert not absolute.search(text), (path, absolute.search(text))


def test_required_versions_are_plain_releases(emitted) -> None:
    text = (emitted.bundle / "configs" / "metadata.json").read_text(encoding="utf-8")
    metadata = json.loads(text)
    versions = dict(metadata["required_packages_version"])
    versions |= {key: metadata[f"{key}_version"] for key in ("monai", "pytorch", "numpy")}
    for package, version in versions.items():
        parsed = Version(version)
        assert str(parsed) == version, package
        assert parsed.local is None and not parsed.is_prerelease, package
    assert Version(metadata["version"]).release >= (0, 1, 0)


def test_zip_passes_the_zoos_commands_where_it_is_unpacked(emitted, tmp_path, monkeypatch) -> None:
    with zipfile.ZipFile(package_bundle(emitted.bundle, tmp_path / "bundle.zip")) as archive:
        archive.extractall(tmp_path / "models")
    bundle = tmp_path / "models" / emitted.bundle.name
    (bundle / "eval").mkdir()
    shutil.copy(DATA / "meta_schema_20240725.json", bundle / "eval" / "schema.json")
    monkeypatch.chdir(bundle)  # the guide's commands run there, with these paths
    configs = {"meta_file": "configs/metadata.json", "config_file": "configs/inference.json"}
    verify_metadata(meta_file="configs/metadata.json", filepath="eval/schema.json")
    verify_net_in_out(net_id="network_def", **configs)
    ckpt_export(net_id="network_def", filepath="models/model.ts", **configs)
    assert isinstance(torch.jit.load("models/model.ts"), torch.jit.ScriptModule)
    workflow = create_workflow(
        workflow_type="inference", bundle_root=".", logging_file=False, **configs
    )
    assert workflow.check_properties() == []
