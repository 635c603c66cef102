from __future__ import annotations

import numpy as np
from PIL import Image

from monai_xtiny.deploy.overlays import _planes, draw_overlay
from tests.conftest import write_nifti, write_png


def colors(path) -> set[tuple[int, int, int]]:
    """Colors of a drawing that are no gray."""
    with Image.open(path) as image:
        pixels = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    return {tuple(map(int, pixel)) for pixel in pixels if np.ptp(pixel.astype(int)) > 60}


def test_draw_overlay_colors_what_is_labeled_and_says_what_it_is(tmp_path) -> None:
    image = write_png(tmp_path / "a.png", (30, 20))
    labels = np.zeros((20, 30), np.uint8)
    draw_overlay(str(image), labels, ("background", "a $x"), "a", tmp_path / "none.png")
    labels[4:9, 10:20] = 1
    draw_overlay(str(image), labels, ("background", "a $x"), "a", tmp_path / "some.png")
    legend = colors(tmp_path / "none.png")
    assert (31, 119, 180) in legend  # the first color of tab10
    assert len(colors(tmp_path / "some.png")) > len(legend)


def test_planes_are_upright_with_the_right_on_the_left(tmp_path) -> None:
    # Voxels run to the left, back and down, 1 x 2 x 3 mm.
    affine = np.array([[-1.0, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, -3.0, 0], [0, 0, 0, 1]])
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    source = write_nifti(tmp_path / "v.nii.gz", affine=affine, values=values)
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[2, 3, 1] = 2  # left, behind
    (axial, image, label, height), coronal, sagittal = _planes(str(source), labels)
    assert axial == "axial 4/5" and height == 2
    assert image.shape == (4, 3) and label[3, 2] == 2 and label.sum() == 2
    assert np.array_equal(image, values[:, :, 1].T)
    assert coronal[3] == 3 and sagittal[3] == 1.5
    assert coronal[2].sum() == sagittal[2].sum() == 2
