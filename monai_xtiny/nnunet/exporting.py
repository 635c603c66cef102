"""A trained bundle as a model folder of nnU-Net: plans, dataset.json, and a checkpoint per fold."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_xtiny.bundle.exclusive import exclusive
from monai_xtiny.bundle.folder import INFERENCE, WEIGHTS, Bundle
from monai_xtiny.bundle.imported import is_imported
from monai_xtiny.bundle.inference import check_inference
from monai_xtiny.bundle.metadata import is_raster
from monai_xtiny.bundle.replace import replaced_whole
from monai_xtiny.bundle.weights import read_weights
from monai_xtiny.bundled.folds import check_trained
from monai_xtiny.bundled.locks import write_lock
from monai_xtiny.networks.ladder import cap_features
from monai_xtiny.nnunet.checkpoint import (
    NnunetCheckpoint,
    check_dynunet_weights,
    network_axes,
    nnunet_kernels,
    weights_to_nnunet,
    write_checkpoint,
)
from monai_xtiny.nnunet.model import NATURAL, TRAINER, UNRESAMPLED, check_source
from monai_xtiny.plan.nnunet import RAS_READER
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.system.files import write_json

# What nnUNetv2_predict -d looks for: nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION.
_MODEL_FOLDER = re.compile(rf"{TRAINER}__([A-Za-z0-9_.-]+?)__([A-Za-z0-9_.-]+)")
_DATA_SET = re.compile(r"Dataset[0-9]{3}_.+")
_RESAMPLING = "resample_data_or_seg_to_shape"


@dataclass(frozen=True)
class ModelFolder:
    """What :func:`export_to_nnunet` wrote.

    Args:
        path: of the folder.
        folds: numbers of the folds.
        configuration: name of the configuration.
    """

    path: Path
    folds: tuple[int, ...]
    configuration: str


@exclusive
def export_to_nnunet(bundle: Bundle, output: str | os.PathLike[str]) -> ModelFolder:
    """Write a trained bundle so that nnU-Net predicts with it.

    The network is the same. What nnU-Net does around it is set as near to the bundle as it goes:
    volumes are turned to RAS (``NibabelIOWithReorient``), resampled linearly, normalized to
    z-scores of the whole image, and not flipped. nnU-Net normalizes before it resamples, and
    places and weights windows in its own way: docs/nnunet.md says what that changes.

    Args:
        bundle: the bundle, or its folder.
        output: folder to make, with ``plans.json``, ``dataset.json`` and
            ``fold_N/checkpoint_final.pth``. Its name, where it is
            ``nnUNetTrainer__PLANS__CONFIGURATION``, names plans and configuration.

    Raises:
        BlockingIOError: another process writes the bundle or the folder.
        FileExistsError: there is something that is not an empty folder.
        NotADirectoryError: a parent of the folder is a file.
        PermissionError: the folder cannot be made there.
        ValueError: nnU-Net could not have the labels, or the bundle's weights or network are of
            another network than its search chose.
    """
    target = _checked_target(bundle, output)
    files = _fold_files(bundle)
    check_trained([str(file) for file in files.values()])
    plan = _checked_plan(bundle)
    weights = {fold: read_weights(file) for fold, file in files.items()}
    for fold, state in weights.items():
        check_dynunet_weights(state, plan, source=str(files[fold]))
    named = _MODEL_FOLDER.fullmatch(target.name)
    plans_name, name = named.groups() if named else ("nnUNetPlans", _configuration_name(bundle))
    plans, dataset, flips = _described(bundle, plan, list(weights.values()), plans_name, name)
    if _DATA_SET.fullmatch(target.parent.name):
        plans["dataset_name"] = target.parent.name
    axes = network_axes(plans["transpose_forward"], plan.spatial_dims)
    wide = replace(plan, kernel_size=_kernels(list(weights.values()), plan))
    checkpoints = {
        fold: NnunetCheckpoint(
            source=files[fold],
            weights=weights_to_nnunet(state, wide, axes),
            plans=plans,
            configuration=name,
            dataset_json=dataset,
            trainer_name=TRAINER,
            mirror_axes=flips,
            num_epochs=0,
        )
        for fold, state in weights.items()
    }
    _check_model(bundle, next(iter(checkpoints.values())))
    with write_lock(target), replaced_whole(target) as folder:
        write_json(folder / "plans.json", plans)
        write_json(folder / "dataset.json", dataset)
        for fold, checkpoint in checkpoints.items():
            (folder / f"fold_{fold}").mkdir()
            write_checkpoint(checkpoint, fold, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return ModelFolder(target, tuple(weights), name)


def _checked_target(bundle: Bundle, output: str | os.PathLike[str]) -> Path:
    """The folder to make, without links; refused where it could not be made."""
    text = os.fspath(output)
    if "\0" in text:
        raise ValueError(f"--output {text!r} holds a character that no path has: give another")
    target = Path(os.path.realpath(text))
    parent = next(item for item in target.parents if item.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{str(parent)!r} is a file: give another --output")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{str(target)!r} exists: give another --output, or remove it")
    if target.is_relative_to(bundle.root):
        raise ValueError(f"{str(target)!r} lies in the bundle: give another --output")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise PermissionError(
            f"{str(parent)!r} cannot be written to ({error.strerror}): give another --output"
        ) from error
    return target


def _check_model(bundle: Bundle, checkpoint: NnunetCheckpoint) -> None:
    """Refuse what could not be imported again: settings of an imported bundle were changed."""
    where = str(bundle.path(INFERENCE))
    check_source(
        checkpoint,
        checkpoint.plans,
        checkpoint.dataset_json,
        where=where,
        dataset_file=where,
        advice="correct it, or import the bundle again",
    )


def _fold_files(bundle: Bundle) -> dict[int, Path]:
    """Files of weights by the number of their fold."""
    first = bundle.path(WEIGHTS)
    found = {0: first}
    for file in first.parent.glob(f"{first.stem}_fold*{first.suffix}"):
        match = re.fullmatch(rf"{first.stem}_fold([1-9][0-9]*)", file.stem)
        if match is not None:
            found[int(match[1])] = file
    return dict(sorted(found.items()))


def _checked_plan(bundle: Bundle) -> UNetPlan:
    """The plan of the network that the bundle runs, with its own features per stage."""
    from monai_xtiny.networks.dynunet import network_definition

    width, config, plan = bundle.selection.max_features, bundle.config("inference"), bundle.plan
    expected: dict[str, Any] = {
        "network_def": network_definition(plan, width),
        "patch_size": list(plan.patch_size),
    }
    if not is_imported(bundle.selection):
        if bundle.kind != "images":
            expected["spacing"] = list(plan.pixdim)
        try:
            check_inference(bundle, "nnU-Net")
        except ValueError as error:
            raise ValueError(f"{str(bundle.root)!r}: {error}: export the bundle again") from error
    for key, value in expected.items():
        if config.get(key) != value:
            what = "network" if key == "network_def" else key
            raise ValueError(
                f"{str(bundle.path(INFERENCE))!r} has another {what} than docs/search.json chose, "
                "which nnU-Net may not have: export the bundle again"
            )
    return replace(plan, features_per_stage=cap_features(plan, width))


def _configuration_name(bundle: Bundle) -> str:
    """Name of the configuration: as ``nnunet configure`` calls it."""
    base = "3d_fullres" if bundle.plan.spatial_dims == 3 else "2d"
    return f"{base}_xtiny{bundle.selection.max_features}"


def _kernels(weights: Sequence[Mapping[str, Any]], plan: UNetPlan) -> tuple[tuple[int, ...], ...]:
    """Kernels that hold the weights of every fold."""
    found = [nnunet_kernels(state, plan) for state in weights]
    return tuple(
        tuple(max(edges) for edges in zip(*kernels, strict=True))
        for kernels in zip(*found, strict=True)
    )


def _described(
    bundle: Bundle,
    plan: UNetPlan,
    weights: Sequence[Mapping[str, Any]],
    plans_name: str,
    name: str,
) -> tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]:
    """Plans, data set, and the axes that are flipped in inference, in nnU-Net's order.

    The settings of an imported bundle may have been changed by hand.
    """
    try:
        plans, dataset = _plans_and_dataset(bundle, plan, weights, plans_name, name)
        axes = network_axes(plans["transpose_forward"], plan.spatial_dims)
        mirrored = bundle.config("inference").get("mirror_axes") or []
        places = dict(enumerate(axes))
        return plans, dataset, tuple(sorted(places[axis] for axis in mirrored))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(bundle.path(INFERENCE))!r} has settings of nnU-Net that cannot be used "
            f"({type(error).__name__}: {error}): correct them, or import the bundle again"
        ) from error


def _plans_and_dataset(
    bundle: Bundle,
    plan: UNetPlan,
    weights: Sequence[Mapping[str, Any]],
    plans_name: str,
    name: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content of ``plans.json`` and ``dataset.json``."""
    config = bundle.config("inference")
    kept = dict(config["nnunet_plans"]) if is_imported(bundle.selection) else {}
    settings = dict(config["nnunet_configuration"]) if kept else _own_configuration(bundle, plan)
    order = kept.get("transpose_forward") or _own_order(plan)
    axes = network_axes(order, plan.spatial_dims)
    patch = _turned(plan.patch_size, axes)
    kernels = [_turned(kernel, axes) for kernel in _kernels(weights, plan)]
    size = patch if plan.spatial_dims == 3 else [1 if bundle.kind == "images" else 2, *patch]
    spacing = settings["spacing"]
    dataset = _dataset(bundle, kept)
    plans = {
        "dataset_name": f"Dataset999_{re.sub('[^A-Za-z0-9_]', '_', bundle.name)}",
        "plans_name": plans_name,
        "original_median_spacing_after_transp": [*[1.0] * (3 - len(spacing)), *spacing],
        "original_median_shape_after_transp": size,
        "image_reader_writer": kept.get("image_reader_writer") or _reader(bundle),
        "transpose_forward": list(order),
        "transpose_backward": [int(axis) for axis in np.argsort(order)],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": kept.get(
            "foreground_intensity_properties_per_channel"
        )
        or {str(channel): {} for channel in range(plan.in_channels)},
        "configurations": {
            name: {
                **_FIXED,
                "data_identifier": f"{plans_name}_{name}",
                "batch_size": 2 if plan.spatial_dims == 3 else 12,
                "patch_size": patch,
                "median_image_size_in_voxels": [float(edge) for edge in size[-len(patch) :]],
                "batch_dice": plan.spatial_dims == 2,
                **settings,
                "architecture": _named_network(plan, kernels, axes),
            }
        },
    }
    return plans, dataset


def _own_order(plan: UNetPlan) -> list[int]:
    """nnU-Net's axes in the order of its network: slices first."""
    first = [] if plan.slice_axis is None else [2 - plan.slice_axis]
    return first + [axis for axis in range(3) if axis not in first]


def _own_configuration(bundle: Bundle, plan: UNetPlan) -> dict[str, Any]:
    """The bundle's preprocessing, as far as nnU-Net has settings for it.

    2D images are not resampled. nnU-Net reads no spacing from PNG, but one from NIfTI.
    """
    axes = network_axes(_own_order(plan), plan.spatial_dims)
    linear = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": False}
    return {
        "spacing": _turned(plan.spacing, axes),
        "normalization_schemes": ["ZScoreNormalization"] * plan.in_channels,
        "use_mask_for_norm": [False] * plan.in_channels,
        "resampling_fn_data_kwargs": linear,
        "resampling_fn_probabilities_kwargs": linear,
        **(UNRESAMPLED if bundle.kind == "images" and not _is_png(bundle) else {}),
    }


# Settings that are the same in every configuration.
_FIXED = {
    "preprocessor_name": "DefaultPreprocessor",
    "resampling_fn_data": _RESAMPLING,
    "resampling_fn_seg": _RESAMPLING,
    "resampling_fn_probabilities": _RESAMPLING,
    "resampling_fn_seg_kwargs": {
        "is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None,
    },
}  # fmt: skip


def _named_network(
    plan: UNetPlan, kernels: Sequence[Sequence[int]], axes: Sequence[int]
) -> dict[str, Any]:
    """The network as nnU-Net's plans name it."""
    dims, stages = plan.spatial_dims, len(plan.features_per_stage)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(plan.features_per_stage),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [list(kernel) for kernel in kernels],
            "strides": [_turned(stride, axes) for stride in plan.strides],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _dataset(bundle: Bundle, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Content of ``dataset.json``: channels, labels and the ending of files."""
    names = ["background", *bundle.label_names[1:]]
    if "ignore" in names or len(set(names)) < len(names):
        raise ValueError(
            f"nnU-Net cannot have the labels {', '.join(names)} ('ignore', or one twice): rename "
            "them in configs/metadata.json, channel_def of the outputs"
        )
    channels = kept.get("channel_names") or [
        "RGB"[channel] if _is_png(bundle) and bundle.plan.in_channels == 3 else f"channel {channel}"
        for channel in range(bundle.plan.in_channels)
    ]
    return {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": {name: value for value, name in enumerate(names)},
        "numTraining": len(bundle.selection.table.images),
        "file_ending": kept.get("file_ending") or (".png" if _is_png(bundle) else ".nii.gz"),
    }


def _reader(bundle: Bundle) -> str:
    """nnU-Net's reader that turns an image as the bundle does."""
    if bundle.kind == "images":
        return NATURAL if _is_png(bundle) else "SimpleITKIO"
    return RAS_READER


def _is_png(bundle: Bundle) -> bool:
    """Whether the images are such as nnU-Net reads as PNG."""
    return bundle.kind == "images" and is_raster(bundle.selection.table)


def _turned(values: Sequence[Any], axes: Sequence[int]) -> list[Any]:
    """Values of MONAI's axes in nnU-Net's order."""
    return [values[int(place)] for place in np.argsort(axes)]
