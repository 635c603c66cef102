from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pytest
import torch

from monai_xtiny.data.case import Case
from monai_xtiny.data.loading import LoadOnced

CASES = tuple(Case(f"{i}.png", (f"{i}.png",), "raster") for i in range(4))
IMAGE_GB = 4 * 1000 / 1e9


class Reading:
    """Makes an image of 1000 float32 values of a case's name, and counts."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.read.append(data["image"][0])
        return {**data, "image": torch.full((1, 10, 100), float(data["image"][0][0]))}


def data_of(case: Case) -> dict[Hashable, Any]:
    return {"image": list(case.images), "name": case.name}


def test_load_onced_reads_kept_images_once() -> None:
    reading = Reading()
    loading = LoadOnced(reading, CASES)
    for case in CASES:
        loading.peek(data_of(case))
    made = [loading(data_of(case)) for case in CASES]
    assert reading.read == [case.name for case in CASES]
    assert [float(item["image"].mean()) for item in made] == [0, 1, 2, 3]
    assert [item["name"] for item in made] == [case.name for case in CASES]


def test_load_onced_keeps_only_the_images_that_are_wanted() -> None:
    reading = Reading()
    loading = LoadOnced(reading, CASES[:1])
    for case in CASES:
        loading.peek(data_of(case))
    assert loading.num_bytes == 4000
    for case in CASES:
        loading(data_of(case))
    assert reading.read == [case.name for case in (*CASES, *CASES[1:])]


@pytest.mark.parametrize("max_gb, count", [(0, 0), (0.9, 0), (1, 1), (2.5, 2), (4, 4)])
def test_load_onced_reads_again_what_does_not_fit(max_gb, count) -> None:
    reading = Reading()
    loading = LoadOnced(reading, CASES, max_gb=max_gb * IMAGE_GB)
    for case in CASES:
        loading.peek(data_of(case))
        assert loading.num_bytes <= max_gb * 4000
    assert loading.num_bytes == count * 4000
    for case in CASES:
        loading(data_of(case))
    assert len(reading.read) == 8 - count


def test_load_onced_gives_its_memory_back() -> None:
    loading = LoadOnced(Reading(), CASES)
    loading.peek(data_of(CASES[0]))
    loading(data_of(CASES[0]))
    assert loading.num_bytes == 0


def test_load_onced_survives_writing_into_what_a_call_gave() -> None:
    # NormalizeIntensityd with channel_wise writes into its image.
    loading = LoadOnced(Reading(), CASES)
    loading.peek(data_of(CASES[1]))
    loading.peek(data_of(CASES[1]))["image"] = None
    for _ in range(2):
        image = loading(data_of(CASES[1]))["image"]
        assert torch.equal(image, torch.ones(1, 10, 100))
        image.zero_()


def test_load_onced_refuses_negative_memory() -> None:
    with pytest.raises(ValueError, match="max_gb is -1"):
        LoadOnced(Reading(), max_gb=-1)
