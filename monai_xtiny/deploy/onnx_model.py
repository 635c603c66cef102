"""A bundle's network as ONNX: ``models/model.onnx`` and, on request, ``models/model_int8.onnx``.

Both take ``image``, float32 of (batch, channels, *spatial) with any batch, and any spatial size
whose edges are multiples of the product of the strides, twice it at least; and give ``pred``,
logits of (batch, classes, *spatial). Opset 18. Axis order is MONAI's array order.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from monai_xtiny.bundle.folder import ONNX, ONNX_INT8, ONNX_STANDALONE, WEIGHTS, Bundle
from monai_xtiny.bundle.inference import check_inference
from monai_xtiny.bundle.weights import weights_digest
from monai_xtiny.bundled.folds import is_initialization
from monai_xtiny.deploy.segmenter import (
    TRAINED,
    WEIGHTS_FILE,
    InputFormat,
    import_deploy,
    load_segmenter,
)
from monai_xtiny.system.errors import root_cause
from monai_xtiny.system.files import atomic_write, digest_file

OPSET = 18
TOLERANCE = 1e-4
_DIGEST = "weights_sha256"
_NORMALIZATION = {
    "images": "z-score of every channel over the image",
    "volumes": "resampled to the plan's spacing, then z-score of every channel over the volume",
    "slices": "resampled to the plan's spacing, then z-score of every channel over the volume",
}


def export_onnx(
    bundle_dir: str | os.PathLike[str] | Bundle, *, inputs: Sequence[NDArray[np.float32]] = ()
) -> Path:
    """Write the network of a bundle with the weights of ``models/model.pt`` as ONNX.

    Instance normalization is written as means along one axis after the other. ONNX Runtime's own
    adds up a channel in a few float32 accumulators: on images that are mostly one gray value it was
    off by 3e-3 in the logits (1.32.0, 256 x 256, dark microscopy), and more in volumes.

    The file holds in its metadata the :class:`InputFormat`, the normalization and a digest of the
    weights, but no path of this machine.

    Args:
        bundle_dir: the bundle; its ``models/model.onnx`` is written, or replaced.
        inputs: normalized images of (B, C, *spatial) to compare outputs on, besides random ones.

    Returns:
        The path of ``models/model.onnx``.

    Raises:
        FileNotFoundError: there is no bundle.
        ImportError: onnx, onnxruntime or onnxscript is not installed.
        ValueError: the weights are not the network's, it cannot be exported, or a logit differs
            from PyTorch's by more than ``TOLERANCE * (1 + |logit|)``.
    """
    bundle = Bundle.open(bundle_dir)
    network, form = bundle.network(), input_format(bundle)
    target = bundle.path(ONNX)
    write_onnx(network, form, target, inputs=inputs, source=weights_facts(bundle))
    return target


def weights_facts(bundle: Bundle) -> dict[str, str]:
    """What an ONNX file says of the weights of a bundle: the digest of their file, and training."""
    return {
        WEIGHTS_FILE: digest_file(bundle.path(WEIGHTS)),
        TRAINED: json.dumps(not is_initialization(bundle.weights())),
    }


def input_format(bundle: Bundle) -> InputFormat:
    """What the network of a bundle takes, from its search and its ``inference.json``.

    Raises:
        ValueError: ``inference.json`` does with an image what a deployed network would not.
    """
    try:
        check_inference(bundle, "a deployed network")
    except ValueError as error:
        raise ValueError(f"{str(bundle.root)!r}: {error}: run configs/inference.json") from error
    plan, config = bundle.plan, bundle.config("inference")
    steps = config["preprocessing"]["transforms"]
    crop = any(step.get("_target_") == "CropForegroundd" for step in steps)
    return InputFormat(
        bundle.kind,
        plan.in_channels,
        tuple(int(edge) for edge in config["patch_size"]),
        plan.divisor,
        bundle.label_names,
        crop,
        () if bundle.kind == "images" else tuple(config["spacing"]),
        config.get("slice_axis"),
        float(config["overlap"]),
    )


def write_onnx(
    network: nn.Module,
    form: InputFormat,
    path: Path,
    *,
    inputs: Sequence[NDArray[np.float32]] = (),
    source: Mapping[str, str] | None = None,
) -> float:
    """Write a network as ONNX, whole or not at all; the network stays as it is.

    Args:
        network: as ``build_network`` makes it, in evaluation mode.
        form: what it takes.
        path: the file to write, or replace.
        inputs: images to compare outputs on, besides random ones.
        source: what the file says of the weights, as :func:`weights_facts` has it.

    Returns:
        The largest difference of a logit between ONNX Runtime and PyTorch.

    Raises:
        ImportError: onnx, onnxruntime or onnxscript is not installed.
        ValueError: the network cannot be exported, or the outputs differ.
    """
    onnx = import_deploy("onnx")
    for name in ("onnxruntime", "onnxscript"):
        import_deploy(name)
    example = torch.zeros(2, form.in_channels, *form.padded(form.patch_size))
    with atomic_write(path) as part:
        try:
            torch.onnx.export(
                _with_exact_norms(network),
                (example,),
                part,
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=["image"],
                output_names=["pred"],
                opset_version=OPSET,
                dynamic_shapes=(_free_axes(form),),
            )
        except Exception as error:
            raise ValueError(
                f"the network cannot be exported as ONNX ({root_cause(error)}): check network_def "
                "in configs/inference.json"
            ) from error
        model = onnx.load(part)
        digest = {_DIGEST: weights_digest(network.state_dict())}
        _describe(model, form, {**digest, **(source or {})})
        onnx.checker.check_model(model)
        onnx.save(model, part)
        return _check_outputs(network, form, part, inputs)


def _free_axes(form: InputFormat) -> dict[int, Any]:
    """Axes of the input that may have any size: the batch, and multiples of the divisor."""
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    for axis, factor in enumerate(form.divisor):
        steps = torch.export.Dim(f"steps_{axis}")
        axes[axis + 2] = steps if factor == 1 else factor * steps
    return axes


def quantize_onnx(model: str | os.PathLike[str], inputs: Sequence[NDArray[np.float32]]) -> Path:
    """Write an int8 copy of ``model.onnx`` beside it, ``model_int8.onnx``.

    Static quantization by ONNX Runtime: weights int8 per channel, activations uint8 from their
    minimum and maximum over ``inputs``, in QDQ form. Convolutions are quantized, without the first
    and the last one; normalization and activation stay float32.

    Args:
        model: what :func:`export_onnx` wrote.
        inputs: normalized, unlabeled images of (B, C, *spatial) to calibrate on.

    Returns:
        The path of ``model_int8.onnx``.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        ValueError: there are no inputs, or ONNX Runtime cannot quantize the model.
    """
    onnx = import_deploy("onnx")
    quantization = import_deploy("onnxruntime.quantization")
    if not inputs:
        raise ValueError("no images to calibrate int8 on: give --images")
    source = Path(model)
    convolutions = [node.name for node in onnx.load(source).graph.node if node.op_type == "Conv"]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self._feeds = iter([{"image": image} for image in inputs])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self._feeds, None)

    target = source.with_name(Path(ONNX_INT8).name)
    with atomic_write(target) as part:
        try:
            quantization.quantize_static(
                source,
                part,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=[convolutions[0], convolutions[-1]],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            load_segmenter(part, num_threads=1)
        except Exception as error:
            raise ValueError(f"{str(source)!r} cannot be quantized: {root_cause(error)}") from error
    return target


def remove_stale(bundle: Bundle) -> None:
    """Delete what was made of another ``models/model.onnx``: int8, and the one that stands alone.

    A file that is broken holds no weights.
    """
    model = bundle.path(ONNX)
    for made in (bundle.path(ONNX_INT8), bundle.path(ONNX_STANDALONE)):
        if model.is_file() and made.is_file() and _digest(model) != _digest(made):
            made.unlink()


def _digest(path: Path) -> str | None:
    """What an ONNX file says of its weights; ``None`` where it is broken or says nothing."""
    onnx = import_deploy("onnx")
    try:
        properties = onnx.load(path, load_external_data=False).metadata_props
    except Exception:  # protobuf's errors have no common class, and onnx is imported late
        return None
    return next((item.value for item in properties if item.key == _DIGEST), None)


class _ExactInstanceNorm(nn.Module):
    """Instance normalization whose mean and variance are means along one axis after the other."""

    def __init__(self, norm: _InstanceNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        shape = (-1, *[1] * (image.ndim - 2))
        centered = image - _spatial_mean(image)
        scale = self.weight.reshape(shape) / torch.sqrt(
            _spatial_mean(centered * centered) + self.eps
        )
        return centered * scale + self.bias.reshape(shape)


def _spatial_mean(image: torch.Tensor) -> torch.Tensor:
    """Mean over the spatial axes, the last axis first; shape (B, C, 1, ...)."""
    for axis in range(image.ndim - 1, 1, -1):
        image = image.mean(axis, keepdim=True)
    return image


def _with_exact_norms(network: nn.Module) -> nn.Module:
    """A copy of a network with other instance normalizations; shared modules stay shared."""
    network = copy.deepcopy(network)
    replaced: dict[nn.Module, nn.Module] = {}
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _InstanceNorm):
                replaced.setdefault(child, _ExactInstanceNorm(child))
                setattr(module, name, replaced[child])
    return network


def _describe(model: Any, form: InputFormat, facts: Mapping[str, str]) -> None:
    """Leave out traces of this machine's source files, and put in what the network takes."""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
    described = {
        **form.to_metadata(),
        # A key of the files that are out there, so it keeps its spelling.
        "normalisation": _NORMALIZATION[form.kind],
        **facts,
    }
    for key, value in described.items():
        model.metadata_props.add(key=key, value=value)


def _check_outputs(
    network: nn.Module, form: InputFormat, path: Path, inputs: Sequence[NDArray[np.float32]]
) -> float:
    """Largest difference to PyTorch on random and given images; too large a one is refused."""
    generator = np.random.default_rng(0)
    small = tuple(2 * factor for factor in form.divisor)
    oblong = (3 * form.divisor[0], *small[1:])
    shapes = ((1, *form.patch_size), (2, *small), (1, *oblong))
    drawn = [
        generator.standard_normal((batch, form.in_channels, *size), dtype=np.float32)
        for batch, *size in shapes
    ]
    segmenter = load_segmenter(path)
    largest = 0.0
    for image in (*drawn, *inputs):
        with torch.inference_mode():
            expected = network(torch.from_numpy(image)).numpy()
        difference = np.abs(segmenter.predict(image) - expected)
        if not (difference <= TOLERANCE * (1 + np.abs(expected))).all():
            raise ValueError(
                f"ONNX Runtime and PyTorch differ by {difference.max():.1e} in the logits of an "
                f"image of {image.shape}: {path.name} was not written"
            )
        largest = max(largest, float(difference.max()))
    return largest
