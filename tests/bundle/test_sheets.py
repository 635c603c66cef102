from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from monai_xtiny.bundle.figures import Plane
from monai_xtiny.bundle.sheets import is_sheet_of, write_panels, write_thumbnails
from tests.conftest import write_png


def plane(value: int) -> Plane:
    """An image of two grays, half of it labeled, none of it found."""
    image = np.array([[0, value], [0, value]])
    return Plane(str(value), image, (image > 0).astype(int), np.zeros((2, 2), int))


def test_write_panels_draws_the_best_the_median_and_the_worst(tmp_path) -> None:
    planes = [plane(0), plane(1), plane(2), plane(3)]
    path = write_panels(planes, [0.2, 0.9, float("nan"), 0.5], tmp_path / "panels.png")
    assert is_sheet_of(path, 3) and not is_sheet_of(path, 4)
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (768, 768, 3)
    # Of the best case: black and white; the label colors the white half, the prediction nothing.
    assert pixels[100, 10].tolist() == [0, 0, 0] and pixels[100, 200].tolist() == [255, 255, 255]
    label = pixels[100, 256 + 200]
    assert label[0] > label[2] and pixels[100, 512 + 200].tolist() == [255, 255, 255]
    assert not pixels[512:, :256].any()  # the worst is of one gray
    first = path.read_bytes()
    assert write_panels(planes, [0.2, 0.9, float("nan"), 0.5], path).read_bytes() == first


def test_write_thumbnails_shows_the_images_that_were_scored(searched_copy, searched) -> None:
    path = write_thumbnails(searched_copy, searched.parent / "images")
    assert is_sheet_of(path, 6)
    pixels = np.asarray(Image.open(path))
    expected = np.asarray(Image.open(searched.parent / "images" / "case0.png"), dtype=float)
    # 20 x 24 pixels become 107 x 128, from the least value to the largest.
    tile = pixels[10:117, :, 0]
    low, high = expected.min(), expected.max()
    shown = np.asarray(
        Image.fromarray(np.round(255 * (expected - low) / (high - low)).astype(np.uint8)).resize(
            (128, 107), Image.Resampling.NEAREST
        )
    )
    np.testing.assert_array_equal(tile, shown)
    assert not pixels[:10].any() and not pixels[117:128].any()


def test_write_thumbnails_refuses_other_images_and_leaves_nothing(searched_copy, tmp_path) -> None:
    write_png(tmp_path / "other" / "case0.png")
    with pytest.raises(ValueError, match="5 of the 6 images that were scored, 'case1.png'"):
        write_thumbnails(searched_copy, tmp_path / "other")
    assert not (searched_copy / "docs" / "thumbnails.png").exists()


def test_is_sheet_of_takes_no_other_file(tmp_path) -> None:
    fake = tmp_path / "panels.png"
    fake.write_text("<script>")
    assert not is_sheet_of(fake, 3) and not is_sheet_of(tmp_path / "none.png", 3)
    Image.new("RGB", (768, 768)).save(fake, format="JPEG")
    assert not is_sheet_of(fake, 3)
    Image.new("RGB", (10, 10)).save(fake)
    assert not is_sheet_of(fake, 3)
    shutil.rmtree(tmp_path)
    assert not is_sheet_of(fake, 0)
