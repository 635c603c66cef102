"""Bundles of networks that nnU-Net trained: how they are told apart, and what they run.

They do with an image what nnU-Net does. Their ``docs/search.json`` names no rule but ``nnunet``,
and holds no scores: nothing was searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_xtiny.bundle.templates import any_rotation, merged_template, templates_dir
from monai_xtiny.networks.dynunet import network_definition
from monai_xtiny.plan.nnunet import RAS_READER
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.selection.rule import Selection

# The method in docs/search.json of a bundle that was not searched.
IMPORTED = "nnunet"
_NAMESPACE = "$types.SimpleNamespace(**runpy.run_path(@bundle_root + '/scripts/{}'))"
_KEYS = {
    "nnunet": _NAMESPACE.format("nnunet_preprocessing.py"),
    "windows": _NAMESPACE.format("nnunet_windows.py"),
    "nnunet_plans": {},
    "nnunet_configuration": {},
    "settings": "$@nnunet.read_preprocessing(@nnunet_plans, @nnunet_configuration)",
    "mirror_axes": [],
}
# Keys whose values are those of the plans that were imported.
SETTINGS = ("nnunet_plans", "nnunet_configuration", "network_axes", "mirror_axes")
_INFERER = (
    "$@windows.NnunetInferer("
    "functools.partial(@nnunet.prepare_image, settings=@settings), "
    "functools.partial(@nnunet.restore_image_logits, settings=@settings, spatial_dims={dims}), "
    "patch_size=@patch_size, network_axes=@network_axes, mirror_axes=@mirror_axes, "
    "overlap=@overlap)"
)
_DROP = {"_target_": "Lambda", "func": "$@nnunet.drop_slice_axis"}
_TURN = {"_target_": "Orientationd", "axcodes": "RAS", "labels": None}


def is_imported(selection: Selection) -> bool:
    """Whether a bundle was imported from nnU-Net, by its selection."""
    return selection.method == IMPORTED


def imported_configs(
    selection: Selection, kind: str, settings: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """What an imported bundle runs: ``train``, ``inference``, ``evaluate``, ``multi_gpu_train``.

    Args:
        selection: of :data:`IMPORTED`.
        kind: ``volumes``, ``slices`` or ``images``.
        settings: keys at the top of ``inference.json`` and ``train.json``: ``nnunet_plans``,
            ``nnunet_configuration``, ``network_axes`` and ``mirror_axes``.
    """
    templates, plan = templates_dir(), selection.table.plan
    configs = {
        workflow: merged_template(workflow, kind, templates)
        for workflow in ("train", "inference", "evaluate", "multi_gpu_train")
    }
    dims = 2 if kind == "images" else 3
    inferer = _INFERER.format(dims=dims)
    axes = list(range(plan.spatial_dims))[::-1]
    keys = {
        **_KEYS,
        "network_axes": axes,
        "network_def": network_definition(plan, selection.max_features),
        "in_channels": plan.in_channels,
        "num_classes": plan.out_channels,
        "patch_size": list(plan.patch_size),
        **({"slice_axis": plan.slice_axis} if kind == "slices" else {}),
        **(settings or {}),
    }
    for workflow in ("train", "inference"):
        configs[workflow].pop("sw_batch_size")
        configs[workflow]["options"].pop("sw_batch_size")
        configs[workflow].update(keys)
    if kind == "images":
        for steps in (
            configs["inference"]["preprocessing"]["transforms"],
            configs["train"]["reading_transforms"],
        ):
            steps.insert([step.get("func") for step in steps].index("@check_image"), dict(_DROP))
    _adapt_inference(configs["inference"], inferer, keys)
    _adapt_training(configs["train"], configs["evaluate"], inferer, plan, kind, keys)
    return configs


def turns_to_ras(settings: Mapping[str, Any]) -> bool:
    """Whether nnU-Net's reader turns volumes to RAS."""
    return settings["nnunet_plans"].get("image_reader_writer") == RAS_READER


def _adapt_inference(config: dict[str, Any], inferer: str, keys: Mapping[str, Any]) -> None:
    """Let nnU-Net's inferer take images as they were read, and give logits on their grid."""
    config.pop("spacing", None)
    config["inferer"] = inferer
    steps = config["postprocessing"]["transforms"]
    if turns_to_ras(keys):
        config["preprocessing"]["transforms"].append({**_TURN, "keys": "image"})
    else:
        steps = [step for step in steps if step["_target_"] != "Invertd"]
    config["postprocessing"]["transforms"] = steps


def _adapt_training(
    train: dict[str, Any],
    evaluate: dict[str, Any],
    inferer: str,
    plan: UNetPlan,
    kind: str,
    keys: Mapping[str, Any],
) -> None:
    """Train on what nnU-Net's preprocessing gives; validate as inference does."""
    turn = [{**_TURN, "keys": ["image", "label"]}] if turns_to_ras(keys) else []
    train.pop("resampled_keys")
    evaluate.pop("resampled_keys")
    if kind != "images":
        train["spacing"] = list(plan.pixdim)
    # Fine-tuning: from what nnU-Net trained, in smaller steps, flipped and rotated as nnU-Net did.
    train["checkpoint"] = "@first_model"
    train["learning_rate"] = 0.001
    train["mirror_prob"] = 0.5 if keys["mirror_axes"] else 0.0
    if kind == "slices":
        train["rotation_range"] = any_rotation()
    train["preprocessing_transforms"] = [*turn, "$@nnunet.PreprocessCase(@settings)"]
    reading = "@reading_transforms"
    if turn:
        train["turning_transforms"] = turn
        reading = "$@reading_transforms + @turning_transforms"
    train["validate"] = {
        **train["validate"],
        "preprocessing": {"_target_": "Compose", "transforms": reading},
        "inferer": inferer,
    }
    steps = evaluate["validate#postprocessing"]["transforms"]
    if not turn:
        steps = [step for step in steps if step["_target_"] != "Invertd"]
    evaluate["validate#postprocessing"]["transforms"] = steps
