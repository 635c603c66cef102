from __future__ import annotations

import ast
import os
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import pytest
from monai.bundle import ConfigParser

from monai_xtiny import __version__
from monai_xtiny.bundle.templates import script_sources
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.bundled import workflow
from tests.exports import exported

FUTURE = "from __future__ import annotations\n"


def test_workflow_imports_nothing_that_a_bundle_lacks() -> None:
    allowed = {"numpy", "torch", "monai", "ignite", "nibabel", "PIL", *sys.stdlib_module_names}
    tree = ast.parse("".join(source.replace(FUTURE, "") for source in script_sources().values()))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                found.add(node.module.split(".")[0])
            else:  # of the files beside it
                assert node.level == 1 and f"{node.module}.py" in script_sources()
    assert {"torch", "monai"} < found <= allowed


def test_export_bundle_writes_these_files_and_who_wrote_them(tmp_path, selection) -> None:
    bundle = export_bundle(selection, tmp_path / "x_segmentation", report=False)
    folder = Path(workflow.__file__).parent
    names = sorted(f"{name}.py" for name in (*workflow.FILES, "workflow"))
    for name in names:
        text = (bundle / "scripts" / name).read_text(encoding="utf-8")
        header, source = text.split("\n", 1)
        assert header == f"# Written by monai_xtiny {__version__}, which need not be installed."
        assert source == (folder / name).read_text(encoding="utf-8")
    assert sorted(path.name for path in (bundle / "scripts").iterdir()) == names


def loaded(bundle: Path, **options) -> SimpleNamespace:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"bundle_root": str(bundle), **options})
    return parser.get_parsed_content("workflow")


def test_two_bundles_in_one_process_have_their_own_workflow(
    tmp_path, selection, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = exported(selection, tmp_path / "a_segmentation")
    second = exported(selection, tmp_path / "b_segmentation")
    file = second / "scripts" / "steps.py"
    file.write_text(file.read_text() + "\n\ndef check_loss(trainer):\n    return 'changed'\n")
    before, path = set(sys.modules), list(sys.path)
    spaces = [loaded(first), loaded(second)]
    added = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert all(name.startswith("bundle_scripts") for name in added) and sys.path == path
    assert spaces[1].check_loss(None) == "changed"
    with pytest.raises(AttributeError):
        spaces[0].check_loss(None)
    assert spaces[0].TrainingState is not spaces[1].TrainingState
    moved = first.rename(tmp_path / "moved_segmentation")
    assert loaded(moved).find_rotated_axes([9, 9, 1]) == [2]
    assert not list(tmp_path.rglob("__pycache__"))


def test_workflow_runs_where_monai_xtiny_cannot_be_imported(
    tmp_path, selection, monkeypatch
) -> None:
    bundle = exported(selection, tmp_path / "x_segmentation")
    for name in [name for name in sys.modules if name.split(".")[0] == "monai_xtiny"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai_xtiny", None)
    space = runpy.run_path(os.fspath(bundle / "scripts" / "workflow.py"))
    assert space["find_rotated_axes"]([3, 3]) == [0, 1]


def test_workflow_may_be_loaded_by_several_threads_at_once(tmp_path, selection) -> None:
    bundle = exported(selection, tmp_path / "x_segmentation")
    steps = bundle / "scripts" / "steps.py"
    steps.write_text(steps.read_text() + "\nimport time\n\ntime.sleep(0.1)\n")  # not loaded yet
    barrier = Barrier(4)

    def load() -> type:
        barrier.wait()
        return runpy.run_path(str(bundle / "scripts" / "workflow.py"))["TrainingState"]

    with ThreadPoolExecutor(4) as pool:
        found = [task.result() for task in [pool.submit(load) for _ in range(4)]]
    assert len(set(found)) == 1


def test_workflow_names_the_files_that_are_missing(tmp_path, selection) -> None:
    bundle = exported(selection, tmp_path / "x_segmentation")
    for name in ("cases.py", "locks.py"):
        (bundle / "scripts" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"scripts' lacks locks\.py, cases\.py: copy all"):
        runpy.run_path(str(bundle / "scripts" / "workflow.py"))


def test_a_file_that_cannot_be_loaded_leaves_nothing_behind(tmp_path, selection) -> None:
    bundle = exported(selection, tmp_path / "x_segmentation")
    (bundle / "scripts" / "steps.py").write_text("1 / 0")
    before = {name for name in sys.modules if name.startswith("bundle_scripts_")}
    with pytest.raises(ZeroDivisionError):
        runpy.run_path(str(bundle / "scripts" / "workflow.py"))
    assert {name for name in sys.modules if name.startswith("bundle_scripts_")} == before
