from __future__ import annotations

import pytest

from monai_xtiny.bundle.card import MEASURED_PARTS, model_card, renewed_card
from monai_xtiny.bundle.folder import CARD, Bundle
from monai_xtiny.bundle.imported import IMPORTED, imported_configs, is_imported
from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.bundle.search_file import read_search, write_search
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.nnunet.importing import import_checkpoint
from monai_xtiny.selection.choice import select_width
from tests.nnunet.models import write_model


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """An imported bundle."""
    file = write_model(tmp_path / "x.pth")
    return Bundle.open(import_checkpoint(file, tmp_path / "x_segmentation"))


def test_search_file_of_an_imported_bundle_holds_no_scores(bundle, tmp_path) -> None:
    assert is_imported(bundle.selection)
    write_search(bundle.selection, tmp_path / "search.json")
    assert read_search(tmp_path / "search.json") == bundle.selection
    with pytest.raises(ValueError, match="holds no scores"):
        select_width(bundle.selection.table, "alignment")


def test_export_bundle_refuses_an_imported_network(bundle, tmp_path) -> None:
    with pytest.raises(ValueError, match="was imported from nnU-Net, not searched"):
        export_bundle(bundle.selection, tmp_path / "y_segmentation")
    assert not (tmp_path / "y_segmentation").exists()


def test_card_of_an_imported_bundle_is_renewed(bundle) -> None:
    evaluation = Evaluation(("a",), ((0.5, 0.75),), ((1.0, 2.0),))
    card = model_card(
        bundle.selection,
        name=bundle.name,
        label_names=bundle.label_names,
        evaluation=evaluation,
        num_epochs=3,
    )
    before = bundle.path(CARD).read_text(encoding="utf-8")
    text = renewed_card(before, card, MEASURED_PARTS)
    assert "after 3 epochs of `configs/train.json`" in text
    assert "| Posterior | 1 | 0.750 | 2.00 |" in text
    assert "trained by nnU-Net as configuration" in text


def test_imported_configs_turn_volumes_only_where_nnunet_does(bundle) -> None:
    for reader, turned in (("SimpleITKIO", False), ("NibabelIOWithReorient", True)):
        settings = {"nnunet_plans": {"image_reader_writer": reader}}
        configs = imported_configs(bundle.selection, "volumes", settings)
        before = [str(step) for step in configs["inference"]["preprocessing"]["transforms"]]
        after = [step["_target_"] for step in configs["inference"]["postprocessing"]["transforms"]]
        assert any("Orientationd" in step for step in before) is turned
        assert ("Invertd" in after) is turned
        # Validation sees the images as inference does; training what nnU-Net's network sees.
        train = configs["train"]
        assert train["validate"]["inferer"] == configs["inference"]["inferer"]
        assert train["preprocessing_transforms"][-1] == "$@nnunet.PreprocessCase(@settings)"
    assert bundle.selection.method == IMPORTED
