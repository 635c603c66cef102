"""Images read in full, and refused where no network should see them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import Compose, LoadImaged, MapTransform, Orientationd
from monai.transforms.utils import generate_spatial_bounding_box
from tqdm import tqdm

from monai_xtiny.data.case import Case, Header, Sample
from monai_xtiny.data.loading import LoadOnced
from monai_xtiny.system.errors import root_cause


def load_sample(
    cases: Sequence[Case],
    transform: Callable[[Mapping[Hashable, Any]], Any],
    *,
    progress: bool = True,
) -> Sample:
    """Load cases through a MONAI dictionary transform and check what comes out.

    Args:
        cases: the sampled cases; each goes into ``transform`` as ``{"image": its files}``.
        transform: MONAI transform; out comes ``{"image": tensor of shape (C, *patch_size)}``.
        progress: show a bar on stderr.

    Raises:
        ValueError: a case cannot be read, holds non-finite or constant values, or comes out of the
            transform in another shape than the first; the message names the case.
    """
    start = time.perf_counter()
    images: list[torch.Tensor] = []
    for case in tqdm(
        cases, desc="loading", unit="image", disable=None if progress else True, leave=False
    ):
        image = _load_case(case, transform).as_subclass(torch.Tensor)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"case {case.name!r} has shape {tuple(image.shape)} after the transforms, but "
                f"{cases[0].name!r} has {tuple(images[0].shape)}: crop and pad to one patch size"
            )
        images.append(image)
    names = tuple(case.name for case in cases)
    return Sample(names, tuple(images), time.perf_counter() - start)


def measure_nonzero(
    cases: Sequence[Case],
    *,
    headers: Sequence[Header] = (),
    loading: Callable[..., Any] | None = None,
    progress: bool = True,
) -> tuple[tuple[int, ...], ...]:
    """Shape of the box around the voxels that are not 0 in every channel, as nnU-Net crops.

    Args:
        cases: read in full, one after the other.
        headers: what the headers of the cases said, to compare with what is read.
        loading: first step of the preprocessing; a :class:`LoadOnced` reads the images, and may
            keep them for the preprocessing. Otherwise MONAI's reader does, and nothing is kept.
        progress: show a bar on stderr.

    Returns:
        Voxels along each axis, (x, y[, z]) after RAS, one tuple per case.

    Raises:
        ValueError: a case cannot be read, holds non-finite or constant values, or is not as its
            header says.
    """
    if not isinstance(loading, LoadOnced):
        loading = LoadOnced(LoadImaged("image", reader=cases[0].reader, ensure_channel_first=True))
    steps: list[Callable[..., Any]] = [loading.peek]
    if cases[0].kind != "raster":
        steps.append(Orientationd("image", axcodes="RAS", labels=None))
    transform = Compose(steps)
    shapes: list[tuple[int, ...]] = []
    for case in tqdm(
        cases, desc="planning", unit="image", disable=None if progress else True, leave=False
    ):
        image = _load_case(case, transform)
        _check_shape(image, case, headers[len(shapes)] if headers else None)
        start, end = generate_spatial_bounding_box(image, select_fn=lambda values: values != 0)
        shapes.append(tuple(int(high - low) for low, high in zip(start, end, strict=True)))
    return tuple(shapes)


def _check_shape(image: torch.Tensor, case: Case, header: Header | None) -> None:
    """Refuse an image that its reader turns otherwise than its header says."""
    shape = tuple(image.shape[1:])
    if header is not None and shape != header.shape:
        raise ValueError(
            f"case {case.name!r} is read as {shape} voxels, and its header says {header.shape}: "
            "convert it to NIfTI"
        )


def _load_case(case: Case, transform: Callable[[Mapping[Hashable, Any]], Any]) -> torch.Tensor:
    """One case through a transform, its errors naming the case; shape (C, *spatial)."""
    try:
        image = transform({"image": list(case.images)})["image"]
    except Exception as error:
        raise ValueError(
            f"case {case.name!r}: {root_cause(error)} ({case.images[0]}): "
            "repair the file or leave it out"
        ) from error
    check_image(image, f"case {case.name!r}")
    return image


def check_image(image: torch.Tensor, name: str) -> None:
    """Refuse an image whose voxels are not finite, or that is constant in a channel.

    Args:
        image: tensor of shape (C, *spatial).
        name: the case or file, for the message.

    Raises:
        ValueError: NaN or infinite voxels, or a channel with one value only.

    >>> check_image(torch.zeros(1, 4, 4), "blank.png")
    Traceback (most recent call last):
    ...
    ValueError: blank.png: channel 0 is constant (0.0 everywhere): leave the image out
    """
    num_bad = int(torch.logical_not(torch.isfinite(image)).sum())
    if num_bad:
        raise ValueError(f"{name}: {num_bad} voxels are NaN or infinite: repair or leave it out")
    for index, channel in enumerate(image):
        low, high = float(channel.min()), float(channel.max())
        if low == high:
            raise ValueError(
                f"{name}: channel {index} is constant ({low} everywhere): leave the image out"
            )


class CheckImaged(MapTransform):
    """Dictionary transform: refuse an image that no network should be scored on.

    Place it after ``LoadImaged``, where intensities are still those of the file.

    Args:
        keys: keys of the images, tensors of shape (C, *spatial).
        spatial_dims: required number of spatial dimensions; ``None`` takes any.
        in_channels: required number of channels; ``None`` takes any.
        allow_missing_keys: pass over a missing key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int | None = None,
        in_channels: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` unchanged, or raise the ``ValueError`` of :func:`check_image`."""
        for key in self.key_iterator(dict(data)):
            image = data[key]
            if self.spatial_dims is not None and image.ndim - 1 != self.spatial_dims:
                raise ValueError(
                    f"the image has {image.ndim - 1} spatial dimensions, not {self.spatial_dims}"
                )
            if self.in_channels is not None and image.shape[0] != self.in_channels:
                raise ValueError(
                    f"the image has {image.shape[0]} channels, the plan {self.in_channels}"
                )
            check_image(image, "the image")
        return dict(data)
