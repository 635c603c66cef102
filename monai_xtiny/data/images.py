"""Images read in full, and refused where no network should see them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import ImageReader
from monai.transforms import CenterSpatialCrop, LoadImaged, MapTransform, Orientation
from monai.transforms.utils import generate_spatial_bounding_box
from tqdm import tqdm

from monai_xtiny.bundled.gate import check_image
from monai_xtiny.bundled.labeling import ChannelReader
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
        image = _load_checked(case, transform).as_subclass(torch.Tensor)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"case {case.name!r} has shape {tuple(image.shape)} after the transforms, but "
                f"{cases[0].name!r} has {tuple(images[0].shape)}: crop and pad to one patch size"
            )
        images.append(image)
    names = tuple(case.name for case in cases)
    return Sample(names, tuple(images), time.perf_counter() - start)


def image_reader(case: Case) -> type[ImageReader] | str:
    """What ``LoadImaged`` reads the files of a case with: a class, or a name that MONAI knows."""
    return ChannelReader if case.kind == "nifti" else case.reader


def read_once(loading: Callable[..., Any] | None, case: Case) -> LoadOnced:
    """The step that reads: the preprocessing's own, or MONAI's reader, which keeps nothing.

    Args:
        loading: first step of the preprocessing.
        case: one of those that are read.
    """
    if isinstance(loading, LoadOnced):
        return loading
    return LoadOnced(LoadImaged("image", reader=image_reader(case), ensure_channel_first=True))


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
    reading = read_once(loading, cases[0])
    to_ras = Orientation("RAS", labels=None)
    shapes: list[tuple[int, ...]] = []
    for case in tqdm(
        cases, desc="planning", unit="image", disable=None if progress else True, leave=False
    ):
        image = _load_checked(case, reading.peek)
        if image.ndim > 3:  # a 2D image is left as it lies in its file
            image = to_ras(image)
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


def load_case(case: Case, transform: Callable[[Mapping[Hashable, Any]], Any]) -> torch.Tensor:
    """One case through a transform; shape (C, *spatial).

    Raises:
        ValueError: it cannot be read or transformed; the message names the case.
    """
    try:
        image: torch.Tensor = transform({"image": list(case.images)})["image"]
    except Exception as error:
        raise ValueError(
            f"case {case.name!r}: {root_cause(error)} ({case.images[0]}): "
            "repair the file or leave it out"
        ) from error
    return image


def _load_checked(case: Case, transform: Callable[[Mapping[Hashable, Any]], Any]) -> torch.Tensor:
    """One case through a transform, refused where no network should be scored on it."""
    image = load_case(case, transform)
    check_image(image, f"case {case.name!r}")
    return image


class CheckImaged(MapTransform):
    """Dictionary transform: refuse an image that no network should be scored on.

    Place it after ``LoadImaged``, where intensities are still those of the file.

    Args:
        keys: keys of the images, tensors of shape ``(C, *spatial)``.
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


class MiddleSliced(MapTransform):
    """Dictionary transform: take one slice of a volume, the middle one if anything is to be seen.

    Of the slices it takes the one nearest to the middle whose patch is constant in no channel; the
    middle one where there is none.

    Args:
        keys: keys of the images, tensors of shape ``(C, x, y, z)``, which become ``(C, *spatial)``.
        axis: across which the slices lie, 0 to 2.
        patch_size: voxels along the two other axes, of the patch in the middle that is looked at.
        allow_missing_keys: pass over a missing key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        axis: int,
        patch_size: Sequence[int],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.axis = axis
        self.crop = CenterSpatialCrop(patch_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with a slice in the place of each volume."""
        changed = dict(data)
        for key in self.key_iterator(changed):
            volume = changed[key].as_subclass(torch.Tensor)
            num_slices = volume.shape[self.axis + 1]
            middle = num_slices // 2
            slices = (
                volume.select(self.axis + 1, index)
                for index in sorted(range(num_slices), key=lambda index: abs(index - middle))
            )
            changed[key] = next(
                (item for item in slices if self._has_content(item)),
                volume.select(self.axis + 1, middle),
            )
        return changed

    def _has_content(self, image: torch.Tensor) -> bool:
        """Whether something is to be seen in every channel of the patch in the middle."""
        low, high = self.crop(image).flatten(1).aminmax(dim=1)
        return bool((low < high).all())
