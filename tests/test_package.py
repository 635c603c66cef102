"""The package as a whole: what importing it does, its names, and the wheel."""

from __future__ import annotations

import configparser
import inspect
import os
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from monai.bundle.config_item import ComponentLocator

import monai_xtiny

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "monai_xtiny").rglob("[a-z]*.py")
)


def test_setup_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "monai_xtiny").rglob("__init__.py")
    }
    assert listed == found | {"monai_xtiny.configs", "monai_xtiny.configs.templates"}


# Modules that only lend names; tests of no one layer are in end_to_end.
LENDING = {"export", "__main__"}


def test_tests_mirror_the_package() -> None:
    modules = {
        path.relative_to(ROOT / "monai_xtiny").with_suffix("").as_posix()
        for path in (ROOT / "monai_xtiny").rglob("*.py")
        if path.stem != "__init__"
    }
    tests = {
        path.relative_to(ROOT / "tests").with_name(path.stem.removeprefix("test_")).as_posix()
        for path in (ROOT / "tests").glob("*/test_*.py")
        if path.parent.name not in ("end_to_end", "scripts")
    }
    assert len(modules) > 40
    assert tests == modules - LENDING


@pytest.mark.search
def test_import_does_no_work() -> None:
    code = "import sys, monai_xtiny; print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in monai_xtiny.__all__:
        assert getattr(monai_xtiny, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = monai_xtiny.nothing


def test_no_name_of_ours_hides_a_component_of_monai() -> None:
    # MONAI finds components by bare name in every module whose name starts with "monai".
    for module in MODULES:
        import_module(module)
    locator = ComponentLocator()
    for module in MODULES:
        loaded = import_module(module)
        for name, item in vars(loaded).items():
            if (inspect.isclass(item) or inspect.isfunction(item)) and (
                item.__module__ == loaded.__name__
            ):
                found = locator.get_component_module_name(name)
                assert found in (None, loaded.__name__), f"{name} is in {found} too"


@pytest.mark.slow
def test_wheel_carries_the_configs_and_works_from_any_folder(tmp_path, png_folder) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    source = tmp_path / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--", ".", ":!bundle", ":!docs", ":!tests"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True)
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    code = (
        "import runpy\n"
        "runpy.run_module('monai_xtiny', run_name='__main__', alter_sys=True)\n"
        "from monai_xtiny.bundle.templates import configs_dir\n"
        "print(configs_dir())"
    )
    search = [sys.executable, "-c", code, "search", "--images", str(png_folder)]
    done = subprocess.run(
        [*search, "--bundle", "x_segmentation", "--unit_test", "--method", "paper"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x_segmentation" / "configs" / "train.json").is_file()
    assert (tmp_path / "test_x_segmentation.py").is_file()
    assert done.stdout.splitlines()[-1] == str(site / "monai_xtiny" / "configs")


def test_citation_names_this_version_and_the_publication() -> None:
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["version"] == monai_xtiny.__version__
    (paper,) = content["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2605.09639"
    assert paper["title"] in (ROOT / "configs/templates/README.md.jinja").read_text("utf-8")
