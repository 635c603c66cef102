"""Distillation for recipes.py: a trained bundle teaches a narrower network, an experiment.

The student's loss is its own on the labels plus the divergence from the teacher's softened
probabilities (Hinton et al. 2015, arXiv:1503.02531). Unlabeled images join with the teacher's
labels.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import nn
from torch.nn.functional import kl_div, log_softmax


def distill(teacher: Path, weight: float = 0.5, temperature: float = 2.0) -> dict[str, Any]:
    """Keys of train.json that make a bundle the teacher.

    Args:
        teacher: trained bundle, whose images are preprocessed as the student's.
        weight: of the teacher in the loss; the labels have the rest.
        temperature: that logits are divided by.
    """
    from monai_xtiny.system.config_text import PlainPath

    return {
        "teacher": PlainPath(str(teacher.resolve())),
        "train#inferer": {
            "_target_": "distillation.TeacherInferer",
            "bundle": "@teacher",
            "device": "@device",
        },
        "plain_loss": {
            "_target_": "DiceCELoss",
            "include_background": False,
            "to_onehot_y": True,
            "softmax": True,
            "batch": "@batch_dice",
        },
        "loss": {
            "_target_": "distillation.DistillationLoss",
            "loss": "@plain_loss",
            "inferer": "@train#inferer",
            "weight": weight,
            "temperature": temperature,
        },
    }


class TeacherInferer(SimpleInferer):
    """The network's logits, while the teacher's of the same images are kept for the loss.

    Args:
        bundle: folder of the teacher.
        device: that computes.
    """

    def __init__(self, bundle: str, device: torch.device) -> None:
        from monai_xtiny.bundle.folder import Bundle

        super().__init__()
        self.teacher = Bundle.open(bundle).network().to(device)
        self.logits: torch.Tensor | None = None

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Logits (B, K, *spatial) of images (B, C, *spatial)."""
        with torch.no_grad():
            self.logits = self.teacher(inputs)
        return super().__call__(inputs, network, *args, **kwargs)


class DistillationLoss(nn.Module):
    """``(1 - w) * loss(p, y) + w * T^2 * KL(softmax(t / T) || softmax(p / T))``, mean over voxels.

    Args:
        loss: of logits ``p`` and labels ``y``.
        inferer: that has the teacher's logits ``t``.
        weight: ``w``.
        temperature: ``T``.
    """

    def __init__(
        self, loss: nn.Module, inferer: Any, weight: float = 0.5, temperature: float = 2.0
    ) -> None:
        super().__init__()
        self.loss, self.inferer = loss, inferer
        self.weight, self.temperature = weight, temperature

    def forward(self, pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Loss of logits (B, K, *spatial) and labels (B, 1, *spatial)."""
        softened = [
            log_softmax(logits / self.temperature, dim=1) for logits in (pred, self.inferer.logits)
        ]
        gap = kl_div(*softened, reduction="none", log_target=True).sum(dim=1).mean()
        return (1 - self.weight) * self.loss(pred, label) + self.weight * self.temperature**2 * gap


def label_by_teacher(teacher: Path, images: Path, labels: Path) -> list[dict[str, Any]]:
    """Cases of unlabeled images with the teacher's labels, by its own inference.json.

    Args:
        teacher: trained bundle.
        images: folder of CASE_0000.*, one file per channel.
        labels: folder to write; one that holds labels is taken as it is.

    Raises:
        ValueError: the folder has no such image.
    """
    from monai_xtiny.bundle.folder import Bundle
    from monai_xtiny.system.config_text import PlainPath

    if not labels.is_dir():
        options = {"dataset_dir": PlainPath(str(images)), "output_dir": PlainPath(str(labels))}
        workflow = Bundle.open(teacher).workflow(("inference",), options)
        workflow.run()
        workflow.finalize()
    cases = []
    for label in sorted(path for path in labels.iterdir() if path.is_file()):
        name = label.name.split(".", 1)[0]
        files = sorted(map(str, images.glob(f"{name}_[0-9][0-9][0-9][0-9].*")))
        if files:
            cases.append({"image": files, "label": str(label)})
    if not cases:
        raise ValueError(f"no image CASE_0000.* in {str(images)!r}: give --unlabeled DIR")
    return cases


def link_images(cases: list[dict[str, Any]], folder: Path) -> Path:
    """A folder of links to the images of cases, without their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in (Path(item) for case in cases for item in case["image"]):
        link = folder / image.name
        if not link.is_symlink():
            link.symlink_to(image.resolve())
    return folder


def write_datalist(
    training: list[dict[str, Any]], validation: list[dict[str, Any]], target: Path
) -> tuple[Path, Path]:
    """A datalist of cases with absolute paths, and the folder that its paths are relative to."""
    files = [item for case in (*training, *validation) for item in (*case["image"], case["label"])]
    root = Path(os.path.commonpath([os.path.abspath(item) for item in files]))

    def relative(case: dict[str, Any]) -> dict[str, Any]:
        return {
            "image": [os.path.relpath(item, root) for item in case["image"]],
            "label": os.path.relpath(case["label"], root),
        }

    content = {
        "training": [relative(case) for case in training],
        "validation": [relative(case) for case in validation],
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return target, root
