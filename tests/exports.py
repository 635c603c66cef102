"""Bundles to begin with: written once per process, and copied where a test wants one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from monai_xtiny.bundle import writer
from monai_xtiny.selection.choice import Selection

# What was written, by what it was written from: files and their bytes.
_WRITTEN: dict[str, dict[Path, bytes]] = {}


def exported(
    selection: Selection,
    bundle_dir: Path,
    *,
    label_names: Sequence[str] | None = None,
    report: bool = False,
) -> Path:
    """What the exporter writes, for tests that begin with a bundle.

    Args:
        selection: the choice.
        bundle_dir: folder to make.
        label_names: of the classes.
        report: with the report, which takes as long to write as all the rest.

    Returns:
        The bundle's absolute path.
    """

    def write(target: Path) -> object:
        return writer.export_bundle(selection, target, label_names=label_names, report=report)

    # Some tests put another function in the place of what draws.
    drawn_by = writer.plot_sensitivity.__qualname__
    return copied(repr((selection, label_names, report, drawn_by)), bundle_dir, write)


def copied(key: str, bundle_dir: Path, write: Callable[[Path], object]) -> Path:
    """The folder that ``write`` makes, or a copy of one that it made under the same name.

    Args:
        key: tells what is written from other things.
        bundle_dir: folder to make.
        write: is given the folder's path.

    Returns:
        The absolute path.
    """
    target = Path(os.path.realpath(bundle_dir))
    key = f"{target.name}: {key}"
    if key not in _WRITTEN:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / target.name
            write(made)
            files = [path for path in made.rglob("*") if path.is_file()]
            _WRITTEN[key] = {path.relative_to(made): path.read_bytes() for path in files}
    for path, content in _WRITTEN[key].items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(content)
    return target
