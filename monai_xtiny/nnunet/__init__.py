"""Into nnU-Net and back: its plans files, data sets, checkpoints and preprocessing."""

from __future__ import annotations

from monai_xtiny.system.lazy import lazy_names

_HOMES = {
    "add_configuration": "plans_file",
    "configure_data_set": "configure",
}
# From when nnunet.py was a module.
_MOVED = {"load_nnunet_plan": ".plan.nnunet"}
__getattr__ = lazy_names(__name__, _HOMES, deprecated=_MOVED)
