from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from monai_xtiny.system.startup import import_monai

CODE = """
import gc, sys
sys.path.insert(0, {folder!r})
from monai_xtiny.system.startup import import_monai
{before}
passes = []
gc.callbacks.append(lambda phase, info: passes.append(phase))
try:
    import_monai()
except ImportError:
    print("failed", end=" ")
print(len(passes), gc.isenabled(), gc.get_freeze_count() > 50_000)
"""


def imported(folder: Path, content: str, before: str = "") -> list[str]:
    """What a process says that imports a MONAI of that content."""
    (folder / "monai").mkdir()
    (folder / "monai" / "__init__.py").touch()
    (folder / "monai" / "bundle.py").write_text(content)
    code = CODE.format(folder=str(folder), before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.search
@pytest.mark.parametrize("is_on", [True, False], ids=["on", "off"])
def test_import_monai_collects_nothing_and_leaves_the_collector_as_it_was(tmp_path, is_on) -> None:
    before = "" if is_on else "gc.disable()"
    found = imported(tmp_path, "made = [[] for _ in range(50_000)]", before)
    assert found == ["0", str(is_on), "True"]


@pytest.mark.search
def test_import_monai_turns_the_collector_on_again_where_it_fails(tmp_path) -> None:
    content = "made = [[] for _ in range(50_000)]\nimport nothing_of_this_name"
    failed, _, is_on, is_frozen = imported(tmp_path, content)
    assert (failed, is_on, is_frozen) == ("failed", "True", "False")


def test_import_monai_leaves_a_process_alone_that_has_imported_it() -> None:
    assert "monai" in sys.modules
    frozen = gc.get_freeze_count()
    import_monai()
    assert gc.get_freeze_count() == frozen
