"""Checkpoints of small networks, as nnU-Net writes them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.nnunet.checkpoint import network_axes, weights_to_nnunet
from monai_xtiny.plan.nnunet import plan_of_configuration
from monai_xtiny.plan.unet_plan import UNetPlan
from tests.conftest import DATA

LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}
DATASET = {"channel_names": {"0": "MRI"}, "labels": LABELS, "file_ending": ".nii.gz"}


def small_plans(name: str = "nnUNetPlans_Dataset004_Hippocampus") -> dict[str, Any]:
    """Plans of nnU-Net, with two features per stage."""
    plans = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    for settings in plans["configurations"].values():
        arguments = settings.get("architecture", {}).get("arch_kwargs", {})
        if "features_per_stage" in arguments:
            arguments["features_per_stage"] = [2] * len(arguments["features_per_stage"])
    return plans


def planned(plans: dict[str, Any], configuration: str, dataset: dict[str, Any]) -> UNetPlan:
    """The plan of a configuration."""
    return plan_of_configuration(
        plans,
        configuration,
        "plans.json",
        in_channels=len(dataset["channel_names"]),
        out_channels=len(dataset["labels"]),
        of_images=plans["original_median_shape_after_transp"][0] == 1,
        any_normalization=True,
    )


def trained_network(plan: UNetPlan) -> nn.Module:
    """A network whose norms and biases are not those of an initialization."""
    network = build_network(plan, seed=1).eval()
    torch.manual_seed(2)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    nn.init.zeros_(network.output_block.conv.conv.bias)  # so that no class always wins
    return network


def write_model(
    path: Path,
    configuration: str = "3d_fullres",
    *,
    plans: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A checkpoint alone; its plans and data set are in it.

    Args:
        path: of the file.
        configuration: of the plans.
        plans: default: :func:`small_plans`.
        dataset: content of ``dataset.json``.
        changes: of the checkpoint's content.
    """
    content, described = plans or small_plans(), dataset or DATASET
    plan = planned(small_plans() if plans is None else plans, configuration, described)
    axes = network_axes(content["transpose_forward"], plan.spatial_dims)
    if "network_weights" not in changes:
        state = trained_network(plan).state_dict()
        changes = {**changes, "network_weights": weights_to_nnunet(state, plan, axes)}
    checkpoint = {
        "current_epoch": 5,
        "init_args": {
            "plans": deepcopy(content),
            "configuration": configuration,
            "fold": 0,
            "dataset_json": deepcopy(described),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 2),
        **changes,
    }
    torch.save(checkpoint, path)
    return path


def change_model(path: Path, change: Any) -> Path:
    """Change the content of a checkpoint."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path
