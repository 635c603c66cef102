from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.exports import exported


def read_metadata(bundle) -> dict:
    return json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))


def test_bundle_metadata_tells_logits_from_labels(tmp_path, selection) -> None:
    metadata = read_metadata(
        exported(selection, tmp_path / "x_y_segmentation", label_names=["background", "cell"])
    )
    formats = metadata["network_data_format"]
    logits = formats["outputs"]["pred"]
    assert (logits["value_range"], logits["num_channels"]) == ([], 2)
    assert logits["channel_def"] == {"0": "background", "1": "cell"}
    label = formats["post_processed_outputs"]["pred"]
    assert (label["value_range"], label["num_channels"], label["dtype"]) == ([0, 1], 1, "uint8")
    assert (label["spatial_shape"], label["is_patch_data"]) == (["*", "*"], False)
    assert formats["inputs"]["image"]["format"] == "magnitude"
    assert "0 is background, 1 is cell" in metadata["label_classes"]
    assert metadata["name"] == "X y segmentation"


def test_bundle_metadata_says_nothing_empty(tmp_path, selection) -> None:
    metadata = read_metadata(exported(selection, tmp_path / "x_segmentation"))
    unknown_until_measured = {"eval_metrics", "supported_apps"}
    assert {key for key, value in metadata.items() if not value} == unknown_until_measured


def test_bundle_metadata_names_the_channels_of_pictures(tmp_path, selection) -> None:
    plan = replace(selection.table.plan, in_channels=3)
    color = replace(selection, table=replace(selection.table, plan=plan))
    image = read_metadata(exported(color, tmp_path / "x"))["network_data_format"]["inputs"]["image"]
    assert image["format"] == "RGB"
    assert image["channel_def"] == {"0": "red", "1": "green", "2": "blue"}


@pytest.mark.parametrize("name", ["_$import os", "_@device", "__%x", "___"])
def test_bundle_metadata_makes_no_code_of_a_name(tmp_path, selection, name) -> None:
    metadata = read_metadata(exported(selection, tmp_path / name))
    assert metadata["name"] == name
