"""nnU-Net's preprocessing and the way back, without nnU-Net: NumPy, SciPy and PyTorch alone.

A bundle imported from nnU-Net carries this file as ``scripts/nnunet_preprocessing.py``. The steps,
their order, and the types of numbers are nnU-Net's (Isensee et al. 2021, Nature Methods 18), so
that the same image gives the same voxels: turn axes, crop to what is not 0, normalize, resample.
Axis order is nnU-Net's: (C, z, y, x) of the file, without regard to how the patient lies; an image
without slices has z = 1. ``transpose_forward`` then moves the axis of the slices to the front.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

# Of the largest to the smallest edge of a voxel, above which slices are resampled one by one.
_ANISOTROPIC = 3
# Arguments of nnU-Net's function, and what it takes where the plans have none.
_RESAMPLING_DEFAULTS = {
    "is_seg": False,
    "order": 3,
    "order_z": 0,
    "force_separate_z": False,
    "separate_z_anisotropy_threshold": _ANISOTROPIC,
}
# nnU-Net's function that leaves images and logits on the grid they are on.
NO_RESAMPLING = "no_resampling_hack"
# nnU-Net calls this the distance between the slices of an image that has none.
_NO_SLICES = 999.0
_EPS = 1e-8
# A logit that no other falls below: float16's lowest.
_NEVER = float(np.finfo(np.float16).min)


@dataclass(frozen=True)
class Resampling:
    """How nnU-Net resamples images, or logits.

    Args:
        order: of the splines, 0 to 5.
        order_z: between slices that are resampled one by one.
        force_separate_z: whether slices are; ``None`` decides by the spacing.
    """

    order: int
    order_z: int = 0
    force_separate_z: bool | None = None


@dataclass(frozen=True)
class Preprocessing:
    """What a plans file says of the way from a file to the network.

    Args:
        transpose_forward: order in which the axes (0, 1, 2 for z, y, x) are put.
        spacing: mm to resample to, after the transposition; two values of a 2D configuration, whose
            slices keep their distance.
        normalization_schemes: of each channel, by nnU-Net's names.
        use_mask_for_norm: of each channel, whether z-scores are taken within the nonzero mask.
        intensities: of each channel, ``mean``, ``std``, ``percentile_00_5`` and ``percentile_99_5``
            of the foreground, for CT.
        image_resampling: of images.
        logits_resampling: of logits, on the way back.
        is_resampled: whether images are; else they keep their grid, whatever their spacing.
    """

    transpose_forward: tuple[int, ...]
    spacing: tuple[float, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    intensities: tuple[Mapping[str, float], ...] = ()
    image_resampling: Resampling = Resampling(3)
    logits_resampling: Resampling = Resampling(1)
    is_resampled: bool = True


@dataclass(frozen=True)
class Placement:
    """Where a preprocessed image lies in the one that was read; axes are transposed.

    Args:
        shape: of the image that was read.
        spacing: of the image that was read, mm.
        box: what the crop keeps.
        target_spacing: of the preprocessed image, mm.
        nonzero: mask of what is not 0, holes filled, within the box.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    box: tuple[slice, ...]
    target_spacing: tuple[float, ...]
    nonzero: NDArray[np.bool_]


def read_preprocessing(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> Preprocessing:
    """The settings of a configuration of an ``nnUNetPlans.json``.

    Args:
        plans: the file; ``transpose_forward`` and ``foreground_intensity_properties_per_channel``
            are read.
        configuration: one of its configurations, with what it inherits.

    Raises:
        KeyError: a key is missing.
        ValueError: there is a normalization that is unknown here, or a mask or a resampling that
            is none of nnU-Net's.
    """
    schemes = tuple(configuration["normalization_schemes"])
    if not schemes:
        raise ValueError("normalization_schemes is empty: it must have one for each channel")
    unknown = sorted(set(schemes) - set(_NORMALIZATIONS))
    if unknown:
        raise ValueError(f"normalization {', '.join(map(str, unknown))} is unknown")
    intensities = plans.get("foreground_intensity_properties_per_channel", {})
    return Preprocessing(
        transpose_forward=tuple(int(axis) for axis in plans["transpose_forward"]),
        spacing=tuple(float(size) for size in configuration["spacing"]),
        normalization_schemes=schemes,
        use_mask_for_norm=read_masks(configuration, len(schemes)),
        intensities=tuple(intensities.get(str(index), {}) for index in range(len(schemes))),
        image_resampling=_read_resampling(configuration, "resampling_fn_data_kwargs"),
        logits_resampling=_read_resampling(configuration, "resampling_fn_probabilities_kwargs"),
        is_resampled=configuration.get("resampling_fn_data") != NO_RESAMPLING,
    )


def read_masks(configuration: Mapping[str, Any], num_channels: int) -> tuple[bool, ...]:
    """Of each channel, whether it is normalized within the nonzero mask.

    Raises:
        ValueError: there is not true or false for each.
    """
    masks = configuration.get("use_mask_for_norm")
    if (
        not isinstance(masks, (list, tuple))
        or len(masks) != num_channels
        or not all(isinstance(item, bool) for item in masks)
    ):
        raise ValueError(
            f"use_mask_for_norm is {masks!r}: it must be a list of true or false, one for each of "
            f"{num_channels} channels"
        )
    return tuple(masks)


def preprocess(
    image: NDArray[Any], spacing: Sequence[float], settings: Preprocessing
) -> tuple[NDArray[np.float32], Placement]:
    """Bring an image to the network's grid and intensities.

    Args:
        image: of shape (C, z, y, x), as it was read.
        spacing: mm along (z, y, x).
        settings: of the plans.

    Returns:
        The image, transposed, cropped, normalized and resampled; and where it lies.

    Raises:
        ValueError: the channels are not those of the plans, or an image of colors goes beyond 0 to
            255.
    """
    count = len(settings.normalization_schemes)
    if len(image) != count:
        raise ValueError(f"the image has {len(image)} channels, and nnU-Net planned {count}")
    order = settings.transpose_forward
    data = image.astype(np.float32).transpose(0, *(axis + 1 for axis in order))
    own = tuple(float(spacing[axis]) for axis in order)
    nonzero = ndimage.binary_fill_holes((data != 0).any(axis=0))
    box = _bounding_box(nonzero)
    target = settings.spacing if len(settings.spacing) == 3 else (own[0], *settings.spacing)
    placement = Placement(data.shape[1:], own, box, target, nonzero[box])
    data = data[_all_channels(box)]
    for channel in range(count):
        _normalize(data, channel, placement.nonzero, settings)
    size = _scaled_shape(data.shape[1:], own, target) if settings.is_resampled else data.shape[1:]
    return resample_channels(data, size, own, target, settings.image_resampling), placement


def restore_logits(
    logits: NDArray[Any], placement: Placement, settings: Preprocessing
) -> NDArray[Any]:
    """Bring the network's logits back to the grid of the image that was read.

    Args:
        logits: of shape (K, *spatial) on the grid of the preprocessed image.
        placement: of that image.
        settings: of the plans.

    Returns:
        Logits (K, z, y, x) of the same type; background alone is possible outside of the crop.
    """
    size = tuple(part.stop - part.start for part in placement.box)
    inside = resample_channels(
        logits, size, placement.target_spacing, placement.spacing, settings.logits_resampling
    )
    whole = np.full((len(logits), *placement.shape), _NEVER, dtype=logits.dtype)
    whole[0] = 0
    whole[_all_channels(placement.box)] = inside
    back = np.argsort(settings.transpose_forward)
    return whole.transpose(0, *(axis + 1 for axis in back))


def preprocess_label(
    label: NDArray[Any], placement: Placement, size: Sequence[int]
) -> NDArray[Any]:
    """Bring a label to the grid of its preprocessed image, as nnU-Net does for training.

    The share of each class is interpolated, and the largest wins; of equal ones the lower class.

    Args:
        label: class indices (z, y, x), already transposed.
        placement: of the image.
        size: of the preprocessed image.
    """
    cropped = label[placement.box]
    if cropped.shape == tuple(size):
        return cropped
    # Background within and without the nonzero mask are two classes to nnU-Net.
    parts = np.where((cropped == 0) & ~placement.nonzero, -1, cropped)
    axis = _separate_axis(placement.spacing, placement.target_spacing, None)
    found = np.zeros(tuple(size), dtype=label.dtype)
    largest = np.zeros(tuple(size))
    for value in np.unique(parts):
        share = _resized((parts == value).astype(float), size, 1, 0, axis)
        is_larger = share > largest
        found[is_larger], largest[is_larger] = max(value, 0), share[is_larger]
    return found


def resample_channels(
    data: NDArray[Any],
    size: Sequence[int],
    spacing: Sequence[float],
    target_spacing: Sequence[float],
    resampling: Resampling,
) -> NDArray[Any]:
    """Resample channels to a size, as nnU-Net does with scikit-image.

    Args:
        data: of shape (C, *spatial).
        size: of the result, (*spatial).
        spacing: of the data, mm; whether slices are resampled one by one depends on it.
        target_spacing: of the result, mm.
        resampling: how.

    Returns:
        Shape (C, *size), of the type of the data; the data themselves where they have the size.
    """
    if data.shape[1:] == tuple(size):
        return data
    axis = _separate_axis(spacing, target_spacing, resampling.force_separate_z)
    found = np.zeros((len(data), *size), dtype=data.dtype)
    for index, channel in enumerate(data):
        found[index] = _resized(
            channel.astype(float), size, resampling.order, resampling.order_z, axis
        )
    return found


def prepare_image(image: torch.Tensor, settings: Preprocessing) -> tuple[torch.Tensor, Placement]:
    """Preprocess a tensor (C, x, y[, z]) as MONAI read it.

    Returns:
        The image as nnU-Net's network takes it, and where it lies.
    """
    array, placement = preprocess(in_nnunet_order(image), image_spacing(image), settings)
    return torch.from_numpy(np.ascontiguousarray(array)), placement


def restore_image_logits(
    logits: torch.Tensor, placement: Placement, settings: Preprocessing, *, spatial_dims: int
) -> torch.Tensor:
    """Logits of :func:`prepare_image` on the grid of the image: (K, x, y[, z])."""
    whole = restore_logits(logits.numpy(), placement, settings)
    plain = whole[:, 0] if spatial_dims == 2 else whole
    return torch.from_numpy(plain.transpose(0, *range(plain.ndim - 1, 0, -1)).copy())


class PreprocessCase:
    """A transform of a labeled case that was read: nnU-Net's preprocessing, for training.

    Args:
        settings: of the plans.
        keys: ``image``, and perhaps ``label``.
    """

    def __init__(self, settings: Preprocessing, keys: Sequence[str] = ("image", "label")) -> None:
        self.settings, self.keys = settings, keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Preprocess ``image`` (C, x, y[, z]), and crop and resample ``label`` with it."""
        found = dict(data)
        image = data["image"]
        settings = self.settings
        array, placement = preprocess(in_nnunet_order(image), image_spacing(image), settings)
        found["image"] = _like(image, in_file_order(array, settings, image.ndim - 1))
        if "label" in self.keys:
            label = in_nnunet_order(data["label"])[0].transpose(settings.transpose_forward)
            moved = preprocess_label(label, placement, array.shape[1:])[None]
            found["label"] = _like(data["label"], in_file_order(moved, settings, image.ndim - 1))
        return found


def drop_slice_axis(data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
    """Take NIfTI of one slice, (C, x, y, 1), as a 2D image: nnU-Net's readers tell no difference.

    Args:
        data: ``image`` and perhaps ``label``, as MONAI read them.
    """
    found = dict(data)
    for key in ("image", "label"):
        tensor: Any = data.get(key)  # a server's label may be a word
        if getattr(tensor, "ndim", 0) == 4 and tensor.shape[-1] == 1:
            found[key] = tensor[..., 0]
            # By its length MONAI's writers tell whether there is an axis of channels.
            found[key].meta = {**tensor.meta, "spatial_shape": np.array(tensor.shape[1:3])}
    return found


def in_nnunet_order(image: Any) -> NDArray[np.float32]:
    """A tensor (C, x, y[, z]) as MONAI reads it, as an array (C, z, y, x)."""
    array = np.asarray(image.detach().cpu(), dtype=np.float32)
    array = array.transpose(0, *range(array.ndim - 1, 0, -1))
    if array.ndim == 3:
        array = array[:, None]
    return np.ascontiguousarray(array)


def in_file_order(data: NDArray[Any], settings: Preprocessing, spatial_dims: int) -> NDArray[Any]:
    """An array with transposed axes as (C, x, y[, z])."""
    back = np.argsort(settings.transpose_forward)
    plain = data.transpose(0, *(axis + 1 for axis in back))
    plain = plain[:, 0] if spatial_dims == 2 else plain
    return plain.transpose(0, *range(plain.ndim - 1, 0, -1))


def image_spacing(image: Any) -> tuple[float, ...]:
    """Millimeters along (z, y, x) of a tensor (C, x, y[, z]) that MONAI read, as its file says."""
    meta = getattr(image, "meta", {})
    dims = image.ndim - 1
    if "pixdim" not in meta:  # no NIfTI
        return (_NO_SLICES, *[1.0] * dims)[-3:]
    header = [float(size) for size in np.asarray(meta["pixdim"]).reshape(-1)[1:4]]
    stated = header[:dims]
    # A volume may have been turned since, and its affine says how: the header has the digits.
    edges = np.linalg.norm(np.asarray(image.affine.cpu())[:3, :dims], axis=0)
    sizes = [min(stated, key=lambda size: abs(size - edge)) for edge in edges][::-1]
    if dims == 3:
        return tuple(sizes)
    has_slices = int(np.asarray(meta.get("dim", 2)).reshape(-1)[0]) > 2  # one, that was dropped
    return (header[2] if has_slices else max(sizes) * _NO_SLICES, *sizes)


def _like(tensor: Any, array: NDArray[Any]) -> Any:
    """A tensor of the type of another one."""
    return tensor.new_tensor(np.ascontiguousarray(array))


def _read_resampling(configuration: Mapping[str, Any], key: str) -> Resampling:
    """nnU-Net's arguments of a resampling, with its defaults."""
    given = configuration[key]
    if not isinstance(given, Mapping) or set(given) - set(_RESAMPLING_DEFAULTS):
        known = ", ".join(_RESAMPLING_DEFAULTS)
        raise ValueError(f"{key} is {given!r}: it must be a dictionary of {known}")
    options = {**_RESAMPLING_DEFAULTS, **given}
    forced = options["force_separate_z"]
    if forced is not None and not isinstance(forced, bool):
        raise ValueError(f"{key}: force_separate_z is {forced!r}: it must be true, false or null")
    for name in ("is_seg", "separate_z_anisotropy_threshold"):
        only = _RESAMPLING_DEFAULTS[name]
        if options[name] != only:
            raise ValueError(f"{key}: {name} is {options[name]!r}: only {only} is supported")
    for name in ("order", "order_z"):
        # bool is an int to Python.
        if type(options[name]) is not int or not 0 <= options[name] <= 5:
            raise ValueError(f"{key}: {name} is {options[name]!r}: it must be 0, 1, 2, 3, 4 or 5")
    return Resampling(options["order"], options["order_z"], forced)


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box around what is true; the whole where nothing is."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    return found[0] if found else tuple(slice(0, size) for size in mask.shape)


def _scaled_shape(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> tuple[int, ...]:
    """Voxels of an image at another spacing."""
    return tuple(
        round(own / wanted * size) for own, wanted, size in zip(spacing, target, shape, strict=True)
    )


def _normalize(
    data: NDArray[np.float32], channel: int, nonzero: NDArray[np.bool_], settings: Preprocessing
) -> None:
    """Normalize a channel where it lies."""
    scheme = settings.normalization_schemes[channel]
    if scheme == "ZScoreNormalization" and settings.use_mask_for_norm[channel]:
        image = data[channel]
        inside = image[nonzero]
        image[nonzero] = (inside - inside.mean()) / max(inside.std(), _EPS)
    else:
        intensities = settings.intensities[channel] if settings.intensities else {}
        _NORMALIZATIONS[scheme](data[channel], intensities)


def _standardize(image: NDArray[np.float32], _intensities: Mapping[str, float]) -> None:
    """Mean 0 and standard deviation 1."""
    mean, std = image.mean(), image.std()
    image -= mean
    image /= max(std, _EPS)


def _clip_ct(image: NDArray[np.float32], intensities: Mapping[str, float]) -> None:
    """Clipped to percentiles of the foreground, and normalized by its mean and deviation."""
    np.clip(image, intensities["percentile_00_5"], intensities["percentile_99_5"], out=image)
    image -= intensities["mean"]
    image /= max(intensities["std"], _EPS)


def _rescale(image: NDArray[np.float32], _intensities: Mapping[str, float]) -> None:
    """From 0 to 1."""
    image -= image.min()
    image /= max(image.max(), _EPS)


def _scale_colors(image: NDArray[np.float32], _intensities: Mapping[str, float]) -> None:
    """Colors of 8 bits, from 0 to 1."""
    if image.min() < 0 or image.max() > 255:
        raise ValueError(
            f"colors go from {image.min():g} to {image.max():g}, and nnU-Net planned 0 to 255"
        )
    image /= 255.0


def _keep(image: NDArray[np.float32], _intensities: Mapping[str, float]) -> None:
    """As it was read."""


_NORMALIZATIONS: dict[str, Callable[[NDArray[np.float32], Mapping[str, float]], None]] = {
    "ZScoreNormalization": _standardize,
    "CTNormalization": _clip_ct,
    "RescaleTo01Normalization": _rescale,
    "RGBTo01Normalization": _scale_colors,
    "NoNormalization": _keep,
}


def _separate_axis(
    spacing: Sequence[float], target: Sequence[float], forced: bool | None
) -> int | None:
    """The axis along which slices are resampled one by one; ``None`` for none."""
    if forced is False:
        return None
    thick = [sizes for sizes in (spacing, target) if max(sizes) / min(sizes) > _ANISOTROPIC]
    if not thick and not forced:
        return None
    sizes = spacing if forced else thick[0]
    axes = [axis for axis, size in enumerate(sizes) if size == max(sizes)]
    return axes[0] if len(axes) == 1 else None


def _resized(
    image: NDArray[Any], size: Sequence[int], order: int, order_z: int, axis: int | None
) -> NDArray[Any]:
    """One channel in another size; along ``axis`` in a second step."""
    if axis is None:
        return _zoomed(image, size, order)
    in_plane = [edge for number, edge in enumerate(size) if number != axis]
    slices = [_zoomed(part, in_plane, order) for part in np.moveaxis(image, axis, 0)]
    stack = np.stack(slices, axis)
    if stack.shape == tuple(size):
        return stack
    # Voxels are areas: their centers lie at i + 1/2.
    steps = np.array(stack.shape) / np.array(size)
    grid = np.mgrid[tuple(slice(0, edge) for edge in size)]
    points = np.array([step * (item + 0.5) - 0.5 for step, item in zip(steps, grid, strict=True)])
    return ndimage.map_coordinates(stack, points, order=order_z, mode="nearest")


def _zoomed(image: NDArray[Any], size: Sequence[int], order: int) -> NDArray[Any]:
    """An image in another size, its values kept in their range."""
    factors = [1 / (old / new) for old, new in zip(image.shape, size, strict=True)]
    found = ndimage.zoom(image, factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(found, image.min(), image.max())


def _all_channels(box: Iterable[Any]) -> tuple[Any, ...]:
    """The index of a box in all channels."""
    return (slice(None), *box)
