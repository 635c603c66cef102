"""An ONNX model at work, from image file to labels: NumPy, Pillow and ONNX Runtime.

It needs neither PyTorch nor MONAI, and imports nothing else of this package: this one file, copied
beside the model, is enough on the machine that segments.

Axis order is MONAI's array order: B, C, *spatial, for a PNG file (width, height), as MONAI's
``PILReader`` gives it. ``labels.T`` has rows and columns.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# What the emitted inference.json gives its SlidingWindowInferer, and what that has by itself.
_OVERLAP, _WINDOWS_AT_ONCE = 0.5, 4
_SIGMA_SCALE, _SMALLEST_WEIGHT = 0.125, 1e-3
CUDA_PROVIDER = "CUDAExecutionProvider"

# Keys of an ONNX file's metadata: the digest of the file of its weights, and if they are trained.
WEIGHTS_FILE, TRAINED = "weights_file_sha256", "is_trained"
_LARGEST = 1e15
# What files of earlier versions do not say.
_LATER = ("crop", "spacing", "slice_axis", "overlap")

# What follows, and the functions at the end, stands in monai_xtiny/bundled/gate.py too, which this
# one file cannot import; a test holds them equal.
# Pillow's modes whose pixels are read as they are in the file: gray, and three colors of 8 bits.
_GRAY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_MODES = (*_GRAY_MODES, "RGB")
# EXIF's number for the turns and flips that viewers apply and Pillow does not.
_ORIENTATION = 274
_BITS, _SAMPLES, _SAMPLE_FORMAT = 258, 277, 339  # TIFF's numbers
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3


@dataclass(frozen=True)
class InputFormat:
    """What a deployed network takes; it travels in the ONNX file.

    Args:
        kind: ``images`` (2D files such as PNG), ``slices`` of volumes, or ``volumes``.
        in_channels: of an image.
        patch_size: voxels along each spatial axis of a window, as in ``inference.json``.
        divisor: spatial sizes that the network takes are its multiples.
        labels: names of the classes, background first.
        crop: whether images are cropped to their nonzero voxels; not in files of earlier versions.
        spacing: mm along each axis that volumes are resampled to, after they are turned to RAS;
            empty for images, whose pixels have no size, and in files of earlier versions.
        slice_axis: the axis of volumes that slices are cut along.
        overlap: of neighboring windows, as a share of the patch; not in files of earlier versions.
    """

    kind: str
    in_channels: int
    patch_size: tuple[int, ...]
    divisor: tuple[int, ...]
    labels: tuple[str, ...]
    crop: bool = False
    spacing: tuple[float, ...] = ()
    slice_axis: int | None = None
    overlap: float = _OVERLAP

    def padded(self, size: Sequence[int]) -> tuple[int, ...]:
        """The smallest size that holds an image of another and that the network takes.

        Two steps of the divisor at least, as instance normalization needs more than one voxel.

        >>> InputFormat("images", 1, (256, 256), (64, 64), ("no", "yes")).padded((200, 30))
        (256, 128)
        """
        return tuple(
            factor * max(2, -(-edge // factor))
            for edge, factor in zip(size, self.divisor, strict=True)
        )

    def to_metadata(self) -> dict[str, str]:
        """The fields as JSON texts, for ``metadata_props`` of an ONNX file."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}


def format_from_metadata(metadata: Mapping[str, str]) -> InputFormat:
    """What :meth:`InputFormat.to_metadata` wrote.

    Raises:
        ValueError: a field is missing, or the file stands alone.
    """
    if "standalone" in metadata:
        raise ValueError(
            "the ONNX file stands alone and takes raw pixels: run it with ONNX Runtime itself, or "
            "give model.onnx"
        )
    try:
        names = [name for name in InputFormat.__dataclass_fields__ if name not in _LATER]
        values = {name: json.loads(metadata[name]) for name in names}
        values |= {name: json.loads(metadata[name]) for name in _LATER if name in metadata}
    except KeyError as error:
        raise ValueError(f"the ONNX file names no {error.args[0]}: deploy the bundle") from error
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return InputFormat(**{**values, **lists})


class Segmenter:
    """Labels of an image, as the bundle's ``inference.json`` gives them.

    An image no larger than the patch is padded with zeros and takes one pass of the network; a
    larger one takes a sliding window, equal to MONAI's, or one pass too if asked to.

    Args:
        predict: the network, float32 arrays of (B, C, *spatial) to logits of (B, K, *spatial).
        form: what the network takes.
        whole_image: one pass for images larger than the patch: faster, and not the labels that
            ``inference.json`` gives, as instance normalization then sees the whole image.
        metadata: what the file of the network says of it.
    """

    def __init__(
        self,
        predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        form: InputFormat,
        *,
        whole_image: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.predict = predict
        self.metadata = metadata or {}
        self._whole_image = whole_image
        self.form = form

    def __call__(self, images: str | os.PathLike[str] | Sequence[str]) -> NDArray[np.uint8]:
        """Labels of an image file.

        Args:
            images: the file, or one file per channel.

        Returns:
            Class indices, (width, height).
        """
        return self.segment(self.read(images))

    def read(self, images: str | os.PathLike[str] | Sequence[str]) -> NDArray[np.float32]:
        """Decode an image file as MONAI does.

        Args:
            images: the file, or one file per channel.

        Returns:
            Intensities as they are in the file, (C, width, height).

        Raises:
            ValueError: the network is one of volumes or slices, or ``inference.json`` would refuse
                the file, too.
        """
        if self.form.kind != "images":
            raise ValueError(
                f"the network is one of {self.form.kind}, which inference.json reads and resamples"
            )
        files = [images] if isinstance(images, (str, os.PathLike)) else list(images)
        channels = []
        for file in files:
            channels.append(_read_pixels(os.fspath(file)))
        image = np.concatenate(channels).astype(np.float32, order="C")
        if len(image) != self.form.in_channels:
            raise ValueError(
                f"{os.fspath(files[0])!r} has {len(image)} channels, the network takes "
                f"{self.form.in_channels}: convert it"
            )
        _check_values(image, repr(os.fspath(files[0])))
        return image

    def segment(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Labels of an image in memory, a frame of a video for example.

        Args:
            image: intensities as they come, (C, *spatial), on the spacing of the plan.

        Returns:
            Class indices, (*spatial).

        Raises:
            ValueError: the network is one of slices, whose volume has to be normalized as a whole;
                or the image is constant in a channel, or not finite.
        """
        if self.form.kind == "slices":
            raise ValueError("a slice alone cannot be normalized: z-score the volume, use logits()")
        _check_values(image, "the image")
        labels = np.zeros(image.shape[1:], np.uint8)
        box = _content(image) if self.form.crop else (slice(None),) * (image.ndim - 1)
        in_box = (slice(None), *box)
        labels[box] = largest_logit(self.logits(z_score(image[in_box])))
        return labels

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a normalized image.

        Args:
            image: z-scored per channel, (C, *spatial).

        Returns:
            One channel per class, (K, *spatial).
        """
        size, patch = image.shape[1:], self.form.patch_size
        if all(edge <= limit for edge, limit in zip(size, patch, strict=True)):
            return self._one_pass(image, patch)
        if self._whole_image:
            return self._one_pass(image, self.form.padded(size))
        windows = slide_windows(image, self.predict, patch, overlap=self.form.overlap)
        return np.concatenate(list(windows), axis=1)

    def _one_pass(self, image: NDArray[np.float32], target: tuple[int, ...]) -> NDArray[np.float32]:
        """The network on an image padded on both sides, as MONAI's sliding window pads."""
        padded, inside = _pad(image, target)
        return self.predict(padded[None])[0][inside]


def load_segmenter(
    model: str | os.PathLike[str],
    *,
    num_threads: int | None = None,
    whole_image: bool = False,
    device: str = "cpu",
) -> Segmenter:
    """Load ``models/model.onnx`` or ``models/model_int8.onnx`` into ONNX Runtime.

    Args:
        model: what ``python -m monai_xtiny deploy`` wrote.
        num_threads: intra-op threads of ONNX Runtime (default: its choice, one per core).
        whole_image: as :class:`Segmenter` takes it.
        device: ``cpu``, or with onnxruntime-gpu ``cuda`` or ``cuda:N``.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: ONNX Runtime is not installed.
        ValueError: the file is none that ``deploy`` wrote, or ONNX Runtime has no such device.
    """
    runtime = import_deploy("onnxruntime")
    kind, _, number = device.partition(":")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu":
        is_cuda = kind == "cuda" and (number or "0").isdecimal()
        if not is_cuda or CUDA_PROVIDER not in runtime.get_available_providers():
            raise ValueError(
                f"ONNX Runtime has no device {device!r} here: put onnxruntime-gpu in the place of "
                "onnxruntime, or take cpu"
            )
        _load_cuda_libraries(runtime)
        providers.insert(0, (CUDA_PROVIDER, {"device_id": int(number or 0)}))
    path = Path(model)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {str(path)!r}: run python -m monai_xtiny deploy")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = num_threads or 0
    try:
        session = runtime.InferenceSession(
            os.fspath(path), options, providers=providers, enable_fallback=0
        )
    except Exception as error:
        raise ValueError(f"{str(path)!r} is no ONNX model that runs here: {error}") from error
    if device != "cpu" and session.get_providers()[0] != CUDA_PROVIDER:
        raise ValueError(f"ONNX Runtime cannot use {device!r} here: its CUDA libraries are missing")
    metadata = session.get_modelmeta().custom_metadata_map
    return Segmenter(
        lambda images: session.run(None, {"image": images})[0],
        format_from_metadata(metadata),
        whole_image=whole_image,
        metadata=metadata,
    )


def _load_cuda_libraries(runtime: Any) -> None:
    """Load those that came with PyTorch, where the system has none; what is not found is said."""
    if hasattr(runtime, "preload_dlls"):  # from 1.21
        with redirect_stdout(sys.stderr):
            runtime.preload_dlls()


def import_deploy(name: str) -> Any:
    """Import a package of the extra ``deploy``.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported: pip install monai-xtiny[deploy]") from error


def slide_windows(
    image: NDArray[np.float32],
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    patch: Sequence[int],
    *,
    overlap: float = _OVERLAP,
    windows_at_once: int = _WINDOWS_AT_ONCE,
) -> Iterator[NDArray[np.float32]]:
    """Logits of overlapping windows, blended with Gaussian weights, slab by slab.

    It is ``monai.inferers.SlidingWindowInferer(patch, windows_at_once, overlap, mode="gaussian")``:
    the same windows in the same batches, summed in the same order, in float32. Of the sums no more
    is held than one patch is long along the first axis.

    Args:
        image: normalized, (C, *spatial).
        predict: from windows (B, C, *patch) to logits (B, K, *patch).
        patch: edges of a window.
        overlap: of neighbors, as a share of the patch.
        windows_at_once: of a batch.

    Yields:
        Logits (K, n, *others) of the next n planes along the first axis.
    """
    target = tuple(max(edge, length) for edge, length in zip(image.shape[1:], patch, strict=True))
    padded, inside = _pad(image, target)
    index = [*inside, *[slice(None)] * (image.ndim - len(inside))]
    planes, others = index[1], index[2:]
    axes = zip(target, patch, strict=True)
    corners = list(product(*(_window_starts(edge, length, overlap) for edge, length in axes)))
    weights = _window_weights(patch)
    sums, weight_sums = np.zeros(1, np.float32), np.zeros((patch[0], *target[1:]), np.float32)
    base = 0

    def take(count: int) -> NDArray[np.float32]:
        """The first planes of the sums, which no window adds to any more, without padding."""
        first, last, _ = planes.indices(target[0])
        kept = slice(max(first - base, 0), max(min(count, last - base), 0))
        block = (slice(None), kept, *others)
        return sums[block] / weight_sums[block[1:]]

    for at in range(0, len(corners), windows_at_once):
        batch = corners[at : at + windows_at_once]
        predicted = predict(np.stack([padded[_box(corner, patch)] for corner in batch]))
        if at == 0:  # the number of classes is known from here on
            sums = np.zeros((predicted.shape[1], *weight_sums.shape), np.float32)
        for corner, logits in zip(batch, predicted, strict=True):
            step = corner[0] - base
            if step > 0:
                yield take(step)
                for array in (sums.swapaxes(0, 1), weight_sums):
                    array[:-step] = array[step:].copy()
                    array[-step:] = 0
                base = corner[0]
            box = _box((0, *corner[1:]), patch)
            sums[box] += logits * weights
            weight_sums[box] += weights
    yield take(patch[0])


def _box(corner: Sequence[int], patch: Sequence[int]) -> tuple[Any, ...]:
    """Where a window lies, behind any other axes."""
    return (..., *(slice(at, at + length) for at, length in zip(corner, patch, strict=True)))


def _window_starts(edge: int, length: int, overlap: float) -> list[int]:
    """Where windows start along an axis, the last one at the end."""
    step = length if length == edge else max(1, int(length * (1 - overlap)))
    return [*range(0, edge - length, step), edge - length]


def _window_weights(patch: Sequence[int]) -> NDArray[np.float32]:
    """A Gaussian whose sigma is an eighth of each edge, 0.001 at least, as MONAI's."""
    weights = np.ones((), np.float32)
    for length in patch:
        offset = np.arange(length) - (length - 1) / 2
        profile = np.exp(offset**2 / (-2 * (_SIGMA_SCALE * length) ** 2)).astype(np.float32)
        weights = weights[..., None] * profile
    return np.maximum(weights, np.float32(_SMALLEST_WEIGHT))


def _pad(
    image: NDArray[np.float32], target: Sequence[int]
) -> tuple[NDArray[np.float32], tuple[Any, ...]]:
    """Zeros on both sides of an image, and where the image is, as MONAI's sliding window pads."""
    size = image.shape[1:]
    if size == tuple(target):
        return image, (slice(None),)
    starts = [(wide - edge) // 2 for wide, edge in zip(target, size, strict=True)]
    spatial = (slice(at, at + edge) for at, edge in zip(starts, size, strict=True))
    inside: tuple[Any, ...] = (slice(None), *spatial)
    padded = np.zeros((len(image), *target), dtype=np.float32)
    padded[inside] = image
    return padded, inside


def _content(image: NDArray[Any]) -> tuple[slice, ...]:
    """The box of the voxels that are not 0 in every channel, as ``CropForegroundd`` finds it."""
    content = image.any(axis=0).nonzero()
    return tuple(slice(int(found.min()), int(found.max()) + 1) for found in content)


def _check_values(image: NDArray[Any], name: str) -> None:
    """Refuse an image whose voxels are not finite, or that is constant in a channel."""
    for index, channel in enumerate(image):
        low, high = float(channel.min()), float(channel.max())
        if not np.isfinite([low, high]).all():
            raise ValueError(f"{name}: voxels are NaN or infinite: repair or leave it out")
        if max(-low, high) > _LARGEST:
            raise ValueError(
                f"{name}: channel {index} reaches from {low:g} to {high:g}, beside which nothing "
                "else can be told apart: replace such values (no data?), or leave the image out"
            )
        if low == high:
            raise ValueError(
                f"{name}: channel {index} is constant ({low} everywhere): leave the image out"
            )


def z_score(image: NDArray[Any]) -> NDArray[np.float32]:
    """Every channel at mean 0 and standard deviation 1, as ``NormalizeIntensityd`` does."""
    values = image.astype(np.float32, order="C")
    normalize(values)
    return values


def normalize(image: NDArray[np.float32]) -> None:
    """Bring every channel of an image to mean 0 and standard deviation 1, in its place."""
    for channel in image:
        channel -= channel.mean()
        channel /= channel.std() or 1.0


def largest_logit(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Index of the largest logit, the first on a tie; four times faster than NumPy's for two."""
    if len(logits) == 2:
        return (logits[1] > logits[0]).astype(np.uint8)
    return logits.argmax(axis=0).astype(np.uint8)


def _read_pixels(file: str) -> NDArray[Any]:
    """Pixels of a file, (C, width, height), unless Pillow would read them wrongly."""
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file!r} is not there, or no regular file: check the path")
    try:
        with Image.open(file) as image:
            problem = _find_pixel_problem(image, is_label=False)
            pixels = np.asarray(image) if problem is None else np.empty(0)
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{file!r}: it cannot be read ({text}): repair it or leave it out"
        ) from error
    if problem is not None:
        raise ValueError(f"{file!r}: {problem}")
    return np.atleast_3d(pixels).transpose(2, 1, 0)


def _find_pixel_problem(image: Image.Image, *, is_label: bool) -> str | None:
    """What keeps a PNG, JPG, TIFF or BMP file from being read safely."""
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        return f"it is a stack of {pages} pages: save each as an image"
    turned = _find_turn(image)
    if turned in range(2, 9):
        return (
            f"its EXIF orientation ({turned}) turns or flips it in some programs and not in "
            "others: save it upright"
        )
    if image.mode == "P" and is_label:
        return None
    if image.mode in ("P", "PA"):
        return "its colors are indices into a palette: save it as gray or RGB"
    if image.mode not in _MODES:
        return f"its pixels are {image.mode}: save it as gray or RGB"
    if image.format == "PNG":
        return _find_png_fault(image)
    return _find_tiff_fault(image) if image.format == "TIFF" else None


def _find_turn(image: Any) -> int:
    """EXIF's number, 1 for upright; Pillow's own ``getexif`` would read all pixels of a PNG."""
    if image.format == "TIFF":
        return int(image.tag_v2.get(_ORIENTATION, 1))
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
    except Exception:  # damaged, so that no program turns the image by it
        return 1
    return int(exif.get(_ORIENTATION, 1))


def _find_png_fault(image: Any) -> str | None:
    """Pillow reads colors of 16 bits as 8."""
    position = image.fp.tell()
    image.fp.seek(24)
    depth, color_type = struct.unpack("BB", image.fp.read(2))
    image.fp.seek(position)
    if depth == 16 and color_type != 0:
        return "its colors have 16 bits: save each channel as a gray file, or colors of 8 bits"
    return None


def _find_tiff_fault(image: Any) -> str | None:
    """Pillow leaves channels out, and wraps or cuts some numbers."""
    tags = image.tag_v2
    samples = int(tags.get(_SAMPLES, 1))
    bits = set(_tag_values(tags.get(_BITS, 1)))
    kinds = set(_tag_values(tags.get(_SAMPLE_FORMAT, _UNSIGNED)))
    if samples != len(image.getbands()):
        return (
            f"its pixels have {samples} samples, of which {len(image.getbands())} would be read: "
            "save each channel as a gray file"
        )
    if samples > 1 and bits != {8}:
        return "its colors have more than 8 bits: save each channel as a gray file"
    is_safe = (
        kinds == {_FLOAT}
        or (kinds == {_SIGNED} and bits <= {16, 32})
        or (kinds == {_UNSIGNED} and max(bits) <= 16)
    )
    if not is_safe:
        kind = {_UNSIGNED: "unsigned", _SIGNED: "signed"}.get(min(kinds), "unknown")
        return (
            f"its pixels are {kind} numbers of {max(bits)} bits, which are not read as they are: "
            "save them as unsigned 8 or 16 bits, or as float"
        )
    return None


def _tag_values(value: Any) -> tuple[int, ...]:
    """A TIFF tag of one number or several."""
    return tuple(value) if isinstance(value, tuple) else (value,)
