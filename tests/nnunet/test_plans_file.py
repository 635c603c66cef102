from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path

import pytest

from monai_xtiny.nnunet.plans_file import (
    add_configuration,
    check_layout,
    check_processing,
    check_writable,
    read_channels_and_labels,
)
from tests.conftest import DATA

FLUO = DATA / "nnUNetPlans_Dataset076_DSB2018Fluo.json"


def plans_file(tmp_path: Path, indent: int = 4) -> Path:
    path = tmp_path / "nnUNetPlans.json"
    path.write_text(json.dumps(json.loads(FLUO.read_text()), indent=indent))
    return path


@pytest.mark.parametrize("indent", [2, 4], ids=["2 spaces", "4 spaces"])
def test_add_configuration_leaves_every_other_line_as_it_was(tmp_path, indent) -> None:
    path = plans_file(tmp_path, indent)
    before = path.read_text()
    assert add_configuration(path, "2d", [8] * 7) == ("2d_xtiny8", True)
    after = path.read_text().splitlines()
    kept = iter(line.rstrip(",") for line in after)
    assert all(line.rstrip(",") in kept for line in before.splitlines())  # in this order
    content = json.loads(path.read_text())
    del content["configurations"]["2d_xtiny8"]
    assert content == json.loads(before)


def test_add_configuration_writes_the_whole_architecture_with_other_features(tmp_path) -> None:
    path = plans_file(tmp_path)
    add_configuration(path, "2d", [8] * 7)
    configurations = json.loads(path.read_text())["configurations"]
    expected = deepcopy(configurations["2d"]["architecture"])
    expected["arch_kwargs"]["features_per_stage"] = [8] * 7
    assert configurations["2d_xtiny8"] == {"inherits_from": "2d", "architecture": expected}


def test_add_configuration_twice_leaves_the_bytes_and_the_backup(tmp_path) -> None:
    path = plans_file(tmp_path)
    path.chmod(0o664)
    original = path.read_bytes()
    add_configuration(path, "2d", [8] * 7)
    assert path.stat().st_mode & 0o777 == 0o664
    once, modified = path.read_bytes(), path.stat().st_mtime_ns
    assert add_configuration(path, "2d", [8] * 7) == ("2d_xtiny8", False)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (once, modified)
    assert add_configuration(path, "2d", [16] * 7) == ("2d_xtiny16", True)
    assert list(json.loads(path.read_text())["configurations"])[-2:] == ["2d_xtiny8", "2d_xtiny16"]
    backup = tmp_path / "nnUNetPlans.json.before_xtiny"
    assert backup.read_bytes() == original
    assert sorted(tmp_path.iterdir()) == [path, backup]


def test_add_configuration_takes_the_architecture_that_its_parent_inherits(tmp_path) -> None:
    path = plans_file(tmp_path)
    content = json.loads(path.read_text())
    content["configurations"]["mine"] = {"inherits_from": "2d", "batch_size": 5}
    path.write_text(json.dumps(content))
    assert add_configuration(path, "mine", [16] * 7)[0] == "mine_xtiny16"
    added = json.loads(path.read_text())["configurations"]["mine_xtiny16"]
    assert added["inherits_from"] == "mine"
    assert added["architecture"]["arch_kwargs"]["features_per_stage"] == [16] * 7


def test_plans_from_before_v2_4_get_a_limit_that_every_version_reads(tmp_path) -> None:
    path = plans_file(tmp_path)
    content = json.loads(path.read_text())
    old = content["configurations"]["2d"]
    del old["architecture"]
    old.update(UNet_base_num_features=32, unet_max_num_features=512)
    path.write_text(json.dumps(content))
    add_configuration(path, "2d", [32, 64, 64, 64])
    added = json.loads(path.read_text())["configurations"]["2d_xtiny64"]
    assert added == {"inherits_from": "2d", "unet_max_num_features": 64}
    with pytest.raises(ValueError, match=r"features \[8, 32\] cannot be had in plans from before"):
        add_configuration(path, "2d", [8, 32])


def test_add_configuration_leaves_another_of_this_name_alone(tmp_path) -> None:
    path = plans_file(tmp_path)
    content = json.loads(path.read_text())
    content["configurations"]["2d_xtiny8"] = {"inherits_from": "2d", "batch_size": 5}
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="has another configuration '2d_xtiny8'.*: remove or rena"):
        add_configuration(path, "2d", [8] * 7)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_add_configuration_that_is_interrupted_leaves_the_plans(tmp_path, monkeypatch) -> None:
    path = plans_file(tmp_path)
    before = path.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        add_configuration(path, "2d", [8] * 7)
    assert path.read_bytes() == before


def test_add_configuration_writes_half_a_character_as_it_was(tmp_path) -> None:
    path = plans_file(tmp_path)
    path.write_text(path.read_text().replace("{", '{"note": "\u00e4\\ud800",', 1), encoding="utf-8")
    before = json.loads(path.read_text(encoding="utf-8"))
    add_configuration(path, "2d", [8] * 7)
    after = json.loads(path.read_text(encoding="utf-8"))
    del after["configurations"]["2d_xtiny8"]
    assert after == before


def test_add_configuration_that_cannot_be_written_as_json_makes_no_backup(
    tmp_path, monkeypatch
) -> None:
    path = plans_file(tmp_path)

    def refuse(*_: object, **__: object) -> str:
        raise ValueError("no JSON")

    monkeypatch.setattr("json.dumps", refuse)
    with pytest.raises(ValueError, match="no JSON"):
        add_configuration(path, "2d", [8] * 7)
    assert list(tmp_path.iterdir()) == [path]


def test_check_writable_names_a_folder_that_is_read_only(tmp_path, monkeypatch) -> None:
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    if os.geteuid() == 0:  # whom no permission stops

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", "a hidden name")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match=rf"'{tmp_path}' cannot be written to .*: copy the d"):
        check_writable(tmp_path)
    tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"labels": {"background": 0, "a": 1}}, "has no channel_names or no labels"),
        ({"labels": {"background": 0, "a": [1, 2]}}, "has nnU-Net's region 'a' of several values"),
        ({"labels": {"background": 0, "a": 1, "ignore": 2}}, "has nnU-Net's ignore label"),
        ({"labels": {"background": 0, "a": 2}}, "has the labels .*: nnU-Net v2 wants"),
        ({"labels": {"0": "background", "1": "a"}}, "has the labels .*: nnU-Net v2 wants"),
    ],
    ids=["no channels", "regions", "ignore label", "gap", "MSD"],
)
def test_read_channels_and_labels_refuses(tmp_path, content, message) -> None:
    path = tmp_path / "dataset.json"
    channels = {} if "no channel" in message else {"channel_names": {"0": "MRI"}}
    path.write_text(json.dumps({**channels, **content}))
    with pytest.raises(ValueError, match=f"^'{path}' {message}"):
        read_channels_and_labels(path)


def test_read_channels_and_labels_puts_the_background_first(tmp_path) -> None:
    path = tmp_path / "dataset.json"
    labels = {"b": 2, "background": 0, "a": 1}
    path.write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": labels}))
    assert read_channels_and_labels(path) == (2, ("background", "a", "b"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"normalization_schemes": ["MyNormalization"]}, "asks for MyNormalization, which nnU-Net"),
        ({"normalization_schemes": []}, r"normalization_schemes \[\] for 1 channels: give one per"),
        ({"use_mask_for_norm": []}, r"use_mask_for_norm is \[\]: it must be a list of true or"),
        ({"use_mask_for_norm": ["false"]}, r"use_mask_for_norm is \['false'\]: it must be a list"),
        ({"use_mask_for_norm": None}, "use_mask_for_norm is None: it must be a list of true or"),
        ({"resampling_fn_data": "my_resampling"}, "asks for my_resampling, which nnU-Net's own"),
        ({"resampling_fn_probabilities": "mine"}, "asks for mine, which nnU-Net's own code"),
        ({"preprocessor_name": "MyPreprocessor"}, "asks for MyPreprocessor, which nnU-Net's own"),
    ],
    ids=[
        "normalization", "per channel", "no mask", "mask of text", "mask lacks", "resampling",
        "resampling of logits", "preprocessor",
    ],
)  # fmt: skip
def test_check_processing_refuses_what_nnunet_does_not_have(settings, message) -> None:
    known = {"normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False]}
    check_processing(known, 1, "configuration '2d'")
    with pytest.raises(ValueError, match=f"^configuration '2d'.*{message}"):
        check_processing({**known, **settings}, 1, "configuration '2d'")


@pytest.mark.parametrize("order", [None, [0, 1], [0, 0, 1], [1, 2, 3], 5])
def test_check_layout_refuses_axes_in_no_order(order) -> None:
    with pytest.raises(ValueError, match="turns axes by .*, which is no order of 0, 1, 2: plan"):
        check_layout({}, order, "configuration '2d'")


@pytest.mark.parametrize("folder", [None, 5, "../elsewhere", ""])
def test_check_layout_refuses_a_folder_elsewhere(folder) -> None:
    with pytest.raises(ValueError, match="has its cases in the folder .*: plan again"):
        check_layout({"data_identifier": folder}, [2, 0, 1], "configuration '2d'")
