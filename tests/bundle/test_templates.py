from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from monai_xtiny.bundle.folder import data_kind
from monai_xtiny.bundle.templates import merged_template, templates_dir
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.system.files import read_json


def test_templates_are_json_with_four_spaces_and_a_final_newline() -> None:
    for path in templates_dir().glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n", path.name


def expressions(content, key: str = "") -> dict[str, str]:
    """What MONAI would evaluate in a config, by its id."""
    if isinstance(content, str):
        return {key: content} if content.startswith("$") else {}
    if not isinstance(content, (dict, list)):
        return {}
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    return {
        name: text
        for part, value in pairs
        for name, text in expressions(value, f"{key}#{part}").items()
    }


def refuse_long_expressions(folder) -> int:
    """Count the expressions of a folder's configs; long ones belong into scripts/."""
    found = {
        f"{path.name}{key}": text
        for path in folder.glob("*.json")
        for key, text in expressions(json.loads(path.read_text(encoding="utf-8"))).items()
    }
    assert {key: text for key, text in found.items() if len(text) > 160} == {}
    return len(found)


def test_templates_hold_no_long_expression() -> None:
    assert refuse_long_expressions(templates_dir()) > 60


@pytest.mark.parametrize("kind", ["volumes", "slices", "images"])
def test_train_and_inference_call_the_same_things_alike(kind) -> None:
    train, inference = (
        merged_template(name, kind, templates_dir()) for name in ("train", "inference")
    )
    assert train["validate"]["inferer"] == inference["inferer"]
    for key in ("overlap", "sw_batch_size", "workflow", "patch_size", "network_def"):
        assert train[key] == inference[key], key
    assert train["checkpoint"] is None and "checkpoint" in inference
    # Options that both refuse alike.
    assert set(inference["options"]) < set(train["options"])


@pytest.mark.parametrize("kind", ["volumes", "slices", "images"])
def test_export_bundle_writes_no_long_expression(tmp_path, request, selection, kind) -> None:
    plan = request.getfixturevalue("plan_3d" if kind == "volumes" else "plan_2d")
    plan = replace(plan, slice_axis=1) if kind == "slices" else plan
    chosen = replace(selection, table=replace(selection.table, plan=plan))
    assert data_kind(plan) == kind
    # The ladder is that of another plan, which a report would draw.
    bundle = export_bundle(chosen, tmp_path / "x_segmentation", report=False)
    assert refuse_long_expressions(bundle / "configs") > 60


def test_label_of_logits_is_the_first_of_the_largest_classes() -> None:
    parser = ConfigParser(read_json(templates_dir() / "inference.json"))
    logits = torch.randint(3, (4, 9, 8, 7), generator=torch.Generator().manual_seed(0)).float()
    found = parser.get_parsed_content("label_of")(logits)
    assert found.shape == (1, 9, 8, 7)
    np.testing.assert_array_equal(found[0], logits.numpy().argmax(axis=0))
