from __future__ import annotations

import json

import numpy as np
import pytest

from monai_xtiny.bundle.figures import Plane
from monai_xtiny.bundle.folder import CARD, EVALUATION, OVERLAY, Bundle
from monai_xtiny.bundle.measured import read_evaluation, write_evaluation
from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.bundle.writer import export_bundle

FOUND = Evaluation(("a", "b"), ((0.6,), (0.8,)), ((3.0,), (None,)))
PLANES = [Plane(name, *(np.eye(4) for _ in range(3))) for name in FOUND.cases]


@pytest.fixture
def bundle(tmp_path, selection) -> Bundle:
    return Bundle.open(export_bundle(selection, tmp_path / "x_segmentation"))


def test_write_evaluation_is_read_back_and_changes_the_measured_parts_alone(bundle) -> None:
    path = bundle.path(CARD)
    path.write_text(path.read_text().replace("The owners of this bundle.", "We did."))
    assert write_evaluation(bundle, FOUND, PLANES) == path
    assert read_evaluation(bundle) == FOUND
    card = path.read_text()
    assert "| class 1 | 0.7000 | 3.00 |" in card and "We did." in card
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
