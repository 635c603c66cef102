"""nnU-Net's plans files, with their (z, y, x) turned into this package's (x, y[, z])."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_xtiny.data.labels import find_special_labels
from monai_xtiny.plan.planner import in_array_order
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.system.config_text import path_text
from monai_xtiny.system.files import read_json

_PLAIN = "PlainConvUNet"
_Z_SCORE = "ZScoreNormalization"


def load_nnunet_plan(
    plans: str | os.PathLike[str],
    configuration: str,
    *,
    in_channels: int,
    out_channels: int,
    of_images: bool = False,
    spatial_dims: int | None = None,
) -> UNetPlan:
    """Take one configuration of an ``nnUNetPlans.json`` as the plan.

    Args:
        plans: path of the plans file, of nnU-Net v2.
        configuration: its name, for example ``2d`` or ``3d_fullres``.
        in_channels: channels of the images, which the plans file does not hold.
        out_channels: classes, background included.
        of_images: the data are 2D images, not volumes; their plan has no slice axis.
        spatial_dims: dimensions that the plan must have; ``None`` takes any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no nnU-Net plan, lacks the configuration, or asks for what is not
            supported: another network than the plain U-Net with two convolutions per stage, a
            cascade, another normalization than z-scores of whole images, or, by the
            ``dataset.json`` beside it, regions or an ignore label.
    """
    path = Path(path_text(plans, "plans"))
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {str(path)!r}: give nnU-Net's plans file")
    _check_labels(path.with_name("dataset.json"))
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        settings = _inherited(content["configurations"], configuration)
        architecture = _architecture(settings)
        unsupported = _find_unsupported(settings, architecture)
        if unsupported is None:
            dims = len(settings["patch_size"])
            _check_dims(configuration, dims, spatial_dims, of_images=of_images)
            order = [int(axis) for axis in content.get("transpose_forward", (0, 1, 2))]
            axes = order[-dims:]
            return UNetPlan(
                spatial_dims=dims,
                in_channels=in_channels,
                out_channels=out_channels,
                spacing=in_array_order(settings["spacing"], axes),
                patch_size=in_array_order(settings["patch_size"], axes),
                kernel_size=tuple(in_array_order(k, axes) for k in architecture["kernel_sizes"]),
                strides=tuple(in_array_order(s, axes) for s in architecture["strides"]),
                features_per_stage=tuple(architecture["features_per_stage"]),
                slice_axis=2 - order[0] if dims == 2 and not of_images else None,
            )
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError, ValueError) as error:
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(
            f"{str(path)!r} has no plan for {configuration!r} that can be used ({name}{error}): "
            "give an nnUNetPlans.json and one of its configurations"
        ) from error
    raise ValueError(f"{str(path)!r}: configuration {configuration!r} {unsupported}")


def _check_labels(path: Path) -> None:
    """Refuse the labels of the data set that was planned, where they are no plain classes."""
    labels = read_json(path).get("labels") if path.is_file() else None
    special = find_special_labels(labels) if isinstance(labels, dict) else None
    if special is not None:
        raise ValueError(
            f"{str(path)!r} beside the plans has {special}, which is not supported: relabel and "
            "plan again, or search without --plans and give --label_names"
        )


def _find_unsupported(settings: Mapping[str, Any], architecture: Mapping[str, Any]) -> str | None:
    """What a configuration asks for that is not supported, and what to do."""
    previous = settings.get("previous_stage")
    if previous:
        return (
            f"refines the result of {previous!r} (a cascade), which is not supported: take "
            "another, such as 3d_fullres"
        )
    network, blocks = architecture["network"], architecture["blocks"]
    if network != _PLAIN or any(count != 2 for count in blocks):
        what = network if network != _PLAIN else f"{_PLAIN} with {sorted(set(blocks))} convolutions"
        return (
            f"plans {what}, which is not supported, only {_PLAIN} with 2 convolutions per stage: "
            "plan with nnU-Net's default planner, or search without --plans"
        )
    schemes = sorted(set(settings.get("normalization_schemes", ())) - {_Z_SCORE})
    if not schemes and any(settings.get("use_mask_for_norm", ())):
        schemes = [f"{_Z_SCORE} within the nonzero mask"]
    if schemes:
        return (
            f"normalizes by {', '.join(map(str, schemes))}, which is not supported, only "
            f"{_Z_SCORE} of whole images: search without --plans, which normalizes so"
        )
    return None


def _check_dims(configuration: str, dims: int, expected: int | None, *, of_images: bool) -> None:
    """Refuse a configuration of other dimensions than the images or the caller ask for."""
    if expected not in (None, dims):
        raise ValueError(f"it is {dims}D, and --spatial_dims is {expected}")
    if of_images and dims == 3:
        raise ValueError(f"configuration {configuration!r} is 3D, and the images are 2D: take 2d")


def _inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Settings of a configuration with those it inherits."""
    chain = [name]
    while "inherits_from" in configurations[chain[-1]]:
        parent = configurations[chain[-1]]["inherits_from"]
        if parent in chain:
            raise ValueError(f"the configurations {' -> '.join(chain)} inherit in a circle")
        chain.append(parent)
    settings: dict[str, Any] = {}
    for link in reversed(chain):
        settings.update(configurations[link])
    return settings


def _architecture(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Network and its kernels, strides, features and convolutions per stage.

    From today's plans files or those before v2.4.
    """
    if "architecture" in settings:
        architecture = settings["architecture"]
        network = str(architecture["network_class_name"]).rsplit(".", 1)[-1]
        arguments = architecture["arch_kwargs"]
        encoder = arguments["n_conv_per_stage"] if network == _PLAIN else ()
        blocks = [*encoder, *arguments["n_conv_per_stage_decoder"]]
        return {**arguments, "network": network, "blocks": blocks}
    stages = len(settings["pool_op_kernel_sizes"])
    base, limit = settings["UNet_base_num_features"], settings["unet_max_num_features"]
    return {
        "kernel_sizes": settings["conv_kernel_sizes"],
        "strides": settings["pool_op_kernel_sizes"],
        "features_per_stage": [min(base * 2**stage, limit) for stage in range(stages)],
        "network": str(settings["UNet_class_name"]).rsplit(".", 1)[-1],
        "blocks": [*settings["n_conv_per_stage_encoder"], *settings["n_conv_per_stage_decoder"]],
    }
