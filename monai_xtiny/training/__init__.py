"""A bundle and labeled data: check, train, evaluate, compare, verify, update."""

from __future__ import annotations

from monai_xtiny.system.lazy import lazy_names

_HOMES = {
    "train_bundle": "train",
}
__getattr__ = lazy_names(__name__, _HOMES, deprecated={"train_width": "train"})
