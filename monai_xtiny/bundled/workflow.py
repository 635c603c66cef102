"""What the configs of a bundle call: names of the files beside this one.

The configs load this file by its path. It takes the others for modules of a package that is named
after their content: one process may hold several bundles, as MONAI Label does, of several versions.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from pathlib import Path
from types import ModuleType

# The files, each after those that it imports.
FILES = (
    "files", "locks", "masks", "gate", "cases", "splits", "options", "folds", "checks",
    "geometry", "labeling", "steps", "teaching", "checkpoints", "curves", "measures", "summaries",
    "reports",
)  # fmt: skip


def load_files(folder: Path) -> str:
    """Make a package of the files in a folder, and leave nothing there, compiled code included.

    Returns:
        The name of the package.

    Raises:
        FileNotFoundError: some are not there.
    """
    missing = [f"{name}.py" for name in FILES if not (folder / f"{name}.py").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{str(folder)!r} lacks {', '.join(missing)}: copy all files of the bundle's scripts"
        )
    sources = {name: (folder / f"{name}.py").read_bytes() for name in FILES}
    content = hashlib.sha256(b"".join(sources.values()))
    package = f"bundle_scripts_{content.hexdigest()[:16]}"
    # All that load such files, in whatever thread and of whatever bundle, wait for each other.
    shared = sys.modules.setdefault("bundle_scripts", ModuleType("bundle_scripts"))
    with vars(shared).setdefault("lock", threading.RLock()):
        if package in sys.modules:
            return package
        sys.modules[package] = ModuleType(package)
        try:
            for name, source in sources.items():
                module = sys.modules[f"{package}.{name}"] = ModuleType(f"{package}.{name}")
                module.__package__, module.__file__ = package, str(folder / f"{name}.py")
                exec(compile(source, module.__file__, "exec"), vars(module))
        except BaseException:
            for name in [name for name in sys.modules if name.startswith(package)]:
                del sys.modules[name]
            raise
    return package


if not __package__:  # in a bundle
    __package__ = load_files(Path(__file__).parent)

from .cases import find_data_root, find_images, find_labeled_cases
from .checkpoints import BestWeights, TrainingState
from .checks import (
    check_cases,
    check_evaluation,
    check_held_out,
    check_images,
    check_output_dir,
    check_patch,
    check_start,
    check_unused,
    warn_of_missing_classes,
)
from .curves import CurveWriter
from .folds import (
    check_trained,
    check_weights,
    fold_file,
    fold_files,
    fold_folder,
    join_networks,
    load_weights,
    split_beside,
    splits_of,
)
from .labeling import CaseByCase, ChannelReader, LabelWriter
from .locks import lock_training, release_training
from .measures import Hausdorff95, SurfaceDice, Volume, length_unit
from .options import check_options, check_paths, check_shared_memory
from .reports import MetricsWriter, SummaryWriter, foreground_names
from .splits import check_fold, split_cases, split_to_evaluate
from .steps import GradientClipping, Interruption, check_loss, find_rotated_axes, handlers_of_rank
from .teaching import read_teacher, teach, teacher_digest
