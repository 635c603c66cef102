from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_xtiny.bundle.figures import Plane
from monai_xtiny.bundle.folder import CARD, EVALUATION, METADATA, OVERLAY, Bundle
from monai_xtiny.bundle.measured import (
    is_stopped,
    own_learning_curve,
    read_evaluation,
    trained_epochs,
    write_evaluation,
)
from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.system.files import write_json
from tests.exports import exported

FOUND = Evaluation(("a", "b"), ((0.6,), (0.8,)), ((3.0,), (None,)))
PLANES = [Plane(name, *(np.eye(4) for _ in range(3))) for name in FOUND.cases]


@pytest.fixture
def bundle(tmp_path, selection) -> Bundle:
    return Bundle.open(exported(selection, tmp_path / "x_segmentation"))


def test_write_evaluation_is_read_back_and_changes_the_measured_parts_alone(bundle) -> None:
    path = bundle.path(CARD)
    path.write_text(path.read_text().replace("The owners of this bundle.", "We did."))
    assert write_evaluation(bundle, FOUND, PLANES) == path
    assert read_evaluation(bundle) == FOUND
    card = path.read_text()
    assert "| class 1 | 2 | 0.700 (0.600 to 0.800) | 3.00 |" in card and "We did." in card
    assert bundle.path(OVERLAY).stat().st_size > 1000
    assert json.loads(bundle.path(EVALUATION).read_text())["num_epochs"] is None


def test_write_evaluation_writes_nothing_where_the_card_lost_a_mark(bundle) -> None:
    path = bundle.path(CARD)
    path.write_text(path.read_text().replace("<!-- /xtiny:weights -->", ""))
    with pytest.raises(ValueError, match="needs the line '<!-- xtiny:weights -->'"):
        write_evaluation(bundle, FOUND, PLANES)
    assert not bundle.path(EVALUATION).exists() and not bundle.path(OVERLAY).exists()


def test_read_evaluation_needs_one(bundle) -> None:
    with pytest.raises(FileNotFoundError, match=r"evaluation\.json"):
        read_evaluation(bundle)


def test_write_evaluation_takes_out_that_an_earlier_version_was_not_trained(bundle) -> None:
    metadata = bundle.config("metadata")
    assert "not trained" not in json.dumps(metadata)  # which nobody would renew after training
    former = "selected from unlabeled images, not trained yet"
    changelog = {"0.1.1": "our own entry", "0.1.0": former}
    write_json(bundle.path(METADATA), {**metadata, "changelog": changelog})
    write_evaluation(bundle, FOUND, PLANES)
    renewed = {**changelog, "0.1.0": "the width was selected from unlabeled images"}
    assert bundle.config("metadata") == {**metadata, "changelog": renewed}


@pytest.mark.parametrize("epochs", ["<script>", 1.5, True, [3]])
def test_write_evaluation_takes_no_text_for_a_number_of_epochs(bundle, epochs) -> None:
    write_json(bundle.path(EVALUATION), {"num_epochs": epochs})
    with pytest.raises(ValueError, match=r"num_epochs in .*evaluation\.json' is no whole number"):
        write_evaluation(bundle, FOUND, PLANES)


def test_results_of_another_training_are_not_those_of_the_weights(bundle) -> None:
    own = bundle.weights()
    other = {name: value + 1 for name, value in own.items()}
    table = bundle.path("eval/learning_curve.csv")
    state = bundle.path("eval/checkpoints/training_state.pt")
    state.parent.mkdir(parents=True)
    table.write_text("epoch,train_loss,val_mean_dice\n1,0.5,0.6\n")
    trainer = {"iteration": 6, "epoch_length": 2, "max_epochs": 4}
    for content, is_own in (
        ({"best_weights": own, "network": other}, True),
        ({"best_weights": None, "network": own}, True),  # without a validation
        ({"best_weights": other, "network": other}, False),
        ({"best_weights": None, "network": other}, False),  # stopped before the first one
        ({"best_weights": {"x": torch.ones(1)}, "network": {}}, False),
        ({"network": other}, True),  # of an earlier version, which does not tell
    ):
        torch.save({"trainer": trainer, **content}, state)
        assert trained_epochs(bundle) == (3 if is_own else None)
        curve = own_learning_curve(bundle)
        assert (curve is not None) == is_own
        assert is_stopped(bundle)
    write_json(bundle.path(EVALUATION), {"num_epochs": 7})
    torch.save({"trainer": trainer, "best_weights": other, "network": other}, state)
    assert trained_epochs(bundle) == 7


def test_trained_epochs_names_a_broken_state_without_pytorchs_advice(bundle) -> None:
    path = bundle.path("eval/checkpoints/training_state.pt")
    path.parent.mkdir(parents=True)
    for content in (Path("code"), {}, {"trainer": {"iteration": 3}}):
        torch.save(content, path)
        with pytest.raises(
            ValueError, match=r"training_state\.pt' is no state of a training"
        ) as stop:
            trained_epochs(bundle)
        assert "weights_only" not in str(stop.value)
    torch.save({"trainer": {"iteration": 30, "epoch_length": 10}}, path)
    assert trained_epochs(bundle) == 3
