from __future__ import annotations

import threading

import pytest
import torch

from monai_xtiny.system.threads import side_by_side


@pytest.fixture
def two_threads():
    """Two cores, whatever the machine and the environment say."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_side_by_side_keeps_the_order_and_gives_each_worker_its_cores(two_threads) -> None:
    meeting = threading.Barrier(2, timeout=30)  # passed by two workers at once, or not at all

    def work(item: int) -> tuple[int, int]:
        meeting.wait()
        return item, torch.get_num_threads()

    assert list(side_by_side(work, [3, 1, 2, 0], 2)) == [(3, 1), (1, 1), (2, 1), (0, 1)]
    assert torch.get_num_threads() == 2


def test_side_by_side_leaves_one_worker_all_cores(two_threads) -> None:
    assert list(side_by_side(lambda item: torch.get_num_threads(), [0, 1], 1)) == [2, 2]
    assert list(side_by_side(lambda item: torch.get_num_threads(), [0], 2)) == [2]


def test_side_by_side_raises_the_first_error_in_the_order_of_the_items(two_threads) -> None:
    done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            done.wait(30)  # fails last
        else:
            done.set()
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(side_by_side(work, [0, 1, 2, 3], 2))
    assert torch.get_num_threads() == 2


def test_side_by_side_gives_each_worker_the_threads_asked_for(two_threads) -> None:
    found = side_by_side(lambda item: torch.get_num_threads(), [0, 1], 1, threads_each=1)
    assert list(found) == [1, 1]
    assert torch.get_num_threads() == 2
