"""The start of a command: importing MONAI takes longer than many a search."""

from __future__ import annotations

import gc
import sys


def import_monai() -> None:
    """Import MONAI without looking for garbage, and spare what that made from later looks.

    The import makes half a million objects that stay. The collector goes through them time and
    again, which is a fifth of the time of the import, and once more after each wide network. For
    processes that run one command: what is alive afterwards is never collected (``gc.freeze``).
    Where MONAI is imported already, nothing is done.
    """
    if "monai" in sys.modules:
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import monai.bundle  # noqa: F401

        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
