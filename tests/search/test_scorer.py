from __future__ import annotations

import pytest
import torch

from monai_xtiny.data.case import Sample
from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.sensitivity import jacobian_sensitivity
from monai_xtiny.search.scorer import Scorer, describe_environment
from tests.conftest import texture

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 16, 8, 4, 2, 1])
@pytest.mark.parametrize(
    ("size", "num_stages", "worst", "middle"),
    # A rounding on the other side of a LeakyReLU's kink changes an image's gradient by 2e-3.
    [((256, 256), 7, 5e-3, 1e-3), ((24, 32, 24), 4, 2e-4, 5e-5)],
    ids=["picture", "volume"],
)
def test_scorer_is_near_float64_as_the_plain_loop_is(
    size, num_stages, worst, middle, width
) -> None:
    dims = len(size)
    strides = ((1,) * dims, *((2,) * dims,) * (num_stages - 1))
    features = (32, 64, 128, 256, 512, 512, 512)[:num_stages]
    plan = UNetPlan(dims, 1, 2, (1,) * dims, size, ((3,) * dims,) * num_stages, strides, features)
    pixels = [torch.from_numpy(texture(size, seed)).float() for seed in range(4)]
    images = tuple(((image - image.mean()) / image.std())[None] for image in pixels)
    sample = Sample(("a.png", "b.png", "c.png", "d.png"), images)
    found = torch.tensor(Scorer(sample, plan, (1,), CPU, align=False).score(width, 1).sensitivity)
    network = build_network(plan, width, seed=1)
    plain = torch.cat([jacobian_sensitivity(network, image[None]) for image in images])
    exact = torch.cat(
        [jacobian_sensitivity(network.double(), image[None].double()) for image in images]
    )
    for errors in ((values / exact - 1).abs() for values in (found, plain)):
        assert errors.max() < worst
        assert errors.median() < middle
    assert float(found.mean() / exact.mean()) == pytest.approx(1, abs=2 * middle)


def _scorer(
    size: tuple[int, ...], num_images: int, *, num_wide_images: int | None = None
) -> Scorer:
    dims = len(size)
    strides = ((1,) * dims, *((2,) * dims,) * 2)
    plan = UNetPlan(dims, 1, 2, (1,) * dims, size, ((3,) * dims,) * 3, strides, (16, 32, 64))
    names = tuple(f"{index}.png" for index in range(num_images))
    images = tuple(
        torch.from_numpy(texture(size, seed)).float()[None] for seed in range(num_images)
    )
    sample = Sample(names, images)
    return Scorer(sample, plan, (1,), CPU, align=True, num_wide_images=num_wide_images)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((256, 256), {64: 1, 32: 1, 16: 1, 8: 2, 4: 4, 2: 6, 1: 6}),
        ((40, 56), {64: 6, 32: 6, 16: 6, 8: 6, 4: 6, 2: 6, 1: 6}),
        ((64, 64, 64), {64: 1, 32: 1, 16: 1, 8: 1, 4: 2, 2: 4, 1: 6}),
    ],
    ids=["picture", "small_picture", "volume"],
)
def test_scorer_takes_as_many_images_at_a_time_as_cost_least(size, sizes) -> None:
    assert _scorer(size, 6)._sizes == sizes


def test_scorer_on_cuda_takes_larger_batches(monkeypatch) -> None:
    monkeypatch.setattr("monai_xtiny.search.memory.free_memory_gb", lambda device: 80.0)
    cpu = _scorer((512, 512), 16)
    cuda = Scorer(cpu.sample, cpu.plan, (1,), torch.device("cuda"), align=True)
    assert cuda._sizes == {64: 8, 32: 8, 16: 8, 8: 16, 4: 16, 2: 16, 1: 16}


@pytest.mark.search
def test_scorer_gives_packed_pictures_the_scores_of_each_alone() -> None:
    scorer = _scorer((128, 128), 3)
    assert scorer.is_packed
    packed = scorer.score(4, 1)
    scorer.is_packed = False
    alone = scorer._score(4, 1, 1)
    assert packed.sensitivity == pytest.approx(alone.sensitivity, rel=2e-3)
    assert packed.alignment == pytest.approx(alone.alignment, abs=1e-4)


@pytest.mark.search
def test_scorer_names_the_one_packed_picture_that_is_not_finite() -> None:
    scorer = _scorer((128, 128), 3)
    assert scorer.is_packed
    scorer.sample.images[1][0, 5, 5] = float("nan")
    with pytest.raises(ValueError, match=r"the sensitivity is not finite on 1\.png: check"):
        scorer.score(4, 1)


@pytest.mark.parametrize("name", ["torch", "monai", "numpy", "scipy", "monai_xtiny"])
def test_subject_of_a_search_has_the_versions_that_scores_depend_on(
    plan_2d, sample_2d, name
) -> None:
    subject = Scorer(sample_2d, plan_2d, (1,), CPU, align=False).subject()
    assert subject[f"version of {name}"] == describe_environment(CPU)[name]


def test_subject_of_a_search_changes_with_the_batches(plan_2d, sample_2d, monkeypatch) -> None:
    first = Scorer(sample_2d, plan_2d, (1,), CPU, align=False).subject()
    monkeypatch.setattr("monai_xtiny.search.scorer.NARROW_BATCH_VALUES", 1)
    second = Scorer(sample_2d, plan_2d, (1,), CPU, align=False).subject()
    assert {name for name in first if first[name] != second[name]} == {"batch sizes"}


def test_scorer_takes_the_first_images_for_widths_that_are_not_aligned() -> None:
    few = _scorer((40, 56), 6, num_wide_images=2)
    numbers = {width: few.num_images(width) for width in few._sizes}
    assert numbers == {64: 2, 32: 2, 16: 6, 8: 6, 4: 6, 2: 6, 1: 6}
    assert few._sizes == numbers
    for number in (None, 6, 9):
        assert _scorer((40, 56), 6, num_wide_images=number).num_images(64) == 6


@pytest.mark.search
@pytest.mark.parametrize(
    ("size", "tolerance"), [((128, 128), 0), ((40, 56), 1e-5)], ids=["packed", "batches"]
)
def test_scorer_gives_the_first_images_the_scores_that_they_have_among_all(size, tolerance) -> None:
    among_all, few = _scorer(size, 4), _scorer(size, 4, num_wide_images=2)
    expected = among_all.score(64, 1).sensitivity[:2]
    assert few.score(64, 1).sensitivity == pytest.approx(expected, rel=tolerance, abs=0)
    assert few.score(16, 1) == among_all.score(16, 1)


def test_subject_of_a_search_changes_with_the_images_of_wide_widths() -> None:
    subjects = [
        _scorer((128, 128), 4, num_wide_images=number).subject() for number in (None, 4, 2, 1)
    ]
    assert subjects[0] == subjects[1]
    for subject, number in zip(subjects[2:], ("2", "1"), strict=True):
        changed = {name for name in subject if subject[name] != subjects[0][name]}
        assert changed == {"images of wide widths"}
        assert subject["images of wide widths"] == number
