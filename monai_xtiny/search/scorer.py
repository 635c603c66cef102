"""One initialized network on the images of a sample, scored through an ignite engine."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from itertools import pairwise

import torch
from ignite.engine import Engine
from torch import nn

import monai_xtiny
from monai_xtiny.data.case import Sample
from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.networks.ladder import max_aligned_width, width_ladder
from monai_xtiny.networks.packed import CHANNELS_LAST, PackedNetwork
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.alignment import ImageFeatures, image_features, sample_voxels
from monai_xtiny.scores.handlers import AlignmentHandler, SensitivityHandler
from monai_xtiny.search.journal import UnitScore
from monai_xtiny.search.memory import (
    is_out_of_memory,
    release_network,
    scoring_limit_gb,
    scoring_memory_gb,
)
from monai_xtiny.system.devices import device_name, exact_kernels

# Voxels of each image at which its features are compared with a network's.
NUM_VOXELS = 2048
# Images of one batch do not act on each other, so batches change the time only. On CPUs images of
# 128 x 128 on are packed, as many as fill the channels of a kernel. Smaller ones share the overhead
# of a call in batches. So do volumes, of narrow networks only and with their channels last: PyTorch
# leaves single volumes of few channels to slower kernels than oneDNN's, while batches of wide
# networks leave the cache.
PACKED_VOXELS = 128 * 128
PACKED_CHANNELS = 16
BATCH_VOXELS = 128 * 128
NARROW_WIDTH = 8
NARROW_BATCH_VALUES = 2**21
# On GPUs launching kernels costs most, so that batches are as large as modest ones hold: 16 images
# of 256 x 256 with 32 channels.
CUDA_BATCH_VALUES = 2**25
# The images, whose preprocessing has more to do with, are compared themselves.
_SCORED_WITH = ("monai_xtiny", "torch", "monai", "numpy", "scipy")


class Scorer:
    """Scores initialized networks on the images of a sample.

    Args:
        sample: preprocessed images.
        plan: of the full network.
        seeds: of the initializations whose sensitivity is asked for; others are aligned alone. The
            first is that of the sampled voxels.
        device: that computes.
        align: measure the alignment too.
        num_wide_images: images, the first ones, that widths over ``max_aligned_width`` are scored
            on; ``None``, or more than there are, for all.
        max_memory_gb: what the process may hold; see
            :func:`monai_xtiny.search.memory.scoring_limit_gb`.

    Raises:
        ValueError: ``max_memory_gb`` is too little for one image.
    """

    def __init__(
        self,
        sample: Sample,
        plan: UNetPlan,
        seeds: Sequence[int],
        device: torch.device,
        *,
        align: bool,
        num_wide_images: int | None = None,
        max_memory_gb: float | None = None,
    ) -> None:
        self.sample = sample
        self.plan = plan
        self.seed = seeds[0]
        self.seeds = tuple(seeds)
        self.device = device
        self.align = align
        count = len(sample.images)
        self.num_wide_images = count if num_wide_images is None else min(num_wide_images, count)
        self.limit_gb = scoring_limit_gb(device, max_memory_gb)
        self.is_packed = (
            device.type == "cpu"
            and plan.spatial_dims == 2
            and sample.images[0][0].numel() >= PACKED_VOXELS
        )
        self._sizes = {width: self._batch_size(width) for width in width_ladder(plan)}
        if max_memory_gb is not None:
            self._fit(max_memory_gb)
        self._image_features: list[ImageFeatures] = []

    def subject(self) -> dict[str, str]:
        """What the scores depend on, for the journal."""
        digest = hashlib.sha256()
        for name, image in zip(self.sample.names, self.sample.images, strict=True):
            digest.update(name.encode())
            digest.update(image.contiguous().numpy().tobytes())
        plan = hashlib.sha256(repr(self.plan).encode())
        environment = describe_environment(self.device)
        return {
            "images": digest.hexdigest(),
            "plan": plan.hexdigest(),
            "seeds": " ".join(map(str, self.seeds)),
            "alignment": str(self.align),
            "images of wide widths": str(self.num_wide_images),
            **{f"version of {name}": environment[name] for name in _SCORED_WITH},
            "device": environment["device"],
            # Sums in another order differ in their last digits.
            "batch sizes": " ".join(map(str, self._sizes.values())),
            "layout": "packed" if self.is_packed else "batches",
        }

    def num_images(self, width: int) -> int:
        """How many of the images, the first ones, a width is scored on."""
        is_wide = width > max_aligned_width(self.plan)
        return self.num_wide_images if is_wide else len(self.sample.images)

    def score(self, width: int, seed: int) -> UnitScore:
        """Sensitivity, alignment or both of one initialized network on each image.

        Smaller batches are tried where memory runs out; they change the last digits of scores.

        Raises:
            ValueError: a score is not finite.
            MemoryError: not even one image fits.
        """
        size = self._sizes[width]
        while True:
            try:
                return self._score(width, seed, size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # ignite's frames hold the error, and its traceback the activations of all frames.
                error.__traceback__ = None
                if size == 1:
                    raise MemoryError(
                        f"width {width} on one image of {'x'.join(map(str, self.plan.patch_size))} "
                        f"does not fit in memory ({self.memory_gb(width):.1f} GB): free some, or "
                        "search on a machine with more"
                    ) from error
            finally:
                release_network(self.plan, width)
            size = (size + 1) // 2

    def memory_gb(self, width: int) -> float:
        """Memory that scoring a network of that width takes, about."""
        size = self._sizes[width]
        return scoring_memory_gb(self.plan, width, size, is_packed=self.is_packed)

    def prepare(
        self, run: Callable[[Callable[[int], ImageFeatures], range], Iterable[ImageFeatures]]
    ) -> None:
        """Compute the features of the images, once.

        Args:
            run: as ``map``; may call from several threads.
        """
        if self._image_features:
            return
        num_voxels = self.sample.images[0][0].numel()

        def features(index: int) -> ImageFeatures:
            voxels = sample_voxels(num_voxels, NUM_VOXELS, seed=self.seed + index)
            return image_features(self.sample.images[index], voxels)

        self._image_features = [
            ImageFeatures(found.voxels, found.values.to(self.device))
            for found in run(features, range(len(self.sample.images)))
        ]

    def image_features(self) -> list[ImageFeatures]:
        """Features of every image."""
        self.prepare(map)
        return self._image_features

    def _score(self, width: int, seed: int, size: int) -> UnitScore:
        """As :meth:`score`, in batches of at most ``size`` images."""
        batches = _make_batches(self.sample.images[: self.num_images(width)], size)
        network = self._build(width, seed, max(len(batch["image"]) for batch in batches))
        engine = Engine(lambda engine, batch: None)
        # Ranks score different networks: nothing to gather inside a unit.
        handlers: list[SensitivityHandler] = []
        is_aligned = self.align and width <= max_aligned_width(self.plan)
        if seed in self.seeds:
            handlers.append(SensitivityHandler(network, gather=False))
        if is_aligned:
            handlers.append(AlignmentHandler(network, self.image_features(), gather=False))
        for handler in handlers:
            handler.attach(engine)
        try:
            with exact_kernels(self.device):
                state = engine.run(batches)
        except ValueError as error:
            if self.is_packed and size > 1:  # one image may have spoilt others
                return self._score(width, seed, 1)
            for handler in handlers:
                values = getattr(engine.state, handler.name, None)
                finite = [True] if values is None else torch.isfinite(values).tolist()
                bad = [name for name, is_good in zip(self.sample.names, finite, strict=False)
                       if not is_good]  # fmt: skip
                if bad:
                    raise ValueError(
                        f"width {width}, seed {seed}: the {handler.name} is not finite on "
                        f"{', '.join(bad)}: check the intensities"
                    ) from error
            raise
        scores = {
            handler.name: tuple(getattr(state, handler.name).tolist()) for handler in handlers
        }
        return UnitScore(scores.get("sensitivity", ()), scores.get("alignment", ()))

    def _build(self, width: int, seed: int, num_images: int) -> nn.Module:
        """The network in the layout that takes the least time on so many images at once."""
        if self.is_packed:
            return PackedNetwork(self.plan, width, seed=seed, num_images=num_images)
        network = build_network(self.plan, width, seed=seed, device=self.device)
        if width <= NARROW_WIDTH and self.device.type == "cpu":
            network = network.to(memory_format=CHANNELS_LAST[self.plan.spatial_dims])  # type: ignore[call-overload]
        return network

    def _batch_size(self, width: int) -> int:
        """Images at a time that take the least time; the same wherever the search runs."""
        num_voxels = self.sample.images[0][0].numel()
        if self.is_packed:
            most = PACKED_CHANNELS // width
        elif self.device.type == "cuda":
            channels = min(width, self.plan.features_per_stage[0])
            most = CUDA_BATCH_VALUES // (channels * num_voxels)
        elif width <= NARROW_WIDTH:
            most = NARROW_BATCH_VALUES // (width * num_voxels)
        else:
            most = BATCH_VOXELS // num_voxels
        return max(1, min(most, self.num_images(width)))

    def _fit(self, max_memory_gb: float) -> None:
        """Make the batches small enough for a given limit."""
        for width in self._sizes:
            while self._sizes[width] > 1 and self.memory_gb(width) > self.limit_gb:
                self._sizes[width] = (self._sizes[width] + 1) // 2
            missing = self.memory_gb(width) - self.limit_gb
            if missing > 0:
                raise ValueError(
                    f"max_memory_gb is {max_memory_gb:g}, and width {width} needs about "
                    f"{max_memory_gb + missing:.1f} for one image: "
                    "give more"
                )


def describe_environment(device: torch.device) -> dict[str, str]:
    """Versions and device that the scores depend on."""
    packages = {
        name: version(name)
        for name in ("torch", "monai", "pytorch-ignite", "nibabel", "numpy", "scipy")
    }
    return {
        "monai_xtiny": monai_xtiny.__version__,
        **packages,
        "python": platform.python_version(),
        "device": device_name(device),
    }


def _make_batches(images: Sequence[torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """Images in batches of about the same number, at most ``size``.

    A list and no DataLoader, which would draw its seed from the global generator.
    """
    count = -(-len(images) // size)
    bounds = [len(images) * index // count for index in range(count + 1)]
    return [{"image": torch.stack(list(images[start:stop]))} for start, stop in pairwise(bounds)]
