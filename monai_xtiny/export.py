"""Former place of names that are in :mod:`monai_xtiny.bundle` now."""

from __future__ import annotations

from monai_xtiny.system.lazy import lazy_names

_FORMER = {
    "export_bundle": ".bundle.writer",
    "read_search": ".bundle.search_file",
    "write_search": ".bundle.search_file",
}
__getattr__ = lazy_names(__name__, {}, deprecated=_FORMER)
