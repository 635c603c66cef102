"""Work on a bundle that no other process writes meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.system.config_text import path_text

BundleLike: TypeAlias = "str | os.PathLike[str] | Bundle"
Options = ParamSpec("Options")
Made = TypeVar("Made")


def lock_bundle(bundle_dir: str | os.PathLike[str]) -> None:
    """Keep other processes from writing a bundle until this one ends.

    Args:
        bundle_dir: its folder, which need not exist.

    Raises:
        BlockingIOError: another process writes it.
        ValueError: it is no path.
    """
    from monai_xtiny.bundled.locks import hold_lock  # it imports ignite, so PyTorch

    hold_lock(path_text(bundle_dir, "bundle"))


def exclusive(
    work: Callable[Concatenate[Bundle, Options], Made],
) -> Callable[Concatenate[BundleLike, Options], Made]:
    """Let a function hold the lock on its bundle, which it is given as it is by then.

    The function takes a bundle's folder, or an open bundle, as its first argument. It raises
    BlockingIOError where another process works on the bundle.

    Args:
        work: the function, of an open bundle.
    """

    @wraps(work)
    def locked(bundle_dir: BundleLike, *arguments: Options.args, **options: Options.kwargs) -> Made:
        from monai_xtiny.bundled.locks import write_lock  # it imports ignite, so PyTorch

        root = Bundle.open(bundle_dir).root
        with write_lock(root):
            return work(Bundle.open(root), *arguments, **options)

    return locked
