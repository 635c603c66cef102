"""Nouns lie at the bottom of their layers: who wants one loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.search
HEAVY = ("torch", "monai", "nibabel", "numpy", "PIL", "pydicom", "ignite", "scipy")


@pytest.mark.parametrize(
    "statement",
    [
        "from monai_xtiny import UNetPlan, Case, Header",
        "from monai_xtiny.plan.unet_plan import UNetPlan",
        "from monai_xtiny.plan import UNetPlan, preprocessing_fragment",
        "from monai_xtiny.data.case import Case, Header, Sample",
        "from monai_xtiny.data import find_cases, sample_cases, read_label_names",
    ],
)
def test_nouns_import_nothing_heavy(statement) -> None:
    code = f"import sys\n{statement}\nprint(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
