from __future__ import annotations

import time

import pytest
from monai.data import CacheDataset

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.training.labeled import data_options
from monai_xtiny.training.pace import VALIDATION_SHARE, Pace, measure_pace
from tests.exports import exported
from tests.training.test_verify import contents, labeled

__all__ = ["labeled"]


@pytest.mark.parametrize("pace", [Pace(10, 2, 5), Pace(0, 0.1, 30), Pace(3, 5, 0)])
@pytest.mark.parametrize("seconds", [20, 300, 5000])
def test_as_many_epochs_as_fit_end_in_time(pace, seconds) -> None:
    def lasts(epochs: int) -> float:
        return pace.start + epochs * pace.epoch + epochs / pace.interval * pace.validation

    count = pace.epochs_within(seconds)
    assert count == 0 or lasts(count) <= seconds + 1e-6
    assert lasts(count + 1) > seconds
    assert pace.validation / pace.interval <= VALIDATION_SHARE * pace.epoch


def test_nothing_fits_less_than_the_preparation() -> None:
    assert Pace(10, 2, 5).epochs_within(9) == 0


@pytest.mark.slow
def test_measure_pace_trains_a_copy(selection, labeled, tmp_path, monkeypatch) -> None:
    fill = CacheDataset._fill_cache

    def slowly(dataset: CacheDataset, *indices: object) -> object:
        time.sleep(2)
        return fill(dataset, *indices)

    monkeypatch.setattr(CacheDataset, "_fill_cache", slowly)
    bundle = Bundle.open(exported(selection, tmp_path / "x_segmentation"))
    before = contents(bundle.root)
    pace = measure_pace(bundle, {**data_options(labeled, None), "num_workers": 0})
    assert contents(bundle.root) == before
    assert 0 < pace.epoch < 60 and 0 < pace.validation < 60
    assert pace.start > 2  # filling the cache is a part of it
