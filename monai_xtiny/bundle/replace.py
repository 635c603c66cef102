"""A folder that takes the place of another one whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# In the names of a folder that is being written, and of the one that it replaces.
_PART, _FORMER = ".part.", ".former"


@contextmanager
def replaced_whole(target: Path) -> Iterator[Path]:
    """A temporary sibling of ``target`` that takes its place if the block succeeds.

    Args:
        target: the folder, which need not exist; its parents are made.

    Yields:
        The folder to write to, with the permissions that ``mkdir`` would give it.
    """
    missing = [item for item in target.parents if not item.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in _parts(target):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}{_PART}", dir=target.parent))
    try:
        # mkdtemp makes private folders.
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)
        yield folder
        if target.exists():
            former = folder.with_name(folder.name + _FORMER)
            target.rename(former)
            try:
                folder.rename(target)
            except OSError:
                former.rename(target)
                raise
            # The new folder is in place: what cannot be removed of the old one is no failure.
            shutil.rmtree(former, ignore_errors=True)
        else:
            folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for item in missing:
            if item.exists() and not any(item.iterdir()):
                item.rmdir()
        raise


def restore_interrupted(target: Path) -> None:
    """Put back a folder that was being replaced when the process was killed.

    A kill between the two renames of :func:`replaced_whole` leaves the former folder beside its
    place. Nothing happens where the folder is in its place.
    """
    if target.exists():
        return
    for former in _parts(target):
        if former.suffix == _FORMER:
            former.rename(target)
            return


def _parts(target: Path) -> list[Path]:
    """What killed processes left of writing a folder."""
    return list(target.parent.glob(f".{glob.escape(target.name)}{_PART}*"))
