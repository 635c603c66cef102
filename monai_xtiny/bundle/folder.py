"""A bundle as a folder: what is where in it, and opening its configs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.table import table_from_dict, table_to_dict
from monai_xtiny.selection.choice import (
    FORMAT_VERSION,
    Selection,
    selection_from_dict,
    selection_to_dict,
)
from monai_xtiny.system.config_text import PlainPath, check_config_text
from monai_xtiny.system.files import read_json, write_json

EVALUATION_FILE = "evaluation.json"
SPLIT_FILE = "datalist.json"
VERIFICATION_FILE = "verification.json"


def data_kind(plan: UNetPlan) -> str:
    """What the bundle reads: ``volumes`` (3D plan), ``slices`` of volumes, or ``images``."""
    if plan.spatial_dims == 3:
        return "volumes"
    return "images" if plan.slice_axis is None else "slices"


def unit_test_path(bundle_dir: str | os.PathLike[str]) -> Path:
    """Where the test of a bundle is emitted: beside its folder."""
    path = Path(os.path.realpath(bundle_dir))
    return path.with_name(f"test_{path.name}.py")


def bundle_workflow(
    bundle: Path, names: Sequence[str], options: Mapping[str, Any]
) -> ConfigWorkflow:
    """Configs of a bundle, merged, with overrides, initialised.

    Args:
        bundle: its folder, a path that the exporter would take.
        names: of the configs, without their suffix.
        options: top-level keys, or paths of keys with ``#``; data paths as ``PlainPath``.

    Raises:
        ValueError: MONAI could not read a path like the bundle's.
    """
    check_config_text(str(bundle), "bundle path")
    configs = bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / f"{name}.json") for name in names],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type=None,
        bundle_root=str(bundle),
        **options,
    )
    workflow.initialize()
    return workflow


def data_options(
    data: str | os.PathLike[str] | None, datalist: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """The configs' keys for labelled data, checked.

    Raises:
        FileNotFoundError: neither is given, or one does not exist.
    """
    for path in (data, datalist):
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"no such data: {os.fspath(path)!r}: check the path")
    if data is None and datalist is None:
        raise FileNotFoundError("no labelled data: give --data DIR or --datalist FILE")
    options: dict[str, Any] = {}
    if data is not None:
        options["dataset_dir"] = PlainPath(os.fspath(data))
    if datalist is not None:
        options["datalist"] = PlainPath(os.fspath(datalist))
    return options


def find_bundle(bundle_dir: str | os.PathLike[str]) -> Path:
    """The absolute path of a bundle that can be evaluated.

    Raises:
        FileNotFoundError: there is no such bundle.
    """
    bundle = Path(os.path.realpath(bundle_dir))
    if not (bundle / "configs" / "evaluate.json").is_file():
        raise FileNotFoundError(f"{str(bundle)!r} is no bundle: it has no configs/evaluate.json")
    return bundle


def label_names(bundle_dir: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of a bundle's classes, background first."""
    metadata = read_json(Path(bundle_dir) / "configs" / "metadata.json")
    definition = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    return tuple(definition[str(index)] for index in range(len(definition)))


def write_search(selection: Selection, path: str | os.PathLike[str]) -> Path:
    """Write ``search.json``: the choice, and all that it was made from."""
    content = {**selection_to_dict(selection), **table_to_dict(selection.table)}
    return write_json(Path(path), content)


def read_search(path: str | os.PathLike[str]) -> Selection:
    """Read what :func:`write_search` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a ``search.json`` of this version.
    """
    content = read_json(path)
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{os.fspath(path)!r} is no search.json of format version {FORMAT_VERSION}"
        )
    return selection_from_dict(content, table_from_dict(content))
