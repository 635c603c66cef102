"""The scores as ignite handlers, written as MONAI writes its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.handlers import from_engine
from monai.utils import ensure_tuple, evenly_divisible_all_gather, string_list_all_gather
from torch import nn

from monai_xtiny.scores.alignment import ImageFeatures, explained_variance, sampled_features
from monai_xtiny.scores.sensitivity import jacobian_sensitivity


class SensitivityHandler:
    r"""Measure the Jacobian sensitivity of a network on every image that an engine sees.

    .. math:: S = \frac{1}{K} \sum_{i=1}^{K} s(x_i)

    Kimbowa et al. 2026 (arXiv:2605.09639); :func:`monai_xtiny.jacobian_sensitivity` computes
    ``s``. Each epoch starts afresh. When it ends, the engine's state holds

    - ``state.metrics[name]``: the mean ``S`` over all images of all ranks, a float;
    - ``getattr(state, name)``: every value, float64 tensor of shape (K,), in the order seen, rank
      after rank;
    - ``getattr(state, name + "_cases")``: the K names of the images.

    The batch is looked at when the iteration starts, before the engine changes it; the network is
    left as it was (weights, gradients, modes, hooks, ``requires_grad``, generators).

    Args:
        network: the network to score, which need not be the engine's own; the images are moved to
            its device.
        keys: key of the images in a dictionary batch; of several, the first.
        name: under which the results appear in the engine's state.
        batch_transform: takes ``engine.state.batch`` and returns the images, for batches that are
            neither dictionaries with ``keys``, nor lists of them, nor tensors, nor (images, ...)
            tuples.
        gather: collect the values of all ranks through ``ignite.distributed`` at the end.

    Raises:
        ValueError: at the end of an epoch, if a value is not finite (the message names the cases,
            the values stay in the state) or if no image was seen.
        TypeError: a batch holds no images where they were expected.

    >>> engine = Engine(lambda engine, batch: None)
    >>> SensitivityHandler(nn.Conv2d(1, 1, kernel_size=1)).attach(engine)
    >>> state = engine.run([{"image": torch.ones(2, 1, 4, 4)}])
    >>> state.sensitivity.shape
    torch.Size([2])
    """

    def __init__(
        self,
        network: nn.Module,
        keys: KeysCollection = "image",
        name: str = "sensitivity",
        *,
        batch_transform: Callable[[Any], Any] | None = None,
        gather: bool = True,
    ) -> None:
        self.network = network
        self.keys = ensure_tuple(keys)[0]
        self.name = name
        self.batch_transform = batch_transform or partial(_pick_images, key=self.keys)
        self.gather = gather
        self._values: list[torch.Tensor] = []
        self._cases: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Attach to any ignite engine.

        Args:
            engine: an ignite ``Engine``, MONAI's trainers and evaluators included.
        """
        if engine.has_event_handler(self.update, Events.ITERATION_STARTED):
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_STARTED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.compute)

    def reset(self, engine: Engine) -> None:
        """Forget the values of the last epoch."""
        self._values = []
        self._cases = []

    def update(self, engine: Engine) -> None:
        """Score the images of the engine's batch."""
        images = self._images(engine.state.batch)
        self._cases.extend(_case_names(images, first=len(self._cases)))
        parameter = next(self.network.parameters(), None)
        if parameter is not None:
            images = images.to(parameter.device, parameter.dtype)
        self._values.append(self._measure(images).detach().cpu().double())

    def compute(self, engine: Engine) -> None:
        """Put the results of the epoch into the engine's state."""
        values = torch.cat(self._values) if self._values else torch.zeros(0, dtype=torch.float64)
        cases = list(self._cases)
        if self.gather:
            values = evenly_divisible_all_gather(values, concat=True).cpu()
            cases = string_list_all_gather(cases)
        if not len(values):
            raise ValueError("no image was seen: the data are empty")
        setattr(engine.state, self.name, values)
        setattr(engine.state, f"{self.name}_cases", cases)
        engine.state.metrics[self.name] = float(values.mean())
        bad = [
            f"{case} ({value})"
            for case, value in zip(cases, values.tolist(), strict=True)
            if not torch.isfinite(torch.tensor(value))
        ]
        if bad:
            raise ValueError(
                f"the {self.name} is not finite on {len(bad)} of {len(values)} images: "
                f"{', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}: check their intensities"
            )

    def _measure(self, images: torch.Tensor) -> torch.Tensor:
        """One value per image, shape (B,)."""
        return jacobian_sensitivity(self.network, images)

    def _images(self, batch: Any) -> torch.Tensor:
        """Images of a batch, (B, C, *spatial)."""
        images = self.batch_transform(batch)
        if isinstance(images, Sequence) and images:  # (images, ...), as MONAI's from_engine gives
            images = images[0]
        if not isinstance(images, torch.Tensor):
            raise TypeError(
                f"the batch holds {type(images).__name__} where images were expected: "
                "give keys or batch_transform"
            )
        return images


class AlignmentHandler(SensitivityHandler):
    """Measure what a network's last decoder features keep of each image that an engine sees.

    The share of simple image features that they explain linearly
    (:func:`monai_xtiny.scores.alignment.explained_variance` of
    :func:`monai_xtiny.scores.alignment.image_features`); the images come in the order of their
    features, and the results are in the engine's state as those of :class:`SensitivityHandler` are.

    Args:
        network: the network to measure, of :func:`monai_xtiny.build_network` or packed.
        image_features: one per image, in the order in which the engine sees them.
        keys: key of the images in a dictionary batch; of several, the first.
        name: under which the results appear in the engine's state.
        batch_transform: takes ``engine.state.batch`` and returns the images.
        gather: collect the values of all ranks through ``ignite.distributed`` at the end.

    Raises:
        ValueError: as :class:`SensitivityHandler`, or there are more images than features.
    """

    def __init__(
        self,
        network: nn.Module,
        image_features: Sequence[ImageFeatures],
        keys: KeysCollection = "image",
        name: str = "alignment",
        *,
        batch_transform: Callable[[Any], Any] | None = None,
        gather: bool = True,
    ) -> None:
        super().__init__(network, keys, name, batch_transform=batch_transform, gather=gather)
        self.image_features = tuple(image_features)

    def _measure(self, images: torch.Tensor) -> torch.Tensor:
        """One value per image, shape (B,), float64."""
        first = sum(len(values) for values in self._values)
        targets = self.image_features[first : first + len(images)]
        if len(targets) < len(images):
            raise ValueError(
                f"{first + len(images)} images and features of {len(self.image_features)}: give "
                "one each"
            )
        features = sampled_features(self.network, images, [item.voxels for item in targets])
        pairs = zip(features, targets, strict=True)
        return torch.stack(
            [explained_variance(item, target.values.to(item.device)) for item, target in pairs]
        )


def _case_names(images: torch.Tensor, first: int) -> list[str]:
    """File names of a batch of ``MetaTensor``, else running numbers."""
    names = images.meta.get("filename_or_obj") if isinstance(images, MetaTensor) else None
    if isinstance(names, str):
        names = [names]
    if names is None or len(names) != len(images):
        return [f"image {first + index}" for index in range(len(images))]
    return [str(name) for name in names]


def _pick_images(batch: Any, key: str) -> Any:
    """Images of a dictionary, or of a list of them after decollating; other batches as they are."""
    try:
        images = from_engine(key)(batch)
    except KeyError as error:
        item = batch if isinstance(batch, Mapping) else batch[0]
        raise TypeError(f"the batch has the keys {sorted(map(str, item))}, no {key}") from error
    if images is None:
        return batch
    return torch.stack(images) if isinstance(images, list) else images
