"""A trained bundle on the cases that its split holds out: numbers and pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.inferers import Inferer
from monai.metrics import compute_hausdorff_distance
from monai.transforms import LoadImage, Orientation

from monai_xtiny.labels import PlainPath, check_config_text
from monai_xtiny.report import Plane


@dataclass(frozen=True)
class Evaluation:
    """What ``models/model.pt`` is worth on the cases held out, each on its image's own grid.

    Args:
        cases: file names of the labels.
        dice: one row a case, one value a foreground class; ``None`` where the label lacks the
            class.
        hd95: 95th percentile of the symmetric surface distance, likewise, in mm (pixels where
            images have no spacing); ``None`` where label or prediction is empty.
    """

    cases: tuple[str, ...]
    dice: tuple[tuple[float | None, ...], ...]
    hd95: tuple[tuple[float | None, ...], ...]

    @property
    def class_dice(self) -> tuple[float, ...]:
        """Mean Dice of each foreground class, over the cases that have it."""
        return tuple(_mean(column) for column in zip(*self.dice, strict=True))

    @property
    def class_hd95(self) -> tuple[float, ...]:
        """Mean HD95 of each foreground class, over the cases where it is defined."""
        return tuple(_mean(column) for column in zip(*self.hd95, strict=True))

    @property
    def mean_dice(self) -> float:
        """Mean of ``class_dice`` over the classes that any case has."""
        return _mean(self.class_dice)

    @property
    def case_dice(self) -> tuple[float, ...]:
        """Mean Dice of each case over the classes that it has; NaN where it has none."""
        return tuple(_mean(row) for row in self.dice)


def bundle_workflow(
    bundle: Path, names: Sequence[str], options: Mapping[str, Any]
) -> ConfigWorkflow:
    """Configs of a bundle, merged, with overrides, initialised.

    Args:
        bundle: its folder, a path that the exporter would take.
        names: of the configs, without their suffix.
        options: top-level keys, or paths of keys with ``#``; data paths as ``PlainPath``.

    Raises:
        ValueError: MONAI could not read a path like the bundle's.
    """
    check_config_text(str(bundle), "bundle path")
    configs = bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / f"{name}.json") for name in names],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type=None,
        bundle_root=str(bundle),
        **options,
    )
    workflow.initialize()
    return workflow


def data_options(
    data: str | os.PathLike[str] | None, datalist: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """The configs' keys for labelled data, checked.

    Raises:
        FileNotFoundError: neither is given, or one does not exist.
    """
    for path in (data, datalist):
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"no such data: {os.fspath(path)!r}: check the path")
    if data is None and datalist is None:
        raise FileNotFoundError("no labelled data: give --data DIR or --datalist FILE")
    options: dict[str, Any] = {}
    if data is not None:
        options["dataset_dir"] = PlainPath(os.fspath(data))
    if datalist is not None:
        options["datalist"] = PlainPath(os.fspath(datalist))
    return options


def find_bundle(bundle_dir: str | os.PathLike[str]) -> Path:
    """The absolute path of a bundle that can be evaluated.

    Raises:
        FileNotFoundError: there is no such bundle.
    """
    bundle = Path(os.path.realpath(bundle_dir))
    if not (bundle / "configs" / "evaluate.json").is_file():
        raise FileNotFoundError(f"{str(bundle)!r} is no bundle: it has no configs/evaluate.json")
    return bundle


def evaluate_bundle(
    bundle_dir: str | os.PathLike[str],
    options: Mapping[str, Any],
    *,
    planes: list[Plane] | None = None,
    predict: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Evaluation:
    """Evaluate ``models/model.pt`` by the bundle's own ``evaluate.json``.

    Args:
        bundle_dir: the bundle.
        options: keys of ``train.json``, of :func:`data_options` and others such as ``fold``.
        planes: a list to append one slice of every case to, for pictures.
        predict: what to evaluate in place of the bundle's network, from windows (B, C, *spatial)
            to logits; the same network in another engine for example.

    Raises:
        FileNotFoundError: there is no bundle.
    """
    bundle = find_bundle(bundle_dir)
    workflow = bundle_workflow(bundle, ("train", "evaluate"), options)
    if predict is not None:
        inferer = workflow.parser.get_parsed_content("validate#inferer")
        workflow.parser["validate#inferer"] = _OtherPredictor(inferer, predict)
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    cases = workflow.parser.get_parsed_content("validate#dataset#data")
    distances: list[tuple[float | None, ...]] = []

    def measure(engine: Engine) -> None:
        for item in cast(list[dict[str, MetaTensor]], engine.state.output):
            prediction, label = item["pred"], item["label"]
            found = compute_hausdorff_distance(
                prediction[None],
                label[None],
                percentile=95,
                spacing=affine_to_spacing(prediction.affine)[: prediction.ndim - 1].tolist(),
            )
            if planes is not None:
                planes.append(_plane(cases[len(distances)], label, prediction))
            distances.append(_finite(found[0]))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, measure)
    workflow.run()
    workflow.finalize()
    return Evaluation(
        tuple(os.path.basename(str(case["label"])) for case in cases),
        tuple(_finite(row) for row in evaluator.state.metric_details["val_mean_dice"]),
        tuple(distances),
    )


def evaluation_from_dict(content: Mapping[str, Any]) -> Evaluation:
    """The evaluation that was written as a dictionary."""
    return Evaluation(
        tuple(content["cases"]),
        tuple(tuple(row) for row in content["dice"]),
        tuple(tuple(row) for row in content["hd95"]),
    )


class _OtherPredictor(Inferer):
    """An inferer that runs a given function in place of the network."""

    def __init__(self, inferer: Inferer, predict: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._inferer, self._predict = inferer, predict

    def __call__(self, inputs: torch.Tensor, network: object) -> Any:
        return self._inferer(inputs, self._predict)


def _plane(case: Mapping[str, Any], label: MetaTensor, prediction: MetaTensor) -> Plane:
    """The slice across the last axis that holds most label, as people look at it."""
    files = case["image"] if isinstance(case["image"], list) else [case["image"]]
    is_nifti = ".nii" in os.path.basename(files[0]).lower()
    reader = "NibabelReader" if is_nifti else "PILReader"
    image = LoadImage(reader=reader, image_only=True, ensure_channel_first=True)(files)
    layers = [image, *(item.cpu().argmax(dim=0, keepdim=True) for item in (label, prediction))]
    if is_nifti:
        to_ras = Orientation("RAS", labels=None)
        layers = [to_ras(MetaTensor(layer, affine=image.affine)) for layer in layers]
    arrays = [np.asarray(layer) for layer in layers]
    if arrays[0].ndim > 3:
        area = (arrays[1] > 0).sum(axis=(0, 1, 2))
        arrays = [array[..., int(area.argmax())] for array in arrays]
    # (C, x, y) to (rows, columns, C); y points upwards in a volume, downwards in a picture.
    arrays = [array.transpose(2, 1, 0) for array in arrays]
    if is_nifti:
        arrays = [array[::-1] for array in arrays]
    shown = arrays[0] if arrays[0].shape[-1] == 3 and not is_nifti else arrays[0][..., 0]
    name = os.path.basename(str(case["label"]))
    return Plane(
        name.removesuffix(".gz").rsplit(".", 1)[0], shown, arrays[1][..., 0], arrays[2][..., 0]
    )


def _finite(values: torch.Tensor) -> tuple[float | None, ...]:
    """Numbers, with ``None`` for those that are not defined."""
    return tuple(float(value) if torch.isfinite(value) else None for value in values)


def _mean(values: Sequence[float | None]) -> float:
    """Mean over the defined values; NaN where there is none."""
    defined = [value for value in values if value is not None and not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
