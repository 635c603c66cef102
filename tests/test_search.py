from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from monai_xtiny import search
from monai_xtiny.data import Sample
from monai_xtiny.networks import build_network, network_cost, width_ladder
from monai_xtiny.search import run_search, select_device, table_from_dict, table_to_dict
from monai_xtiny.sensitivity import jacobian_sensitivity


@pytest.fixture
def small(plan_2d):
    """A ladder of six widths."""
    return replace(plan_2d, features_per_stage=(32, 32, 32, 32))


def test_run_search_scores_each_width_seed_and_image_as_the_plain_loop(small, sample_2d) -> None:
    table = run_search(sample_2d, small, seeds=(369, 4), progress=False)
    assert table.widths == width_ladder(small)
    assert table.images == sample_2d.names
    for rung in table.ladder:
        for row, seed in zip(rung.sensitivity, table.seeds, strict=True):
            network = build_network(small, rung.max_features, seed=seed)
            alone = [
                float(jacobian_sensitivity(network, image[None])) for image in sample_2d.images
            ]
            assert row == pytest.approx(alone, rel=1e-5)


def test_run_search_scores_the_same_in_batches_and_one_by_one(
    small, sample_2d, monkeypatch
) -> None:
    batched = run_search(sample_2d, small, progress=False)
    monkeypatch.setattr(search, "BATCH_VOXELS", 1)
    alone = run_search(sample_2d, small, progress=False)
    for first, second in zip(batched.ladder, alone.ladder, strict=True):
        assert first.sensitivity[0] == pytest.approx(second.sensitivity[0], rel=1e-5)


def test_run_search_repeats_bit_for_bit_and_leaves_the_generator(small, sample_2d) -> None:
    before = torch.get_rng_state()
    first = run_search(sample_2d, small, progress=False)
    second = run_search(sample_2d, small, progress=False)
    assert first.ladder == second.ladder
    assert torch.equal(torch.get_rng_state(), before)


def test_run_search_of_3d_states_costs(plan_3d) -> None:
    images = tuple(torch.randn(2, *plan_3d.patch_size) for _ in range(2))
    table = run_search(Sample(("a", "b"), images), plan_3d, progress=False)
    for rung in table.ladder:
        cost = network_cost(plan_3d, rung.max_features)
        assert (rung.num_parameters, rung.gmacs) == (cost.num_parameters, cost.gmacs)


def test_table_survives_json(small, sample_2d) -> None:
    table = run_search(sample_2d, small, progress=False)
    assert table_from_dict(json.loads(json.dumps(table_to_dict(table)))) == table


@pytest.mark.parametrize("field", ["plan", "ladder", "seeds", "images", "seconds"])
def test_table_from_dict_names_the_missing_field(small, sample_2d, field) -> None:
    content = table_to_dict(run_search(sample_2d, small, progress=False))
    del content[field]
    with pytest.raises(ValueError, match=field):
        table_from_dict(content)


def test_run_search_refuses_a_short_ladder(small, sample_2d) -> None:
    plan = replace(small, features_per_stage=(8, 8, 8, 8))
    with pytest.raises(ValueError, match="the ladder 8, 4, 2, 1 has 4 widths"):
        run_search(sample_2d, plan, progress=False)


def test_run_search_refuses_no_images(plan_2d) -> None:
    with pytest.raises(ValueError, match="0 images and 1 seeds"):
        run_search(Sample((), ()), plan_2d)


def test_run_search_refuses_images_of_another_shape(plan_2d) -> None:
    with pytest.raises(ValueError, match=r"a.png: shape \(1, 8, 8\) after the transforms"):
        run_search(Sample(("a.png",), (torch.zeros(1, 8, 8),)), plan_2d)


def test_run_search_names_width_seed_and_image_of_a_non_finite_score(small, sample_2d) -> None:
    bad = sample_2d.images[1].clone()
    bad[0, 0, 0] = float("inf")
    sample = replace(sample_2d, images=(sample_2d.images[0], bad, sample_2d.images[2]))
    with pytest.raises(ValueError, match="width 32, seed 369: .* not finite on b.png"):
        run_search(sample, small, progress=False)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "$import os", ""])
def test_select_device_refuses(name) -> None:
    with pytest.raises(ValueError, match="unknown or not available"):
        select_device(name)


def test_select_device_auto_takes_what_there_is() -> None:
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_table_from_dict_refuses_missing_scores(small, sample_2d) -> None:
    content = table_to_dict(run_search(sample_2d, small, progress=False))
    content["ladder"][2]["sensitivity"] = [[1.0]]
    with pytest.raises(ValueError, match="width 8 lacks scores: expected 1 seeds of 3 images"):
        table_from_dict(content)
