from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_xtiny.data.case import Case
from monai_xtiny.deploy.segmenter import load_segmenter
from monai_xtiny.deploy.standalone import check_standalone, measure_whole_image, write_standalone
from tests.conftest import write_png
from tests.deploy.deployed import exported_bundle
from tests.shared import made_once

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.search

# (rows, columns) on disk; the patch is 32 wide and 48 high.
SIZES = {"patch": (48, 32), "small": (21, 30), "one": (1, 7), "large": (61, 90)}
# What somebody runs who has the file, the image, and nothing of ours.
ELSEWHERE = """
import sys, numpy, onnxruntime
from PIL import Image
sys.modules["monai_xtiny"] = sys.modules["torch"] = None
pixels = numpy.asarray(Image.open(sys.argv[2]))[None, :, :, None]
label, probability = onnxruntime.InferenceSession(sys.argv[1]).run(None, {"image": pixels})
Image.fromarray(label[0]).save(sys.argv[3])
print(label.shape, probability.shape)
"""


def _write(folder: Path) -> None:
    """The file for bytes, and the network's own."""
    model = exported_bundle("pictures", folder) / "models" / "model.onnx"
    shutil.copy(model, folder)
    write_standalone(model, folder / "alone.onnx")


@pytest.fixture(scope="module")
def made() -> Path:
    return made_once("standalone", _write)


def run(path: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label and probabilities of one image, without their batch."""
    label, probability = onnxruntime.InferenceSession(path).run(None, {"image": pixels[None]})
    return label[0], probability[0]


def drawn(size: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    """Random rows and columns with one channel; none is 0."""
    return np.random.default_rng(3).integers(1, 255, (*size, 1)).astype(dtype)


def assert_same(label: np.ndarray, probability: np.ndarray, expected: np.ndarray) -> None:
    """Equal labels, but where both classes are as probable."""
    tied = np.abs(probability[..., 0] - 0.5) < 1e-4
    np.testing.assert_array_equal(label[~tied], expected[~tied])
    assert tied.mean() < 0.01


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_write_standalone_gives_the_segmenters_label_of_any_size(made, size) -> None:
    pixels = drawn(size)
    label, probability = run(made / "alone.onnx", pixels)
    segmenter = load_segmenter(made / "model.onnx", whole_image=True)
    expected = segmenter.segment(pixels.transpose(2, 1, 0).astype(np.float32)).T
    assert label.shape == size and label.dtype == np.uint8
    assert probability.shape == (*size, 2)
    np.testing.assert_allclose(probability.sum(-1), 1, atol=1e-5)
    assert_same(label, probability, expected)


def test_write_standalone_crops_to_what_is_not_0(made) -> None:
    pixels = np.zeros((40, 30, 1), np.uint8)
    pixels[5:25, 3:28] = drawn((20, 25))
    label, probability = run(made / "alone.onnx", pixels)
    inner, shares = run(made / "alone.onnx", drawn((20, 25)))
    np.testing.assert_array_equal(label[5:25, 3:28], inner)
    np.testing.assert_array_equal(probability[5:25, 3:28], shares)
    outside = np.ones((40, 30), bool)
    outside[5:25, 3:28] = False
    assert inner.any() and not label[outside].any()
    np.testing.assert_array_equal(probability[outside], np.broadcast_to([1, 0], (700, 2)))


@pytest.mark.parametrize("value", [0, 9])
def test_write_standalone_gives_blank_images_finite_probabilities(made, value) -> None:
    _, probability = run(made / "alone.onnx", np.full((20, 25, 1), value, np.uint8))
    assert np.isfinite(probability).all()


def test_write_standalone_takes_other_pixels_and_layouts(made, tmp_path) -> None:
    path = write_standalone(made / "model.onnx", tmp_path / "x.onnx", dtype="uint16", layout="NCHW")
    pixels = drawn((48, 32))
    expected, shares = run(made / "alone.onnx", pixels)
    # An offset that float32 sums of all pixels would lose the contrast in.
    offset = (pixels.astype(np.uint16) + 60_000).transpose(2, 0, 1)
    label, probability = run(path, offset)
    np.testing.assert_allclose(np.moveaxis(probability, 0, -1), shares, atol=1e-3)
    assert_same(label, np.moveaxis(probability, 0, -1), expected)
    described = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert json.loads(described["standalone"]) == {
        "dtype": "uint16", "layout": "NCHW", "image": "(1, 1, height, width)",
    }  # fmt: skip
    assert json.loads(described["labels"]) == ["background", "class 1"]
    assert json.loads(described["spacing"]) == []
    assert "sliding windows" in described["large_images"]


def test_write_standalone_runs_without_anything_of_ours(made, tmp_path) -> None:
    image = write_png(tmp_path / "x.png", (40, 30))
    command = [sys.executable, "-c", ELSEWHERE, made / "alone.onnx", image, tmp_path / "y.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "(1, 40, 30) (1, 40, 30, 2)"
    expected = load_segmenter(made / "model.onnx")(image).T
    assert 0 < expected.mean() < 1
    assert (np.asarray(Image.open(tmp_path / "y.png")) == expected).mean() > 0.999


def test_load_segmenter_refuses_a_file_that_stands_alone(made) -> None:
    with pytest.raises(ValueError, match="stands alone and takes raw pixels"):
        load_segmenter(made / "alone.onnx")


def test_measure_whole_image_counts_images_larger_than_the_patch(made, tmp_path) -> None:
    files = [write_png(tmp_path / f"{index}.png", size) for index, size in enumerate(
        ((48, 32), (90, 61), (20, 40)))]  # fmt: skip
    cases = [Case(file.stem, (str(file),), "raster") for file in files]
    count, share = measure_whole_image(made / "model.onnx", cases)
    assert count == 2
    windows = load_segmenter(made / "model.onnx")
    whole = load_segmenter(made / "model.onnx", whole_image=True)
    shares = [(windows(file) != whole(file)).mean() for file in files[1:]]
    assert share == pytest.approx(np.mean(shares))
    assert measure_whole_image(made / "model.onnx", cases[:1]) == (0, None)


@pytest.mark.parametrize("kind", ["volumes", "slices"])
def test_check_standalone_refuses_volumes(kind) -> None:
    with pytest.raises(ValueError, match=f"for 2D images, and this bundle reads {kind}"):
        check_standalone(kind, "uint8", "NHWC")


def test_check_standalone_refuses_other_pixels_and_layouts() -> None:
    with pytest.raises(ValueError, match="dtype is 'int8': give one of uint8, uint16, float32"):
        check_standalone("images", "int8", "NHWC")
    with pytest.raises(ValueError, match="layout is 'CHW': give one of NHWC, NCHW"):
        check_standalone("images", "uint8", "CHW")
