"""From cases to the plan of the full network, by nnU-Net's rules."""

from __future__ import annotations

from monai_xtiny.system.lazy import lazy_names

_HOMES = {
    "UNetPlan": "unet_plan",
    "Fingerprint": "planner",
    "plan_images": "planner",
    "extract_fingerprint": "planner",
    "plan_fingerprint": "planner",
    "load_nnunet_plan": "nnunet",
    "preprocessing_fragment": "preprocessing",
}
__getattr__ = lazy_names(__name__, _HOMES)
