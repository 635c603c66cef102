from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from monai_xtiny.bundle.archive import package_bundle
from monai_xtiny.bundle.exclusive import exclusive
from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.measured import write_evaluation
from monai_xtiny.bundle.writer import check_apart, export_bundle
from monai_xtiny.bundled.locks import lock_training
from monai_xtiny.data.case import Case
from monai_xtiny.training.update import update_bundle
from tests.bundled.test_locks import refusal
from tests.exports import exported
from tests.forked import held_elsewhere
from tests.training.test_update import MOVED


@pytest.fixture
def bundle(tmp_path, selection) -> Path:
    return exported(selection, tmp_path / "x_segmentation")


def test_exclusive_gives_the_bundle_as_it_is_once_nobody_else_writes_it(bundle) -> None:
    opened = Bundle.open(bundle)
    seen: list[Bundle] = []
    exclusive(lambda item: seen.append(item))(opened)
    assert seen[0] is not opened and seen[0] == opened


@pytest.mark.search
def test_commands_wait_for_no_other_process_and_change_nothing(bundle, selection) -> None:
    evaluation = lambda opened: write_evaluation(opened, None, ())  # noqa: E731
    works: dict[str, Callable[[], object]] = {
        "export": lambda: export_bundle(selection, bundle, overwrite=True),
        "package": lambda: package_bundle(bundle),
        "update": lambda: update_bundle(bundle, MOVED),
        "evaluate": lambda: evaluation(bundle),
    }
    before = sorted((path, path.stat().st_mtime_ns) for path in bundle.rglob("*.*"))
    with held_elsewhere(lambda: lock_training(bundle, bundle / "models" / "model.pt")):
        for name, work in works.items():
            assert "another process writes" in refusal(work), name
    (bundle / "models" / ".model.pt.lock").unlink()
    assert sorted((path, path.stat().st_mtime_ns) for path in bundle.rglob("*.*")) == before


def test_check_apart_refuses_a_bundle_among_its_images(tmp_path) -> None:
    images, series = tmp_path / "images", tmp_path / "tree" / "series"
    images.mkdir()
    series.mkdir(parents=True)
    (tmp_path / "link").symlink_to(images)
    cases = [Case("a.png", (str(images / "a.png"),), "raster"), Case("s", (str(series),), "dicom")]
    for wrong in ("images", "images/x_segmentation", "link/x", "tree/series/x"):
        with pytest.raises(ValueError, match="would lie among the images: give another --bundle"):
            check_apart(tmp_path / wrong, cases)
    for right in ("x_segmentation", "images_x", "tree/x"):
        check_apart(tmp_path / right, cases)
