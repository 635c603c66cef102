"""The model card of a trained bundle: measured numbers, and pictures to look at."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.inferers import Inferer
from monai.metrics import compute_hausdorff_distance
from monai.transforms import LoadImage, Orientation

from monai_xtiny.bundle.figures import Plane
from monai_xtiny.bundle.folder import (
    SPLIT_FILE,
    bundle_workflow,
    data_options,
    find_bundle,
    read_search,
)
from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.system.config_text import PlainPath
from monai_xtiny.system.files import read_json


def evaluate_held_out(
    bundle_dir: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    datalist: str | os.PathLike[str] | None = None,
    predict: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[Evaluation, list[Plane]]:
    """Evaluate a trained bundle on cases that it was not trained on.

    These are the validation section of ``configs/datalist.json``, which training writes, or of
    another datalist.

    Args:
        bundle_dir: the bundle.
        data: nnU-Net data set root (``imagesTr``, ``labelsTr``).
        datalist: MSD datalist with a validation section.
        predict: what to evaluate in place of the bundle's network, as ``evaluate_bundle`` takes it;
            the results in the bundle's ``eval`` folder are left alone then.

    Returns:
        The evaluation, and one slice of every case.

    Raises:
        FileNotFoundError: there is no bundle, or no data.
        ValueError: the bundle was not trained, the datalist has no validation section, or one of
            its cases was trained on.
    """
    bundle = find_bundle(bundle_dir)
    read_search(bundle / "docs" / "search.json")
    options = data_options(data, datalist)
    split_file = bundle / "configs" / SPLIT_FILE
    split = read_json(split_file) if split_file.is_file() else None
    if datalist is None:
        if split is None:
            raise ValueError(
                f"{str(bundle)!r} has no configs/{SPLIT_FILE}, which training writes: train it "
                "first, or give --datalist FILE with a validation section"
            )
        options["datalist"] = PlainPath(os.fspath(split_file.absolute()))
    elif not read_json(datalist).get("validation"):
        raise ValueError(
            f"{os.fspath(datalist)!r} has no validation section: add one with the cases to evaluate"
        )
    planes: list[Plane] = []
    with tempfile.TemporaryDirectory() as folder:
        if predict is not None:
            options["output_dir"] = folder
        evaluation = evaluate_bundle(bundle, options, planes=planes, predict=predict)
    trained = {os.path.basename(case["label"]) for case in (split or {}).get("training", [])}
    both = [case for case in evaluation.cases if case in trained]
    if both:
        raise ValueError(
            f"the network was trained on {', '.join(both[:5])}: leave them out of the validation "
            f"section of {str(datalist or split_file)!r}"
        )
    return evaluation, planes


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
