from __future__ import annotations

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_xtiny.deploy.engines import ScoredImage
from monai_xtiny.deploy.grids import to_grid
from monai_xtiny.deploy.results import (
    draw_labels,
    result_files,
    scratch_array,
    without_shared,
    write_labels,
    write_probabilities,
)
from monai_xtiny.deploy.targets import Target
from tests.conftest import write_nifti

AFFINE = np.array([[0, -1.2, 0, 9], [0, 0, 1.0, -4], [1.5, 0, 0, 3], [0, 0, 0, 1]])


def scored(shape: tuple[int, ...], planes: int = 3) -> tuple[ScoredImage, np.ndarray]:
    """Logits in slabs of an image with a border of zeros, and the same logits as a whole."""
    image = np.ones((1, *shape), np.float32)
    image[:, :2] = 0
    _, placement = to_grid(image, AFFINE, (-1, -1, -1) if len(shape) == 3 else None)
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((3, *placement.shape)).astype(np.float32)
    whole = np.zeros((3, *shape), np.float32)
    placement.view(whole)[:] = logits
    slabs = (logits[:, at : at + planes] for at in range(0, logits.shape[1], planes))
    return ScoredImage(shape, placement, slabs), whole


@pytest.mark.parametrize("shape", [(6, 7, 8), (9, 5)], ids=["volume", "image"])
def test_draw_labels_is_the_argmax_and_the_softmax(shape) -> None:
    image, logits = scored(shape)
    shares = np.empty((3, *shape), np.float32)
    labels = draw_labels(image, 3, shares)
    assert labels.dtype == np.uint8 and len(np.unique(labels)) == 3
    assert np.array_equal(labels, logits.argmax(axis=0))
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-6)
    exp = np.exp(logits)
    inside = logits.any(axis=0)
    np.testing.assert_allclose(shares[:, inside], (exp / exp.sum(axis=0))[:, inside], atol=1e-6)
    assert not inside.all() and (shares[0, ~inside] == 1).all()


def test_draw_labels_refuses_other_classes() -> None:
    with pytest.raises(ValueError, match="gives 3 classes, not 2"):
        draw_labels(scored((4, 5, 6))[0], 2)


def test_results_lie_on_the_grid_of_their_image(tmp_path) -> None:
    source = str(write_nifti(tmp_path / "a.nii.gz", (4, 5, 6), affine=AFFINE))
    labels = np.arange(120).reshape(4, 5, 6).astype(np.uint8)
    write_labels(labels, source, tmp_path / "label.nii.gz")
    shares = np.random.default_rng(0).random((3, 4, 5, 6), dtype=np.float32)
    write_probabilities(shares, source, [tmp_path / "shares.nii.gz"])
    for name, expected in (("label", labels), ("shares", np.moveaxis(shares, 0, -1))):
        found = nibabel.load(tmp_path / f"{name}.nii.gz")
        np.testing.assert_allclose(found.affine, AFFINE, atol=1e-6)
        assert found.get_data_dtype() == expected.dtype
        assert np.array_equal(np.asarray(found.dataobj), expected)


def test_results_of_images_are_png(tmp_path) -> None:
    labels = np.arange(20).reshape(4, 5).astype(np.uint8)
    write_labels(labels, "a.png", tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")).T, labels)
    shares = np.stack([np.full((4, 5), value, np.float32) for value in (0.25, 0.75)])
    write_probabilities(shares, "a.png", [tmp_path / "p.png"])
    with Image.open(tmp_path / "p.png") as image:
        assert image.mode.startswith("I;16") and image.size == (4, 5)
        np.testing.assert_allclose(np.asarray(image) / 65535, 0.75, atol=1e-5)


def test_result_files_end_with_the_labels(tmp_path) -> None:
    case = Target("sub/x", ("x.png",), "raster")
    files = result_files(case, tmp_path / "out", 3, probabilities=True, overlay=True)
    names = [path.relative_to(tmp_path / "out").as_posix() for path in files.all]
    endings = ("_probability_1.png", "_probability_2.png", "_overlay.png", ".png")
    assert names == [f"sub/x{ending}" for ending in endings]


def test_scratch_array_leaves_nothing(tmp_path) -> None:
    with scratch_array(tmp_path, (2, 3)) as values:
        values[:] = 1
        assert values.shape == (2, 3) and len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "kind", "file"),
    [
        (("a", "A_Probability_2", "c"), "raster", "a_probability_2.png"),
        (("x/a", "x/a_overlay", "c"), "raster", "a_overlay.png"),
        (("a", "a_probabilities", "c"), "nifti", "a_probabilities.nii.gz"),
        (("a", "x/a_probabilities", "a_probability_1", "a_overlay"), "nifti", None),
    ],
    ids=["probability", "overlay", "probabilities", "none"],
)
def test_without_shared_leaves_out_cases_of_one_file(tmp_path, names, kind, file) -> None:
    cases = [Target(name, (f"{name}.{kind}",), kind) for name in names]
    every = {
        case: result_files(case, tmp_path, 3, probabilities=True, overlay=True) for case in cases
    }
    kept, problems = without_shared(every)
    if file is None:
        assert (kept, problems) == (every, [])
        return
    assert list(kept) == cases[2:]
    assert problems == [
        f"'{names[0]}.{kind}', '{names[1]}.{kind}' would both have the result '{file}': rename or "
        "remove one"
    ]
    labels_alone = {
        case: result_files(case, tmp_path, 3, probabilities=False, overlay=False) for case in cases
    }
    assert without_shared(labels_alone) == (labels_alone, [])
