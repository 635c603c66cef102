"""An ONNX model at work, from picture to labels: NumPy, Pillow and ONNX Runtime, without PyTorch.

Axis order is MONAI's array order: B, C, *spatial, for a picture (width, height), as MONAI's
``PILReader`` gives it. ``labels.T`` has rows and columns.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What the emitted inference.json gives its SlidingWindowInferer.
_OVERLAP, _WINDOWS_AT_ONCE = 0.5, 4
CUDA_PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True)
class InputFormat:
    """What a deployed network takes; it travels in the ONNX file.

    Args:
        kind: ``images`` (pictures), ``slices`` of volumes, or ``volumes``.
        in_channels: of an image.
        patch_size: voxels along each spatial axis that the network was trained on.
        divisor: spatial sizes that the network takes are its multiples.
        labels: names of the classes, background first.
    """

    kind: str
    in_channels: int
    patch_size: tuple[int, ...]
    divisor: tuple[int, ...]
    labels: tuple[str, ...]

    def padded(self, size: Sequence[int]) -> tuple[int, ...]:
        """The smallest size that holds an image of another and that the network takes.

        Two steps of the divisor at least, as instance normalisation needs more than one voxel.

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
        ValueError: a field is missing.
    """
    try:
        values = {name: json.loads(metadata[name]) for name in InputFormat.__dataclass_fields__}
    except KeyError as error:
        raise ValueError(f"the ONNX file names no {error.args[0]}: deploy the bundle") from error
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return InputFormat(**{**values, **lists})


class Segmenter:
    """Labels of an image, as the bundle's ``inference.json`` gives them.

    An image no larger than the patch is padded with zeros and takes one pass of the network; a
    larger one takes MONAI's sliding window, which needs PyTorch, or one pass too if asked to.

    Args:
        predict: the network, float32 arrays of (B, C, *spatial) to logits of (B, K, *spatial).
        form: what the network takes.
        whole_image: one pass for images larger than the patch: faster, and not the labels that
            ``inference.json`` gives, as instance normalisation then sees the whole image.
    """

    def __init__(
        self,
        predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        form: InputFormat,
        *,
        whole_image: bool = False,
    ) -> None:
        self.predict = predict
        self._whole_image = whole_image
        self.form = form

    def __call__(self, images: str | os.PathLike[str] | Sequence[str]) -> NDArray[np.uint8]:
        """Labels of a picture.

        Args:
            images: its file, or one file a channel.

        Returns:
            Class indices, (width, height).
        """
        return self.segment(self.read(images))

    def read(self, images: str | os.PathLike[str] | Sequence[str]) -> NDArray[np.float32]:
        """Decode a picture as MONAI does.

        Args:
            images: its file, or one file a channel.

        Returns:
            Intensities as they are in the file, (C, width, height).

        Raises:
            ValueError: the network is not one of pictures, or the picture has other channels.
        """
        from PIL import Image

        if self.form.kind != "images":
            raise ValueError(
                f"the network is one of {self.form.kind}, which inference.json reads and resamples"
            )
        files = [images] if isinstance(images, (str, os.PathLike)) else list(images)
        channels = []
        for file in files:
            with Image.open(file) as picture:
                pixels = np.asarray(picture)
            channels.append(np.atleast_3d(pixels).transpose(2, 1, 0))
        image = np.concatenate(channels).astype(np.float32, order="C")
        if len(image) != self.form.in_channels:
            raise ValueError(
                f"{os.fspath(files[0])!r} has {len(image)} channels, the network takes "
                f"{self.form.in_channels}: convert it"
            )
        return image

    def segment(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Labels of an image in memory, a frame of a video for example.

        Args:
            image: intensities as they come, (C, *spatial), on the spacing of the plan.

        Returns:
            Class indices, (*spatial).

        Raises:
            ValueError: the network is one of slices, whose volume has to be normalised as a whole.
        """
        if self.form.kind == "slices":
            raise ValueError("a slice alone cannot be normalised: z-score the volume, use logits()")
        return _argmax(self.logits(_z_score(image)))

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a normalised image.

        Args:
            image: z-scored per channel, (C, *spatial).

        Returns:
            One channel a class, (K, *spatial).
        """
        size, patch = image.shape[1:], self.form.patch_size
        if all(edge <= limit for edge, limit in zip(size, patch, strict=True)):
            return self._one_pass(image, patch)
        if self._whole_image:
            return self._one_pass(image, self.form.padded(size))
        return self._windows(image)

    def _one_pass(self, image: NDArray[np.float32], target: tuple[int, ...]) -> NDArray[np.float32]:
        """The network on an image padded on both sides, as MONAI's sliding window pads."""
        size = image.shape[1:]
        if size == target:
            return self.predict(image[None])[0]
        starts = [(wide - edge) // 2 for wide, edge in zip(target, size, strict=True)]
        spatial = (slice(at, at + edge) for at, edge in zip(starts, size, strict=True))
        inside = (slice(None), *spatial)
        padded = np.zeros((1, len(image), *target), dtype=np.float32)
        padded[0][inside] = image
        return self.predict(padded)[0][inside]

    def _windows(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network on overlapping patches of an image, blended by MONAI."""
        import torch
        from monai.inferers import SlidingWindowInferer

        inferer = SlidingWindowInferer(
            self.form.patch_size, _WINDOWS_AT_ONCE, _OVERLAP, mode="gaussian"
        )
        blended = inferer(
            torch.from_numpy(image[None]),
            lambda windows: torch.from_numpy(self.predict(windows.numpy())),
        )
        return np.asarray(blended)[0]


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
        num_threads: of ONNX Runtime; its choice, one a core, without.
        whole_image: as :class:`Segmenter` takes it.
        device: ``cpu``, or ``cuda`` with its number or without, for onnxruntime-gpu.

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
    form = format_from_metadata(session.get_modelmeta().custom_metadata_map)
    return Segmenter(
        lambda images: session.run(None, {"image": images})[0], form, whole_image=whole_image
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


def _z_score(image: NDArray[Any]) -> NDArray[np.float32]:
    """Every channel at mean 0 and standard deviation 1, as ``NormalizeIntensityd`` does."""
    values = image.astype(np.float32, order="C")
    for channel in values:
        channel -= channel.mean()
        channel /= channel.std() or 1.0
    return values


def _argmax(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Index of the largest logit, the first on a tie; four times faster than NumPy's for two."""
    if len(logits) == 2:
        return (logits[1] > logits[0]).astype(np.uint8)
    return logits.argmax(axis=0).astype(np.uint8)
