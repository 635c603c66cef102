from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import NormalizeIntensity
from PIL import Image

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy.segmenter import (
    InputFormat,
    Segmenter,
    _argmax,
    _z_score,
    format_from_metadata,
    load_segmenter,
)
from monai_xtiny.system.config_text import PlainPath
from tests.conftest import write_png
from tests.deploy.deployed import exported_bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.search

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
    logits = segmenter.logits(_z_score(segmenter.read(picture)))
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
    np.testing.assert_allclose(segmenter.logits(_z_score(image)), logits, atol=1e-4)
    found = segmenter.segment(image)
    tied = np.abs(logits[1] - logits[0]) < 1e-3
    np.testing.assert_array_equal(found[~tied], logits.argmax(0)[~tied])


def test_segmenter_reads_channels_as_monai_does(bundle, tmp_path) -> None:
    parser = ConfigParser({"reader": {"_target_": "LoadImage", "ensure_channel_first": True}})
    load = parser.get_parsed_content("reader")
    names = ("background", "cell")
    colours = Segmenter(lambda x: x, InputFormat("images", 3, (32, 48), (8, 8), names))
    picture = write_png(tmp_path / "rgb.png", (20, 24, 3))
    np.testing.assert_array_equal(colours.read(picture), load(picture).numpy())
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
    with pytest.raises(ValueError, match="cannot be normalised"):
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
    np.testing.assert_array_equal(_argmax(logits), logits.argmax(axis=0))


def test_z_score_equals_monais_and_leaves_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 255, (2, 40, 50)).astype(np.uint8)
    image[1] = 9
    before = image.copy()
    expected = NormalizeIntensity(channel_wise=True)(image.astype(np.float32))
    np.testing.assert_allclose(_z_score(image), expected, atol=1e-6)
    np.testing.assert_array_equal(image, before)
