"""Folders that take long to make, made once per test run for all workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

# Of the test run, in pytest's temporary folder; the conftest sets it.
root: Path | None = None


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Make a folder by the worker that needs it first; it is to be read only.

    The others wait for it, so it is to be made in seconds.

    Args:
        name: of the folder, unique in the test run.
        make: fills the folder that it is given.

    Returns:
        The folder.
    """
    assert root is not None, "made_once is for tests"
    folder = root / "made_once" / name
    done, failed = folder.with_name(f"{name}.done"), folder.with_name(f"{name}.failed")
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        deadline = time.monotonic() + 600
        while not done.exists():
            assert not failed.exists(), f"{name} could not be made: see the first test that tried"
            assert time.monotonic() < deadline, f"{name} was not made by another worker"
            time.sleep(0.05)
        return folder
    try:
        make(folder)
    except BaseException:
        failed.touch()
        raise
    done.touch()
    return folder
