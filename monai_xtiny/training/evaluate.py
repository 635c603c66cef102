"""A trained bundle on the cases that its split holds out: numbers and images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import LoadImage, Orientation

from monai_xtiny.bundle.card import check_marks
from monai_xtiny.bundle.exclusive import exclusive
from monai_xtiny.bundle.figures import Plane
from monai_xtiny.bundle.folder import CARD, SPLIT, WEIGHTS, Bundle
from monai_xtiny.bundle.measured import trained_epochs
from monai_xtiny.bundle.results import MEASURES, Evaluation
from monai_xtiny.bundle.weights import read_weights
from monai_xtiny.bundled.folds import fold_file, is_initialization
from monai_xtiny.bundled.labeling import ChannelReader
from monai_xtiny.bundled.measures import volume_unit
from monai_xtiny.bundled.reports import METRIC_OF
from monai_xtiny.bundled.splits import Split, find_patients
from monai_xtiny.data.cases import NIFTI_SUFFIXES
from monai_xtiny.system.config_text import PlainPath
from monai_xtiny.system.files import read_json
from monai_xtiny.training.labeled import data_options

# What is done with a case, its label and its prediction, both one-hot (K, *spatial).
OnCase = Callable[[Mapping[str, Any], MetaTensor, MetaTensor], None]
Predict = Callable[[torch.Tensor], torch.Tensor]


@exclusive
def evaluate_held_out(
    bundle: Bundle,
    *,
    data: str | os.PathLike[str] | None = None,
    datalist: str | os.PathLike[str] | None = None,
    group: str | None = None,
    nsd_tolerance: float | None = None,
    external: bool = False,
    fold: int = 0,
    predict: Predict | None = None,
) -> tuple[Evaluation, tuple[Plane, ...]]:
    """Evaluate a trained bundle on cases that it was not trained on.

    These are the validation section of ``configs/datalist.json``, which training writes, or the
    validation section of another datalist (its test section, where it has no other); or all of
    external data.

    Args:
        bundle: the bundle.
        data: nnU-Net data set root (``imagesTr``, ``labelsTr``).
        datalist: MSD datalist with a validation section, or a test section with labels.
        group: which cases are of one patient: a regular expression, or a JSON file.
        nsd_tolerance: distance that NSD takes for near, in mm, or pixels where images have no
            spacing; default: the bundle's own.
        external: evaluate every labeled case of the data, which are others than those of the
            training; the results lie in ``eval/external``.
        fold: whose weights and held-out cases.
        predict: what to evaluate in place of the bundle's network, as :func:`evaluate_bundle` takes
            it; the results in the bundle's ``eval`` folder are left alone then.

    Returns:
        The evaluation, and one slice of every case.

    Raises:
        BlockingIOError: another process writes the bundle.
        FileNotFoundError: there are no data.
        ValueError: the bundle was not trained, the datalist has no validation section, one of its
            cases was trained on, or the card could not take the results.
    """
    options = {**data_options(data, datalist, group), "fold": fold}
    if nsd_tolerance is not None:
        options["nsd_tolerance"] = nsd_tolerance
    if external:
        _refuse_untrained(bundle, fold)
        options["external"] = True
    else:
        options |= _held_out_options(bundle, data, datalist, fold)
    if predict is None:
        check_marks(bundle.path(CARD).read_text(encoding="utf-8"))
        trained_epochs(bundle)
    planes: list[Plane] = []
    with tempfile.TemporaryDirectory() as folder:
        evaluation = evaluate_bundle(
            bundle,
            options if predict is None else {**options, "output_dir": folder},
            on_case=lambda case, label, prediction: planes.append(
                draw_plane(case, label, prediction)
            ),
            predict=predict,
        )
    return evaluation, tuple(planes)


def _held_out_options(
    bundle: Bundle,
    data: str | os.PathLike[str] | None,
    datalist: str | os.PathLike[str] | None,
    fold: int,
) -> dict[str, Any]:
    """The configs' keys for what is held out: by training, or by a datalist."""
    split_name = fold_file(SPLIT, fold)
    split_file = bundle.path(split_name)
    split = read_json(split_file) if split_file.is_file() else {}
    if datalist is None:
        if not split:
            raise ValueError(
                f"{str(bundle.root)!r} has no {split_name}, which training writes: train it first, "
                "give --datalist FILE with a validation section, or --external where all the data "
                "are others than those of its training"
            )
        return {"datalist": PlainPath(os.fspath(split_file))}
    content = read_json(datalist)
    _check_entries(content, datalist)
    test = content.get("test")
    listed = test if isinstance(test, list) else []
    labeled = [case for case in listed if isinstance(case, Mapping) and case.get("label")]
    section = "test" if labeled and not content.get("validation") else "validation"
    if not content.get(section):
        raise ValueError(
            f"{os.fspath(datalist)!r} has no validation section, nor a test section with labels: "
            "add one with the cases to evaluate, or give --external to evaluate all of them"
        )
    root = os.path.dirname(os.path.abspath(datalist)) if data is None else os.fspath(data)
    held_out = labeled if section == "test" else content["validation"]
    _refuse_trained(split.get("training", []), held_out, datalist, root)
    return {"section": section}


def _check_entries(content: Mapping[str, Any], datalist: str | os.PathLike[str]) -> None:
    """Refuse a validation section that is no list of cases."""
    section = content.get("validation") or []
    if not isinstance(section, list) or not all(isinstance(case, Mapping) for case in section):
        raise ValueError(
            f"the validation section of {os.fspath(datalist)!r} is no list of cases: give a list "
            'of objects with "image" and "label"'
        )


def _refuse_untrained(bundle: Bundle, fold: int) -> None:
    """Refuse weights that no training has written."""
    weights = bundle.path(fold_file(WEIGHTS, fold))
    if is_initialization(read_weights(weights)):
        raise ValueError(f"{str(weights)!r} was not trained: train the bundle first")


def _refuse_trained(
    trained: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    datalist: str | os.PathLike[str],
    root: str,
) -> None:
    """Refuse a datalist that holds out what the network was trained on.

    Labels are compared by their paths relative to the data, of which one may be shorter: two data
    lists may lie at different depths of one folder.

    Args:
        trained: cases, with labels relative to the data that were trained on.
        held_out: cases of the datalist that are evaluated.
        datalist: the file.
        root: what its paths are relative to.
    """

    def parts(label: Any) -> tuple[str, ...]:
        file = str(label[0] if isinstance(label, list) and label else label)
        path = os.path.relpath(os.path.join(root, file.replace("\\", "/")), root)
        return tuple(part for part in path.split(os.sep) if part != os.pardir)

    known = {parts(case["label"]) for case in trained}
    ends = {label[start:] for label in known for start in range(len(label))}
    both = [
        label
        for label in (parts(case.get("label")) for case in held_out)
        if label in ends or any(label[start:] in known for start in range(len(label)))
    ]
    if both:
        names = ", ".join(f"{label[-1]} ({'/'.join(label)})" for label in both[:5])
        raise ValueError(
            f"the network was trained on {names}: leave such cases out of the held-out section "
            f"of {os.fspath(datalist)!r}"
        )


def evaluate_bundle(
    bundle: Bundle,
    options: Mapping[str, Any],
    *,
    on_case: OnCase | None = None,
    predict: Predict | None = None,
    only_dice: bool = False,
) -> Evaluation:
    """Evaluate ``models/model.pt`` by the bundle's own ``evaluate.json``.

    Args:
        bundle: the bundle.
        options: keys of ``train.json``: those of :func:`monai_xtiny.training.labeled.data_options`
            and others such as ``fold``.
        on_case: called with every case, its label and its prediction.
        predict: what to evaluate in place of the bundle's network, from windows (B, C, *spatial)
            to logits; the same network in another engine for example.
        only_dice: whether to measure the Dice alone: surfaces take longer than the network.
    """
    workflow = bundle.workflow(("train", "evaluate"), options)
    if only_dice:
        workflow.parser["validate#evaluator#additional_metrics"] = None
    if predict is not None:
        inferer = workflow.parser.get_parsed_content("validate#inferer")
        workflow.parser["validate#inferer"] = _OtherPredictor(inferer, predict)
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    cases = workflow.parser.get_parsed_content("validate#dataset#data")

    def look(engine: Engine) -> None:
        for item in cast(list[dict[str, MetaTensor]], engine.state.output):
            if on_case is not None:
                on_case(next(shown), item["label"], item["pred"])

    shown = iter(cases)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, look)
    workflow.run()
    workflow.finalize()
    names = ("dice",) if only_dice else MEASURES
    return _measured(workflow, cases, evaluator.state.metric_details, names)


def _measured(
    workflow: ConfigWorkflow,
    cases: Sequence[dict[str, Any]],
    details: Mapping[str, torch.Tensor],
    names: Sequence[str],
) -> Evaluation:
    """What a workflow has measured of its cases."""
    missing = [METRIC_OF[name] for name in names if METRIC_OF[name] not in details]
    if missing:
        raise ValueError(
            f"the bundle's evaluate.json measures no {', '.join(missing)}: export the bundle anew"
        )
    rows = {name: tuple(_finite(row) for row in details[METRIC_OF[name]]) for name in names}
    content = workflow.parser.get_parsed_content
    unit, group, labeled = content("unit"), content("group"), content("labeled_cases")
    return Evaluation(
        cases=tuple(Split([], list(cases)).label_names()[1]),
        **rows,
        patients=() if group is None else tuple(find_patients(cases, group, labeled=labeled)),
        nsd_tolerance=float(content("nsd_tolerance")),
        length_unit=unit,
        volume_unit=volume_unit(unit, content("summary_options#spatial_dims")),
    )


class _OtherPredictor(Inferer):
    """An inferer that runs a given function in place of the network."""

    def __init__(self, inferer: Inferer, predict: Predict) -> None:
        self._inferer, self._predict = inferer, predict

    def __call__(self, inputs: torch.Tensor, network: object) -> Any:
        return self._inferer(inputs, self._predict)


def draw_plane(case: Mapping[str, Any], label: MetaTensor, prediction: MetaTensor) -> Plane:
    """The slice across the last axis that holds most label, as people look at it."""
    files = case["image"] if isinstance(case["image"], list) else [case["image"]]
    is_nifti = files[0].lower().endswith(NIFTI_SUFFIXES)
    reader = ChannelReader if is_nifti else "PILReader"
    image = LoadImage(reader=reader, image_only=True, ensure_channel_first=True)(files)
    if image.ndim > label.ndim:  # of one slice, which was evaluated as a 2D image
        image = image[..., 0]
    layers = [image, *(item.cpu().argmax(dim=0, keepdim=True) for item in (label, prediction))]
    if is_nifti and image.ndim > 3:  # a 2D image is shown as it lies in its file
        to_ras = Orientation("RAS", labels=None)
        layers = [to_ras(MetaTensor(layer, affine=image.affine)) for layer in layers]
    arrays = [np.asarray(layer) for layer in layers]
    if arrays[0].ndim > 3:
        area = (arrays[1] > 0).sum(axis=(0, 1, 2))
        arrays = [array[..., int(area.argmax())] for array in arrays]
    # (C, x, y) to (rows, columns, C); y points upwards in a volume, downwards in a 2D image.
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
