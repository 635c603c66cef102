from __future__ import annotations

import fcntl
import stat
from collections.abc import Callable

import pytest

from monai_xtiny.bundled import locks
from monai_xtiny.bundled.locks import (
    hold_lock,
    lock_training,
    release_lock,
    release_training,
    write_lock,
)
from tests.forked import forked, held_elsewhere


def refusal(work: Callable[[], object]) -> str:
    """What the refusal of another process says; empty where nothing is refused."""
    try:
        work()
    except BlockingIOError as error:
        return str(error)
    return ""


def test_hold_lock_keeps_other_processes_out_until_it_is_released(tmp_path) -> None:
    path = tmp_path / "x_segmentation"
    assert hold_lock(path) and not hold_lock(path)  # it is held already
    line = forked(lambda: refusal(lambda: hold_lock(path)))
    assert line.startswith(f"another process writes {str(path)!r} (it holds ")
    assert line.endswith(".x_segmentation.lock'): wait for it, or end it")
    release_lock(path)
    assert not list(tmp_path.iterdir())
    assert forked(lambda: hold_lock(path)) is True
    release_lock(path)  # of nothing


def test_hold_lock_is_not_kept_out_by_a_process_that_was_killed(tmp_path) -> None:
    path = tmp_path / "x"
    with held_elsewhere(lambda: hold_lock(path)):
        with pytest.raises(BlockingIOError, match="another process writes"):
            hold_lock(path)
    assert (tmp_path / ".x.lock").exists()  # it was killed
    with write_lock(path), write_lock(path):
        assert refusal(lambda: None) == "" and (tmp_path / ".x.lock").exists()
    assert not list(tmp_path.iterdir())


def test_hold_lock_is_of_the_process_alone_not_of_those_that_it_forks(tmp_path) -> None:
    path = tmp_path / "x"
    hold_lock(path)
    with held_elsewhere(lambda: None):  # a worker that outlives who forked it
        release_lock(path)
        assert forked(lambda: hold_lock(path)) is True


def test_hold_lock_takes_no_lock_that_its_holder_removes_meanwhile(tmp_path, monkeypatch) -> None:
    path, lockf = tmp_path / "x", fcntl.lockf
    removed = []

    def remove_first(handle, kind):
        if not removed:
            removed.append((tmp_path / ".x.lock").unlink())
        lockf(handle, kind)

    monkeypatch.setattr(fcntl, "lockf", remove_first)
    assert hold_lock(path)
    monkeypatch.undo()
    assert forked(lambda: refusal(lambda: hold_lock(path)))
    release_lock(path)


@pytest.mark.parametrize("error", [OSError(37, "no locks"), OSError(95, "not supported")])
def test_hold_lock_goes_without_where_there_are_no_locks(tmp_path, monkeypatch, error) -> None:
    def fail(handle, kind):
        raise error

    monkeypatch.setattr(fcntl, "lockf", fail)
    assert not hold_lock(tmp_path / "x") and not list(tmp_path.iterdir())
    monkeypatch.setattr(locks, "fcntl", None)
    assert not hold_lock(tmp_path / "x") and not list(tmp_path.iterdir())


def test_hold_lock_follows_no_link_and_takes_away_the_folders_that_it_made(tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".x.lock").symlink_to(victim)
    assert not hold_lock(tmp_path / "x") and victim.read_text() == "mine"
    with write_lock(tmp_path / "new" / "er" / "y"):
        assert stat.S_ISREG((tmp_path / "new" / "er" / ".y.lock").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.lock", "victim"]


def test_lock_training_lets_other_folds_train_and_nobody_else_write(tmp_path) -> None:
    root = tmp_path / "x"
    one, other = root / "models" / "model.pt", root / "models" / "fold1" / "model.pt"
    lock_training(root, one)
    assert "models/model.pt'" in forked(lambda: refusal(lambda: lock_training(root, one)))
    assert forked(lambda: refusal(lambda: lock_training(root, other))) == ""
    assert "/x' " in forked(lambda: refusal(lambda: hold_lock(root)))
    with held_elsewhere(lambda: lock_training(root, other)):
        locks.release_locks()  # the other one keeps what they share
        assert "/x' " in forked(lambda: refusal(lambda: hold_lock(root)))
    assert forked(lambda: refusal(lambda: hold_lock(root))) == ""


def test_release_training_keeps_what_other_trainings_of_the_process_need(tmp_path) -> None:
    one, other = tmp_path / "x", tmp_path / "y"
    first, second = one / "models" / "model.pt", one / "models" / "model_fold1.pt"
    for root, weights in ((one, first), (one, second), (other, other / "model.pt")):
        lock_training(root, weights)
    release_training(one, first)
    assert forked(lambda: refusal(lambda: hold_lock(first))) == ""
    for path in (one, second, other, other / "model.pt"):
        assert forked(lambda path=path: refusal(lambda: hold_lock(path)))
    release_training(one, second)
    assert forked(lambda: refusal(lambda: hold_lock(one))) == ""
    release_training(other, other / "model.pt")
    assert not list(other.parent.glob("*y*"))
