"""The ladder of networks by initializations, scored: from a sample and a plan to a table."""

from __future__ import annotations

from monai_xtiny.system.lazy import lazy_names

_HOMES = {
    "run_search": "run",
    "check_ladder": "run",
    "Rung": ".scores.table",
    "ScoreTable": ".scores.table",
    "select_device": ".system.devices",
}
__getattr__ = lazy_names(__name__, _HOMES)
