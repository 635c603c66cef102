"""From the files of a case to logits on their grid: ONNX Runtime, or the bundle's PyTorch.

Both refuse the same files by the same gate. ONNX Runtime starts without PyTorch; what it does with
an image is ``inference.json`` in NumPy, and only of a bundle whose ``inference.json`` is as this
version writes it, settings aside. Axis order is C, *spatial = (x, y[, z]) or (width, height).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Protocol

import nibabel
import numpy as np
from numpy.typing import NDArray

from monai_xtiny.bundle.folder import ONNX, WEIGHTS, Bundle
from monai_xtiny.bundle.inference import check_inference
from monai_xtiny.bundled.gate import check_files, check_fit, is_nifti, settle_affine
from monai_xtiny.deploy.grids import GridPlacement, to_grid
from monai_xtiny.deploy.segmenter import (
    TRAINED,
    WEIGHTS_FILE,
    load_segmenter,
    normalize,
    slide_windows,
)
from monai_xtiny.system.files import digest_file, digest_files

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass
class Clock:
    """Wall time by what it was spent on, s."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def spent_on(self, part: str) -> Iterator[None]:
        """Add the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class ScoredImage:
    """Logits of an image, as they come.

    Args:
        shape: of the image, (*spatial), as its file has it.
        placement: of the grid of the logits in that of the file.
        slabs: logits (K, n, *others) of the next n planes along the first axis of the box of
            ``placement``; outside of the box is background.
    """

    shape: tuple[int, ...]
    placement: GridPlacement
    slabs: Iterator[NDArray[np.float32]]


class Engine(Protocol):
    """What gives an image its logits.

    Args:
        name: ``onnx`` or ``torch``.
        is_trained: whether the weights are other than those of an initialization.
        weights_sha256: digest of the files of weights that compute, several where folds do.
        clock: what time was spent on.
    """

    name: str
    is_trained: bool
    weights_sha256: str
    clock: Clock

    def __call__(self, files: Sequence[str]) -> ScoredImage:
        """Logits of a case.

        Args:
            files: of the case, one or one per channel.

        Raises:
            ValueError: the gate refuses a file.
        """
        ...


class OnnxEngine:
    """``models/model.onnx`` in ONNX Runtime.

    Args:
        bundle: with a file that ``deploy`` wrote.
        mirror_axes: spatial axes of the network that are flipped, in all combinations, whose
            logits are averaged.
        device: as :func:`load_segmenter` takes it.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: ONNX Runtime is not installed.
        ValueError: the file is of other weights, or ``inference.json`` was edited.
    """

    name = "onnx"

    def __init__(
        self, bundle: Bundle, *, mirror_axes: Sequence[int] = (), device: str = "cpu"
    ) -> None:
        config = bundle.config("inference")
        check_inference(bundle, "ONNX Runtime")
        path = bundle.path(ONNX)
        if not path.is_file():
            raise FileNotFoundError(f"there is no {ONNX} in it: {_deploy_command(bundle)} makes it")
        self._segmenter = load_segmenter(path, device=device)
        metadata = self._segmenter.metadata
        self.weights_sha256 = digest_file(bundle.path(WEIGHTS))
        if metadata.get(WEIGHTS_FILE) != self.weights_sha256:
            raise ValueError(
                f"its {ONNX} is not of its {WEIGHTS}: {_deploy_command(bundle)} makes it anew"
            )
        self.is_trained = metadata.get(TRAINED) == "true"
        self.clock = Clock()
        self._kind = bundle.kind
        self._channels = int(config["in_channels"])
        self._spacing = None if bundle.kind == "images" else tuple(config["spacing"])
        patch = [int(edge) for edge in config["patch_size"]]
        predict = mirrored(self._predict, mirror_axes, np.flip)
        if bundle.kind == "slices":
            axis = int(config["slice_axis"])
            patch.insert(axis, 1)
            predict = _in_slices(predict, axis)
        self._network, self._patch = predict, tuple(patch)
        self._overlap, self._windows = float(config["overlap"]), int(config["sw_batch_size"])

    def __call__(self, files: Sequence[str]) -> ScoredImage:
        """As :class:`Engine` has it."""
        with self.clock.spent_on("read"):
            image, affine = self._read(files)
        shape = image.shape[1:]
        with self.clock.spent_on("resample"):
            normal, placement = to_grid(image, affine, self._spacing)
            del image  # a large volume is held once
            normalize(normal)
        return ScoredImage(shape, placement, placement.restore(self._slide(normal)))

    def _slide(self, image: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        return slide_windows(
            image,
            self._network,
            self._patch,
            overlap=self._overlap,
            windows_at_once=self._windows,
        )

    def _predict(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        with self.clock.spent_on("network"):
            return self._segmenter.predict(windows)

    def _read(self, files: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Intensities (C, *spatial) and affine, as the bundle's readers give them."""
        if not is_nifti(files[0]):
            return self._segmenter.read(files), np.eye(4)
        check_files({"image": list(files)})
        dims = 2 if self._kind == "images" else 3
        channels, affine = [], np.eye(4)
        for index, file in enumerate(files):
            stored: Any = nibabel.load(file)
            if index == 0:
                affine = np.array(settle_affine(stored).affine, dtype=float)
            voxels = np.asanyarray(stored.dataobj)
            voxels = np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else voxels[None]
            channels.append(voxels.astype(np.float32, copy=False))
        image = channels[0] if len(channels) == 1 else np.concatenate(channels)
        check_fit(image, repr(files[0]), in_channels=self._channels, spatial_dims=dims)
        return image, affine


class TorchEngine:
    """The bundle's own ``inference.json`` in PyTorch, case by case.

    Args:
        bundle: whose configs and scripts are run.
        mirror_axes: as :class:`OnnxEngine` takes them.
        device: of PyTorch; default: that of the config.

    Raises:
        ValueError: the weights are not the network's.
    """

    name = "torch"

    def __init__(
        self, bundle: Bundle, *, mirror_axes: Sequence[int] = (), device: str | None = None
    ) -> None:
        import torch

        from monai_xtiny.bundled.folds import is_initialization, load_tensors
        from monai_xtiny.system.devices import select_device

        options = {} if device is None else {"device": select_device(device)}
        parser = bundle.workflow(("inference",), options).parser
        files = parser.get_parsed_content("checkpoints")
        self.is_trained = not any(
            is_initialization(load_tensors(file, "train it, or export it anew")) for file in files
        )
        self.weights_sha256 = digest_files(files)
        self.clock = Clock()
        self._preprocess = parser.get_parsed_content("preprocessing")
        network = parser.get_parsed_content("network")
        scripts = parser.get_parsed_content("workflow")
        scripts.load_weights(files[0], parser.get_parsed_content("network_def"))
        network.eval()
        self._network = mirrored(network, mirror_axes, torch.flip)
        self._inferer = parser.get_parsed_content("inferer")
        self._device = parser.get_parsed_content("device")
        steps = parser["postprocessing"]["transforms"]
        self._invert = [
            parser.get_parsed_content(f"postprocessing#transforms#{index}")
            for index, step in enumerate(steps)
            if step.get("_target_") == "Invertd"
        ]

    def __call__(self, files: Sequence[str]) -> ScoredImage:
        """As :class:`Engine` has it."""
        import torch
        from monai.data import decollate_batch, list_data_collate

        with self.clock.spent_on("read"):  # and resample: one chain of transforms
            batch: Any = list_data_collate([self._preprocess({"image": list(files)})])
        with self.clock.spent_on("network"), torch.inference_mode():
            batch["pred"] = self._inferer(batch["image"].to(self._device), self._network)
        with self.clock.spent_on("resample"):
            item: Any = decollate_batch(batch)[0]
            for step in self._invert:
                item = step(item)
        logits = item["pred"].as_subclass(torch.Tensor).cpu().float().numpy()
        shape = logits.shape[1:]
        whole = tuple(slice(0, edge) for edge in shape)
        dims = len(shape)
        placement = GridPlacement(tuple(range(dims)), (False,) * dims, whole, shape)
        return ScoredImage(shape, placement, iter([logits]))


def open_engine(
    bundle: Bundle,
    name: str = "auto",
    *,
    mirror_axes: Sequence[int] = (),
    device: str | None = None,
    before_run: Callable[[Bundle], None] = lambda bundle: None,
    say: Callable[[str], None] = print,
) -> Engine:
    """The engine of a name, or the faster one that the bundle has.

    Args:
        bundle: of anybody; PyTorch runs its configs and scripts.
        name: ``onnx``, ``torch``, or ``auto``: ONNX Runtime where the bundle has a file of its
            present weights, else PyTorch.
        mirror_axes: as the engines take them.
        device: to compute on; default: that of the engine.
        before_run: called before PyTorch runs the bundle's configs.
        say: is told why ``auto`` takes PyTorch.

    Raises:
        FileNotFoundError: ``onnx`` was asked for, and there is none.
        ImportError: likewise, of ONNX Runtime.
        ValueError: another name, or the engine cannot run the bundle.
    """
    if name not in ("auto", "onnx", "torch"):
        raise ValueError(f"--engine is {name!r}: give onnx or torch")
    if name != "torch":
        try:
            return OnnxEngine(bundle, mirror_axes=mirror_axes, device=device or "cpu")
        except (FileNotFoundError, ImportError, ValueError) as error:
            if name == "onnx":
                raise type(error)(f"{str(bundle.root)!r}: {error}") from error
            say(f"PyTorch, which starts slower: {error}")
    before_run(bundle)
    return TorchEngine(bundle, mirror_axes=mirror_axes, device=device)


def mirror_axes(bundle: Bundle) -> tuple[int, ...]:
    """Axes that the network was trained to see flipped, by ``mirror_prob`` of ``train.json``.

    As in nnU-Net, all spatial axes where training mirrored, and none where it did not: volumes,
    their slices, and 2D images that share an orientation are not mirrored by default.

    Raises:
        ValueError: training did not mirror, or the bundle was imported from nnU-Net.
    """
    config = bundle.config("train")
    if "nnunet_plans" in config:
        raise ValueError(
            f"{str(bundle.root)!r} was imported from nnU-Net: mirror_axes in its "
            "configs/inference.json says which axes are flipped, without --tta"
        )
    if not config.get("mirror_prob"):
        raise ValueError(
            f"{str(bundle.root)!r} was trained without mirroring (mirror_prob in "
            "configs/train.json), so that --tta would show it images unlike those it knows: leave "
            "--tta out, or write the --mirror_prob that it was trained with there"
        )
    return tuple(range(bundle.plan.spatial_dims))


def mirrored(predict: Any, axes: Sequence[int], flip: Callable[[Any, Any], Any]) -> Any:
    """A network whose logits are the mean over all flips of its input.

    Args:
        predict: from (B, C, *spatial) to logits.
        axes: spatial ones that are flipped.
        flip: ``numpy.flip`` or ``torch.flip``.
    """
    if not axes:
        return predict
    places = [axis + 2 for axis in axes]
    flips = [some for count in range(1, len(places) + 1) for some in combinations(places, count)]

    def average(images: Any) -> Any:
        total = predict(images)
        for some in flips:
            total = total + flip(predict(_contiguous(flip(images, some))), some)
        return total / (len(flips) + 1)

    return average


def _contiguous(images: Any) -> Any:
    """ONNX Runtime takes no views of flipped arrays."""
    return np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images


def _in_slices(predict: Predict, axis: int) -> Predict:
    """A network of slices as one of volumes that are one slice thick along an axis."""

    def on_volumes(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        found = predict(np.ascontiguousarray(windows.squeeze(axis + 2)))
        return np.expand_dims(found, axis + 2)

    return on_volumes


def _deploy_command(bundle: Bundle) -> str:
    """What writes the ONNX file."""
    return f"python -m monai_xtiny deploy {shlex.quote(str(bundle.root))} --nobenchmark"
