"""A bundle as one object: what is where in its folder, opened once."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_xtiny.bundle.replace import restore_interrupted
from monai_xtiny.bundle.search_file import read_search
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.selection.choice import Selection
from monai_xtiny.system.config_text import check_config_text
from monai_xtiny.system.files import read_json

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigWorkflow

METADATA, TRAIN, INFERENCE, EVALUATE = (
    f"configs/{name}.json" for name in ("metadata", "train", "inference", "evaluate")
)
# Written by training: the cases that it was trained on, and those held out.
SPLIT = "configs/datalist.json"
WEIGHTS, TORCHSCRIPT = "models/model.pt", "models/model.ts"
ONNX, ONNX_INT8 = "models/model.onnx", "models/model_int8.onnx"
ONNX_STANDALONE = "models/model_standalone.onnx"
CARD, SEARCH = "docs/README.md", "docs/search.json"
CURVE, OVERLAY = "docs/sensitivity.png", "docs/overlay.png"
EVALUATION, VERIFICATION = "docs/evaluation.json", "docs/verification.json"
REPORT = "docs/report.html"
# Images of cases for the report: of those that were scored, and of three that were evaluated.
THUMBNAILS, PANELS = "docs/thumbnails.png", "docs/panels.png"
# Of the last training, among its results.
LEARNING_CURVE = "eval/learning_curve.csv"
DEPLOYMENT, DATA_LICENSE = "docs/deploy.json", "docs/data_license.txt"
LICENSE, LARGE_FILES = "LICENSE", "large_files.yml"
# What a bundle consists of; results of training and inference lie in other folders.
PARTS = (LICENSE, "configs", "docs", "models", "scripts")
# What makes a folder a bundle of ours: its workflows, and the search that it came from.
_REQUIRED = (METADATA, TRAIN, INFERENCE, EVALUATE, SEARCH)


@dataclass(frozen=True)
class Bundle:
    """A MONAI bundle that this package has written, opened by :meth:`open`.

    Args:
        root: its folder, an absolute path free of links.
        selection: the choice that it was made from, ``docs/search.json``.
        label_names: of the classes, background first, from ``configs/metadata.json``.
    """

    root: Path
    selection: Selection
    label_names: tuple[str, ...]

    @classmethod
    def open(cls, bundle: str | os.PathLike[str] | Bundle) -> Bundle:
        """Open a bundle; one that was being replaced when a process was killed is put back first.

        Args:
            bundle: its folder; what is open already is returned as it is.

        Raises:
            FileNotFoundError: there is no bundle; the message names what it lacks.
            ValueError: its metadata or its search are damaged.

        >>> Bundle.open("bundle/nuclei_fluorescence_xtiny_segmentation").selection.max_features
        8
        """
        if isinstance(bundle, Bundle):
            return bundle
        root = Path(os.path.realpath(bundle))
        restore_interrupted(root)
        missing = missing_file(root)
        if missing is not None:
            raise FileNotFoundError(f"{str(root)!r} is no bundle: it has no {missing}")
        return cls(root, read_search(root / SEARCH), _label_names(root / METADATA))

    @property
    def plan(self) -> UNetPlan:
        """Of the full network."""
        return self.selection.table.plan

    @property
    def kind(self) -> str:
        """What the bundle reads: ``volumes``, ``slices`` of volumes, or ``images``."""
        return data_kind(self.plan)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.root.name

    def path(self, name: str) -> Path:
        """Of a file or folder in the bundle, which need not exist.

        Args:
            name: relative, with forward slashes; this module names them all.
        """
        return self.root / name

    def config(self, name: str) -> dict[str, Any]:
        """A config as it is in the file.

        Args:
            name: ``metadata``, ``train``, ``inference``, ``evaluate`` or ``multi_gpu_train``.

        Raises:
            FileNotFoundError: there is no such config.
            ValueError: it is damaged.
        """
        return read_json(self.root / "configs" / f"{name}.json")

    def weights(self) -> dict[str, torch.Tensor]:
        """Weights in ``models/model.pt``, on the CPU.

        Raises:
            FileNotFoundError: there are none.
            ValueError: the file holds no weights.
        """
        from monai_xtiny.bundle.weights import read_weights

        return read_weights(self.path(WEIGHTS))

    def network(self) -> torch.nn.Module:
        """The network of ``configs/inference.json`` with the bundle's weights, for inference.

        It maps preprocessed images ``(B, in_channels, *spatial)`` to logits
        ``(B, out_channels, *spatial)``, whose spatial sizes are multiples of ``plan.divisor`` and
        twice it at least.

        Raises:
            ValueError: the weights are missing, or not those of ``network_def``.

        >>> import torch
        >>> network = Bundle.open("bundle/nuclei_fluorescence_xtiny_segmentation").network()
        >>> network(torch.zeros(1, 1, 256, 256)).shape
        torch.Size([1, 2, 256, 256])
        """
        from monai_xtiny.bundle.weights import load_network

        return load_network(self.config("inference"), self.path(WEIGHTS))

    def workflow(
        self, names: Sequence[str], options: Mapping[str, Any] | None = None
    ) -> ConfigWorkflow:
        """Configs of the bundle, merged, with overrides, initialized and ready to run.

        A config is a program: :func:`monai_xtiny.bundle.foreign.foreign_code` says what in it this
        version does not write.

        Args:
            names: of the configs, the later ones laid over the first.
            options: top-level keys, or paths of keys with ``#``; paths as
                :class:`monai_xtiny.system.config_text.PlainPath`.

        Raises:
            ValueError: MONAI could not read a path like the bundle's, or a network is too large.
        """
        from monai.bundle import ConfigWorkflow

        from monai_xtiny.bundle.weights import check_network_size

        for name in names:
            config = self.config(name)
            if "network_def" in config:
                check_network_size(config, self.root / "configs" / f"{name}.json")
        check_config_text(str(self.root), "bundle path")
        configs = self.root / "configs"
        workflow = ConfigWorkflow(
            config_file=[str(configs / f"{name}.json") for name in names],
            meta_file=str(self.path(METADATA)),
            logging_file=False,
            workflow_type=None,
            bundle_root=str(self.root),
            **(options or {}),
        )
        workflow.initialize()
        # Workers that are forked from here on inherit what is garbage now, and a session of ONNX
        # Runtime that one of them destroys waits for ever for threads which it does not have.
        gc.collect()
        return workflow


def missing_file(root: Path) -> str | None:
    """What a folder lacks to be a bundle of ours; ``None`` if it is one."""
    return next((name for name in _REQUIRED if not (root / name).is_file()), None)


def label_names_beside(search: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """Names of the classes of the bundle whose ``docs/search.json`` a file is.

    Args:
        search: the file.

    Returns:
        The names, background first; ``None`` of a file that is in no bundle.

    Raises:
        ValueError: the bundle's metadata are damaged.
    """
    file = Path(os.path.realpath(search))
    root = file.parent.parent
    if file != root / SEARCH or missing_file(root) is not None:
        return None
    return _label_names(root / METADATA)


def data_kind(plan: UNetPlan) -> str:
    """What a bundle reads: ``volumes`` (3D plan), ``slices`` of volumes, or ``images``."""
    if plan.spatial_dims == 3:
        return "volumes"
    return "images" if plan.slice_axis is None else "slices"


def unit_test_path(bundle_dir: str | os.PathLike[str]) -> Path:
    """Where the test of a bundle is emitted: beside its folder."""
    path = Path(os.path.realpath(bundle_dir))
    return path.with_name(f"test_{path.name}.py")


def _label_names(metadata: Path) -> tuple[str, ...]:
    """Names of the classes in a metadata file."""
    try:
        outputs = read_json(metadata)["network_data_format"]["outputs"]
        definition = outputs["pred"]["channel_def"]
        names = tuple(str(definition[str(index)]) for index in range(len(definition)))
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"{str(metadata)!r} names no classes in network_data_format ({error!r}): export the "
            "bundle again"
        ) from error
    return tuple(check_config_text(name, f"label name in {str(metadata)!r}") for name in names)
