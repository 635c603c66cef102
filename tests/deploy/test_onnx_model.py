from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn
from torch.nn.functional import instance_norm

from monai_xtiny.bundle.archive import check_onnx, package_bundle, weights_digest
from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy import onnx_model
from monai_xtiny.deploy.onnx_model import (
    export_onnx,
    input_format,
    quantize_onnx,
    remove_stale,
    weights_facts,
    write_onnx,
)
from monai_xtiny.deploy.segmenter import load_segmenter
from tests.deploy.deployed import PLANS, drawn_images, exported_bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.search

SIZES = {
    "pictures": [(1, 32, 48), (3, 16, 16), (2, 64, 24), (1, 256, 256)],
    "volumes": [(1, 24, 16, 6), (2, 8, 8, 4), (1, 12, 20, 10)],
}


@pytest.fixture(params=list(PLANS))
def exported(request, tmp_path) -> Path:
    return exported_bundle(request.param, tmp_path)


pictures = pytest.mark.parametrize("exported", ["pictures"], indirect=True)


def test_export_onnx_gives_pytorchs_logits_for_any_batch_and_size(exported) -> None:
    network = Bundle.open(exported).network()
    predict = load_segmenter(exported / "models" / "model.onnx").predict
    form = input_format(Bundle.open(exported))
    for batch, *size in SIZES[exported.name.removesuffix("_segmentation")]:
        image = torch.randn(batch, form.in_channels, *size)
        with torch.no_grad():
            expected = network(image).numpy()
        found = predict(image.numpy())
        assert found.shape == (batch, len(form.labels), *size)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
        alone = [predict(image[index : index + 1].numpy())[0] for index in range(batch)]
        np.testing.assert_allclose(found, np.stack(alone), atol=1e-5)


@pictures
def test_deployed_network_takes_windows_as_inference_json_says(exported) -> None:
    path = exported / "configs" / "inference.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "patch_size": [16, 24], "overlap": 0.25}))
    export_onnx(exported)
    segmenter = load_segmenter(exported / "models" / "model.onnx")
    assert segmenter.form.patch_size == (16, 24) and segmenter.form.overlap == 0.25
    (image,) = drawn_images((segmenter.form.in_channels, 50, 40), 1)
    inferer = SlidingWindowInferer((16, 24), 4, 0.25, mode="gaussian")
    with torch.no_grad():
        expected = inferer(torch.from_numpy(image)[None], Bundle.open(exported).network())[0]
    np.testing.assert_allclose(segmenter.logits(image), expected.numpy(), atol=1e-4)


@pictures
def test_export_onnx_refuses_other_processing_than_it_has(exported) -> None:
    path = exported / "configs" / "inference.json"
    before = (exported / "models" / "model.onnx").read_bytes()
    path.write_text(json.dumps({**json.loads(path.read_text()), "label_of": "$None"}))
    with pytest.raises(ValueError, match=r"\(label_of\), and a deployed network does only that"):
        export_onnx(exported)
    assert (exported / "models" / "model.onnx").read_bytes() == before


@pictures
def test_export_onnx_is_exact_where_most_voxels_are_alike(exported) -> None:
    # ONNX Runtime's own norm adds up a channel in a few accumulators, where equal values all round
    # the same way: it is off by 1e-2 here.
    image = np.full((1, 1, 512, 512), -0.3104157, dtype=np.float32)
    image[..., 100:300, 200:330] = 3 + drawn_images((200, 130), 1)[0]
    network = Bundle.open(exported).network().double()
    with torch.no_grad():
        expected = network(torch.from_numpy(image).double()).numpy()
    found = load_segmenter(exported / "models" / "model.onnx", num_threads=1).predict(image)
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_export_onnx_describes_the_input_and_names_no_path(exported) -> None:
    path = exported / "models" / "model.onnx"
    model = onnx.load(path)
    assert {item.version for item in model.opset_import if item.domain == ""} == {18}
    form = input_format(Bundle.open(exported))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims[:2]] == [0, form.in_channels]
    assert all(dim.dim_param for dim in (dims[0], *dims[2:]))
    assert load_segmenter(path).form == form
    content = path.read_bytes()
    for text in (exported.parent, Path(torch.__file__).parent, Path.home(), "site-packages", ".py"):
        assert str(text).encode() not in content
    assert sorted(item.name for item in path.parent.iterdir()) == ["model.onnx", "model.pt"]


@pictures
@pytest.mark.slow
def test_write_onnx_gives_the_same_bytes_and_leaves_network_and_generator(exported) -> None:
    path = exported / "models" / "model.onnx"
    network, before, state = (
        Bundle.open(exported).network(),
        path.read_bytes(),
        torch.get_rng_state(),
    )
    kinds = [type(module) for module in network.modules()]
    digest = weights_digest(network.state_dict())
    bundle = Bundle.open(exported)
    write_onnx(network, input_format(bundle), path, source=weights_facts(bundle))
    assert path.read_bytes() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(module) for module in network.modules()] == kinds
    assert nn.InstanceNorm2d in kinds
    assert weights_digest(network.state_dict()) == digest
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 2, 4, 6, 3)], ids=["2d", "3d"])
def test_exact_instance_norm_equals_pytorchs_in_float64(shape) -> None:
    norm = nn.InstanceNorm3d(shape[1], affine=True).double()
    with torch.no_grad():
        norm.weight.uniform_(-2, 2)
        norm.bias.uniform_(-2, 2)
    image = torch.randn(shape, dtype=torch.float64) + 50
    expected = instance_norm(image, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    torch.testing.assert_close(onnx_model._ExactInstanceNorm(norm)(image), expected)


@pictures
def test_export_onnx_refuses_other_outputs_and_leaves_the_former_file(
    exported, monkeypatch
) -> None:
    path = exported / "models" / "model.onnx"
    model = path.read_bytes()
    path.write_bytes(b"former")

    def export(*arguments: object, **_: object) -> None:
        Path(str(arguments[2])).write_bytes(model)

    monkeypatch.setattr(torch.onnx, "export", export)
    weights = {
        name: value + 0.01 * (value.ndim == 4)
        for name, value in Bundle.open(exported).network().state_dict().items()
    }
    torch.save(weights, exported / "models" / "model.pt")
    with pytest.raises(ValueError, match=r"differ by \S+ in the logits .* was not written"):
        export_onnx(exported)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match="cannot be exported as ONNX .* check network_def"):
        export_onnx(exported)
    assert path.read_bytes() == b"former"
    assert sorted(item.name for item in path.parent.iterdir()) == ["model.onnx", "model.pt"]


@pictures
def test_export_onnx_says_what_is_wrong(exported, tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match="is no bundle"):
        export_onnx(tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(ImportError, match=r"pip install monai-xtiny\[deploy\]"):
            export_onnx(exported)
    torch.save({"nothing": torch.zeros(1)}, exported / "models" / "model.pt")
    with pytest.raises(ValueError, match="does not hold the network of configs/inference.json"):
        export_onnx(exported)


def test_quantize_onnx_keeps_nearly_all_labels(exported) -> None:
    model = exported / "models" / "model.onnx"
    form = input_format(Bundle.open(exported))
    images = drawn_images((1, form.in_channels, *form.patch_size))
    path = quantize_onnx(model, images[:3])
    assert path == exported / "models" / "model_int8.onnx"
    graph = onnx.load(path).graph
    weights = [item for item in graph.initializer if item.data_type == onnx.TensorProto.INT8]
    num_convolutions = sum(node.op_type == "Conv" for node in graph.node)
    assert len([item for item in weights if len(item.dims) > 2]) == num_convolutions - 2
    found, expected = load_segmenter(path), load_segmenter(model)
    assert found.form == form
    same = found.predict(images[3]).argmax(1) == expected.predict(images[3]).argmax(1)
    assert same.mean() > 0.9
    names = sorted(item.name for item in model.parent.iterdir())
    assert names == ["model.onnx", "model.pt", "model_int8.onnx"]


@pictures
def test_quantize_onnx_needs_images_that_the_network_takes(exported) -> None:
    model = exported / "models" / "model.onnx"
    with pytest.raises(ValueError, match="give --images"):
        quantize_onnx(model, [])
    with pytest.raises(ValueError, match="cannot be quantized"):
        quantize_onnx(model, drawn_images((1, 1, 30, 30)))
    assert sorted(item.name for item in model.parent.iterdir()) == ["model.onnx", "model.pt"]


@pictures
def test_package_bundle_refuses_onnx_of_other_weights(exported, tmp_path) -> None:
    package_bundle(exported, tmp_path / "x.zip")
    path = exported / "models" / "model.pt"
    weights = {name: value + 1 for name, value in torch.load(path, weights_only=True).items()}
    torch.save(weights, path)
    with pytest.raises(ValueError, match="deploy again, or remove it"):
        package_bundle(exported, tmp_path / "x.zip")
    (exported / "models" / "model.onnx").unlink()
    check_onnx(Bundle.open(exported))


@pytest.mark.parametrize("content", [b"", b"broken", None], ids=["empty", "text", "cut off"])
def test_remove_stale_takes_a_broken_file_for_one_of_other_weights(tmp_path, content) -> None:
    bundle = Bundle.open(exported_bundle("pictures", tmp_path))
    model, quantized = (bundle.path(f"models/{name}.onnx") for name in ("model", "model_int8"))
    whole = model.read_bytes()
    quantized.write_bytes(whole[: len(whole) // 2] if content is None else content)
    remove_stale(bundle)
    assert not quantized.exists()
    quantized.write_bytes(whole)
    remove_stale(bundle)
    assert quantized.exists()
