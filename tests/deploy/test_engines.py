"""Both engines give an image the labels that `monai.bundle run` gives it, and refuse the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy.engines import (
    OnnxEngine,
    TorchEngine,
    _in_slices,
    mirror_axes,
    mirrored,
    open_engine,
)
from monai_xtiny.deploy.results import draw_labels
from monai_xtiny.deploy.segmenter import slide_windows
from monai_xtiny.system.config_text import PlainPath
from monai_xtiny.system.files import digest_files
from tests.conftest import texture, write_nifti, write_png
from tests.deploy.deployed import exported_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.search

AFFINE = np.array([[0, -1.2, 0, 9], [0, 0, 1.0, -4], [-4.0, 0, 0, 3], [0, 0, 0, 1]])


@pytest.fixture(scope="module", params=["pictures", "volumes"])
def exported(request, tmp_path_factory) -> tuple[Bundle, Path]:
    """A bundle with its ONNX file, and a folder of two cases larger than its patch."""
    folder = tmp_path_factory.mktemp(request.param)
    images = folder / "images"
    images.mkdir()
    for index in range(2):
        if request.param == "pictures":
            write_png(images / f"c{index}.png", (61, 90 + index), index)
            continue
        field = texture((21, 40 + index, 30), index).astype(np.float32)
        for channel, values in enumerate((field, 300 - field)):
            values[:2], values[..., -3:] = 0, 0
            path = images / f"c{index}_{channel:04d}.nii.gz"
            write_nifti(path, affine=AFFINE, values=values)
    return Bundle.open(exported_bundle(request.param, folder)), images


def files_of_case(images: Path, name: str) -> list[str]:
    return [str(path) for path in sorted(images.glob(f"{name}*"))]


def test_engines_name_the_weights_that_compute(exported, tmp_path) -> None:
    shutil.copytree(exported[0].root, tmp_path / "x_segmentation")
    bundle = Bundle.open(tmp_path / "x_segmentation")
    first, second = bundle.path("models/model.pt"), bundle.path("models/model_fold1.pt")
    assert OnnxEngine(bundle).weights_sha256 == digest_files([first])
    shutil.copy(first, second)
    config = bundle.config("inference")
    bundle.path("configs/inference.json").write_text(json.dumps({**config, "folds": [0, 1]}))
    former = TorchEngine(Bundle.open(bundle.root)).weights_sha256
    assert former == digest_files([first, second]) != digest_files([first])
    weights = torch.load(first, weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, second)
    assert TorchEngine(Bundle.open(bundle.root)).weights_sha256 != former


def test_engines_give_the_labels_of_monai_bundle_run(exported, tmp_path) -> None:
    bundle, images = exported
    options = {"dataset_dir": PlainPath(str(images)), "output_dir": PlainPath(str(tmp_path))}
    bundle.workflow(("inference",), options).run()
    num_classes = len(bundle.label_names)
    for engine in (OnnxEngine(bundle), TorchEngine(bundle)):
        assert engine.is_trained
        for name in ("c0", "c1"):
            labels = draw_labels(engine(files_of_case(images, name)), num_classes)
            written = next(tmp_path.glob(f"{name}.*"))
            if written.suffix == ".png":
                from PIL import Image

                expected = np.asarray(Image.open(written)).T
            else:
                expected = np.asarray(nibabel.load(written).dataobj)
            assert 0 < (expected > 0).mean() < 1
            # Float32 of two engines may differ in the last place: in a tie, not in a region.
            assert (labels != expected).mean() < (1e-4 if engine.name == "onnx" else 1e-9)
        assert set(engine.clock.seconds) == {"read", "resample", "network"}


def test_engines_average_over_flips_alike(exported) -> None:
    bundle, images = exported
    axes = tuple(range(bundle.plan.spatial_dims))
    found = []
    for kind in (OnnxEngine, TorchEngine):
        scored = kind(bundle, mirror_axes=axes)(files_of_case(images, "c0"))
        logits = np.zeros((len(bundle.label_names), *scored.shape), np.float32)
        scored.placement.view(logits)[:] = np.concatenate(list(scored.slabs), axis=1)
        found.append(logits)
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    plain = OnnxEngine(bundle)(files_of_case(images, "c0"))
    assert np.abs(np.concatenate(list(plain.slabs), axis=1)).max() > 0


def test_engines_refuse_the_same_images(exported, tmp_path) -> None:
    bundle, images = exported
    files = files_of_case(images, "c0")
    bad = [shutil.copy(files[0], tmp_path / Path(files[0]).name)]  # a channel is missing
    if len(files) == 1:
        bad = [str(write_png(tmp_path / "color.png", (30, 30, 3)))]
    for engine in (OnnxEngine(bundle), TorchEngine(bundle)):
        with pytest.raises(Exception) as raised:
            engine(bad)
        assert "channels" in str(raised.value.__cause__ or raised.value)


def test_a_stale_onnx_file_is_noticed(exported, tmp_path) -> None:
    bundle, _ = exported
    copy = Bundle.open(shutil.copytree(bundle.root, tmp_path / bundle.name))
    weights = {name: value * 1.01 for name, value in bundle.weights().items()}
    torch.save(weights, copy.path("models/model.pt"))
    with pytest.raises(ValueError, match=r"model.onnx is not of its .*model.pt: .* deploy .*anew"):
        open_engine(copy, "onnx")
    said: list[str] = []
    assert open_engine(copy, say=said.append).name == "torch"
    assert "deploy" in said[0]
    copy.path("models/model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="there is no models/model.onnx"):
        open_engine(copy, "onnx")


def test_onnx_runs_no_edited_config(exported, tmp_path) -> None:
    bundle, _ = exported
    copy = Bundle.open(shutil.copytree(bundle.root, tmp_path / bundle.name))
    path = copy.path("configs/inference.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "overlap": 0.25}))
    assert OnnxEngine(copy).name == "onnx"
    path.write_text(json.dumps({**config, "label_of": "$lambda logits: logits[:1] > 0"}))
    with pytest.raises(ValueError, match=r"not as this version writes it \(label_of\)"):
        OnnxEngine(copy)


def test_open_engine_refuses_other_names(exported) -> None:
    with pytest.raises(ValueError, match="--engine is 'fast': give onnx or torch"):
        open_engine(exported[0], "fast")


def test_onnx_needs_no_pytorch(exported) -> None:
    bundle, images = exported
    code = (
        "import sys; from monai_xtiny.bundle.folder import Bundle\n"
        "from monai_xtiny.deploy.engines import OnnxEngine\n"
        "engine = OnnxEngine(Bundle.open(sys.argv[1]))\n"
        "list(engine(sys.argv[2:]).slabs)\n"
        "print(sorted({'torch', 'monai', 'ignite', 'matplotlib'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(bundle.root), *files_of_case(images, "c0")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mirror_axes_are_those_of_training(exported) -> None:
    bundle, _ = exported
    if bundle.kind == "images":
        assert mirror_axes(bundle) == (0, 1)
        return
    with pytest.raises(ValueError, match="trained without mirroring"):
        mirror_axes(bundle)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_blended_as_monais_slice_inferer_does(axis) -> None:
    generator = np.random.default_rng(axis)
    image = generator.standard_normal((1, 9, 7, 8), dtype=np.float32)
    weights = generator.standard_normal((2, 4, 6), dtype=np.float32)
    patch = [4, 6]
    patch.insert(axis, 1)
    slabs = slide_windows(image, _in_slices(lambda x: x * weights, axis), patch)
    found = np.concatenate(list(slabs), axis=1)
    inferer = SliceInferer(axis, roi_size=(4, 6), sw_batch_size=4, overlap=0.5, mode="gaussian")
    expected = inferer(torch.from_numpy(image[None]), lambda x: x * torch.from_numpy(weights))
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("flip", [np.flip, torch.flip], ids=["numpy", "torch"])
def test_mirrored_is_the_mean_over_all_flips(flip) -> None:
    values = np.random.default_rng(0).normal(size=(1, 1, 4, 5))
    ramp = np.arange(20.0).reshape(4, 5)
    images = torch.from_numpy(values) if flip is torch.flip else values
    weight = torch.from_numpy(ramp) if flip is torch.flip else ramp
    found = np.asarray(mirrored(lambda x: x * weight, (0, 1), flip)(images))
    # A voxel meets the weight at each of its four mirrored places.
    np.testing.assert_allclose(found, values * ramp.mean())
    assert mirrored(images, (), flip) is images
