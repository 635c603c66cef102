from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from release_contents import problems, read_sdist, read_wheel, sdist_files, wheel_files

TRACKED = (
    ".ci/run", ".gitignore", "LICENSE", "setup.cfg",
    "configs/search.json", "configs/templates/train.json",
    "docs/web.md", "docs/benchmarks/race.md", "docs/benchmarks/race.jsonl",
    "monai_xtiny/__init__.py", "tests/golden/plan.json",
)  # fmt: skip


def test_wheel_files_are_the_package_its_configs_and_the_page() -> None:
    assert wheel_files(TRACKED) == {
        "monai_xtiny/__init__.py",
        "monai_xtiny/configs/search.json",
        "monai_xtiny/configs/templates/train.json",
        *(
            f"monai_xtiny/web_assets/{name}"
            for name in ("index.html", "licenses.txt", "page.js", "runtime.wasm", "style.css")
        ),
    }


def test_sdist_files_have_the_tests_and_no_megabytes_of_measurements() -> None:
    found = sdist_files(TRACKED)
    assert {".ci/run", "tests/golden/plan.json", "docs/benchmarks/race.md", "docs/web.md"} < found
    assert found.isdisjoint({".gitignore", "docs/benchmarks/race.jsonl"})


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({"a.py": b"", "b.py": b""}, []),
        ({"a.py": b""}, ["lacks b.py"]),
        ({"a.py": b"", "b.py": b"", "notes.txt": b""}, ["holds notes.txt"]),
        ({"a.py": b"open('/made/up/x')", "b.py": b""}, ["a.py names /made/up"]),
    ],
    ids=["all", "one less", "one more", "a path"],
)
def test_problems_are_what_is_missing_too_much_or_of_one_machine(held, expected) -> None:
    assert problems(held, {"a.py", "b.py"}, ["/made/up"]) == expected


def test_problems_name_caches_even_where_they_are_asked_for() -> None:
    name = "x/__pycache__/a.pyc"
    assert problems({name: b""}, {name}, []) == [f"holds {name}"]


def test_archives_are_read_without_their_own_records(tmp_path) -> None:
    wheel, sdist = tmp_path / "x-1.whl", tmp_path / "x-1.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("x/a.py", "x-1.dist-info/RECORD", "x-1.dist-info/licenses/LICENSE"):
            archive.writestr(name, name)
    assert read_wheel(wheel) == {"x/a.py": b"x/a.py", "LICENSE": b"x-1.dist-info/licenses/LICENSE"}
    with tarfile.open(sdist, "w:gz") as archive:
        for name in ("PKG-INFO", "setup.cfg", "x.egg-info/SOURCES.txt", "x/a.py"):
            entry = tarfile.TarInfo(f"x-1/{name}")
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    assert read_sdist(sdist) == {"x/a.py": b"x/a.py"}
