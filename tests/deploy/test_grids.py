"""What `inference.json` does with a volume, in NumPy: compared with MONAI's own transforms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, Invertd, Orientationd, Spacingd

from monai_xtiny.deploy.grids import to_grid
from tests.conftest import texture

COSINE, SINE = np.cos(0.3), np.sin(0.3)
ROTATED = np.array([[COSINE, -SINE, 0, 5], [SINE, COSINE, 0, 2], [0, 0, 1, 0], [0, 0, 0, 1]])
ROTATED = ROTATED @ np.diag([1.1, 0.8, 1.3, 1.0])
SHEARED = np.array([[1.1, 0.3, 0, 0], [0, 1.0, 0, 4], [0, 0, 0.7, 0], [0, 0, 0, 1]])
AFFINES = {
    "same": np.diag([1.0, 1.0, 2.0, 1.0]),
    "finer": np.diag([0.6, 0.8, 0.9, 1.0]),
    "coarser": np.diag([1.9, 3.0, 2.7, 1.0]),
    "turned": np.array([[0, -1.2, 0, 9], [0, 0, 1.0, -4], [-1.5, 0, 0, 3], [0, 0, 0, 1]]),
    "rotated": ROTATED,
    "sheared": SHEARED,
}
SPACINGS = {"all": (1.0, 1.0, 2.0), "slices": (1.0, 1.0, -1.0)}


def volume() -> np.ndarray:
    """Two channels with a border of zeros on some sides."""
    field = texture((19, 23, 17), 3).astype(np.float32) + 1
    image = np.stack([field, 300 - field])
    image[:, :2], image[:, :, -3:], image[..., :1] = 0, 0, 0
    return image


def steps(spacing: tuple[float, ...]) -> Compose:
    """The transforms of inference.json."""
    content = {"source_key": "image", "select_fn": lambda image: image != 0}
    return Compose(
        [
            Orientationd("image", axcodes="RAS", labels=None),
            CropForegroundd(
                "image", **content, allow_smaller=True, start_coord_key=None, end_coord_key=None
            ),
            Spacingd("image", pixdim=spacing, mode="bilinear"),
        ]
    )


def cut(logits: np.ndarray, planes: int) -> Iterator[np.ndarray]:
    """Logits in slabs."""
    for at in range(0, logits.shape[1], planes):
        yield logits[:, at : at + planes]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", AFFINES)
def test_to_grid_and_restore_are_monais(name, spacing) -> None:
    image, affine = volume(), AFFINES[name]
    transform = steps(SPACINGS[spacing])
    expected = transform({"image": MetaTensor(torch.from_numpy(image.copy()), affine=affine)})
    found, placement = to_grid(image, affine, SPACINGS[spacing])
    assert found.flags.c_contiguous and not np.shares_memory(found, image)
    np.testing.assert_allclose(found, expected["image"].numpy(), atol=2e-3)

    generator = np.random.default_rng(0)
    logits = generator.standard_normal((3, *found.shape[1:])).astype(np.float32)
    expected["pred"] = MetaTensor(torch.from_numpy(logits))
    inverted = Invertd("pred", transform, "image", nearest_interp=False)(expected)["pred"].numpy()
    for planes in (1, 4, 99):
        restored = np.zeros((3, *image.shape[1:]), np.float32)
        view, at = placement.view(restored), 0
        for slab in placement.restore(cut(logits, planes)):
            view[:, at : at + slab.shape[1]] = slab
            at += slab.shape[1]
        assert at == view.shape[1]
        np.testing.assert_allclose(restored, inverted, atol=2e-5)


def test_to_grid_crops_2d_images_alone() -> None:
    image = np.ones((1, 9, 7), np.float32)
    image[:, :3], image[..., -1:] = 0, 0
    found, placement = to_grid(image, np.diag([-2.0, 3.0, 1.0, 1.0]), None)
    assert found.shape == (1, 6, 6)
    whole = np.zeros((1, 9, 7))
    placement.view(whole)[:] = 1
    assert np.array_equal(whole, image)
