from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from monai_xtiny.data.case import Case
from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.orientation import MIN_IMAGES, measure_orientation, shared_orientation


def bodies(count: int, *, noise: float = 1.0) -> list[torch.Tensor]:
    """Images with a bright part at one side, each in noise of its own; (1, 48, 32)."""
    generator = torch.Generator().manual_seed(0)
    body = torch.zeros(1, 48, 32)
    body[:, 4:20, 8:24] = 1
    return [body + noise * torch.randn(body.shape, generator=generator) for _ in range(count)]


def rotated(images: list[torch.Tensor]) -> list[torch.Tensor]:
    """Every other image rotated by 180 degrees."""
    return [image.flip(1, 2) if index % 2 else image for index, image in enumerate(images)]


def test_shared_orientation_tells_images_that_share_one() -> None:
    assert 0.5 < shared_orientation(bodies(20)) < 1.5
    assert -0.15 < shared_orientation(rotated(bodies(20))) < 0


def test_shared_orientation_of_noise_is_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(1, 40, 40, generator=generator) for _ in range(32)]
    assert abs(shared_orientation(noise)) < 0.02


def test_shared_orientation_looks_at_neither_brightness_nor_contrast_nor_size() -> None:
    images = bodies(6, noise=0.1)
    larger = [interpolate(image[None], scale_factor=2)[0] for image in images[1:]]
    found = shared_orientation([images[0] * 200 + 30, *larger])
    assert found == pytest.approx(shared_orientation(images), abs=1e-6)


def test_shared_orientation_counts_each_channel_alike() -> None:
    images = bodies(6)
    channels = [torch.cat([1000 * image + 1, image, 0.01 * image - 1]) for image in images]
    assert shared_orientation(channels) == pytest.approx(shared_orientation(images), abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 7.0, float("nan"), float("inf")], ids=str)
def test_an_image_without_content_is_like_no_other(value) -> None:
    images = bodies(4, noise=0)
    whole = shared_orientation(images)
    # Of the 20 pairs in which five images are, the empty one is in 8.
    found = shared_orientation([*images, torch.full((1, 48, 32), value)])
    assert found == pytest.approx(whole * 12 / 20)


def write_bodies(folder: Path, count: int, mode: str = "L") -> tuple[Case, ...]:
    """A folder of 2D images that share an orientation."""
    for index, image in enumerate(bodies(count, noise=0.2)):
        pixels = ((image[0].T + 1) * 80).clamp(0, 255).numpy().astype(np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{index:02d}.png")
    return find_cases(folder)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_measure_orientation_reads_images(tmp_path, mode) -> None:
    found = measure_orientation(write_bodies(tmp_path, MIN_IMAGES, mode))
    expected = shared_orientation(bodies(MIN_IMAGES, noise=0.2))
    assert found == pytest.approx(expected, abs=0.01)
    assert found == round(found, 4)


def test_measure_orientation_says_nothing_of_few_images() -> None:
    missing = [Case(f"{index}.png", (f"{index}.png",), "raster") for index in range(MIN_IMAGES - 1)]
    assert measure_orientation(missing) is None


def test_measure_orientation_names_a_broken_image(tmp_path) -> None:
    cases = write_bodies(tmp_path, MIN_IMAGES)
    broken = tmp_path / "07.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"07.png.*: repair the file or leave it out"):
        measure_orientation(cases)


@pytest.mark.parametrize("kind", ["pipe", "palette"])
def test_measure_orientation_opens_nothing_that_the_search_refuses(tmp_path, kind) -> None:
    cases = write_bodies(tmp_path, MIN_IMAGES)
    file = tmp_path / "07.png"
    if kind == "pipe":
        file.unlink()
        os.mkfifo(file)
    else:
        Image.open(file).convert("P").save(file)
    with pytest.raises(ValueError, match=r"07.png"):
        measure_orientation(cases)
