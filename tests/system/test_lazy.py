from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from monai_xtiny.system.lazy import lazy_names

# Import paths that users have, and where the names are now.
FORMER = {
    "monai_xtiny.data.find_cases": "monai_xtiny.data.cases",
    "monai_xtiny.plan.UNetPlan": "monai_xtiny.plan.unet_plan",
    "monai_xtiny.networks.build_network": "monai_xtiny.networks.dynunet",
    "monai_xtiny.search.run_search": "monai_xtiny.search.run",
    "monai_xtiny.selection.select_paper": "monai_xtiny.selection.paper",
}
DEPRECATED = {
    "monai_xtiny.export.read_search": "monai_xtiny.bundle.folder",
    "monai_xtiny.training.train_width": "monai_xtiny.training.train",
}


@pytest.mark.parametrize("path", [*FORMER, *DEPRECATED])
def test_former_import_paths_give_what_they_gave(path, recwarn) -> None:
    package, _, name = path.rpartition(".")
    found = getattr(import_module(package), name)
    assert found is getattr(import_module({**FORMER, **DEPRECATED}[path]), name)
    warned = [item for item in recwarn if item.category is DeprecationWarning]
    assert any(f"{name} has moved: import it from" in str(item.message) for item in warned) == (
        path in DEPRECATED
    )


def test_lazy_names_refuses_a_name_as_a_module_does() -> None:
    with pytest.raises(AttributeError, match="module 'json' has no attribute 'nothing'"):
        lazy_names("json", {"loads": "decoder"})("nothing")


@pytest.mark.search
def test_lazy_names_imports_a_module_when_its_name_is_used() -> None:
    code = (
        "import sys, monai_xtiny.plan as plan\n"
        "before = 'monai_xtiny.plan.unet_plan' in sys.modules\n"
        "plan.UNetPlan\n"
        "print(before, 'monai_xtiny.plan.unet_plan' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
