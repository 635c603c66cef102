# Written by monai_xtiny 0.2.0, which need not be installed.
"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import ignite.distributed as idist
import torch

PathLike: TypeAlias = "str | os.PathLike[str]"


@idist.one_rank_only()
def save_whole(content: Any, file: str) -> None:
    """Save with PyTorch, so that a kill leaves the former file."""
    with written_whole(file) as part:
        torch.save(content, part)


@contextmanager
def written_whole(file: PathLike, *, clears: bool = True) -> Iterator[Path]:
    """A temporary file that takes the place of ``file`` if the block succeeds.

    It has the same name, in a hidden folder beside it that nobody else can guess or enter; what
    killed processes left of such folders goes, if ``clears``.
    """
    target = Path(file)
    prefix = f".{target.name}.tmp."
    lefts = target.parent.glob(glob.escape(prefix) + "*") if clears else ()
    for left in lefts:
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder:
        part = Path(folder, target.name)
        try:
            yield part
        except (OSError, RuntimeError) as error:  # PyTorch's own words name no file
            raise OSError(
                f"{str(file)!r} cannot be written ({error}): is the disk full?"
            ) from error
        os.replace(part, target)


def remove_empty(folders: Sequence[Path]) -> None:
    """Take away folders that were made for nothing, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def identities(paths: Iterable[PathLike]) -> set[tuple[int, int]]:
    """What the file system knows files and folders by, whatever their names; of those there are."""
    found = set()
    for path in paths:
        with suppress(OSError):
            state = os.stat(path)
            found.add((state.st_dev, state.st_ino))
    return found
