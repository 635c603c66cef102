from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image

from monai_xtiny.deploy.committee import Verdict
from monai_xtiny.deploy.contact_sheet import View, draw_contact_sheet, view_case

BLUE = np.array([31, 119, 180]) / 255  # the first color of tab10


def verdict_of(share: torch.Tensor, spacing: tuple[float, float, float]) -> Verdict:
    """Of an image that is a ramp along its first axis."""
    ramp = torch.arange(len(share), dtype=torch.float32)
    image = ramp.reshape(-1, *[1] * (share.ndim - 1)).expand(share.shape)[None]
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return Verdict(image, affine, torch.stack([1 - share, share]), torch.zeros(4))


def tiles_of(view: View) -> list[np.ndarray]:
    """Image, labels and uncertainty."""
    size = len(view.tiles)
    starts = (0, size + 4, 2 * size + 8)
    return [view.tiles[:, start : start + size] for start in starts]


def test_view_case_shows_image_labels_and_uncertainty_where_they_are() -> None:
    share = torch.zeros(40, 20)
    share[30:, :5] = 0.9  # right, above
    share[:10, 15:] = 0.5  # left, below: unsure, and background
    gray, painted, heat = tiles_of(view_case(verdict_of(share, (1, 1, 1)), "a"))
    # 40 wide and 20 high: half of the square is black.
    assert gray[:40].max() == gray[120:].max() == 0
    assert (np.diff(gray[80, ::4, 0]) >= 0).all()
    changed = np.abs(painted - gray).max(axis=2) > 0.05
    assert changed[41:59, 122:158].all() and not changed[61:].any() and not changed[:, :118].any()
    np.testing.assert_allclose(painted[50, 140], (gray[50, 140] + BLUE) / 2, atol=0.01)
    brightness = heat.sum(axis=2)
    assert brightness[110, 20] > brightness[50, 140] > brightness[80, 80]


def test_view_case_cuts_a_volume_where_it_is_least_certain_and_keeps_its_proportions() -> None:
    share = torch.zeros(10, 20, 6)
    share[:3, :3, 4] = 0.6  # right, behind
    gray, painted, _ = tiles_of(view_case(verdict_of(share, (4.0, 1.0, 5.0)), "a"))
    filled = gray.any(axis=(1, 2)).nonzero()[0]
    assert len(filled) == 80  # 40 mm wide, 20 mm high
    changed = np.abs(painted - gray).max(axis=2) > 0.05
    rows, columns = changed.nonzero()
    # In the image right is on the left, and front above: behind is below.
    assert rows.min() >= 160 - 40 - 13 and columns.min() >= 160 - 49
    heat = tiles_of(view_case(verdict_of(share, (1.0, 1.0, 1.0)), "a", slice_axis=0))[2]
    assert len(heat.any(axis=(1, 2)).nonzero()[0]) == round(160 * 6 / 20)


@pytest.mark.parametrize("codes", ["LPS", "PSR", "AIL"])
@pytest.mark.parametrize("slice_axis", [None, 0, 1])
def test_view_case_does_not_follow_the_orientation_of_the_file(codes, slice_axis, tmp_path) -> None:
    share = torch.rand(10, 20, 6, generator=torch.Generator().manual_seed(0))
    upright = verdict_of(share, (4.0, 1.0, 5.0))
    expected = view_case(upright, "a", slice_axis)

    def stored(part: torch.Tensor) -> MetaTensor:
        image = nibabel.Nifti1Image(part.numpy(), upright.affine.numpy())
        turns = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
        nibabel.save(image.as_reoriented(turns), tmp_path / "a.nii.gz")
        return LoadImage(image_only=True)(tmp_path / "a.nii.gz")[None]

    image, shares = stored(upright.image[0]), stored(share).as_tensor()
    verdict = Verdict(
        image.as_tensor(), image.affine, torch.cat([1 - shares, shares]), torch.zeros(4)
    )
    # The axis of the file along which that of the patient runs.
    axes = [axis for axis, _ in axcodes2ornt(codes)]
    axis = None if slice_axis is None else axes.index(slice_axis)
    np.testing.assert_allclose(view_case(verdict, "a", axis).tiles, expected.tiles, atol=1e-6)


def test_draw_contact_sheet_is_a_png_of_all_cases_whatever_their_names(tmp_path) -> None:
    share = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
    names = ["$x^{", "a" * 300, "<b>é", "4", "5"]
    views = [view_case(verdict_of(share, (1, 1, 1)), name) for name in names]
    heights = []
    for count in (1, 5):
        draw_contact_sheet(views[:count], ("background", "$cell"), tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as image:
            heights.append(image.height)
            assert (image.format, image.width) == ("PNG", 500 * min(count, 2))
    assert heights[1] - heights[0] == 2 * 184
