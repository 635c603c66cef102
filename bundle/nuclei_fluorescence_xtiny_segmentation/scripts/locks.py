# Written by monai_xtiny 0.2.0, which need not be installed.
"""One process writes a bundle at a time."""

from __future__ import annotations

import atexit
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ignite.distributed as idist

from .files import PathLike, remove_empty

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

# Of the lock files that this process holds: the open file, and the folders made for it. To close
# any other handle of such a file would give the lock up.
_LOCKS: dict[Path, tuple[int, list[Path]]] = {}
# Of the bundles that are trained here: the lock file, and those of the weights being trained.
_TRAININGS: dict[Path, set[Path]] = {}
if fcntl is not None:
    os.register_at_fork(after_in_child=_LOCKS.clear)  # a worker holds none
    os.register_at_fork(after_in_child=_TRAININGS.clear)


def hold_lock(path: PathLike, *, shared: bool = False) -> bool:
    """Keep other processes from writing a file or folder, until :func:`release_lock` or the end.

    The lock is the kernel's, on a hidden, empty file beside the path: a process that was killed
    holds none, and neither do the workers of a process. Nothing is locked where the file system has
    no locks or a file cannot be made there, and on ranks other than the first.

    Args:
        path: need not exist; the folders above are made, until the lock is released.
        shared: whether others may hold it too, if they share it as well.

    Returns:
        Whether it is held from now on; ``False`` where nothing was locked, or it was already.

    Raises:
        BlockingIOError: another process holds it.
    """
    target, file = _lock_file(path)
    if fcntl is None or file in _LOCKS or idist.get_rank() > 0:
        return False
    made = [folder for folder in file.parents if not folder.exists()]
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError:
            remove_empty(made)
            return False
        try:
            fcntl.lockf(handle, kind | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                file.unlink(missing_ok=True)
                return False
            raise BlockingIOError(
                f"another process writes {str(target)!r} (it holds {str(file)!r}): wait for it, "
                "or end it"
            ) from error
        if os.fstat(handle).st_nlink:
            _LOCKS[file] = handle, made
            return True
        os.close(handle)  # who held it has removed it meanwhile


def lock_training(bundle_root: PathLike, model_file: PathLike) -> None:
    """Keep other processes from writing a bundle, and from training the same weights.

    Trainings that write other weights, of other folds, may run side by side.

    Raises:
        BlockingIOError: another process does.
    """
    root, weights = (_lock_file(path)[1] for path in (bundle_root, model_file))
    is_new = hold_lock(bundle_root, shared=True)
    try:
        hold_lock(model_file)
    except BlockingIOError:
        if is_new:
            release_lock(bundle_root)
        raise
    if is_new or root in _TRAININGS:
        _TRAININGS.setdefault(root, set()).add(weights)


def release_training(bundle_root: PathLike, model_file: PathLike) -> None:
    """Release what :func:`lock_training` holds, but for what other trainings here need."""
    root, weights = (_lock_file(path)[1] for path in (bundle_root, model_file))
    _release(weights)
    others = _TRAININGS.get(root, set()) - {weights}
    if root in _TRAININGS and not others:
        del _TRAININGS[root]
        _release(root)
    elif others:
        _TRAININGS[root] = others


def release_lock(path: PathLike) -> None:
    """Let other processes write again; nothing happens where this process holds no lock."""
    _, file = _lock_file(path)
    _release(file)


@contextmanager
def write_lock(path: PathLike) -> Iterator[None]:
    """Hold a lock on a path during a block, if this process does not hold it already.

    Raises:
        BlockingIOError: another process holds it.
    """
    is_new = hold_lock(path)
    try:
        yield
    finally:
        if is_new:
            release_lock(path)


def _lock_file(path: PathLike) -> tuple[Path, Path]:
    """A path without links, and the file beside it that stands for the right to write it."""
    target = Path(os.path.realpath(path))
    return target, target.with_name(f".{target.name.lstrip('.')}.lock")


@atexit.register
def release_locks() -> None:
    """Release all locks that this process holds, and leave no lock file behind."""
    for file in list(_LOCKS):
        _release(file)


def _release(file: Path) -> None:
    """Remove a lock file while nobody else holds it, then close it."""
    if file not in _LOCKS:
        return
    handle, made = _LOCKS.pop(file)
    with suppress(OSError):
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of a shared lock others may be left
        if os.path.samestat(os.fstat(handle), os.stat(file)):  # and not that of another process
            file.unlink()
        remove_empty(made)
    os.close(handle)
