"""nnU-Net's plans files, with their (z, y, x) turned into this package's (x, y[, z])."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_xtiny.plan.planner import in_array_order
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.system.config_text import path_text

_PLAIN = "PlainConvUNet"


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
        ValueError: it is no nnU-Net plan, lacks the configuration, or plans another network than
            the plain U-Net with two convolutions per stage.
    """
    path = Path(path_text(plans, "plans"))
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {str(path)!r}: give nnU-Net's plans file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = _inherited(content["configurations"], configuration)
        dims = len(settings["patch_size"])
        _check_dims(configuration, dims, spatial_dims, of_images=of_images)
        architecture = _architecture(settings)
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
    """Kernels, strides and features, from today's plans files or those before v2.4."""
    if "architecture" in settings:
        architecture = settings["architecture"]
        arguments = dict(architecture["arch_kwargs"])
        network = str(architecture["network_class_name"])
        blocks = (
            [*arguments["n_conv_per_stage"], *arguments["n_conv_per_stage_decoder"]]
            if (network.endswith(_PLAIN))
            else []
        )
    else:
        network = str(settings["UNet_class_name"])
        stages = len(settings["pool_op_kernel_sizes"])
        base, limit = settings["UNet_base_num_features"], settings["unet_max_num_features"]
        arguments = {
            "kernel_sizes": settings["conv_kernel_sizes"],
            "strides": settings["pool_op_kernel_sizes"],
            "features_per_stage": [min(base * 2**stage, limit) for stage in range(stages)],
        }
        blocks = [*settings["n_conv_per_stage_encoder"], *settings["n_conv_per_stage_decoder"]]
    if not network.endswith(_PLAIN) or any(count != 2 for count in blocks):
        raise ValueError(
            f"the plan is for {network.rsplit('.', 1)[-1]} with {sorted(set(blocks))} convolutions "
            f"per stage: only {_PLAIN} with 2 can be searched; plan with nnU-Net's default planner"
        )
    return arguments
