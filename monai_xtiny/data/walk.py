"""Files below a folder, each once, and none opened that has no end."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def walk_once(folder: str | os.PathLike[str]) -> Iterator[tuple[str, list[str]]]:
    """Each visible folder below ``folder``, itself first, with its visible files.

    Links are followed; a folder that several paths lead to comes once, and loops end.

    Args:
        folder: to begin with.

    Yields:
        The path of a folder, and the sorted names in it that are no folders.
    """
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield parent, sorted(name for name in names if not name.startswith("."))


def expand_glob(pattern: str) -> list[str]:
    """What a glob matches, sorted; ``**`` enters each folder once, though links lead in circles."""
    parts = pattern.replace(os.sep, "/").split("/")
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    place = parts.index("**")
    head, tail = "/".join(parts[:place]), "/".join(parts[place + 1 :]) or "*"
    if place and not head:
        head = "/"
    starts = sorted(glob.glob(head)) if head else [""]
    names = {
        name
        for start in starts
        for folder, _ in walk_once(start or os.curdir)
        for name in expand_glob(_join(folder if start else folder[2:], tail))
    }
    reals = {folder: os.path.realpath(folder) for folder in map(os.path.dirname, names)}
    # Two starts may lead to one folder.
    once = {(reals[os.path.dirname(name)], os.path.basename(name)): name for name in sorted(names)}
    return sorted(once.values())


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse a pipe, socket or device: reading it may never end.

    Raises:
        ValueError: the path leads to one; what does not exist passes.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{os.fspath(path)!r} is a pipe, socket or device, no file: remove it")


def check_file_name(name: str) -> None:
    """Refuse a name that no text file could hold: with control characters, or not UTF-8.

    Raises:
        ValueError: it is one.
    """
    if _UNSAFE.search(name):
        raise ValueError(
            f"the file name {ascii(name)} holds a control character or is not UTF-8: rename it"
        )


def _join(folder: str, pattern: str) -> str:
    """A pattern in a folder, whose name stands for itself."""
    return os.path.join(glob.escape(folder), pattern)
