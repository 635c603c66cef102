"""A folder that takes the place of another one whole or not at all."""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from monai_xtiny.system.files import names_file

# In the names of a folder that is being written, and of the one that it replaces.
_PART, _FORMER = ".part.", ".former"
# Of Linux: paths are relative to the working folder; both must exist and are exchanged.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def replaced_whole(target: Path) -> Iterator[Path]:
    """A temporary sibling of ``target`` that takes its place if the block succeeds.

    On Linux one system call exchanges the two. Elsewhere, and on file systems that cannot, the
    former folder is renamed first; what a kill leaves then, :func:`restore_interrupted` puts back.
    The caller holds the lock on ``target``: what lies there of such folders, a killed process left.

    Args:
        target: the folder, which need not exist; its parents are made.

    Yields:
        The folder to write to, with the permissions that ``mkdir`` would give it.
    """
    restore_interrupted(target)
    missing = [item for item in target.parents if not item.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    lefts = _parts(target)
    for left in lefts:
        if not _is_unfinished(left, lefts):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}{_PART}", dir=target.parent))
    try:
        # mkdtemp makes private folders.
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)
        with names_file(target):
            yield folder
        if not target.exists():
            folder.rename(target)
        elif _exchange(folder, target):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            former = folder.with_name(folder.name + _FORMER)
            target.rename(former)
            try:
                folder.rename(target)
            except OSError:
                former.rename(target)
                raise
            # The new folder is in place: what cannot be removed of the old one is no failure.
            shutil.rmtree(former, ignore_errors=True)
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

    Raises:
        BlockingIOError: another process is replacing it at this moment.
    """
    if target.exists():
        return
    for former in _parts(target):
        if former.suffix == _FORMER:
            from monai_xtiny.bundled.locks import write_lock

            with write_lock(target):
                former.rename(target)
            return


def _parts(target: Path) -> list[Path]:
    """What killed processes of ours left of writing a folder."""
    if not target.parent.is_dir():
        return []
    # Not what somebody else has put into a folder that all may write to.
    owners = {os.geteuid(), target.parent.stat().st_uid} if hasattr(os, "geteuid") else None
    return [
        path
        for path in target.parent.glob(f".{glob.escape(target.name)}{_PART}*")
        if path.is_dir() and (owners is None or path.lstat().st_uid in owners)
    ]


def _is_unfinished(left: Path, lefts: Sequence[Path]) -> bool:
    """Whether a former folder was not replaced: somebody has put another one in its place."""
    return any(
        former.suffix == _FORMER and new in lefts and left in (former, new)
        for former in lefts
        for new in [former.with_suffix("")]
    )


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; ``False`` where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):  # not of Linux
        return False
    here, there = os.fsencode(one), os.fsencode(other)
    return rename(_AT_FDCWD, here, _AT_FDCWD, there, ctypes.c_uint(_RENAME_EXCHANGE)) == 0
