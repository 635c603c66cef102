from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from monai_xtiny.bundle import replace as swap
from monai_xtiny.bundle.replace import replaced_whole, restore_interrupted


@pytest.fixture
def target(tmp_path) -> Path:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "a").write_text("former")
    return folder


def test_replaced_whole_puts_the_new_folder_in_the_place_of_the_former(target) -> None:
    with replaced_whole(target) as folder:
        (folder / "b").write_text("new")
        assert (target / "a").read_text() == "former"
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_replaced_whole_leaves_the_former_folder_when_the_block_fails(target) -> None:
    with pytest.raises(KeyboardInterrupt), replaced_whole(target) as folder:
        (folder / "b").write_text("half")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "former"
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_replaced_whole_takes_away_the_folders_that_it_made_in_vain(tmp_path) -> None:
    with pytest.raises(ValueError, match="no"), replaced_whole(tmp_path / "a" / "b" / "c"):
        raise ValueError("no")
    assert not list(tmp_path.iterdir())


def test_restore_interrupted_puts_back_what_a_kill_between_two_renames_left(target) -> None:
    with replaced_whole(target) as folder:
        pass
    former = target.with_name(folder.name + ".former")
    target.rename(former)
    restore_interrupted(target)
    assert target.is_dir() and not former.exists()
    restore_interrupted(target)  # nothing to do
    assert target.is_dir()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replaced_whole_never_leaves_the_place_empty_where_folders_can_be_exchanged(
    target, monkeypatch, can_exchange
) -> None:
    if not can_exchange:
        monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
    renamed, rename = [], Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda one, other: renamed.append(one) or rename(one, other)
    )
    with replaced_whole(target) as folder:
        (folder / "b").write_text("new")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in target.parent.iterdir()] == ["x"]
    if sys.platform == "linux":
        assert len(renamed) == (0 if can_exchange else 2)


def test_replaced_whole_deletes_no_former_folder_that_was_not_replaced(target) -> None:
    new, former = (target.with_name(f".x.part.abc{end}") for end in ("", ".former"))
    for folder in (new, former):
        folder.mkdir()
        (folder / "mine").touch()
    with replaced_whole(target):  # which somebody has made anew meanwhile
        pass
    assert (former / "mine").exists()
    target.rmdir()
    restore_interrupted(target)
    assert (target / "mine").exists()
    with replaced_whole(target):
        pass
    assert [path.name for path in target.parent.iterdir()] == ["x"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to somebody else")
def test_restore_interrupted_takes_nothing_that_somebody_else_has_put_there(target) -> None:
    former = target.with_name(".x.part.abc.former")
    target.rename(former)
    os.chown(former, 12345, 12345)
    restore_interrupted(target)
    assert not target.exists()


def test_replaced_whole_clears_what_killed_processes_left_of_this_folder_alone(target) -> None:
    left, other = (target.with_name(f".{name}.part.abc") for name in ("x", "xy"))
    left.mkdir()
    other.mkdir()
    with replaced_whole(target):
        pass
    assert not left.exists() and other.exists()
