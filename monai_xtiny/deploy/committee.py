"""A committee of networks that judge an image: those of the folds, or one and its flips.

Axis order is C, *spatial = (x, y[, z]) or (width, height), on the grid of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from monai.data import list_data_collate
from torch import nn

from monai_xtiny.bundle.folder import WEIGHTS, Bundle
from monai_xtiny.bundled.folds import fold_file, is_initialization, load_tensors, load_weights
from monai_xtiny.deploy.engines import mirror_axes
from monai_xtiny.networks.features import pooled_features
from monai_xtiny.scores.uncertainty import mean_probabilities
from monai_xtiny.system.devices import select_device

# The three kinds of committees.
FOLDS, FLIPS, ALONE = "folds", "flips", "softmax"


@dataclass(frozen=True)
class Verdict:
    """What a committee makes of an image.

    Args:
        image: as the bundle preprocesses it, (C, *spatial), on the CPU as what follows.
        affine: from its voxels to RAS in mm, (4, 4).
        probabilities: of the classes, mean of the members, (K, *spatial).
        features: of the image, as the encoder has them, (F,).
    """

    image: torch.Tensor
    affine: torch.Tensor
    probabilities: torch.Tensor
    features: torch.Tensor


class Committee:
    """Members whose labels of an image differ where it is hard.

    Of several trained ``models/model.pt``, ``models/model_fold1.pt``, ... each is a member; else
    the network and its flips are, along the axes that training mirrored; else it is alone, in
    bundles imported from nnU-Net with an inferer that averages its logits over flips.

    Args:
        bundle: whose configs and scripts are run.
        device: of PyTorch; default: that of the config.

    Raises:
        TypeError: the network is none whose features are known.
        ValueError: weights are not the network's, or ``configs/train.json`` is damaged.
    """

    def __init__(self, bundle: Bundle, *, device: str | None = None) -> None:
        options = {} if device is None else {"device": select_device(device)}
        parser = bundle.workflow(("inference",), options).parser
        self._device = parser.get_parsed_content("device")
        self._preprocess = parser.get_parsed_content("preprocessing")
        self._inferer = parser.get_parsed_content("inferer")
        self.files = trained_files(bundle) or [str(bundle.path(WEIGHTS))]
        self._averages_flips = bool(parser.get("mirror_axes"))
        network = parser.get_parsed_content("network_def")
        self._networks = [
            _loaded(copy.deepcopy(network), file).to(self._device).eval() for file in self.files
        ]
        with pooled_features(self._networks[0]):
            pass  # refuses any other network here, and not with each image
        axes = _flipped_axes(bundle) if len(self._networks) == 1 else ()
        self._flips = [some for count in range(len(axes) + 1) for some in combinations(axes, count)]

    @property
    def kind(self) -> str:
        """Who its members are: ``folds``, ``flips``, or ``softmax`` of one network."""
        if len(self._networks) > 1:
            return FOLDS
        return FLIPS if len(self._flips) > 1 else ALONE

    @property
    def description(self) -> str:
        """In words."""
        if self.kind == FOLDS:
            return f"the mean softmax of {len(self._networks)} folds"
        if self.kind == FLIPS:
            return f"the mean softmax of {len(self._flips)} flips"
        flips = " and its flips, whose logits are averaged" if self._averages_flips else ""
        return f"the softmax of one network{flips}"

    def __call__(self, files: Sequence[str]) -> Verdict:
        """Judge a case.

        Args:
            files: of the case, one or one per channel.

        Raises:
            ValueError: the gate refuses a file.
        """
        item: Any = self._preprocess({"image": list(files)})
        batch: Any = list_data_collate([item])
        image = batch["image"].to(self._device)
        with torch.inference_mode(), ExitStack() as stack:
            pooled = [stack.enter_context(pooled_features(network)) for network in self._networks]
            probabilities = mean_probabilities(
                self._inferer(image, _flipping(network, axes))[0].as_subclass(torch.Tensor)
                for network in self._networks
                for axes in self._flips
            )
        features = torch.cat([torch.cat(rows).mean(dim=0) for rows in pooled])
        plain = image[0].as_subclass(torch.Tensor).cpu()
        return Verdict(plain, item["image"].affine, probabilities.cpu(), features.cpu())


def trained_files(bundle: Bundle) -> list[str]:
    """The files of weights of a bundle that some training has written, one per fold.

    Raises:
        ValueError: one is damaged.
    """
    first = str(bundle.path(WEIGHTS))
    numbers = sorted(
        int(number)
        for path in bundle.path(WEIGHTS).parent.glob("model_fold*.pt")
        if (number := path.stem.removeprefix("model_fold")).isdecimal()
    )
    files = [first, *(fold_file(first, number) for number in numbers if number)]
    advice = "train it, or export it anew"
    return [file for file in files if not is_initialization(load_tensors(file, advice))]


def _loaded(network: nn.Module, file: str) -> nn.Module:
    """A network with the weights of a file."""
    load_weights(file, network)
    return network


def _flipped_axes(bundle: Bundle) -> tuple[int, ...]:
    """Axes along which the network may see an image flipped; none where ``--tta`` is refused."""
    config = bundle.config("train")
    is_refused = "nnunet_plans" in config or not config.get("mirror_prob")
    return () if is_refused else mirror_axes(bundle)


def _flipping(network: nn.Module, axes: Sequence[int]) -> Callable[..., torch.Tensor]:
    """A network that sees images flipped along spatial axes, and whose logits are flipped back."""
    places = [axis + 2 for axis in axes]

    def flipped(images: torch.Tensor) -> torch.Tensor:
        return network(images.flip(places)).flip(places) if places else network(images)

    return flipped
