from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from monai_xtiny.bundled.measures import CaseMetric, Hausdorff95, SurfaceDice, Volume, length_unit


def one_hot(*masks: np.ndarray) -> torch.Tensor:
    """Background and masks, (C, *spatial)."""
    foreground = torch.tensor(np.stack(masks)).float()
    return torch.cat([1 - foreground.amax(dim=0, keepdim=True), foreground])


def measured(metric: CaseMetric, prediction: torch.Tensor, label: torch.Tensor, spacing=()) -> list:
    """What a metric gives for one case, as the engine hands it over."""
    affine = np.diag([*spacing, *[1.0] * (4 - len(spacing))])
    found = metric([MetaTensor(prediction, affine=affine)], [MetaTensor(label, affine=affine)])
    return found[0].tolist()


def blob(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A random mask of large parts, away from no border."""
    noise = np.random.default_rng(seed).random([edge // 3 + 1 for edge in shape]) > 0.55
    return np.kron(noise, np.ones([3] * len(shape)))[tuple(map(slice, shape))] > 0


def surface_2d(mask: np.ndarray, spacing: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Where the contour passes between four pixels, in mm, and its length there, by hand."""
    padded = np.pad(mask, 1)
    corner = math.hypot(spacing[0] / 2, spacing[1] / 2)
    places, lengths = [], []
    for i, j in itertools.product(*(range(edge - 1) for edge in padded.shape)):
        four = padded[i : i + 2, j : j + 2]
        count = four.sum()
        if count in (0, 4):
            continue
        if count == 2:
            is_row, is_column = four[0, 0] == four[0, 1], four[0, 0] == four[1, 0]
            length = spacing[1] if is_row else spacing[0] if is_column else 2 * corner
        else:
            length = corner
        places.append((i * spacing[0], j * spacing[1]))
        lengths.append(length)
    return np.array(places), np.array(lengths)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.0])
def test_surface_dice_equals_contours_drawn_by_hand(tolerance) -> None:
    spacing, (first, second) = (0.7, 1.5), (blob((24, 21), seed) for seed in (0, 1))
    found = measured(SurfaceDice(tolerance, "mm"), one_hot(first), one_hot(second), spacing)
    (places, lengths), (others, other_lengths) = (surface_2d(m, spacing) for m in (first, second))
    distances = cdist(places, others)
    near = lengths[distances.min(axis=1) <= tolerance].sum()
    near += other_lengths[distances.min(axis=0) <= tolerance].sum()
    expected = near / (lengths.sum() + other_lengths.sum())
    assert 0 < expected < 1
    assert found[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("spacing", [(0.7, 1.5), (1.0, 0.8, 3.0)], ids=["2D", "3D"])
def test_hausdorff95_equals_all_distances_between_edges(spacing) -> None:
    shape = (18, 15, 12)[: len(spacing)]
    masks = [blob(shape, seed) for seed in (2, 3)]
    found = measured(Hausdorff95("mm"), one_hot(masks[0]), one_hot(masks[1]), spacing)
    edges = [np.argwhere(mask & ~binary_erosion(mask)) * spacing for mask in masks]
    distances = cdist(*edges)
    expected = max(np.quantile(distances.min(axis=axis), 0.95) for axis in (0, 1))
    assert found[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("unit", "spacing", "size"),
    [("mm", (2.0, 0.5, 3.0), 3.0 / 1000), ("mm", (2.0, 0.5), 1.0), ("pixels", (2.0, 0.5), 1.0)],
    ids=["ml", "mm2", "pixels"],
)
def test_volume_is_the_voxels_times_the_size_of_one(unit, spacing, size) -> None:
    masks = [blob((9, 12, 6)[: len(spacing)], seed) for seed in (4, 5)]
    for of, mask in zip(("prediction", "label"), masks, strict=True):
        found = measured(Volume(of, unit), one_hot(masks[0]), one_hot(masks[1]), spacing)
        assert found == pytest.approx([mask.sum() * size])


def test_a_class_counts_where_the_label_has_it() -> None:
    empty = np.zeros((6, 6), dtype=bool)
    full = np.pad(np.ones((2, 3), dtype=bool), ((2, 2), (1, 2)))
    # Classes: in both, missed, false, in neither.
    label, prediction = one_hot(full, full, empty, empty), one_hot(full, empty, full, empty)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # MONAI warns of empty masks
        nsd = measured(SurfaceDice(1.0, "pixels"), prediction, label)
        distance = measured(Hausdorff95("pixels"), prediction, label)
    np.testing.assert_array_equal(nsd, [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(distance, [0, np.nan, np.nan, np.nan])
    area = float(full.sum())
    assert measured(Volume("prediction", "pixels"), prediction, label) == [area, 0, area, 0]
    assert measured(Volume("label", "pixels"), prediction, label) == [area, area, 0, 0]


def test_aggregate_gives_no_number_where_nothing_is_defined() -> None:
    metric, empty = Hausdorff95("pixels"), one_hot(np.zeros((4, 4), dtype=bool))
    measured(metric, empty, empty)
    assert math.isnan(metric.aggregate())
    full = one_hot(np.eye(4, dtype=bool))
    measured(metric, full, full)
    assert metric.aggregate() == 0


def test_case_metric_ignores_spacing_in_pixels_and_takes_lists_one_by_one() -> None:
    first, second = one_hot(blob((12, 12), 0)), one_hot(blob((12, 12), 1))
    alone = measured(Hausdorff95("pixels"), first, second)
    assert measured(Hausdorff95("pixels"), first, second, (5.0, 5.0)) == alone
    assert measured(Hausdorff95("mm"), first, second, (5.0, 5.0)) == pytest.approx([5 * alone[0]])
    both = Hausdorff95("pixels")([first, second], [second, first])
    assert both[:, 0].tolist() == [alone[0], alone[0]]


@pytest.mark.parametrize("tolerance", [-1, math.inf, math.nan, "2", True])
def test_surface_dice_refuses_what_is_no_tolerance(tolerance) -> None:
    with pytest.raises(ValueError, match=r"--nsd_tolerance is .*: give a number of mm"):
        SurfaceDice(tolerance, "mm")


def test_measures_refuse_unknown_words() -> None:
    with pytest.raises(ValueError, match="the unit of lengths is 'cm': give mm or pixels"):
        Hausdorff95("cm")
    with pytest.raises(ValueError, match="the volume of 'both': give prediction or label"):
        Volume("both", "mm")


def test_length_unit_is_mm_where_every_image_carries_a_spacing() -> None:
    assert length_unit([{"image": ["a.nii.gz", "b.NII"]}, {"image": "c.nii"}]) == "mm"
    assert length_unit([{"image": "a.nii.gz"}, {"image": "b.nii.png"}]) == "pixels"
    assert length_unit([]) == "pixels"
