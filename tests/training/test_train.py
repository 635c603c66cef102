from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.training.train import (
    Training,
    train_width,
    training_from_dict,
)
from tests.conftest import write_labeled_pictures


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    return write_labeled_pictures(tmp_path / "data")


@pytest.mark.slow
def test_train_width_trains_the_width_it_is_given(selection, labeled, tmp_path) -> None:
    width = next(w for w in selection.table.widths[-3:] if w != selection.max_features)
    seen: list[int] = []
    training = train_width(
        selection,
        width,
        data=labeled,
        bundle_dir=tmp_path / "out" / "w_segmentation",
        epochs=20,
        val_interval=10,
        fold=1,
        overrides={"num_workers": 0},
        progress=lambda epoch, dice: seen.append(epoch),
    )
    assert [epoch for epoch, _ in training.curve] == seen == [10, 20]
    found = training.evaluation
    assert len(found.cases) == len(found.dice) == len(found.hd95) == 2
    assert found.mean_dice == pytest.approx(max(dice for _, dice in training.curve), abs=1e-4)
    assert found.mean_dice > 0.7
    assert all(0 <= value < 58 for row in found.hd95 for value in row if value is not None)
    weights = torch.load(tmp_path / "out" / "w_segmentation" / "models" / "model.pt")
    rung = next(r for r in selection.table.ladder if r.max_features == width)
    first = weights["input_block.conv1.conv.weight"]
    assert first.shape[0] == rung.features_per_stage[0]


def test_train_width_refuses_a_width_that_is_not_in_the_ladder(selection, tmp_path) -> None:
    with pytest.raises(ValueError, match="width 7 is not in the ladder"):
        train_width(selection, 7, data=tmp_path, bundle_dir=tmp_path / "b", epochs=1)


EVALUATION = Evaluation(
    ("a", "b"), ((0.6, None), (0.8, 0.5)), ((3.0, None), (None, 2.0))
)  # fmt: skip
TRAINING = Training(8, 0, 1, 20, ((10, 0.5), (20, 0.7)), EVALUATION, 1.5)


def test_training_from_dict_gives_back_what_was_written() -> None:
    content = json.loads(json.dumps({"set": "x", **asdict(TRAINING)}))
    assert training_from_dict(content) == TRAINING
