"""Unlabeled images for recipes.py, with the labels of a teacher."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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
