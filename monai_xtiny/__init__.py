"""The smallest U-Net that still trains, found from unlabeled images, as a MONAI bundle.

After Kimbowa et al. 2026, XTinyU-Net (arXiv:2605.09639). Importing the package does no work: each
public name is loaded from its module when it is first used.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from monai_xtiny.system.lazy import lazy_names

__version__ = "0.2.0"

_HOMES = {
    "select_device": "system.devices",
    "start_processes": "system.processes",
    "Case": "data.case",
    "CheckImaged": "data.images",
    "MiddleSliced": "data.images",
    "find_cases": "data.cases",
    "Header": "data.case",
    "LoadOnced": "data.loading",
    "image_reader": "data.images",
    "load_sample": "data.images",
    "measure_orientation": "data.orientation",
    "read_headers": "data.headers",
    "read_label_names": "data.labels",
    "sample_cases": "data.cases",
    "UNetPlan": "plan.unet_plan",
    "describe_data_set": "plan.data_set",
    "load_nnunet_plan": "plan.nnunet",
    "plan_data_set": "plan.data_set",
    "plan_images": "plan.planner",
    "preprocessing_fragment": "plan.preprocessing",
    "build_network": "networks.dynunet",
    "num_parameters_nnunet": "networks.cost",
    "width_ladder": "networks.ladder",
    "jacobian_sensitivity": "scores.sensitivity",
    "SensitivityHandler": "scores.handlers",
    "ScoreTable": "scores.table",
    "check_ladder": "search.run",
    "journal_path": "search.journal",
    "remove_journal": "search.journal",
    "run_search": "search.run",
    "unit_costs": "search.workers",
    "Rule": "selection.rule",
    "Selection": "selection.rule",
    "find_rule": "selection.rules",
    "refinement": "selection.rules",
    "select_paper": "selection.paper",
    "select_width": "selection.choice",
    "select_within": "selection.limits",
    "check_budget": "selection.limits",
    "check_method": "selection.rules",
    "Bundle": "bundle.folder",
    "check_apart": "bundle.writer",
    "check_destination": "bundle.writer",
    "clear_finished": "bundle.writer",
    "export_bundle": "bundle.writer",
    "lock_bundle": "bundle.exclusive",
    "release_lock": "bundled.locks",
    "ladder_table": "bundle.summary",
    "package_bundle": "bundle.archive",
    "search_summary": "bundle.summary",
    "check_bundle": "training.check",
    "verify_bundle": "training.verify",
    "check_latency": "deploy.latency",
    "deploy_bundle": "deploy.pipeline",
    "load_segmenter": "deploy.segmenter",
    "measure_latency": "deploy.latency",
}
__all__ = ["__version__", *_HOMES]

# Modules that a saved copy of configs/search.json names, from when they all lay here.
_MOVED_MODULES = {
    "ensemble": "selection.budget",
    "headers": "data.headers",
    "journal": "search.journal",
    "labels": "data.labels",
    "nnunet": "nnunet",  # still there: its old name is found in it
    "report": "bundle.summary",
    "scheduling": "search.workers",
}
_public_name = lazy_names(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name not in _MOVED_MODULES:
        return _public_name(name)
    module = import_module(f".{_MOVED_MODULES[name]}", __name__)
    if name != _MOVED_MODULES[name]:
        message = f"{__name__}.{name} has moved: use {__name__}.<name> of what you need from it"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
    return module


def __dir__() -> list[str]:
    return sorted(__all__)
