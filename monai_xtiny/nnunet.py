"""nnU-Net's plans files, turned round: they are in (z, y, x), and this package in (x, y[, z])."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_xtiny.plan import UNetPlan

_PLAIN = "PlainConvUNet"


def load_nnunet_plan(
    plans: str | os.PathLike[str],
    configuration: str,
    *,
    in_channels: int,
    out_channels: int,
    of_images: bool = False,
) -> UNetPlan:
    """Take one configuration of an ``nnUNetPlans.json`` as the plan.

    Args:
        plans: path of the plans file, of nnU-Net v2.
        configuration: its name, for example ``2d`` or ``3d_fullres``.
        in_channels: channels of the images, which the plans file does not tell.
        out_channels: classes, background included.
        of_images: the data are 2D images, not volumes; their plan has no slice axis.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no nnU-Net plan, lacks the configuration, or plans another network than
            the plain U-Net with two convolutions a stage.
    """
    path = Path(plans)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {str(path)!r}: give nnU-Net's plans file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        configurations = content["configurations"]
        settings = _inherited(configurations, configuration)
        architecture = _architecture(settings)
        order = [int(axis) for axis in content.get("transpose_forward", (0, 1, 2))]
        patch_size = settings["patch_size"]
        spacing = settings["spacing"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} has no plan for {configuration!r} ({type(error).__name__}: {error}): "
            "give an nnUNetPlans.json and one of its configurations"
        ) from error
    spatial_dims = len(patch_size)
    if of_images and spatial_dims == 3:
        raise ValueError(f"configuration {configuration!r} is 3D, and the images are 2D: take 2d")
    axes = order if spatial_dims == 3 else order[1:]
    back = sorted(range(spatial_dims), key=lambda position: -axes[position])

    def turn(values: Sequence[Any]) -> tuple:
        return tuple(values[position] for position in back)

    return UNetPlan(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        spacing=turn(spacing),
        patch_size=turn(patch_size),
        kernel_size=tuple(turn(kernel) for kernel in architecture["kernel_sizes"]),
        strides=tuple(turn(stride) for stride in architecture["strides"]),
        features_per_stage=tuple(architecture["features_per_stage"]),
        slice_axis=2 - order[0] if spatial_dims == 2 and not of_images else None,
    )


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
            f"a stage: only {_PLAIN} with 2 can be searched; plan with nnU-Net's default planner"
        )
    return arguments
