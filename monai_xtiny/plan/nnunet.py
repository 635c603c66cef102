"""nnU-Net's plans files, with their (z, y, x) turned into this package's (x, y[, z])."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_xtiny.data.labels import find_special_labels
from monai_xtiny.plan.planner import in_array_order
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.system.config_text import path_text
from monai_xtiny.system.files import read_json

_PLAIN = "PlainConvUNet"
_PLAIN_PATH = f"dynamic_network_architectures.architectures.unet.{_PLAIN}"
_Z_SCORE = "ZScoreNormalization"
# To the spacing of the plans; the package does so with MONAI's.
_RESAMPLINGS = ("resample_data_or_seg_to_shape", "resample_torch_fornnunet")
# nnU-Net's reader that turns volumes to RAS; the others keep their axes as the file stores them.
RAS_READER = "NibabelIOWithReorient"
# Arguments of nnU-Net's plain U-Net that are looked at; its other one is nonlin_first.
_ARGUMENTS = {
    "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage",
    "n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op",
    "dropout_op_kwargs", "nonlin", "nonlin_kwargs", "deep_supervision",
}  # fmt: skip


def load_nnunet_plan(
    plans: str | os.PathLike[str],
    configuration: str,
    *,
    in_channels: int,
    out_channels: int,
    of_images: bool = False,
    spatial_dims: int | None = None,
    any_normalization: bool = False,
    stored_axes: Sequence[int] | None = (0, 1, 2),
) -> UNetPlan:
    """Take one configuration of an ``nnUNetPlans.json`` as the plan.

    Args:
        plans: path of the plans file, of nnU-Net v2.
        configuration: its name, for example ``2d`` or ``3d_fullres``.
        in_channels: channels of the images, which the plans file does not hold.
        out_channels: classes, background included.
        of_images: the data are 2D images, not volumes; their plan has no slice axis.
        spatial_dims: dimensions that the plan must have; ``None`` takes any.
        any_normalization: the images will be normalized as the plans say; otherwise z-scores of
            whole images are what they get, and plans that name another are refused.
        stored_axes: axis of the files that lies along x, y and z, by which the plan is brought to
            RAS unless nnU-Net's reader turned them; ``None`` where files differ. The default
            leaves the plan's axes as the files have them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no nnU-Net plan, lacks the configuration, or asks for what is not
            supported: another network than the plain U-Net with two convolutions per stage,
            instance normalization and leaky ReLU, a cascade, another normalization, volumes that
            nnU-Net did not turn and that are stored along different axes, or, by the
            ``dataset.json`` beside it, regions or an ignore label.
    """
    path = Path(path_text(plans, "plans"))
    content = read_nnunet_plans(path)
    _check_labels(path.with_name("dataset.json"))
    return plan_of_configuration(
        content,
        configuration,
        str(path),
        in_channels=in_channels,
        out_channels=out_channels,
        of_images=of_images,
        spatial_dims=spatial_dims,
        any_normalization=any_normalization,
        stored_axes=stored_axes,
    )


def plan_of_configuration(
    content: Mapping[str, Any],
    configuration: str,
    source: str,
    *,
    in_channels: int,
    out_channels: int,
    of_images: bool = False,
    spatial_dims: int | None = None,
    any_normalization: bool = False,
    stored_axes: Sequence[int] | None = (0, 1, 2),
) -> UNetPlan:
    """As :func:`load_nnunet_plan`, of plans that were read, from a checkpoint for example.

    Args:
        content: of a plans file.
        configuration: its name.
        source: the file that it is from, for messages.
        in_channels: channels of the images.
        out_channels: classes, background included.
        of_images: the data are 2D images.
        spatial_dims: dimensions that the plan must have; ``None`` takes any.
        any_normalization: the images will be normalized as the plans say.
        stored_axes: axis of the files along x, y and z.

    Raises:
        ValueError: it lacks the configuration, or asks for what is not supported.
    """
    try:
        settings = resolve_configuration(content, configuration)
        architecture = _architecture(settings)
        unsupported = _find_unsupported(settings, architecture)
        if unsupported is None and not any_normalization:
            unsupported = _find_other_processing(settings)
        if unsupported is None:
            dims = len(settings["patch_size"])
            _check_dims(configuration, dims, spatial_dims, of_images=of_images)
            order = _axes_in_order(content, (0, 1, 2) if of_images else stored_axes)
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
    except (
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        ValueError,
    ) as error:
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(
            f"{source!r} has no plan for {configuration!r} that can be used ({name}{error}): "
            "give an nnUNetPlans.json and one of its configurations"
        ) from error
    raise ValueError(f"{source!r}: configuration {configuration!r} {unsupported}")


def read_nnunet_plans(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a plans file of nnU-Net v2 as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of nnU-Net v1, or no plans file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {str(file)!r}: give nnU-Net's plans file")
    raw = file.read_bytes()
    content: Any = None
    if raw[:1] != b"\x80":  # no pickle
        try:
            content = json.loads(raw.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{str(file)!r} is not JSON ({error}): give nnU-Net's plans"
            ) from error
    if raw[:1] == b"\x80" or (isinstance(content, dict) and "plans_per_stage" in content):
        raise ValueError(
            f"{str(file)!r} holds plans of nnU-Net v1, which are not supported: plan with nnU-Net "
            "v2 (nnUNetv2_plan_and_preprocess)"
        )
    configurations = content.get("configurations") if isinstance(content, dict) else None
    if not isinstance(configurations, dict) or not all(
        isinstance(settings, dict) for settings in configurations.values()
    ):
        raise ValueError(f"{str(file)!r} has no configurations: give an nnUNetPlans.json")
    return content


def resolve_configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Settings of a configuration with those it inherits, as nnU-Net resolves them.

    A setting replaces an inherited one as a whole, also where it is a dictionary.

    Args:
        plans: what :func:`read_nnunet_plans` returns.
        name: of the configuration.

    Raises:
        ValueError: there is no such configuration, or they inherit in a circle.
    """
    configurations = plans["configurations"]
    chain = [name]
    while True:
        if chain[-1] not in configurations:
            raise ValueError(
                f"there is no configuration {chain[-1]!r}, only {', '.join(configurations)}"
            )
        parent = configurations[chain[-1]].get("inherits_from")
        if parent is None:
            break
        if parent in chain:
            raise ValueError(f"the configurations {' -> '.join(chain)} inherit in a circle")
        chain.append(parent)
    settings: dict[str, Any] = {}
    for link in reversed(chain):
        settings.update(configurations[link])
    return settings


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
    if network != _PLAIN_PATH or any(count != 2 for count in blocks):
        numbers = f"{_PLAIN} with {sorted(set(blocks))} convolutions"
        what = network if network != _PLAIN_PATH else numbers
        return (
            f"plans {what}, which is not supported, only {_PLAIN} with 2 convolutions per stage: "
            "plan with nnU-Net's default planner, or search without --plans"
        )
    others = _find_other_layers(architecture, len(settings["patch_size"]))
    stages = len(architecture["kernel_sizes"])
    if len(blocks) != 2 * stages - 1 or architecture.get("n_stages", stages) != stages:
        others.insert(
            0, f"kernel_sizes of {stages} stages beside other n_stages or n_conv_per_stage"
        )
    if others:
        return (
            f"plans a network with {', '.join(others)}, which is not supported, only {_PLAIN} as "
            "nnU-Net's default planner writes it: plan with that, or search without --plans"
        )
    return None


def _find_other_layers(architecture: Mapping[str, Any], dims: int) -> list[str]:
    """What a plain U-Net is made of that is not instance normalization and leaky ReLU (0.01)."""
    if "conv_op" not in architecture:  # before v2.4 there was no choice
        return []
    expected = {
        "conv_op": ("conv", f"Conv{dims}d"),
        "norm_op": ("instancenorm", f"InstanceNorm{dims}d"),
        "nonlin": ("activation", "LeakyReLU"),
    }
    others = [
        f"{name} {architecture.get(name)}"
        for name, (module, layer) in expected.items()
        if architecture.get(name) not in (f"torch.nn.{layer}", f"torch.nn.modules.{module}.{layer}")
    ]
    dropout = architecture.get("dropout_op")
    others += [f"dropout_op {dropout}"] * (dropout is not None)
    norm = {"eps": 1e-5, "affine": False, **(architecture.get("norm_op_kwargs") or {})}
    others += [f"norm_op_kwargs {norm}"] * (norm != {"eps": 1e-5, "affine": True})
    slope = (architecture.get("nonlin_kwargs") or {}).get("negative_slope", 0.01)
    others += [f"negative_slope {slope}"] * (slope != 0.01)
    given = {name for name, value in architecture.items() if value not in (None, False)}
    return others + sorted(given - _ARGUMENTS - {"network", "blocks"})


def _find_other_processing(settings: Mapping[str, Any]) -> str | None:
    """What a configuration asks for before the network that is not the package's, what to do."""
    schemes = sorted(set(settings.get("normalization_schemes", ())) - {_Z_SCORE})
    if not schemes and any(settings.get("use_mask_for_norm", ())):
        schemes = [f"{_Z_SCORE} within the nonzero mask"]
    if schemes:
        return (
            f"normalizes by {', '.join(map(str, schemes))}, which is not supported, only "
            f"{_Z_SCORE} of whole images: search without --plans, which normalizes so"
        )
    steps = {"resampling_fn_data": _RESAMPLINGS, "preprocessor_name": ("DefaultPreprocessor",)}
    for key, known in steps.items():
        if settings.get(key, known[0]) not in known:
            return (
                f"has the {key} {settings[key]}, which is not supported: search without --plans, "
                "which resamples to the median spacing"
            )
    return None


def _axes_in_order(content: Mapping[str, Any], stored_axes: Sequence[int] | None) -> list[int]:
    """Axes of the plans in their order, as 0, 1, 2 for z, y, x of RAS, or of files that lie so.

    Args:
        content: of the plans file.
        stored_axes: axis of the files along x, y and z; ``None`` where they differ.
    """
    order = [int(axis) for axis in content.get("transpose_forward", (0, 1, 2))]
    if sorted(order) != [0, 1, 2]:
        raise ValueError(f"transpose_forward {order} is no order of 0, 1, 2")
    if content.get("image_reader_writer") == RAS_READER:
        return order
    if stored_axes is None:
        raise ValueError(
            "the volumes are stored along different axes, which nnU-Net planned as one: plan with "
            f"its reader {RAS_READER}, or search without --plans"
        )
    return [2 - list(stored_axes).index(2 - axis) for axis in order]


def _check_dims(configuration: str, dims: int, expected: int | None, *, of_images: bool) -> None:
    """Refuse a configuration of other dimensions than the images or the caller ask for."""
    if expected not in (None, dims):
        raise ValueError(f"it is {dims}D, and --spatial_dims is {expected}")
    if of_images and dims == 3:
        raise ValueError(f"configuration {configuration!r} is 3D, and the images are 2D: take 2d")


def _architecture(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Network and its kernels, strides, features and convolutions per stage.

    From today's plans files or those before v2.4.
    """
    if "architecture" in settings:
        architecture = settings["architecture"]
        network, arguments = str(architecture["network_class_name"]), architecture["arch_kwargs"]
        is_plain = network == _PLAIN_PATH
        keys = ("n_conv_per_stage", "n_conv_per_stage_decoder") if is_plain else ()
        blocks = [count for key in keys for count in arguments[key]]
        return {
            "n_stages": None,
            "conv_op": None,
            **arguments,
            "network": network,
            "blocks": blocks,
        }
    stages = len(settings["pool_op_kernel_sizes"])
    base, limit = settings["UNet_base_num_features"], settings["unet_max_num_features"]
    return {
        "kernel_sizes": settings["conv_kernel_sizes"],
        "strides": settings["pool_op_kernel_sizes"],
        "features_per_stage": [min(base * 2**stage, limit) for stage in range(stages)],
        "network": _PLAIN_PATH
        if settings["UNet_class_name"] == _PLAIN
        else settings["UNet_class_name"],
        "blocks": [*settings["n_conv_per_stage_encoder"], *settings["n_conv_per_stage_decoder"]],
    }
