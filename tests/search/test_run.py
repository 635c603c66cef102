from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from monai_xtiny.data.case import Sample
from monai_xtiny.networks.cost import network_cost
from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.networks.ladder import width_ladder
from monai_xtiny.scores.sensitivity import jacobian_sensitivity
from monai_xtiny.scores.table import table_from_dict, table_to_dict
from monai_xtiny.search import scorer as scoring
from monai_xtiny.search.run import run_search
from monai_xtiny.search.workers import unit_costs
from monai_xtiny.selection.choice import select_width
from monai_xtiny.selection.rules import refinement

pytestmark = pytest.mark.search


@pytest.fixture
def small(plan_2d):
    """A ladder of six widths."""
    return replace(plan_2d, features_per_stage=(32, 32, 32, 32))


def test_run_search_scores_each_width_seed_and_image_as_the_plain_loop(small, sample_2d) -> None:
    table = run_search(sample_2d, small, seeds=(369, 4), device="cpu", progress=False)
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
    monkeypatch.setattr(scoring, "BATCH_VOXELS", 1)
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


def test_default_search_of_an_anisotropic_3d_plan_chooses_with_a_confidence(plan_3d) -> None:
    features = (32, 64, 128, 256, 320)
    plan = replace(
        plan_3d, patch_size=(16, 16, 8), kernel_size=((3, 3, 1), *((3, 3, 3),) * 4),
        strides=((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)),
        features_per_stage=features,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    fields = gaussian_filter(rng.standard_normal((3, 2, *plan.patch_size)), (0, 0, 4, 4, 1))
    images = tuple(torch.from_numpy(field / field.std()).float() for field in fields)
    refine = refinement("alignment", unit_cost=unit_costs(plan).__getitem__)
    table = run_search(
        Sample(("a", "b", "c"), images), plan, align=True, refine=refine, progress=False
    )
    aligned = {rung.max_features: rung.alignment for rung in table.ladder if rung.alignment}
    assert table.widths == (320, 160, 80, 40, 20, 10, 5, 2, 1)
    assert list(aligned) == [40, 20, 10, 5, 2, 1]
    assert len(aligned[1]) >= len(aligned[40]) > 1
    selection = select_width(table, "alignment")
    assert selection.max_features in aligned
    assert selection.confidence == pytest.approx(selection.votes[selection.max_features])


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


def test_run_search_goes_on_from_its_journal_and_ends_with_the_same_scores(
    small, sample_2d, tmp_path, monkeypatch
) -> None:
    whole = run_search(sample_2d, small, seeds=(1, 2), align=True, progress=False)
    path = tmp_path / "out" / "j.jsonl"
    score, scored = scoring.Scorer.score, []

    def dying(self, width, seed):
        if len(scored) == 5:
            raise KeyboardInterrupt
        scored.append((width, seed))
        return score(self, width, seed)

    monkeypatch.setattr(scoring.Scorer, "score", dying)
    with pytest.raises(KeyboardInterrupt):
        run_search(sample_2d, small, seeds=(1, 2), align=True, journal=path, progress=False)
    first, scored[:] = list(scored), []
    monkeypatch.setattr(scoring.Scorer, "score", lambda *unit: scored.append(unit) or score(*unit))
    resumed = run_search(sample_2d, small, seeds=(1, 2), align=True, journal=path, progress=False)
    assert resumed.ladder == whole.ladder
    assert not set(first) & {unit[1:] for unit in scored}
    assert len(first) + len(scored) == 2 * len(whole.widths)


def test_run_search_takes_fewer_images_for_widths_that_are_not_aligned(
    plan_2d, sample_2d, tmp_path
) -> None:
    refine = refinement("alignment", unit_cost=unit_costs(plan_2d).__getitem__)
    options = {"align": True, "refine": refine, "progress": False}
    full = run_search(sample_2d, plan_2d, **options)
    table = run_search(sample_2d, plan_2d, num_wide_images=2, **options)
    for rung, whole in zip(table.ladder, full.ladder, strict=True):
        if rung.max_features <= 32:
            assert rung == whole
        else:
            (row,), (expected,) = rung.sensitivity, whole.sensitivity
            assert row == pytest.approx(expected[:2], rel=1e-5)
    assert table.num_compared == 2
    assert (table.images, table.alignment_seeds) == (full.images, full.alignment_seeds)
    chosen, expected = (select_width(item, "alignment") for item in (table, full))
    assert replace(chosen, table=full) == expected
    assert table_from_dict(json.loads(json.dumps(table_to_dict(table)))) == table
    once = {"align": True, "progress": False}
    whole = run_search(sample_2d, plan_2d, **once)
    for number in (3, 8, None):
        assert run_search(sample_2d, plan_2d, num_wide_images=number, **once).ladder == whole.ladder


@pytest.mark.parametrize(
    ("number", "align", "message"),
    [(0, True, "num_wide_images is 0: give at least 1"), (2, False, "without align every width")],
)
def test_run_search_refuses_numbers_of_wide_images(
    small, sample_2d, number, align, message
) -> None:
    with pytest.raises(ValueError, match=message):
        run_search(sample_2d, small, num_wide_images=number, align=align, progress=False)


def test_run_search_refuses_the_journal_of_a_search_on_other_images_at_wide_widths(
    plan_2d, sample_2d, tmp_path
) -> None:
    path = tmp_path / "j.jsonl"
    options = {"align": True, "journal": path, "progress": False}
    table = run_search(sample_2d, plan_2d, num_wide_images=1, **options)
    before = path.read_bytes()
    for number in (2, None):
        with pytest.raises(ValueError, match="j.jsonl.* differs in its images of wide widths"):
            run_search(sample_2d, plan_2d, num_wide_images=number, **options)
    assert path.read_bytes() == before
    assert run_search(sample_2d, plan_2d, num_wide_images=1, **options).ladder == table.ladder
    assert path.read_bytes() == before


@pytest.mark.parametrize("changed", ["images", "plan", "seeds", "alignment"])
def test_run_search_refuses_the_journal_of_another_search(
    small, sample_2d, tmp_path, changed
) -> None:
    path = tmp_path / "j.jsonl"
    run_search(sample_2d, small, journal=path, progress=False)
    before = path.read_bytes()
    options = {"seeds": (370,)} if "seeds" in changed else {"align": changed == "alignment"}
    sample = sample_2d
    if changed == "images":
        sample = replace(sample, images=(*sample.images[:2], sample.images[2] + 1e-6))
    plan = replace(small, out_channels=3) if changed == "plan" else small
    with pytest.raises(ValueError, match=f"j.jsonl.* differs in its {changed}"):
        run_search(sample, plan, journal=path, progress=False, **options)
    assert path.read_bytes() == before


def test_run_search_leaves_no_journal_where_the_input_is_bad(small, sample_2d, tmp_path) -> None:
    bad = sample_2d.images[1].clone()
    bad[0, 0, 0] = float("nan")
    sample = replace(sample_2d, images=(sample_2d.images[0], bad, sample_2d.images[2]))
    with pytest.raises(ValueError, match="not finite on b.png"):
        run_search(sample, small, journal=tmp_path / "new" / "j.jsonl", progress=False)
    assert not list(tmp_path.iterdir())


def test_run_search_aligns_as_many_initializations_as_refine_asks_for(small, sample_2d) -> None:
    asked = []

    def refine(table):
        asked.append({rung.max_features: len(rung.alignment) for rung in table.ladder})
        return {1: 7, 8: 2} if len(asked) == 1 else {}

    table = run_search(sample_2d, small, seeds=(5,), refine=refine, align=True, progress=False)
    rows = {rung.max_features: len(rung.alignment) for rung in table.ladder}
    assert rows == {32: 1, 16: 1, 8: 2, 4: 1, 2: 1, 1: 7}
    assert asked[1] == rows
    assert (table.seeds, table.alignment_seeds) == ((5,), tuple(range(5, 12)))
    each = run_search(
        sample_2d, small, seeds=table.alignment_seeds, align=True, progress=False
    )  # fmt: skip
    for rung, full in zip(table.ladder, each.ladder, strict=True):
        assert len(full.sensitivity) == len(full.alignment) == 7
        assert rung.sensitivity == full.sensitivity[:1]
        assert rung.alignment == full.alignment[: len(rung.alignment)]
    assert table_from_dict(json.loads(json.dumps(table_to_dict(table)))) == table


def test_run_search_aligns_widths_up_to_the_features_at_full_resolution(plan_2d, sample_2d) -> None:
    table = run_search(sample_2d, plan_2d, align=True, progress=False)
    assert [rung.max_features for rung in table.ladder if rung.alignment] == [32, 16, 8, 4, 2, 1]
    assert all(0 <= value <= 1 for rung in table.ladder for row in rung.alignment for value in row)
    means = [sum(rung.alignment[0]) for rung in table.ladder if rung.alignment]
    assert means[0] > means[-1]
