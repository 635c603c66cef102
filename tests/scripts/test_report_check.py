from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.report import report_page

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "bundle" / "nuclei_fluorescence_xtiny_segmentation"


@pytest.mark.slow
def test_report_has_no_violation_in_a_browser(tmp_path) -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    folders = [Path(item) for item in os.environ.get("NODE_PATH", "").split(os.pathsep) if item]
    for module in ("playwright-core", "axe-core"):
        if not any((folder / module).is_dir() for folder in folders):
            pytest.skip(f"NODE_PATH names no folder with {module} of npm")
    if chromium is None or shutil.which("node") is None:
        pytest.skip("there is no Chromium, or no node")
    bundle = Bundle.open(SHIPPED)
    names = ("background", "<b>&amp;</b> " + "x" * 80)
    hostile = Bundle(bundle.root, bundle.selection, names)
    pages = [tmp_path / "report.html", tmp_path / "hostile.html"]
    pages[0].write_text(report_page(bundle), encoding="utf-8")
    pages[1].write_text(report_page(hostile, name="x_" * 60), encoding="utf-8")
    done = subprocess.run(
        ["node", ROOT / "scripts" / "report_check.mjs", *pages],
        env={**os.environ, "CHROMIUM": chromium}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 problems") == 10
