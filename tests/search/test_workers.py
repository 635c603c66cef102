from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monai_xtiny.data.case import Sample
from monai_xtiny.networks.ladder import width_ladder
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.search import workers as scheduling
from monai_xtiny.search.scorer import Scorer
from monai_xtiny.search.workers import score_side_by_side, share_out, unit_costs
from monai_xtiny.system.threads import side_by_side
from tests.conftest import texture


@pytest.fixture
def two_threads():
    """Two cores, whatever the machine and the environment say."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(plan_2d):
    """A ladder of six widths."""
    return replace(plan_2d, features_per_stage=(32, 32, 32, 32))


@pytest.mark.search
def test_scores_do_not_depend_on_the_number_of_cores(small, sample_2d, two_threads) -> None:
    units = [(width, seed) for width in width_ladder(small) for seed in (1, 2)]

    def score() -> dict[tuple[int, int], object]:
        scorer = Scorer(sample_2d, small, (1, 2), torch.device("cpu"), align=True)
        return dict(score_side_by_side(scorer, units))

    both = score()
    torch.set_num_threads(1)
    assert both == score()


@pytest.mark.search
@pytest.mark.parametrize(
    ("size", "is_packed"),
    [
        ((128, 136), True), ((64, 256), True), ((64, 72), False), ((40, 56), False),
        ((24, 32, 24), False),
    ],
    ids=["packed", "packed oblong", "small", "smaller", "volume"],
)  # fmt: skip
def test_scores_do_not_depend_on_what_runs_beside_them(size, is_packed, two_threads) -> None:
    dims = len(size)
    strides = ((1,) * dims, *((2,) * dims,) * 3)
    features = (32, 64, 128, 128 if is_packed else 256)
    plan = UNetPlan(dims, 1, 2, (1,) * dims, size, ((3,) * dims,) * 4, strides, features)
    images = tuple(torch.from_numpy(texture(size, seed)).float()[None] for seed in range(3))
    scorer = Scorer(Sample(("a", "b", "c"), images), plan, (1, 2), torch.device("cpu"), align=True)
    assert scorer.is_packed == is_packed
    for width in (features[-1], 32, 16, 4, 1):
        units = [(width, 1), (width, 2)]
        torch.set_num_threads(2)
        both = dict(score_side_by_side(scorer, units))
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            alone = dict(score_side_by_side(scorer, units[1:]))
            assert alone[width, 2] == both[width, 2]


@pytest.mark.search
def test_networks_that_are_large_together_are_scored_one_by_one(
    small, sample_2d, two_threads, monkeypatch
) -> None:
    workers = []
    original = side_by_side

    def seen(work, items, num_workers, **options):
        workers.append(([width for width, _ in items], num_workers))
        return original(work, items, num_workers)

    monkeypatch.setattr(scheduling, "side_by_side", seen)
    scorer = Scorer(sample_2d, small, (1,), torch.device("cpu"), align=False)
    scorer.limit_gb = 1.5 * scorer.memory_gb(32)
    sizes = {32: scorer.memory_gb(32), 16: 0.01, 8: 0.01}
    monkeypatch.setattr(scorer, "memory_gb", sizes.get)
    list(score_side_by_side(scorer, [(32, 1), (16, 1), (8, 1)]))
    assert workers == [([32], 1), ([16, 8], 2)]


@pytest.mark.search
def test_a_network_that_ran_out_of_memory_beside_others_is_scored_alone(
    small, sample_2d, two_threads, monkeypatch
) -> None:
    score, tried = Scorer.score, []

    def short(self, width, seed):
        tried.append(width)
        if tried.count(16) == 1 and width == 16:
            raise MemoryError("no room")
        return score(self, width, seed)

    monkeypatch.setattr(Scorer, "score", short)
    scorer = Scorer(sample_2d, small, (1,), torch.device("cpu"), align=False)
    found = [unit for unit, _ in score_side_by_side(scorer, [(32, 1), (16, 1), (8, 1)])]
    assert found == [(32, 1), (8, 1), (16, 1)]
    assert tried.count(16) == 2


def test_share_out_balances_costs_and_gives_each_unit_once(plan_2d) -> None:
    units = [(width, seed) for width in width_ladder(plan_2d) for seed in range(12)]
    costs = unit_costs(plan_2d)
    shares = share_out(units, plan_2d, 3)
    assert sorted(unit for share in shares for unit in share) == sorted(units)
    loads = [sum(costs[width] for width, _ in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs.values())
    assert share_out(units, plan_2d, 1) == [sorted(units, key=lambda unit: -costs[unit[0]])]


def test_share_out_puts_a_width_of_fewer_images_behind_one_that_costs_more(plan_2d) -> None:
    units = [(width, 1) for width in width_ladder(plan_2d)]
    costs = unit_costs(plan_2d)
    few = {width: 1 if width > 32 else 8 for width, _ in units}
    (share,) = share_out(units, plan_2d, 1, num_images=few.__getitem__)
    assert share == sorted(units, key=lambda unit: -few[unit[0]] * costs[unit[0]])
    assert share[0] == (32, 1)


@pytest.mark.search
def test_networks_that_run_alone_are_scored_before_those_that_run_side_by_side(
    small, sample_2d, two_threads, monkeypatch
) -> None:
    workers = []

    def seen(work, items, num_workers, **options):
        workers.append(([width for width, _ in items], num_workers))
        return side_by_side(work, items, num_workers)

    monkeypatch.setattr(scheduling, "side_by_side", seen)
    scorer = Scorer(sample_2d, small, (1,), torch.device("cpu"), align=False)
    scorer.limit_gb = 1.0
    sizes = {32: 0.9, 16: 0.1, 8: 0.9, 4: 0.1}
    monkeypatch.setattr(scorer, "memory_gb", sizes.get)
    units = [(width, 1) for width in (16, 32, 4, 8)]
    found = [width for (width, _), _ in score_side_by_side(scorer, units)]
    assert workers == [([32, 8], 1), ([16, 4], 2)]
    assert found == [32, 8, 16, 4]
