"""nnU-Net's ``nnUNetPlans.json``: what it must not ask for, and a configuration beside its others.

A configuration of a chosen width inherits everything, the preprocessed images too, and replaces the
features per stage alone; nnU-Net replaces ``architecture`` as a whole, so all of it is written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import permutations
from pathlib import Path
from typing import Any

from monai_xtiny.bundled.nnunet_preprocessing import read_masks
from monai_xtiny.data.labels import find_special_labels
from monai_xtiny.plan.nnunet import read_nnunet_plans, resolve_configuration
from monai_xtiny.system.files import atomic_write, read_json

NORMALIZATIONS = (
    "ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization",
    "RGBTo01Normalization",
)  # fmt: skip
_RESAMPLINGS = ("resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack")
_RESAMPLING_KEYS = ("resampling_fn_data", "resampling_fn_probabilities")
BACKUP_SUFFIX = ".before_xtiny"


def read_channels_and_labels(
    dataset_json: str | os.PathLike[str],
) -> tuple[int, tuple[str, ...]]:
    """Number of channels, and names of the classes with the background first.

    Args:
        dataset_json: nnU-Net's ``dataset.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no channels or labels, regions or an ignore label, or labels that are not
            numbered 0, 1, 2, ...
    """
    return channels_and_labels(read_json(dataset_json), os.fspath(dataset_json))


def channels_and_labels(content: Mapping[str, Any], source: str) -> tuple[int, tuple[str, ...]]:
    """As :func:`read_channels_and_labels`, of a content that was read.

    Raises:
        ValueError: it has no channels or labels that can be used.
    """
    channels, labels = content.get("channel_names", content.get("modality")), content.get("labels")
    if not isinstance(channels, dict) or not channels or not isinstance(labels, dict):
        raise ValueError(f"{source!r} has no channel_names or no labels: give nnU-Net's v2")
    special = find_special_labels(labels)
    if special is not None:
        raise ValueError(
            f"{source!r} has {special}, which is not supported: relabel, plan and preprocess again"
        )
    try:
        by_value = {int(value): str(name) for name, value in labels.items()}
    except (TypeError, ValueError):
        by_value = {}
    if len(labels) < 2 or sorted(by_value) != list(range(len(labels))):
        raise ValueError(
            f"{source!r} has the labels {labels}: nnU-Net v2 wants "
            "{name: value}, numbered 0, 1, 2, ..."
        )
    return len(channels), tuple(by_value[value] for value in range(len(labels)))


def check_layout(settings: Mapping[str, Any], transpose_forward: object, where: str) -> None:
    """Refuse a configuration that does not say how its preprocessed cases lie, and where.

    Args:
        settings: of the configuration, inherited ones included.
        transpose_forward: of the plans.
        where: the file and configuration, for the message.

    Raises:
        ValueError: the axes are in no order, or the folder is none beside the plans.
    """
    folder = settings.get("data_identifier")
    if transpose_forward not in [list(axes) for axes in permutations(range(3))]:
        raise ValueError(
            f"{where} turns axes by {transpose_forward}, which is no order of 0, 1, 2: plan again"
        )
    if not isinstance(folder, str) or Path(folder).name != folder or not folder:
        raise ValueError(f"{where} has its cases in the folder {folder!r}: plan again")


def check_processing(settings: Mapping[str, Any], in_channels: int, where: str) -> None:
    """Refuse a configuration whose normalization or resampling nnU-Net itself does not have.

    Args:
        settings: of the configuration, inherited ones included.
        in_channels: of the data set: each has its normalization.
        where: the file and configuration, for the message.

    Raises:
        ValueError: a name is unknown, or there is not one normalization and mask per channel.
    """
    schemes = settings.get("normalization_schemes")
    if not isinstance(schemes, list) or len(schemes) != in_channels:
        raise ValueError(
            f"{where} has the normalization_schemes {schemes} for {in_channels} channels: give one "
            "per channel"
        )
    try:
        read_masks(settings, in_channels)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    unknown = [name for name in schemes if name not in NORMALIZATIONS]
    used = [settings.get(key, _RESAMPLINGS[0]) for key in _RESAMPLING_KEYS]
    unknown += [name for name in used if name not in _RESAMPLINGS]
    if settings.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        unknown.append(settings["preprocessor_name"])
    if unknown:
        raise ValueError(
            f"{where} asks for {', '.join(dict.fromkeys(map(str, unknown)))}, which nnU-Net's own "
            "code does not have: plan with nnU-Net's default planner"
        )


def add_configuration(
    plans: str | os.PathLike[str], configuration: str, features_per_stage: Sequence[int]
) -> tuple[str, bool]:
    """Add a configuration of a chosen width beside the one it inherits from.

    The file is replaced by one rename, after a copy of it was put beside, once. Nothing else in it
    changes; where the configuration is there already, the file is not touched.

    Args:
        plans: nnU-Net's plans file.
        configuration: that was searched, ``2d`` for example.
        features_per_stage: of the chosen network.

    Returns:
        The name, ``2d_xtiny8`` for example, and whether the file was changed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no plans file, or has another configuration of this name.
        PermissionError: the folder is read-only.
    """
    path = Path(os.path.realpath(plans))
    text = path.read_bytes().decode("utf-8") if path.is_file() else ""
    content = read_nnunet_plans(path)
    name = f"{configuration}_xtiny{max(features_per_stage)}"
    added = narrowed(resolve_configuration(content, configuration), features_per_stage)
    added = {"inherits_from": configuration, **added}
    if name in content["configurations"]:
        if content["configurations"][name] == added:
            return name, False
        raise ValueError(
            f"{str(path)!r} has another configuration {name!r}, of an earlier plan perhaps: remove "
            "or rename it, and configure again"
        )
    content["configurations"][name] = added
    changed = _as_written(content, text)
    check_writable(path.parent)
    backup = path.with_name(path.name + BACKUP_SUFFIX)
    if not backup.exists():
        with atomic_write(backup) as part:
            shutil.copyfile(path, part)
    with atomic_write(path) as part:
        part.write_text(changed, encoding="utf-8")
        shutil.copymode(path, part)
    return name, True


def narrowed(settings: Mapping[str, Any], features_per_stage: Sequence[int]) -> dict[str, Any]:
    """The settings that make a configuration as narrow as wanted; the others are inherited.

    Plans from before v2.4 have no ``architecture``: there, nnU-Net of any version takes the number
    of features from a base that doubles up to a limit.

    Args:
        settings: of the full configuration.
        features_per_stage: of the chosen network.

    Raises:
        ValueError: no limit of the features gives these.
    """
    features = [int(count) for count in features_per_stage]
    if "architecture" in settings:
        architecture = deepcopy(settings["architecture"])
        architecture["arch_kwargs"]["features_per_stage"] = features
        return {"architecture": architecture}
    base = int(settings["UNet_base_num_features"])
    if features != [min(base * 2**stage, max(features)) for stage in range(len(features))]:
        raise ValueError(
            f"features {features} cannot be had in plans from before nnU-Net v2.4: plan again"
        )
    return {"unet_max_num_features": max(features)}


def check_writable(folder: Path) -> None:
    """Refuse a read-only folder before any work is done for it.

    Raises:
        PermissionError: no file can be made there.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(
            f"{str(folder)!r} cannot be written to ({error.strerror}), and the configuration goes "
            "into the plans there: copy the data set to a folder that can"
        ) from error


def _as_written(content: Mapping[str, Any], before: str) -> str:
    """JSON with the indentation, characters and last line of the text that it was read from."""
    found = re.search(r"\{\s*\n([ \t]+)\S", before)
    indent = found[1] if found else None
    text = json.dumps(content, indent=indent, ensure_ascii=before.isascii())
    if re.search("[\ud800-\udfff]", text):  # half a character, which JSON can only escape
        text = json.dumps(content, indent=indent)
    end = before[len(before.rstrip()) :]
    return text + end
