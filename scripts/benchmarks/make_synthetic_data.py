"""Draw segmentation tasks whose difficulty is known by construction, in nnU-Net's layout.

usage: python scripts/benchmarks/make_synthetic_data.py --output ROOT
           [--tasks blobs,shapes4,...] [--cases 160]

Every task is a data set of 64 x 64 gray PNG files with labels. Five families, easy to hard:

blobs        smooth bright blobs on a dark, noisy ground (2 classes): a threshold nearly does it
lesions      faint smooth spots on slices of the MNI152 template (2 classes): real texture
vessels      thin branching curves among blobs of the same gray (2 classes): shape, not gray
shapes4      discs, squares and rings of one gray and one area (4 classes): shape at larger scale
textures2    a mosaic of textures of equal mean and variance; 2, 4, 8 and 12 classes: each needs
 .. 12       filters of its own
textures8in1 the images of textures8, of which one class is to be found (2 classes): the same
             pixels, another difficulty, which no statistic of images alone can see

The template is in nilearn (see scripts/make_demo_data.py). Nothing is downloaded; the draw is
seeded.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import nilearn
import numpy as np
from PIL import Image
from scipy import ndimage

SIZE = 64
Generator = np.random.Generator
Drawing = tuple[np.ndarray, np.ndarray]


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every pixel, (SIZE, SIZE) each."""
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(float)
    return rows, columns


def smooth_noise(rng: Generator, sigma: float) -> np.ndarray:
    """Gaussian noise of one correlation length, mean 0, variance 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def turned(rng: Generator, center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates around a center, turned by a random angle."""
    rows, columns = grid()
    angle = rng.uniform(0, 2 * np.pi)
    y, x = rows - center[0], columns - center[1]
    return y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)


def draw_blobs(rng: Generator) -> Drawing:
    """Bright ellipses on a dark ground."""
    label = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(rng.integers(3, 9)):
        y, x = turned(rng, rng.uniform(4, SIZE - 4, 2))
        radii = rng.uniform(3, 9, 2)
        label[(y / radii[0]) ** 2 + (x / radii[1]) ** 2 < 1] = 1
    image = 0.2 + rng.uniform(0.2, 0.5) * ndimage.gaussian_filter(label.astype(float), 0.8)
    return image + 0.05 * smooth_noise(rng, 12) + 0.03 * rng.standard_normal(label.shape), label


def load_template() -> np.ndarray:
    """T1 of the MNI152 template, (x, y, z), values 0 to 255."""
    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    path = folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj, dtype=float)


def draw_lesions(rng: Generator, template: np.ndarray) -> Drawing:
    """Faint spots inside a random patch of a random axial slice of the brain."""
    while True:
        corner = [rng.integers(20, size - 20 - SIZE) for size in template.shape[:2]]
        patch = template[
            corner[0] : corner[0] + SIZE, corner[1] : corner[1] + SIZE, rng.integers(50, 130)
        ]
        if (patch > 80).mean() > 0.6:
            break
    image = np.rot90(patch, rng.integers(4)) / 255
    label = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(rng.integers(1, 5)):
        y, x = turned(rng, rng.uniform(8, SIZE - 8, 2))
        radii = rng.uniform(3, 7, 2)
        label[((y / radii[0]) ** 2 + (x / radii[1]) ** 2 < 1) & (image > 0.3)] = 1
    bump = ndimage.gaussian_filter(label.astype(float), 1.0)
    return image + 0.12 * bump + 0.02 * rng.standard_normal(label.shape), label


def draw_vessels(rng: Generator) -> Drawing:
    """Thin curves to be found, blobs of the same gray to be left out."""
    label = np.zeros((SIZE, SIZE), bool)
    for _ in range(rng.integers(2, 5)):
        points = [(rng.uniform(0, SIZE, 2), rng.uniform(0, 2 * np.pi))]
        for _ in range(rng.integers(1, 3)):
            (y, x), angle = points[rng.integers(len(points))]
            for _ in range(rng.integers(25, 60)):
                angle += rng.normal(0, 0.18)
                y, x = y + np.sin(angle), x + np.cos(angle)
                if 0 <= y < SIZE and 0 <= x < SIZE:
                    label[int(y), int(x)] = True
                    points.append((np.array([y, x]), angle + rng.choice([-0.7, 0.7])))
    label = ndimage.binary_dilation(label, iterations=1)
    others = np.zeros_like(label)
    for _ in range(rng.integers(4, 9)):
        y, x = turned(rng, rng.uniform(0, SIZE, 2))
        others |= (y / rng.uniform(3, 6)) ** 2 + (x / rng.uniform(3, 6)) ** 2 < 1
    image = 0.3 + 0.25 * ndimage.gaussian_filter((label | others).astype(float), 0.7)
    noise = 0.06 * smooth_noise(rng, 6) + 0.07 * rng.standard_normal(label.shape)
    return image + noise, label.astype(np.uint8)


def draw_shapes(rng: Generator) -> Drawing:
    """Discs, squares and rings of one gray and one area."""
    label = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(20):
        center, area = rng.uniform(8, SIZE - 8, 2), rng.uniform(60, 140)
        y, x = turned(rng, center)
        radius = np.hypot(y, x)
        kind = int(rng.integers(1, 4))
        if kind == 1:
            mask = radius < np.sqrt(area / np.pi)
        elif kind == 2:
            mask = np.maximum(abs(y), abs(x)) < np.sqrt(area) / 2
        else:
            outer = np.sqrt(area / np.pi / 0.75)
            mask = (radius < outer) & (radius > outer / 2)
        if not label[ndimage.binary_dilation(radius < 9)].any():
            label[mask] = kind
    image = 0.3 + 0.3 * ndimage.gaussian_filter((label > 0).astype(float), 0.6)
    return image + 0.05 * smooth_noise(rng, 8) + 0.04 * rng.standard_normal(label.shape), label


def texture(rng: Generator, index: int) -> np.ndarray:
    """One of 12 textures that turn into themselves when turned; mean 0, variance 1.

    Three scales by four kinds: stripes, isotropic waves, bright dots, dark dots.
    """
    period = (3.0, 5.5, 10.0)[index % 3]
    kind = index // 3 % 4
    if kind == 0:
        y, x = turned(rng, rng.uniform(0, SIZE, 2))
        field = np.sin(2 * np.pi * y / period + 0.4 * smooth_noise(rng, 2 * period))
    elif kind == 1:
        field = smooth_noise(rng, period / 6) - smooth_noise(rng, period / 3)
    else:
        dots = (rng.random((SIZE, SIZE)) < 0.35 / period**1.5).astype(float)
        field = ndimage.gaussian_filter(dots, period / 6, mode="wrap")
        field = field if kind == 2 else -field
    return (field - field.mean()) / field.std()


def draw_textures(rng: Generator, classes: int) -> Drawing:
    """Regions of a Voronoi mosaic, each filled with the texture of its class."""
    rows, columns = grid()
    seeds = rng.uniform(0, SIZE, (7, 2))
    wobble = [3 * smooth_noise(rng, 6) for _ in range(2)]
    distance = [(rows + wobble[0] - y) ** 2 + (columns + wobble[1] - x) ** 2 for y, x in seeds]
    region = np.argmin(distance, axis=0)
    # All kinds first: two classes are stripes and bright dots, four are the four kinds.
    order = (0, 7, 4, 10, 1, 8, 5, 11, 2, 6, 3, 9)
    of_region = np.resize(rng.permutation(classes), len(seeds))
    label = of_region[region].astype(np.uint8)
    image = np.zeros((SIZE, SIZE))
    for value in np.unique(label):
        image[label == value] = texture(rng, order[value])[label == value]
    return 0.5 + 0.12 * image + 0.01 * rng.standard_normal(image.shape), label


def draw_one_texture(rng: Generator) -> Drawing:
    """The images of eight textures; the fine bright dots are to be found."""
    image, label = draw_textures(rng, 8)
    return image, (label == 1).astype(np.uint8)


def tasks() -> dict[str, tuple[int, Callable[[Generator], Drawing]]]:
    """Number of classes and drawing of every task, easy to hard."""
    template = load_template()
    return {
        "blobs": (2, draw_blobs),
        "lesions": (2, lambda rng: draw_lesions(rng, template)),
        "vessels": (2, draw_vessels),
        "shapes4": (4, draw_shapes),
        "textures2": (2, lambda rng: draw_textures(rng, 2)),
        "textures4": (4, lambda rng: draw_textures(rng, 4)),
        "textures8": (8, lambda rng: draw_textures(rng, 8)),
        "textures12": (12, lambda rng: draw_textures(rng, 12)),
        "textures8in1": (2, draw_one_texture),
    }


def main() -> None:
    """Write the data sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tasks", help="names with commas (default: all)")
    parser.add_argument("--cases", type=int, default=160)
    arguments = parser.parse_args()
    known = tasks()
    wanted = list(known) if arguments.tasks is None else arguments.tasks.split(",")
    for name in wanted:
        if name not in known:
            raise SystemExit(f"error: no task {name!r}: give some of {', '.join(known)}")
        classes, draw = known[name]
        folder = arguments.output / name
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        # The same images for both tasks of eight textures.
        rng = np.random.default_rng(zlib.crc32(name.removesuffix("in1").encode()))
        for case in range(arguments.cases):
            image, label = draw(rng)
            pixels = np.clip(255 * image, 0, 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / "imagesTr" / f"case_{case:03d}_0000.png")
            Image.fromarray(label).save(folder / "labelsTr" / f"case_{case:03d}.png")
        content = {
            "name": name,
            "channel_names": {"0": "gray"},
            "labels": {"background": 0, **{f"class {i}": i for i in range(1, classes)}},
            "numTraining": arguments.cases,
            "file_ending": ".png",
        }
        (folder / "dataset.json").write_text(json.dumps(content, indent=4) + "\n")


if __name__ == "__main__":
    main()
