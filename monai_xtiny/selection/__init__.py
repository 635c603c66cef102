"""From a table of scores to a width. NumPy only."""

from __future__ import annotations

from monai_xtiny.system.lazy import lazy_names

_HOMES = {
    "Selection": "rule",
    "Budget": "rule",
    "Rule": "rule",
    "RULES": "rules",
    "find_rule": "rules",
    "select_width": "choice",
    "select_within": "limits",
    "select_paper": "paper",
    "select_alignment": "alignment",
}
__getattr__ = lazy_names(__name__, _HOMES)
