"""From a selection to a MONAI bundle, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from monai_xtiny.bundle.card import model_card
from monai_xtiny.bundle.figures import plot_sensitivity
from monai_xtiny.bundle.folder import (
    LARGE_FILES,
    PARTS,
    REPORT,
    SEARCH,
    Bundle,
    data_kind,
    missing_file,
    unit_test_path,
)
from monai_xtiny.bundle.imported import is_imported
from monai_xtiny.bundle.large_files import write_large_files
from monai_xtiny.bundle.metadata import bundle_metadata, is_raster
from monai_xtiny.bundle.replace import replaced_whole, restore_interrupted
from monai_xtiny.bundle.report import report_page
from monai_xtiny.bundle.search_file import read_search, write_search
from monai_xtiny.bundle.templates import merged_template, script_sources, templates_dir
from monai_xtiny.bundle.torchscript import write_torchscript
from monai_xtiny.bundle.unit_test import render_unit_test
from monai_xtiny.bundled.locks import write_lock
from monai_xtiny.data.case import Case
from monai_xtiny.networks.dynunet import build_network, network_definition
from monai_xtiny.plan.preprocessing import preprocessing_fragment
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.search.journal import UnitScore, read_units, remove_journal
from monai_xtiny.selection.choice import (
    Selection,
)
from monai_xtiny.system.config_text import check_config_text, path_text
from monai_xtiny.system.files import read_json, write_json

# Images that share an orientation are neither mirrored nor rotated by more than 15 degrees, so that
# a network can learn where to look (docs/benchmarks/recipes.md).
_ORIENTED = {"mirror_prob": 0.0, "rotation_range": 0.2618}


def check_destination(
    bundle_dir: str | os.PathLike[str], *, overwrite: bool = False, unit_test: bool = False
) -> Path:
    """Refuse, before any work, a folder that a bundle cannot be written to.

    A bundle that was being replaced when the process was killed is put back first.

    Args:
        bundle_dir: where the bundle shall be.
        overwrite: whether a bundle that is there, and its test, may be replaced.
        unit_test: whether the bundle's test shall be written beside it.

    Returns:
        The absolute path.

    Raises:
        FileExistsError: there is something, and it is not to be overwritten, is no bundle, or
            holds more than a bundle.
        NotADirectoryError: a parent is a file.
        ValueError: MONAI could not read a path like this.
    """
    text = path_text(bundle_dir, "bundle path")
    check_config_text(text, "bundle path")
    # A link stands for what it points to.
    path = Path(os.path.realpath(text))
    check_config_text(path.name, "bundle name")
    check_config_text(str(path), "bundle path")
    if not path.name:
        raise ValueError(f"bundle path {text!r} has no name: give OUT/NAME_segmentation")
    parent = next(item for item in path.parents if item.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{str(parent)!r} is a file: give another --bundle")
    if not os.access(path.parent if path.parent.exists() else parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{str(parent)!r} cannot be written to: give another --bundle")
    restore_interrupted(path)
    test = unit_test_path(path)
    if unit_test and test.exists() and not (overwrite and test.is_file()):
        raise FileExistsError(
            f"{str(test)!r} exists: give another --bundle or "
            + ("--overwrite" if test.is_file() else "remove it yourself first")
        )
    if path.is_dir() and not any(path.iterdir()):
        return path
    if path.exists():
        if not overwrite:
            what = "exists and is not empty" if path.is_dir() else "is a file"
            raise FileExistsError(f"{str(path)!r} {what}: give another --bundle or --overwrite")
        if missing_file(path) is not None:
            raise FileExistsError(f"{str(path)!r} is no bundle: remove it yourself first")
        _check_replaceable(path)
    return path


def check_apart(bundle_dir: str | os.PathLike[str], cases: Sequence[Case]) -> None:
    """Refuse to write a bundle among the images that it is made from.

    Args:
        bundle_dir: where the bundle shall be.
        cases: the images.

    Raises:
        ValueError: it would lie in a folder of images.
    """
    path = Path(os.path.realpath(bundle_dir))
    files = {Path(os.path.realpath(file)) for case in cases for file in case.images}
    folders = {file if file.is_dir() else file.parent for file in files}
    if not folders.isdisjoint((path, path.parent)):
        raise ValueError(f"{str(path)!r} would lie among the images: give another --bundle")


def _check_replaceable(bundle_dir: Path) -> None:
    """Refuse to replace a bundle that holds more than a bundle: a data set, a former network."""
    # A test lies there until it is put beside the bundle.
    ours = (*PARTS, LARGE_FILES, unit_test_path(bundle_dir).name, "eval", "__pycache__")
    own = sorted(path.name for path in bundle_dir.iterdir() if path.name not in ours)
    if own:
        raise FileExistsError(
            f"{str(bundle_dir)!r} holds {', '.join(own)}, which --overwrite would delete: move "
            "that elsewhere first, or give another --bundle"
        )


def export_bundle(
    selection: Selection,
    bundle_dir: str | os.PathLike[str],
    *,
    label_names: Sequence[str] | None = None,
    overwrite: bool = False,
    unit_test: bool = False,
    torchscript: bool = False,
    report: bool = True,
) -> Path:
    """Write the selected network as a MONAI bundle.

    The files come from the templates in ``configs/templates``; every ``_target_`` in them is
    MONAI's, PyTorch's or ignite's. ``models/model.pt`` holds the
    selected network at the initialization of the first seed, until it is trained. Everything is
    written to a temporary sibling, which is then renamed. Weights over 25 MB are listed in
    ``large_files.yml``.

    Args:
        selection: the choice and the table it was made from.
        bundle_dir: folder to make; its name should end in ``_segmentation`` (MONAI Label).
        label_names: of the classes, background first; default: numbered.
        overwrite: replace a bundle that is there, and its test.
        unit_test: write a test in the Model Zoo's style too, ``test_NAME.py`` beside the folder.
        torchscript: write ``models/model.ts`` too. Training leaves it as it is:
            ``monai_xtiny.bundle.archive.package_bundle`` renews it.
        report: write ``docs/report.html`` too, which bundles that nobody keeps need not have.

    Returns:
        The bundle's absolute path.

    Raises:
        BlockingIOError: another process writes there.
        FileExistsError: there is something, and it is not to be overwritten, is no bundle, or
            holds more than a bundle.
        ValueError: the number of names is not that of the classes, or a name or path could not be
            told from code in a MONAI config.
    """
    if is_imported(selection):
        raise ValueError(
            "the network was imported from nnU-Net, not searched, so that there is no other width "
            "of it to export or to train: import its checkpoint again"
        )
    target = check_destination(bundle_dir, overwrite=overwrite, unit_test=unit_test)
    plan = selection.table.plan
    names = tuple(label_names) if label_names is not None else _numbered_labels(plan)
    if len(names) != plan.out_channels:
        raise ValueError(
            f"{len(names)} label names ({', '.join(names)}) for {plan.out_channels} classes: "
            "give one each, background first"
        )
    for name in names:
        check_config_text(name, "label name")
    test = unit_test_path(target)
    with write_lock(target), replaced_whole(target) as folder:
        check_destination(target, overwrite=overwrite, unit_test=unit_test)  # now that it is ours
        _write_bundle(selection, folder, target.name, names)
        written = Bundle.open(folder)
        if report:
            page = report_page(written, name=target.name)
            written.path(REPORT).write_text(page, encoding="utf-8")
        if torchscript:
            write_torchscript(written)
        write_large_files(written)
        if unit_test:
            code = render_unit_test(plan, name=target.name, is_raster=is_raster(selection.table))
            (folder / test.name).write_text(code, encoding="utf-8")
    if unit_test:  # it comes with the bundle, and its place is beside it
        (target / test.name).replace(test)
    return target


def clear_finished(bundle_dir: str | os.PathLike[str], journal: str | os.PathLike[str]) -> None:
    """Delete the journal of a search that was killed after it had written its bundle.

    Args:
        bundle_dir: the bundle; where it does not hold every score of the journal, nothing happens.
        journal: of the search.

    Raises:
        ValueError: the journal or the bundle's search.json is no such file.
    """
    path = Path(bundle_dir, SEARCH)
    if not path.is_file() or not Path(journal).is_file():
        return
    table = read_search(path).table
    known = {
        (rung.max_features, seed): UnitScore(sensitivity, alignment)
        for rung in table.ladder
        for seed, sensitivity, alignment in zip_longest(
            table.alignment_seeds or table.seeds, rung.sensitivity, rung.alignment, fillvalue=()
        )
    }
    _, units = read_units(journal)
    if units and all(known.get(unit) == score for unit, score in units.items()):
        remove_journal(journal)


def _numbered_labels(plan: UNetPlan) -> tuple[str, ...]:
    """Names for classes that nobody named."""
    return ("background", *(f"class {index}" for index in range(1, plan.out_channels)))


def _write_bundle(
    selection: Selection, folder: Path, name: str, label_names: tuple[str, ...]
) -> None:
    """Write all files of the bundle into ``folder``."""
    templates = templates_dir()
    table = selection.table
    plan = table.plan
    configs, models, docs = folder / "configs", folder / "models", folder / "docs"
    scripts = folder / "scripts"
    for item in (configs, models, docs, scripts):
        item.mkdir()
    for workflow, config in emitted_configs(selection).items():
        write_json(configs / f"{workflow}.json", config)
    metadata = read_json(templates / "metadata.json")
    metadata.update(bundle_metadata(selection, name=name, label_names=label_names))
    write_json(configs / "metadata.json", metadata)
    shutil.copyfile(templates / "logging.conf", configs / "logging.conf")
    shutil.copyfile(templates / "LICENSE", folder / "LICENSE")
    shutil.copyfile(templates / "data_license.txt", docs / "data_license.txt")
    for file, source in script_sources().items():
        (scripts / file).write_text(source, encoding="utf-8")
    network = build_network(plan, selection.max_features, seed=table.seeds[0])
    torch.save(network.state_dict(), models / "model.pt")
    write_search(selection, docs / "search.json")
    plot_sensitivity(selection, docs / "sensitivity.png")
    card = model_card(selection, name=name, label_names=label_names)
    (docs / "README.md").write_text(card, encoding="utf-8")


def emitted_configs(selection: Selection) -> dict[str, dict[str, Any]]:
    """What a bundle runs: ``train``, ``inference``, ``evaluate`` and ``multi_gpu_train``.

    Args:
        selection: the choice; it decides the configs down to the last value.
    """
    templates, kind = templates_dir(), data_kind(selection.table.plan)
    configs = {
        workflow: merged_template(workflow, kind, templates)
        for workflow in ("train", "inference", "evaluate", "multi_gpu_train")
    }
    for workflow in ("train", "inference"):
        configs[workflow].update(_plan_keys(selection, kind))
    if kind == "images" and selection.table.is_oriented:
        configs["train"].update(_ORIENTED)
    configs["train"]["preprocessing_transforms"] = preprocessing_fragment(kind, "@resampled_keys")
    configs["inference"]["preprocessing"]["transforms"] += preprocessing_fragment(kind)
    return configs


def _plan_keys(selection: Selection, kind: str) -> dict[str, Any]:
    """The templates' keys that the plan decides."""
    plan = selection.table.plan
    keys: dict[str, Any] = {
        "network_def": network_definition(plan, selection.max_features),
        "in_channels": plan.in_channels,
        "num_classes": plan.out_channels,
        "patch_size": list(plan.patch_size),
    }
    if kind != "images":
        keys["spacing"] = list(plan.pixdim)
    if kind == "slices":
        keys["slice_axis"] = plan.slice_axis
    return keys
