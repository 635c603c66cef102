"""The smallest U-Net that still trains, found from unlabeled images, as a MONAI bundle.

After Kimbowa et al. 2026, XTinyU-Net (arXiv:2605.09639). Importing the package does no work: each
public name is loaded from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Case": "data",
    "find_cases": "data",
    "sample_cases": "data",
    "UNetPlan": "plan",
    "plan_images": "plan",
    "build_network": "networks",
    "num_parameters_nnunet": "networks",
    "width_ladder": "networks",
    "jacobian_sensitivity": "sensitivity",
    "SensitivityHandler": "handlers",
    "ScoreTable": "search",
    "run_search": "search",
    "Selection": "selection",
    "select_paper": "selection",
    "select_width": "selection",
    "export_bundle": "export",
    "load_nnunet_plan": "nnunet",
    "check_bundle": "check",
    "package_bundle": "zoo",
    "deploy_bundle": "deploy",
    "load_segmenter": "segmenter",
    "verify_bundle": "verification",
}

_MODULES = frozenset(
    (*_HOME.values(), "ensemble", "headers", "journal", "labels", "processes", "report")
)

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Load a module, or a public name from the module that defines it (PEP 562)."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
