from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.inference import check_inference
from tests.exports import exported


@pytest.fixture
def root(tmp_path, selection) -> Path:
    return exported(selection, tmp_path / "x_segmentation")


def changed(root: Path, **keys) -> Bundle:
    path = root / "configs" / "inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return Bundle.open(root)


def test_check_inference_takes_settings_and_refuses_what_no_other_code_does(root) -> None:
    check_inference(Bundle.open(root), "it")
    check_inference(changed(root, overlap=0.25, batch_size=3, device="cpu"), "it")
    config = Bundle.open(root).config("inference")
    steps = json.loads(json.dumps(config["preprocessing"]))
    (norm,) = [step for step in steps["transforms"] if step["_target_"] == "NormalizeIntensityd"]
    norm["nonzero"] = True  # a switch, no code
    with pytest.raises(ValueError, match=r"writes it \(preprocessing\), and a page does only that"):
        check_inference(changed(root, preprocessing=steps), "a page")
    with pytest.raises(ValueError, match=r"writes it \(label_of, preprocessing\)"):
        check_inference(changed(root, label_of="$None"), "a page")
    with pytest.raises(ValueError, match="imported from nnU-Net, whose processing"):
        check_inference(changed(root, nnunet_plans={}), "a page")
