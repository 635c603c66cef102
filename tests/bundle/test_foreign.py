from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.foreign import foreign_code
from monai_xtiny.bundle.templates import any_rotation
from tests.cli.typed import refused, run_main
from tests.conftest import write_png
from tests.exports import exported

SETTINGS = {
    "epochs": 7,
    "learning_rate": 1e-3,
    "num_workers": 0,  # was an expression
    "rotated_axes": [0],  # was an expression
    "scale_range": [-0.1, 0.1],
    "resume": False,
    "bundle_root": "/somewhere",
    "dataset_dir": "/data/Dataset001",  # was an expression
    "device": "cuda:1",
    "datalist": "list.json",  # was nothing
}


@pytest.fixture
def root(tmp_path, selection) -> Path:
    return exported(selection, tmp_path / "x_segmentation")


def edit(root: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "configs" / f"{name}.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def test_foreign_code_finds_none_in_what_the_exporter_writes(root) -> None:
    assert foreign_code(Bundle.open(root)) == ()


def test_foreign_code_leaves_settings_to_their_owner(root) -> None:
    edit(root, "train", lambda config: config.update(SETTINGS))
    edit(root, "train", lambda config: config["network_def"].update(dropout=0.1))
    edit(root, "metadata", lambda config: config.update(authors="A. Person", version="0.1.1"))
    assert foreign_code(Bundle.open(root)) == ()


@pytest.mark.parametrize("kind", ["slices", "oriented"])
def test_foreign_code_takes_the_angle_of_images_in_any_orientation(
    tmp_path, selection, kind
) -> None:
    """Earlier versions wrote it for slices; for images that share one it is the way back."""
    plan = replace(selection.table.plan, slice_axis=2 if kind == "slices" else None)
    table = replace(selection.table, plan=plan, shared_orientation=0.3)
    root = exported(replace(selection, table=table), tmp_path / "x_segmentation")
    edit(root, "train", lambda config: config.update(rotation_range=any_rotation()))
    assert foreign_code(Bundle.open(root)) == ()
    edit(root, "train", lambda config: config.update(rotation_range=PAYLOAD))
    assert "rotation_range" in foreign_code(Bundle.open(root))[0]


PAYLOAD = "$__import__('pathlib').Path('pwned').touch()"
CODE: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "expression": (
        "train",
        lambda config: config.update(epochs=PAYLOAD),
        f"configs/train.json: epochs is {PAYLOAD!r}, not 300",
    ),
    "target": (
        "train",
        lambda config: config["loss"].update(_target_="DiceLoss"),
        "configs/train.json: loss#_target_ is 'DiceLoss', not 'DiceCELoss'",
    ),
    "path that is code": (
        "inference",
        lambda config: config.update(output_dir=PAYLOAD),
        f"configs/inference.json: output_dir is {PAYLOAD!r}, not \"$@bundle_root + '/eval'\"",
    ),
    "name of a class": (
        "inference",
        lambda config: config.update(reader="evil.Reader"),
        "configs/inference.json: reader is 'evil.Reader'",
    ),
    "a check left out": (
        "inference",
        lambda config: config["run"].pop(0),
        "configs/inference.json: run#7 is missing, and was '$@labeling.finish()'",
    ),
    "a check turned into a number": (
        "evaluate",
        lambda config: config["run"].__setitem__(0, 0),
        "configs/evaluate.json: run#0 is 0, not '$@workflow.check_options",
    ),
    "a step turned off": (
        "train",
        lambda config: config["reading_transforms"][-1].update(_disabled_=True),
        "configs/train.json: reading_transforms#4#_disabled_ is True, and this version has no",
    ),
    "a check replaced by its place": (
        "train",
        lambda config: config.update({"run#0": 0}),
        "configs/train.json: run#0 is 0, and this version has no such key",
    ),
    "a step taken away by its place": (
        "evaluate",
        lambda config: config.update({"~run#0": None}),
        "configs/evaluate.json: ~run#0 is None, and this version has no such key",
    ),
    "merged": (
        "train",
        lambda config: config.update({"+initialize": [PAYLOAD]}),
        f"configs/train.json: +initialize#0 is {PAYLOAD!r}",
    ),
    "metadata": (
        "metadata",
        lambda config: config.update(description="$import os"),
        "configs/metadata.json: description is '$import os', which MONAI evaluates",
    ),
    "component in metadata": (
        "metadata",
        lambda config: config.update(authors={"_target_": "os.getcwd"}),
        "configs/metadata.json: authors#_target_ is 'os.getcwd', which MONAI evaluates",
    ),
}


@pytest.mark.parametrize("case", CODE)
def test_foreign_code_names_what_it_runs(root, case) -> None:
    name, change, line = CODE[case]
    edit(root, name, change)
    found = foreign_code(Bundle.open(root))
    assert any(item.startswith(line) for item in found), found


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("scripts/workflow.py", "print()", "scripts/workflow.py is not what this version writes"),
        ("configs/logging.conf", "[x]", "configs/logging.conf is not what this version writes"),
        ("ignite.py", "", "ignite.py would be imported"),
        ("nibabel/__init__.py", "", "nibabel/__init__.py would be imported"),
    ],
    ids=["workflow", "logging", "module", "package"],
)
def test_foreign_code_names_files_that_are_code(root, file, text, line) -> None:
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text(text)
    assert foreign_code(Bundle.open(root)) == (line,)


@pytest.mark.parametrize(
    "command", [("check",), ("evaluate",), ("verify",), ("deploy",), ("package", "--torchscript")]
)
def test_commands_run_no_code_of_others_unless_told(
    capsys, tmp_path, monkeypatch, root, command
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "inference"):
        edit(root, name, lambda config: config["imports"].append(PAYLOAD))
    data = ["--data", tmp_path] if command[0] in ("check", "evaluate", "verify") else []
    line = refused(capsys, *command, "--bundle", root, *data)
    assert "would run code that this version of monai_xtiny does not write (2 places" in line
    assert "give --trust" in line
    assert not (tmp_path / "pwned").exists()


def test_check_with_trust_says_what_it_runs(capsys, tmp_path, root) -> None:
    edit(root, "train", lambda config: config.update(epochs="$100 * 3"))
    for kind in ("imagesTr/a_0000.png", "labelsTr/a.png"):
        write_png(tmp_path / kind, (48, 32))
    Image.fromarray(np.eye(48, 32, dtype=np.uint8)).save(tmp_path / "labelsTr" / "a.png")
    assert run_main("check", root, "--data", tmp_path, "--trust") == 0
    assert capsys.readouterr().out.splitlines() == [
        "warning: configs/train.json: epochs is '$100 * 3', not 300",
        "found 1 case with 1 channel (a_0000.png), 2D, median size 32 x 48 pixels",
        "patch 32 x 48 pixels, 4 stages, at most 256 features",
        "1 labeled cases fit the bundle",
        f"this ran the configs and scripts of {str(root)!r}",
    ]


@pytest.mark.parametrize("command", ["check", "evaluate", "verify", "deploy"])
def test_help_says_that_a_bundle_is_run(capsys, command) -> None:
    assert run_main(command, "--help") == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "This runs the bundle's configs and scripts" in shown and "--trust" in shown
