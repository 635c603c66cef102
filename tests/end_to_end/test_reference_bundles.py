"""The bundles in bundle/: what the exporter writes, trained, with the accuracy that they state."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from monai_xtiny.bundle.card import model_card
from monai_xtiny.bundle.folder import CARD, EVALUATION, Bundle
from monai_xtiny.bundle.measured import read_evaluation
from monai_xtiny.bundle.search_file import read_search
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.training.evaluate import evaluate_bundle
from monai_xtiny.training.labeled import data_options

ROOT = Path(__file__).parents[2] / "bundle"
# Bundle: data set, mean Dice that it promises.
BUNDLES = {
    "hippocampus_mri_xtiny_segmentation": ("Dataset004_Hippocampus", 0.87),
    "nuclei_fluorescence_xtiny_segmentation": ("Dataset076_DSB2018Fluo", 0.91),
}
VERSIONS = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}


@pytest.fixture(params=BUNDLES)
def bundle(request) -> Path:
    return ROOT / request.param


def test_bundle_folder_holds_the_reference_bundles_alone() -> None:
    assert {path.name for path in ROOT.iterdir() if path.is_dir()} == set(BUNDLES)


def test_reference_bundle_is_what_the_exporter_writes(bundle, tmp_path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    for package, key in VERSIONS.items():
        if version(package).split("+")[0] != metadata[key]:
            pytest.skip(f"{package} is not {metadata[key]}, so the metadata would differ")
    written = export_bundle(
        read_search(bundle / "docs" / "search.json"),
        tmp_path / bundle.name,
        label_names=Bundle.open(bundle).label_names,
        report=False,
    )
    names = {path.name for path in (written / "configs").iterdir()}
    assert {path.name for path in (bundle / "configs").iterdir()} == names | {"datalist.json"}
    scripts = [f"scripts/{path.name}" for path in (written / "scripts").iterdir()]
    same = ["LICENSE", "docs/search.json", *scripts]
    for path in [*(f"configs/{name}" for name in names), *same]:
        assert (bundle / path).read_bytes() == (written / path).read_bytes(), path
    assert not (bundle / "eval").exists()


def test_reference_bundle_is_nowhere_called_untrained(bundle) -> None:
    for path in [*(bundle / "configs").glob("*.json"), bundle / "docs" / "README.md"]:
        text = path.read_text(encoding="utf-8").lower()
        assert "not trained yet" not in text and "until it is trained" not in text, path


def test_reference_bundle_holds_small_trained_weights(bundle) -> None:
    weights = bundle / "models" / "model.pt"
    assert [path.name for path in weights.parent.iterdir()] == ["model.pt"]
    assert weights.stat().st_size < 1_000_000
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights, weights_only=True), strict=True)


def test_reference_bundle_keeps_its_promise_on_cases_held_out(bundle) -> None:
    evaluation = read_evaluation(Bundle.open(bundle))
    split = json.loads((bundle / "configs" / "datalist.json").read_text(encoding="utf-8"))
    train, held_out = (
        [Path(case["label"]).name for case in split[section]]
        for section in ("training", "validation")
    )
    assert list(evaluation.cases) == held_out
    assert not set(train) & set(held_out)
    assert len(held_out) == np.ceil((len(train) + len(held_out)) / 5)
    assert evaluation.mean_dice >= BUNDLES[bundle.name][1]


def test_reference_card_is_what_the_card_writer_writes(bundle) -> None:
    opened = Bundle.open(bundle)
    num_epochs = json.loads(opened.path(EVALUATION).read_text(encoding="utf-8"))["num_epochs"]
    card = model_card(
        opened.selection,
        name=opened.name,
        label_names=opened.label_names,
        evaluation=read_evaluation(opened),
        num_epochs=num_epochs,
    )
    assert opened.path(CARD).read_text(encoding="utf-8") == card


def test_reference_card_states_what_was_measured(bundle) -> None:
    card = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    evaluation = read_evaluation(Bundle.open(bundle))
    names = Bundle.open(bundle).label_names[1:]
    for name, dice in zip(names, evaluation.class_dice, strict=True):
        assert f"| {name} | {len(evaluation.cases)} | {dice:.3f} (" in card
    stated = json.loads((bundle / "docs" / "evaluation.json").read_text(encoding="utf-8"))
    assert stated["summary"] == evaluation.summary(names)
    assert stated["summary"]["mean"]["dice"]["mean"] == pytest.approx(evaluation.mean_dice, 1e-5)
    for picture in ("sensitivity.png", "overlay.png"):
        assert f"]({picture})" in card
        assert (bundle / "docs" / picture).stat().st_size > 10_000
    assert "creativecommons.org" in (bundle / "docs" / "data_license.txt").read_text()


@pytest.mark.slow
def test_reference_weights_reproduce_the_card_on_real_cases(
    bundle, real_data, tmp_path, monkeypatch
) -> None:
    data = real_data / BUNDLES[bundle.name][0]
    if not data.is_dir():
        pytest.skip(f"{str(data)!r} is not there")
    split = json.loads((bundle / "configs" / "datalist.json").read_text(encoding="utf-8"))
    few = split["validation"][::10]
    datalist = tmp_path / "few.json"
    datalist.write_text(json.dumps({"training": split["training"][:1], "validation": few}))
    options = {**data_options(data, datalist), "num_workers": 0, "output_dir": str(tmp_path)}
    found = evaluate_bundle(Bundle.open(bundle), options)
    stated = read_evaluation(Bundle.open(bundle))
    assert len(found.cases) == len(few) >= 4
    for case, dice in zip(found.cases, found.dice, strict=True):
        np.testing.assert_allclose(dice, stated.dice[stated.cases.index(case)], atol=2e-3)
    for case, nsd in zip(found.cases, found.nsd, strict=True):
        np.testing.assert_allclose(nsd, stated.nsd[stated.cases.index(case)], atol=5e-3)
