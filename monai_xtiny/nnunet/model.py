"""A model of nnU-Net: a checkpoint with its plans and its data set, which a bundle could repeat."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai_xtiny.bundled.nnunet_preprocessing import (
    NO_RESAMPLING,
    Preprocessing,
    read_preprocessing,
)
from monai_xtiny.data.cases import NIFTI_SUFFIXES, RASTER_SUFFIXES
from monai_xtiny.nnunet.checkpoint import NnunetCheckpoint, network_axes, used_kernels
from monai_xtiny.nnunet.plans_file import channels_and_labels, check_processing
from monai_xtiny.plan.nnunet import (
    RAS_READER,
    plan_of_configuration,
    read_nnunet_plans,
    resolve_configuration,
)
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.system.config_text import check_config_text
from monai_xtiny.system.files import read_json

TRAINER = "nnUNetTrainer"
# nnU-Net's own trainers (2.8.1) that train the network of the plans: not BN, not Primus.
_VARIANTS = re.compile(
    rf"{TRAINER}("
    r"(_[0-9]+epochs?)?(_NoMirroring)?|Benchmark_5epochs(_noDataLoading)?"
    r"|DA5(ord0|Segord0|_10epochs)?|NoDA|NoMirroring|_DASegOrd0(_NoMirroring)?|_noDummy2DDA"
    r"|_onlyMirror01(_1500ep|_DASegOrd0|_DA5)?|_probabilisticOversampling(_0[0-9]+)?"
    r"|CELoss(_5epochs)?|DiceLoss|DiceCELoss_noSmooth|Topk10Loss|TopK10LossLS01|DiceTopK10Loss"
    r"|Topk10LossLS01|CosAnneal|_warmup|NoDeepSupervision"
    r"|(Vanilla)?Ada[mn]([13]en[0-9])?|AdanCosAnneal"
    r")"
)
_LABEL_MANAGER = "LabelManager"
_RESAMPLING = "resample_data_or_seg_to_shape"
# Settings of a configuration that leaves images, labels and logits on their grid.
UNRESAMPLED: dict[str, Any] = {
    "resampling_fn_data": NO_RESAMPLING, "resampling_fn_data_kwargs": {},
    "resampling_fn_seg": NO_RESAMPLING, "resampling_fn_seg_kwargs": {},
    "resampling_fn_probabilities": NO_RESAMPLING, "resampling_fn_probabilities_kwargs": {},
}  # fmt: skip
# nnU-Net's readers whose images the bundle reads as they do.
NATURAL = "NaturalImage2DIO"
_READERS = ("SimpleITKIO", "NibabelIO", RAS_READER, NATURAL)
INTENSITIES = ("mean", "std", "percentile_00_5", "percentile_99_5")
_GIVE_PLANS = "give the plans of the training by --plans"


@dataclass(frozen=True)
class Source:
    """A checkpoint with the plans and the data set that nnU-Net would predict with.

    Args:
        checkpoint: the checkpoint.
        plans: content of the plans file.
        processing: how images are processed.
        dataset: content of ``dataset.json``.
        channel_names: of the images.
        label_names: names of the classes, the background first.
        plan: of the network.
        axes: place of each axis of MONAI's order among nnU-Net's.
    """

    checkpoint: NnunetCheckpoint
    plans: Mapping[str, Any]
    processing: Preprocessing
    dataset: Mapping[str, Any]
    channel_names: tuple[str, ...]
    label_names: tuple[str, ...]
    plan: UNetPlan
    axes: tuple[int, ...]


def read_source(checkpoint: NnunetCheckpoint, plans: str | os.PathLike[str] | None) -> Source:
    """What nnU-Net would predict with: plans and data set of the model folder, or the checkpoint's.

    Args:
        checkpoint: that was read.
        plans: plans file to take in place of those; the data set stays.

    Raises:
        FileNotFoundError: there are no such plans, or the model folder lacks one of its two files.
        ValueError: the bundle could not do the same.
    """
    # As nnU-Net does: of a link, the folder that the link lies in.
    folder = Path(os.path.abspath(checkpoint.source)).parent.parent
    files = [folder / "plans.json", folder / "dataset.json"]
    found = [file for file in files if file.is_file()]
    content, dataset, where = checkpoint.plans, checkpoint.dataset_json, str(checkpoint.source)
    dataset_file = where
    if len(found) == 1 and not (plans is not None and found == files[1:]):
        lacking = files[1 - files.index(found[0])]
        raise FileNotFoundError(
            f"no such file: {str(lacking)!r}, and {found[0].name} is there: put both beside the "
            "folder of the checkpoint, or the checkpoint into a folder of its own"
        )
    if found:
        dataset, dataset_file = read_json(files[1]), str(files[1])
        if not isinstance(dataset, dict):
            raise ValueError(f"{dataset_file!r} holds no object: give nnU-Net's dataset.json")
    if plans is not None:
        content, where = read_nnunet_plans(plans), os.fspath(plans)
    elif found:
        content, where = read_nnunet_plans(files[0]), str(files[0])
    return check_source(checkpoint, content, dataset, where=where, dataset_file=dataset_file)


def check_source(
    checkpoint: NnunetCheckpoint,
    content: Mapping[str, Any],
    dataset: Mapping[str, Any],
    *,
    where: str,
    dataset_file: str,
    advice: str = _GIVE_PLANS,
) -> Source:
    """A model of nnU-Net, refused where a bundle could not do the same.

    Args:
        checkpoint: the checkpoint.
        content: of the plans file.
        dataset: content of ``dataset.json``.
        where: the file of the plans, for messages.
        dataset_file: that of the data set, for messages.
        advice: what to do about plans that cannot be used.

    Raises:
        ValueError: the network, the processing or the labels are not supported.
    """
    name = checkpoint.configuration
    if not _VARIANTS.fullmatch(checkpoint.trainer_name):
        raise ValueError(
            f"{str(checkpoint.source)!r} was trained by {checkpoint.trainer_name}, whose network "
            f"may be another than the plans say: only {TRAINER} and nnU-Net's own variants with "
            "the same network are supported"
        )
    channel_names = _check_dataset(dataset, dataset_file)
    in_channels, label_names = channels_and_labels(dataset, dataset_file)
    settings, processing, is_flat = _checked_settings(content, name, where, advice)
    check_processing(settings, in_channels, f"{where!r}: configuration {name!r}")
    plan = plan_of_configuration(
        content,
        name,
        where,
        in_channels=in_channels,
        out_channels=len(label_names),
        of_images=is_flat,
        any_normalization=True,
    )
    axes = network_axes(content["transpose_forward"], plan.spatial_dims)
    flips = list(checkpoint.mirror_axes)
    if not set(flips) <= set(axes):
        raise ValueError(
            f"{str(checkpoint.source)!r} flips the axes {flips} of a {plan.spatial_dims}D network: "
            "it is not of these plans"
        )
    _check_ending(dataset, content["image_reader_writer"], dataset_file)
    for label in label_names:
        check_config_text(label, "label name")
    plan = replace(plan, kernel_size=used_kernels(checkpoint.weights, plan, axes))
    return Source(checkpoint, content, processing, dataset, channel_names, label_names, plan, axes)


def _check_dataset(dataset: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Names of the channels; refused where these or the labels are numbered otherwise."""
    channels = dataset.get("channel_names", dataset.get("modality"))
    keys = list(channels) if isinstance(channels, Mapping) else []
    if sorted(map(str, keys)) != sorted(map(str, range(len(keys)))):
        raise ValueError(
            f"{where!r} has the channel_names {channels}: give nnU-Net's dataset.json, with "
            '{"0": name, ...}'
        )
    names = tuple(str(channels[key]) for key in sorted(keys, key=int)) if keys else ()
    for name in names:
        check_config_text(name, "channel name")
    labels = dataset.get("labels")
    values = list(labels.values()) if isinstance(labels, Mapping) else []
    if any(isinstance(value, (bool, float)) for value in values):
        raise ValueError(f"{where!r} has the labels {labels}: nnU-Net v2 wants whole numbers")
    return names


def _check_ending(dataset: Mapping[str, Any], reader: str, where: str) -> None:
    """Refuse files that the bundle could not read as nnU-Net's reader does."""
    ending = dataset.get("file_ending", NIFTI_SUFFIXES[-1])
    known = RASTER_SUFFIXES if reader == NATURAL else NIFTI_SUFFIXES
    if not isinstance(ending, str) or ending.lower() not in known:
        raise ValueError(
            f"{where!r} has the file_ending {ending!r}, and a bundle reads {', '.join(known)} "
            f"where nnU-Net reads by {reader}: convert the images to {known[reader != NATURAL]}, "
            "and change file_ending"
        )


def _reads_images(content: Mapping[str, Any]) -> bool:
    """Whether the training read 2D images, or NIfTI of one slice along z, not volumes.

    Along another axis, or where nnU-Net turns axes, slices are those of a volume.
    """
    reader = content["image_reader_writer"]
    median = content.get("original_median_shape_after_transp") or [2]
    is_along_z = content["transpose_forward"][0] == 0 and reader != RAS_READER
    return reader == NATURAL or (median[0] == 1 and is_along_z)


def _checked_settings(
    content: Mapping[str, Any], name: str, where: str, advice: str
) -> tuple[dict[str, Any], Preprocessing, bool]:
    """Settings of a configuration, refused where the bundle could not follow them.

    Returns:
        The settings, how images are processed, and whether they are 2D images.
    """
    try:
        settings = resolve_configuration(content, name)
        order = sorted(int(axis) for axis in content["transpose_forward"])
        wanted = read_preprocessing(content, settings)
        lacking = [
            key
            for scheme, intensities in zip(
                wanted.normalization_schemes, wanted.intensities, strict=True
            )
            for key in INTENSITIES
            if key in intensities or scheme == "CTNormalization"
            if not isinstance(intensities.get(key), (int, float))
        ]
        reader = content["image_reader_writer"]
        is_flat = len(settings["patch_size"]) == 2 and _reads_images(content)
        functions = [
            settings.get(key, _RESAMPLING)
            for key in ("resampling_fn_data", "resampling_fn_probabilities")
        ]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{where!r} has no configuration {name!r} that can be used ({error}): {advice}"
        ) from error
    if order != [0, 1, 2] or lacking:
        what = f"transpose_forward {order}" if not lacking else f"no {lacking[0]} of intensities"
        raise ValueError(f"{where!r} has {what}: {advice}")
    others = [function for function in functions if function != _RESAMPLING]
    if others == [NO_RESAMPLING] * 2:
        others = []
    if reader not in _READERS:
        others.append(reader)
    if content.get("label_manager", _LABEL_MANAGER) != _LABEL_MANAGER:
        others.append(content["label_manager"])
    if others:
        raise ValueError(
            f"{where!r}: configuration {name!r} uses {', '.join(map(str, others))}, which a bundle "
            f"cannot repeat: only {_RESAMPLING} or {NO_RESAMPLING} for images and probabilities, "
            f"{_LABEL_MANAGER} and the readers {', '.join(_READERS)} are supported"
        )
    return settings, wanted, is_flat
