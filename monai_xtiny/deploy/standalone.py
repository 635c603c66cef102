"""One ONNX file from the raw pixels of a 2D image to its label: ``models/model_standalone.onnx``.

Cropping to the nonzero pixels, z-score, padding, network, argmax and softmax are all operators of
the graph, so that whoever runs it needs ONNX Runtime and nothing else:

    image        uint8, uint16 or float32, (1, height, width, C), or (1, C, height, width)
    label        uint8, (1, height, width)
    probability  float32, (1, height, width, K), or (1, K, height, width)

Rows and columns are those of the file, not MONAI's array order. An image that the patch holds gets
the label of ``inference.json``. A larger one takes one pass of the network, where
``inference.json`` slides windows: instance normalization then sees the whole image, and labels
differ a little.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_xtiny.data.case import Case
from monai_xtiny.deploy.segmenter import InputFormat, Segmenter, import_deploy, load_segmenter
from monai_xtiny.system.files import atomic_write

# Names of ONNX's text format, and NumPy's.
DTYPES = {"uint8": np.uint8, "uint16": np.uint16, "float32": np.float32}
LAYOUTS = ("NHWC", "NCHW")
# From the layout to the network's (1, C, width, height), and back: each is its own inverse.
_TURNS = {"NHWC": [0, 3, 2, 1], "NCHW": [0, 1, 3, 2]}
# Pixels whose best two logits are closer may go either way.
_TIED = 1e-3

_BEFORE = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
before ({dtype}[{shape}] image)
    => (float[batch, channels, x, y] padded, int64[4] inner, int64[4] outer)
<int64[2] divisor = {{{divisor}}}, int64[2] patch = {{{patch}}}, int64[2] two = {{2, 2}},
 int64[2] one = {{1, 1}}, int64[2] spatial = {{2, 3}}, int64[1] axis_x = {{2}},
 int64[1] axis_y = {{3}}, int64[3] but_x = {{0, 1, 3}}, int64[3] but_y = {{0, 1, 2}},
 int64 start = {{0}}, int64 step = {{1}}, float nothing = {{0.0}}, float unit = {{1.0}}>
{{
    turned = Transpose <perm = {turn}> (image)
    values = Cast <to = 1> (turned)
    full = Shape <start = 2, end = 4> (values)
    magnitude = Abs (values)
    {box_x}
    {box_y}
    first = Concat <axis = 0> (first_x, first_y)
    last = Concat <axis = 0> (last_x, last_y)
    crop = Slice (values, first, last, spatial)
    rough_x = ReduceMean (crop, axis_y)
    rough = ReduceMean (rough_x, axis_x)
    near = Sub (crop, rough)
    rest_x = ReduceMean (near, axis_y)
    rest = ReduceMean (rest_x, axis_x)
    centered = Sub (near, rest)
    square = Mul (centered, centered)
    variance_x = ReduceMean (square, axis_y)
    variance = ReduceMean (variance_x, axis_x)
    deviation = Sqrt (variance)
    is_flat = Equal (deviation, nothing)
    scale = Where (is_flat, unit, deviation)
    normalized = Div (centered, scale)
    size = Sub (last, first)
    most = Sub (divisor, one)
    raised = Add (size, most)
    needed = Div (raised, divisor)
    steps = Max (needed, two)
    multiple = Mul (steps, divisor)
    larger = Greater (size, patch)
    larger_int = Cast <to = 7> (larger)
    num_larger = ReduceSum <keepdims = 0> (larger_int)
    is_small = Equal (num_larger, start)
    target = Where (is_small, patch, multiple)
    missing = Sub (target, size)
    left = Div (missing, two)
    right = Sub (missing, left)
    none = Sub (two, two)
    pads = Concat <axis = 0> (none, left, none, right)
    padded = Pad (normalized, pads)
    end = Add (left, size)
    inner = Concat <axis = 0> (left, end)
    behind = Sub (full, last)
    outer = Concat <axis = 0> (first, behind)
}}
"""

# The pixels of an axis from the first to the last that is not 0; all, where there is none.
_BOX = """
    edge_{axis} = Gather (full, {index})
    profile_{axis} = ReduceMax <keepdims = 0> (magnitude, but_{axis})
    content_{axis} = Greater (profile_{axis}, nothing)
    at_{axis} = Range (start, edge_{axis}, step)
    next_{axis} = Add (at_{axis}, step)
    firsts_{axis} = Where (content_{axis}, at_{axis}, edge_{axis})
    lasts_{axis} = Where (content_{axis}, next_{axis}, start)
    found_first_{axis} = ReduceMin (firsts_{axis})
    found_last_{axis} = ReduceMax (lasts_{axis})
    is_blank_{axis} = Greater (found_first_{axis}, found_last_{axis})
    first_{axis} = Where (is_blank_{axis}, start, found_first_{axis})
    last_{axis} = Where (is_blank_{axis}, edge_{axis}, found_last_{axis})
"""

_AFTER = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
after (float[batch, {classes}, x, y] logits, int64[4] inner, int64[4] outer)
    => (uint8[1, height, width] label, float[{shape}] probability)
<int64[2] spatial = {{2, 3}}, int64[2] none = {{0, 0}}, int64[1] one_none = {{0}},
 int64[2] halves = {{2, 2}}, uint8 zero = {{0}}, float unit = {{1.0}},
 float[1, {classes}, 1, 1] background = {{1.0{zeros}}}>
{{
    begin, end = Split <axis = 0> (inner, halves)
    ahead, behind = Split <axis = 0> (outer, halves)
    inside = Slice (logits, begin, end, spatial)
    best = ArgMax <axis = 1, keepdims = 0> (inside)
    class = Cast <to = 2> (best)
    label_pads = Concat <axis = 0> (one_none, ahead, one_none, behind)
    whole = Pad (class, label_pads, zero)
    label = Transpose <perm = [0, 2, 1]> (whole)
    share = Softmax <axis = 1> (inside)
    pads = Concat <axis = 0> (none, ahead, none, behind)
    whole_share = Pad (share, pads)
    total = Sub (share, share)
    covered = Add (total, unit)
    is_inside = Pad (covered, pads)
    outside = Sub (unit, is_inside)
    elsewhere = Mul (outside, background)
    filled = Add (whole_share, elsewhere)
    probability = Transpose <perm = {turn}> (filled)
}}
"""


def check_standalone(kind: str, dtype: str, layout: str) -> None:
    """Refuse what no file that stands alone can be made of.

    Args:
        kind: what the bundle reads.
        dtype: of the pixels.
        layout: ``NHWC`` or ``NCHW``.

    Raises:
        ValueError: the bundle does not segment 2D images, or there is no such dtype or layout.
    """
    if kind != "images":
        raise ValueError(
            f"--standalone is for 2D images, and this bundle reads {kind}, which are turned, "
            "resampled and normalized as a whole: run configs/inference.json, or make a page of it "
            "with python -m monai_xtiny web"
        )
    for name, value, known in (("dtype", dtype, DTYPES), ("layout", layout, LAYOUTS)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}: give one of {', '.join(known)}")


def write_standalone(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    dtype: str = "uint8",
    layout: str = "NHWC",
) -> Path:
    """Put everything around the network of ``models/model.onnx`` into one graph.

    Args:
        model: what :func:`monai_xtiny.deploy.onnx_model.export_onnx` wrote, of 2D images.
        path: the file to write, or replace.
        dtype: of the pixels that it takes: ``uint8``, ``uint16`` or ``float32``.
        layout: ``NHWC`` or ``NCHW``, of the image and of the probabilities.

    Returns:
        The path.

    Raises:
        FileNotFoundError: there is no ``model``.
        ImportError: onnx or onnxruntime is not installed.
        ValueError: the network is none of 2D images, there is no such dtype or layout, or a label
            differs from the segmenter's.
    """
    onnx = import_deploy("onnx")
    segmenter = load_segmenter(model, whole_image=True)
    form = segmenter.form
    check_standalone(form.kind, dtype, layout)
    network = onnx.load(model)
    described = {item.key: item.value for item in network.metadata_props}
    joined = _surround(network, form, dtype, layout)
    del joined.metadata_props[:]
    for key, value in {**described, **_standalone_metadata(form, dtype, layout)}.items():
        joined.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(joined, full_check=True)
    target = Path(path)
    with atomic_write(target) as part:
        onnx.save(joined, part)
        _compare(part, segmenter, dtype, layout)
    return target


def measure_whole_image(
    model: str | os.PathLike[str], cases: Sequence[Case]
) -> tuple[int, float | None]:
    """How far one pass over a large image differs from sliding windows.

    Args:
        model: what :func:`monai_xtiny.deploy.onnx_model.export_onnx` wrote, of 2D images.
        cases: unlabeled images.

    Returns:
        The number of images that are larger than the patch, and the share of their pixels whose
        labels differ, the mean over them; ``None`` without any.

    Raises:
        ValueError: an image cannot be read.
    """
    windows = load_segmenter(model)
    whole = load_segmenter(model, whole_image=True)
    shares = []
    for case in cases:
        image = windows.read([os.fspath(file) for file in case.images])
        if any(np.greater(image.shape[1:], windows.form.patch_size)):
            shares.append(float(np.mean(windows.segment(image) != whole.segment(image))))
    return len(shares), float(np.mean(shares)) if shares else None


def _surround(network: Any, form: InputFormat, dtype: str, layout: str) -> Any:
    """The network between what makes its input of pixels, and labels of its logits."""
    onnx = import_deploy("onnx")
    versions = {
        "ir_version": network.ir_version,
        "opset": next(item.version for item in network.opset_import if not item.domain),
    }
    num_classes = len(form.labels)
    sizes = ("1, height, width, {}", "1, {}, height, width")[LAYOUTS.index(layout)]
    before = _BEFORE.format(
        **versions,
        dtype="float" if dtype == "float32" else dtype,
        shape=sizes.format(form.in_channels),
        divisor=", ".join(map(str, form.divisor)),
        patch=", ".join(map(str, form.patch_size)),
        turn=_TURNS[layout],
        box_x=_BOX.format(axis="x", index="start"),
        box_y=_BOX.format(axis="y", index="step"),
    )
    after = _AFTER.format(
        **versions,
        classes=num_classes,
        zeros=", 0.0" * (num_classes - 1),
        shape=sizes.format(num_classes),
        turn=_TURNS[layout],
    )
    parse, merge = onnx.parser.parse_model, onnx.compose.merge_models
    carried = ["inner", "outer"]
    first = merge(
        onnx.compose.add_prefix(parse(before), "before_", rename_inputs=False),
        network,
        io_map=[("before_padded", "image")],
        prefix2="network_",
        outputs=[*(f"before_{name}" for name in carried), "network_pred"],
    )
    return merge(
        first,
        parse(after),
        io_map=[*((f"before_{name}", name) for name in carried), ("network_pred", "logits")],
        outputs=["label", "probability"],
    )


def _standalone_metadata(form: InputFormat, dtype: str, layout: str) -> dict[str, str]:
    """What a reader of the file has to know, beside what the network's own file says."""
    sides = "height, width"
    shape = (
        f"(1, {sides}, {form.in_channels})"
        if layout == "NHWC"
        else f"(1, {form.in_channels}, {sides})"
    )
    return {
        "standalone": json.dumps({"dtype": dtype, "layout": layout, "image": shape}),
        "resampling": "none: 2D images have no spacing, a pixel is a pixel",
        "large_images": (
            f"up to {form.patch_size[0]} x {form.patch_size[1]} (width x height) the label of "
            "inference.json; beyond, one pass in place of sliding windows"
        ),
    }


def _compare(path: Path, segmenter: Segmenter, dtype: str, layout: str) -> None:
    """Refuse a file whose labels are not the segmenter's, on images of several sizes."""
    session = import_deploy("onnxruntime").InferenceSession(path)
    form = segmenter.form
    generator = np.random.default_rng(0)
    small = tuple(max(3, edge // 2 - 1) for edge in form.patch_size)
    large = tuple(edge + 5 for edge in form.patch_size)
    for size, margin in ((form.patch_size, 0), (small, 2), (large, 0)):
        image = np.zeros((form.in_channels, *size), DTYPES[dtype])
        inner = (slice(None), *(slice(margin, edge - margin // 2) for edge in size))
        image[inner] = generator.integers(1, 255, image[inner].shape).astype(image.dtype)
        found = session.run(["label", "probability"], {"image": _laid_out(image, layout)})
        label, probability = found[0][0].T, found[1][0]
        if layout == "NHWC":
            probability = np.moveaxis(probability, -1, 0)
        ranked = np.sort(probability, axis=0)
        is_clear = (ranked[-1] - ranked[-2] > _TIED).T
        differs = (label != segmenter.segment(image)) & is_clear
        if differs.any():
            raise ValueError(
                f"the label of {path.name} differs from the segmenter's in {differs.sum()} pixels "
                f"of an image of {size}: it was not written"
            )


def _laid_out(image: NDArray[Any], layout: str) -> NDArray[Any]:
    """An image (C, width, height) as the file takes it."""
    return image.transpose(2, 1, 0)[None] if layout == "NHWC" else image.transpose(0, 2, 1)[None]
