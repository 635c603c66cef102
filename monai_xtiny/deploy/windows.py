"""Windows of unlabeled images as a bundle's network meets them, to calibrate and compare on."""

from __future__ import annotations

import os
import random
from typing import cast

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from numpy.typing import NDArray

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.data.cases import find_cases, sample_cases
from monai_xtiny.data.headers import read_headers
from monai_xtiny.data.images import image_reader
from monai_xtiny.system.errors import root_cause


def sample_windows(
    bundle: Bundle,
    images: str | os.PathLike[str],
    *,
    num_images: int = 16,
    windows_per_image: int = 2,
    seed: int = 369,
) -> tuple[NDArray[np.float32], ...]:
    """Windows of unlabeled images as the network meets them in ``inference.json``.

    Args:
        bundle: whose preprocessing and inferer are used.
        images: whatever the search takes.
        num_images: to draw.
        windows_per_image: to draw of each.
        seed: of both draws; the global generators are not touched.

    Returns:
        Normalized windows, (1, C, *patch_size).

    Raises:
        FileNotFoundError: there are no images.
        ValueError: a case cannot be read, or does not fit the network.
    """
    cases = sample_cases(find_cases(images), num_images, seed=seed)
    read_headers(cases)  # refuses what the search refuses
    parser = ConfigParser({**bundle.config("inference"), "bundle_root": str(bundle.root)})
    parser["reader"] = image_reader(cases[0])
    preprocess = parser.get_parsed_content("preprocessing")
    inferer = cast(Inferer, parser.get_parsed_content("inferer"))
    num_classes = parser["num_classes"]
    generator = random.Random(seed)
    windows: list[NDArray[np.float32]] = []
    for case in cases:
        try:
            image = preprocess({"image": list(case.images)})["image"].as_subclass(torch.Tensor)
            recorder = _Recorder(windows_per_image, num_classes, generator)
            inferer(image[None], recorder)
        except Exception as error:
            text = str(root_cause(error))  # of the bundle's own checks, which name the file
            named = text if os.path.basename(case.name) in text else f"case {case.name!r}: {text}"
            raise ValueError(named) from error
        windows += recorder.windows
    return tuple(windows)


class _Recorder:
    """Stands in for a network and keeps a uniform draw of the windows that it is given."""

    def __init__(self, count: int, num_classes: int, generator: random.Random) -> None:
        self.windows: list[NDArray[np.float32]] = []
        self._count, self._num_classes, self._generator = count, num_classes, generator
        self._num_seen = 0

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        for window in batch.split(1):
            # Reservoir sampling: the n-th window takes a place with probability count / n.
            place = self._num_seen
            if place >= self._count:
                place = self._generator.randint(0, place)
            if place < self._count:
                self.windows[place : place + 1] = [window.numpy().copy()]
            self._num_seen += 1
        return batch.new_zeros((len(batch), self._num_classes, *batch.shape[2:]))
