"""The tests' own tools: tiers, shared folders, forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from monai_xtiny.bundle.writer import export_bundle
from tests import shared
from tests.exports import exported
from tests.processes import run_module, run_ranks, start_module
from tests.tiers import is_fast, share_out, weight

PRINTS = """
import os, sys
print(os.getcwd(), sys.argv[1:], os.environ["XTINY_PROBE"], __name__, "monai_xtiny" in sys.modules)
print("error", file=sys.stderr)
sys.exit(3)
"""


@dataclass(frozen=True)
class Item:
    """A test, as far as its tier goes."""

    nodeid: str
    mark: str = ""

    def get_closest_marker(self, name: str) -> str | None:
        return self.mark if name == self.mark else None


def test_share_out_gives_each_worker_as_many_and_as_long_tests_once() -> None:
    items = [Item(f"a.py::{n}", "slow") for n in range(6)]
    items += [Item(f"{name}.py::{n}", "search") for name in "bcde" for n in range(6)]
    items += [Item(f"f.py::{n}") for n in range(31)]
    found = share_out(items, 2)
    assert sorted(found, key=repr) == sorted(items, key=repr)
    half = -(-len(items) // 2)
    first, second = found[:half], found[half:]
    assert abs(sum(map(weight, first)) - sum(map(weight, second))) <= 8
    for own in (first, second):
        assert [weight(item) for item in own] == sorted(map(weight, own), reverse=True)
    # Tests of a module share its fixtures: those of one tier stay together.
    for name in "abcde":
        assert len({item in first for item in items if item.nodeid.startswith(name)}) == 1


def test_a_test_without_a_mark_starts_no_process(request) -> None:
    assert is_fast(request.node)
    with pytest.raises(AssertionError, match=r"mark it with pytest\.mark\.search"):
        subprocess.run([sys.executable, "--version"], check=True)
    with pytest.raises(AssertionError, match=r"mark it with pytest\.mark\.search"):
        start_module("this", cwd=Path.cwd())


def test_what_uses_made_once_is_not_in_the_fast_tier(request, made_once) -> None:
    assert not is_fast(request.node)


def test_made_once_makes_a_folder_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shared, "root", tmp_path)
    calls: list[Path] = []
    folders = [shared.made_once("a", calls.append) for _ in range(2)]
    assert calls == folders[:1] == folders[1:]


def test_made_once_says_that_a_folder_could_not_be_made(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shared, "root", tmp_path)
    with pytest.raises(ZeroDivisionError, match="division"):
        shared.made_once("a", lambda folder: 1 / 0)
    with pytest.raises(AssertionError, match="a could not be made"):
        shared.made_once("a", lambda folder: None)


def test_exported_is_what_the_exporter_writes(tmp_path, selection) -> None:
    name = "x_segmentation"
    expected = export_bundle(selection, tmp_path / "written" / name, report=False)
    for place in ("first", "copy"):
        found = exported(selection, tmp_path / place / name)
        files = {path.relative_to(found) for path in found.rglob("*")}
        assert files == {path.relative_to(expected) for path in expected.rglob("*")}
        for file in filter(lambda file: (found / file).is_file(), files):
            assert (found / file).read_bytes() == (expected / file).read_bytes(), file
            (found / file).write_bytes(b"changed")  # which no other copy notices


@pytest.mark.search
def test_run_module_does_what_python_does(tmp_path) -> None:
    script = tmp_path / "a b.py"
    script.write_text(PRINTS)
    environment = {"XTINY_PROBE": "é"}
    found = run_module(str(script), 1, "x y", cwd=tmp_path, env=environment)
    expected = subprocess.run(
        [sys.executable, str(script), "1", "x y"],
        cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert expected.returncode == 3 and "False" in expected.stdout
    assert (found.returncode, found.stdout, found.stderr) == (
        expected.returncode, expected.stdout, expected.stderr,
    )  # fmt: skip


@pytest.mark.search
def test_run_ranks_tells_each_rank_which_it_is(tmp_path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "from ignite import distributed\n"
        "distributed.initialize('gloo')\n"
        "print(distributed.get_rank(), distributed.get_world_size())\n"
        "distributed.finalize()"
    )
    runs = run_ranks(str(script), cwd=tmp_path)
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert [run.stdout for run in runs] == ["0 2\n", "1 2\n"]
