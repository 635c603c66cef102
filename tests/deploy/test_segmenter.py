from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.transforms import LoadImage, NormalizeIntensity
from PIL import Image

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.data.cases import find_cases
from monai_xtiny.deploy import segmenter as segmenter_module
from monai_xtiny.deploy.segmenter import (
    InputFormat,
    Segmenter,
    format_from_metadata,
    largest_logit,
    load_segmenter,
    slide_windows,
    z_score,
)
from monai_xtiny.system.config_text import PlainPath
from tests.conftest import write_png
from tests.deploy.deployed import exported_bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.search

EPSILON = float(np.finfo(np.float32).eps)
FORM = InputFormat("images", 1, (32, 48), (8, 8), ("background", "cell"))
# (rows, columns) on disk; the patch is 32 wide and 48 high.
PICTURES = {"patch": (48, 32), "small": (21, 30), "narrow": (20, 32), "large": (90, 61)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return exported_bundle("pictures", tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def model(bundle) -> Path:
    return bundle / "models" / "model.onnx"


@pytest.fixture(scope="module")
def volume_model(tmp_path_factory) -> Path:
    return exported_bundle("volumes", tmp_path_factory.mktemp("volumes")) / "models" / "model.onnx"


@pytest.fixture(scope="module")
def inferred(bundle, tmp_path_factory) -> tuple[Path, Path]:
    """Pictures, and what inference.json makes of them."""
    images, output = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("output")
    for name, shape in PICTURES.items():
        write_png(images / f"{name}.png", shape)
    options = {"dataset_dir": PlainPath(str(images)), "output_dir": str(output), "num_workers": 0}
    Bundle.open(bundle).workflow(("inference",), options).run()
    return images, output


@pytest.mark.parametrize("name", list(PICTURES))
def test_segmenter_gives_the_labels_of_inference_json(bundle, model, inferred, name) -> None:
    images, output = inferred
    segmenter = load_segmenter(model)
    picture = images / f"{name}.png"
    expected = np.asarray(Image.open(output / f"{name}.png")).T
    found = segmenter(picture)
    assert found.shape == expected.shape and found.dtype == np.uint8
    assert 0 < expected.mean() < 1
    logits = segmenter.logits(z_score(segmenter.read(picture)))
    tied = np.abs(logits[1] - logits[0]) < 1e-3
    np.testing.assert_array_equal(found[~tied], expected[~tied])
    assert tied.mean() < 0.01


def test_segmenter_takes_the_whole_image_in_one_pass(bundle, model) -> None:
    segmenter = load_segmenter(model, whole_image=True)
    image = np.random.default_rng(0).normal(7, 3, (1, 61, 90)).astype(np.float32)
    padded = np.zeros((1, 1, 64, 96), dtype=np.float32)
    padded[0, 0, 1:62, 3:93] = (image[0] - image.mean()) / image.std()
    with torch.no_grad():
        logits = Bundle.open(bundle).network()(torch.from_numpy(padded))[0, :, 1:62, 3:93].numpy()
    np.testing.assert_allclose(segmenter.logits(z_score(image)), logits, atol=1e-4)
    found = segmenter.segment(image)
    tied = np.abs(logits[1] - logits[0]) < 1e-3
    np.testing.assert_array_equal(found[~tied], logits.argmax(0)[~tied])


def test_segmenter_reads_channels_as_monai_does(bundle, tmp_path) -> None:
    parser = ConfigParser({"reader": {"_target_": "LoadImage", "ensure_channel_first": True}})
    load = parser.get_parsed_content("reader")
    names = ("background", "cell")
    colors = Segmenter(lambda x: x, InputFormat("images", 3, (32, 48), (8, 8), names))
    picture = write_png(tmp_path / "rgb.png", (20, 24, 3))
    np.testing.assert_array_equal(colors.read(picture), load(picture).numpy())
    files = [str(write_png(tmp_path / f"c_000{index}.png", seed=index)) for index in range(2)]
    two = Segmenter(lambda x: x, InputFormat("images", 2, (32, 48), (8, 8), names))
    np.testing.assert_array_equal(two.read(files), load(files).numpy())


def test_segmenter_needs_no_pytorch_for_one_pass(model, tmp_path) -> None:
    picture = write_png(tmp_path / "x.png", (20, 24))
    code = (
        "import sys; from monai_xtiny.deploy.segmenter import load_segmenter\n"
        "labels = load_segmenter(sys.argv[1], num_threads=1)(sys.argv[2])\n"
        "print(labels.shape, sorted({'torch', 'monai', 'onnx'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(model), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(24, 20) []"


def test_segmenter_refuses_what_the_network_does_not_take(model, tmp_path) -> None:
    segmenter = load_segmenter(model)
    with pytest.raises(ValueError, match="'.*rgb.png' has 3 channels, the network takes 1"):
        segmenter(write_png(tmp_path / "rgb.png", (20, 24, 3)))
    with pytest.raises(FileNotFoundError, match="nothing.png"):
        segmenter(tmp_path / "nothing.png")
    for kind, message in (("volumes", "inference.json reads"), ("slices", "inference.json reads")):
        other = Segmenter(segmenter.predict, InputFormat(kind, 1, (32, 48), (8, 8), ("a", "b")))
        with pytest.raises(ValueError, match=message):
            other(tmp_path / "x.png")
    with pytest.raises(ValueError, match="cannot be normalized"):
        other.segment(np.zeros((1, 32, 48)))


def test_load_segmenter_refuses_other_files(model, tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match="monai_xtiny deploy"):
        load_segmenter(tmp_path / "model.onnx")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match="is no ONNX model that runs here"):
        load_segmenter(path)
    foreign = onnx.load(model)
    del foreign.metadata_props[:]
    onnx.save(foreign, path)
    with pytest.raises(ValueError, match="names no kind: deploy the bundle"):
        load_segmenter(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install monai-xtiny\[deploy\]"):
        load_segmenter(path)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cuda:x", "cpu:x", "tpu"])
def test_load_segmenter_refuses_a_device_that_onnx_runtime_lacks(
    model, device, monkeypatch
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match=f"no device '{device}' here: put onnxruntime-gpu"):
        load_segmenter(model, device=device)


def test_input_format_survives_its_metadata() -> None:
    assert format_from_metadata(FORM.to_metadata()) == FORM


@pytest.mark.parametrize("classes", [2, 3])
def test_argmax_equals_numpys_on_ties_too(classes) -> None:
    logits = np.random.default_rng(0).integers(0, 3, (classes, 40, 50)).astype(np.float32)
    np.testing.assert_array_equal(largest_logit(logits), logits.argmax(axis=0))


def test_z_score_equals_monais_and_leaves_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 255, (2, 40, 50)).astype(np.uint8)
    image[1] = 9
    before = image.copy()
    expected = NormalizeIntensity(channel_wise=True)(image.astype(np.float32))
    np.testing.assert_allclose(z_score(image), expected, atol=1e-6)
    np.testing.assert_array_equal(image, before)


SIZES_2D = {
    "patch": (32, 48),
    "one voxel more": (33, 48),
    "one voxel more on both axes": (33, 49),
    "narrow and long": (20, 97),
    "wide and low": (100, 21),
    "one column": (1, 60),
    "many windows": (131, 150),
}
SIZES_3D = {
    "patch": (24, 16, 6),
    "one voxel more": (24, 17, 6),
    "flat": (50, 40, 3),
    "deep": (20, 11, 19),
    "many windows": (49, 33, 13),
}


def blended_by_monai(segmenter: Segmenter, image: np.ndarray) -> np.ndarray:
    """What the inferer of the emitted inference.json makes of an image, with the same network."""
    inferer = SlidingWindowInferer(segmenter.form.patch_size, 4, 0.5, mode="gaussian")
    return np.asarray(
        inferer(
            torch.from_numpy(image[None]),
            lambda windows: torch.from_numpy(segmenter.predict(windows.numpy())),
        )
    )[0]


def assert_blends_as_monai(segmenter: Segmenter, image: np.ndarray) -> None:
    """Logits to a few roundings of float32, and every label."""
    expected = blended_by_monai(segmenter, image)
    found = segmenter.logits(image)
    assert found.dtype == np.float32 and found.shape == expected.shape
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 * EPSILON * largest)
    np.testing.assert_array_equal(largest_logit(found), expected.argmax(axis=0))


@pytest.mark.parametrize("size", SIZES_2D.values(), ids=list(SIZES_2D))
def test_logits_equal_monais_sliding_window_in_2d(model, size) -> None:
    image = np.random.default_rng(0).standard_normal((1, *size), dtype=np.float32)
    assert_blends_as_monai(load_segmenter(model, num_threads=1), image)


@pytest.mark.parametrize("size", SIZES_3D.values(), ids=list(SIZES_3D))
def test_logits_equal_monais_sliding_window_in_3d(volume_model, size) -> None:
    image = np.random.default_rng(0).standard_normal((2, *size), dtype=np.float32)
    assert_blends_as_monai(load_segmenter(volume_model, num_threads=1), image)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.8])
def test_slide_windows_gives_finished_planes_in_order(overlap) -> None:
    generator = np.random.default_rng(1)
    image = generator.standard_normal((1, 31, 9, 14), dtype=np.float32)
    weights = generator.standard_normal((2, 8, 10, 6), dtype=np.float32)

    def predict(windows: np.ndarray) -> np.ndarray:
        return windows * weights

    slabs = list(slide_windows(image, predict, (8, 10, 6), overlap=overlap, windows_at_once=3))
    assert len(slabs) > 3 and all(slab.shape[1] <= 8 for slab in slabs)
    inferer = SlidingWindowInferer((8, 10, 6), 3, overlap, mode="gaussian")
    expected = inferer(
        torch.from_numpy(image[None]), lambda x: torch.from_numpy(predict(x.numpy()))
    )[0]
    np.testing.assert_allclose(np.concatenate(slabs, axis=1), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("patch", [(8, 8), (7, 10), (1, 5), (6, 5, 4)], ids=str)
def test_logits_equal_monais_for_any_size_and_patch(patch) -> None:
    generator = np.random.default_rng(1)
    weights = generator.standard_normal((3, *patch), dtype=np.float32)

    def predict(windows: np.ndarray) -> np.ndarray:
        # Another answer at each place of the window, so that every weight and start counts.
        return np.stack([np.cumsum(window, axis=-1) * weights for window in windows])

    form = InputFormat("images", 1, patch, (1,) * len(patch), ("a", "b", "c"))
    for _ in range(30):
        size = tuple(int(generator.integers(1, 4 * edge + 2)) for edge in patch)
        image = generator.standard_normal((1, *size), dtype=np.float32)
        assert_blends_as_monai(Segmenter(predict, form), image)


@pytest.mark.parametrize(
    "data_set", ["Dataset076_DSB2018Fluo", "Dataset077_DSB2018Stain", "Dataset004_Hippocampus"]
)
def test_logits_equal_monais_on_real_images(model, volume_model, real_data, data_set) -> None:
    cases = find_cases(real_data / data_set)
    is_volume = data_set == "Dataset004_Hippocampus"
    segmenter = load_segmenter(volume_model if is_volume else model, num_threads=1)
    load = LoadImage(ensure_channel_first=True, image_only=True)
    for case in cases[:2]:
        image = load(case.images[0]).numpy()[:1]
        if is_volume:
            image = np.concatenate([image, np.sqrt(image)])
        assert any(
            edge > limit
            for edge, limit in zip(image.shape[1:], segmenter.form.patch_size, strict=True)
        )
        assert_blends_as_monai(segmenter, z_score(image))


def test_segmenter_needs_no_pytorch_for_a_large_image(model, tmp_path) -> None:
    image = write_png(tmp_path / "x.png", (150, 131))
    code = (
        "import sys; from monai_xtiny.deploy.segmenter import load_segmenter\n"
        "labels = load_segmenter(sys.argv[1], num_threads=1)(sys.argv[2])\n"
        "print(labels.shape, sorted({'torch', 'monai', 'onnx'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(model), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(131, 150) []"


def test_segmenter_is_one_file_that_works_alone(model, tmp_path) -> None:
    image = write_png(tmp_path / "x.png", (150, 131))
    shutil.copy(segmenter_module.__file__, tmp_path / "alone.py")
    code = (
        "import sys\n"
        "for name in ('torch', 'monai', 'monai_xtiny'): sys.modules[name] = None\n"
        "from alone import load_segmenter\n"
        "labels = load_segmenter(sys.argv[1], num_threads=1)(sys.argv[2])\n"
        "print(labels.shape, labels.sum())"
    )
    command = [sys.executable, "-c", code, str(model), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    expected = load_segmenter(model, num_threads=1)(image)
    assert done.stdout.strip() == f"{expected.shape} {expected.sum()}"
