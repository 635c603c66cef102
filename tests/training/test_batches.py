from __future__ import annotations

import multiprocessing

import pytest
import torch
from monai.bundle import ConfigParser
from torch.utils.data import Dataset

from monai_xtiny.training.batches import SharedBatches

# Of a batch of two images of 2 x 2, float32.
BATCH_BYTES = 32


class Noise(Dataset):
    """Another image at each call."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.num_calls += 1
        return {"image": torch.full((2, 2), float(self.num_calls))}


@pytest.fixture
def noise() -> Noise:
    return Noise()


def parsed(shared: SharedBatches, seed: int, dataset: Noise, workers: int = 0):
    """What a config with the shared batches in place of its data loader makes."""
    definition = {"_target_": "DataLoader", "dataset": "@data", "batch_size": 2}
    content = {
        "data": dataset,
        "loader": shared.dataloader(seed, {**definition, "num_workers": workers}),
    }
    return ConfigParser(content).get_parsed_content("loader")


def test_later_trainings_get_the_batches_of_the_first(noise) -> None:
    shared = SharedBatches(7)
    first = [batch["image"] for batch in parsed(shared, 0, noise)]
    assert [len(batch) for batch in first] == [2, 2, 1, 2, 2, 1, 2]  # a third pass begins
    calls = noise.num_calls
    for _ in range(2):
        later = [batch["image"] for batch in parsed(shared, 0, noise)]
        assert len(later) == 7 and all(map(torch.equal, first, later))
    assert noise.num_calls == calls
    others = [batch["image"] for batch in parsed(shared, 1, noise)]
    assert noise.num_calls > calls and not torch.equal(others[0], first[0])


def test_what_a_training_does_to_a_batch_is_not_kept(noise) -> None:
    shared = SharedBatches(3)
    for _ in range(2):
        for batch in parsed(shared, 0, noise):
            assert batch.keys() == {"image"}
            batch["pred"] = batch["image"]


def test_a_training_that_stops_early_leaves_nothing_behind(noise) -> None:
    shared = SharedBatches(3)
    batches = iter(parsed(shared, 0, noise))
    next(batches), next(batches)
    del batches
    assert len(list(parsed(shared, 0, noise))) == 3
    calls = noise.num_calls
    assert len(list(parsed(shared, 0, noise))) == 3 and noise.num_calls == calls


@pytest.mark.parametrize(
    ("num_kept", "loads"),
    [(7, [True, True, False, False]), (4, [True, True, False, True]), (2, [True] * 4)],
)
def test_batches_beyond_the_memory_are_loaded_each_time(noise, num_kept, loads) -> None:
    shared = SharedBatches(3, max_bytes=num_kept * BATCH_BYTES)
    for seed, is_loaded in zip([0, 1, 0, 1], loads, strict=True):
        calls = noise.num_calls
        assert len(list(parsed(shared, seed, noise))) == 3
        assert (noise.num_calls > calls) is is_loaded


def test_a_loader_without_cases_gives_nothing() -> None:
    loader = SharedBatches(3).dataloader(0, [])
    assert list(loader["_target_"](SharedBatches(3), 0, [])) == []


def test_batches_have_the_length_of_their_loader(noise) -> None:
    shared = SharedBatches(7)
    loader = parsed(shared, 0, noise)
    assert len(loader) == 3
    list(loader)
    assert len(parsed(shared, 0, noise)) == 3


def test_batches_that_are_no_dictionaries_are_loaded_each_time() -> None:
    shared = SharedBatches(2)
    for _ in range(2):
        loader = ConfigParser({"loader": shared.dataloader(0, [(1, 2), (3, 4)])})
        assert list(loader.get_parsed_content("loader")) == [(1, 2), (3, 4)]


@pytest.mark.slow
def test_workers_end_with_the_last_batch(noise) -> None:
    before = set(multiprocessing.active_children())
    shared = SharedBatches(4)
    batches = iter(parsed(shared, 0, noise, workers=2))
    seen = [next(batches) for _ in range(3)]
    assert len(set(multiprocessing.active_children()) - before) == 2
    seen.append(next(batches))  # and the generator is not asked again, as an engine does not
    assert len(seen) == 4 and set(multiprocessing.active_children()) <= before
    # Memory that is shared with workers is little, and each tensor in it an open file.
    later = list(parsed(shared, 0, noise))
    assert len(later) == 4 and not any(batch["image"].is_shared() for batch in later)
    assert any(batch["image"].is_shared() for batch in seen)
