"""A network that nnU-Net trained, as a MONAI bundle that does with an image what nnU-Net does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from monai_xtiny.bundle.card import model_card
from monai_xtiny.bundle.folder import REPORT, Bundle, data_kind
from monai_xtiny.bundle.imported import IMPORTED, imported_configs
from monai_xtiny.bundle.large_files import write_large_files
from monai_xtiny.bundle.metadata import bundle_metadata
from monai_xtiny.bundle.replace import replaced_whole
from monai_xtiny.bundle.report import report_page
from monai_xtiny.bundle.search_file import write_search
from monai_xtiny.bundle.templates import script_sources, templates_dir
from monai_xtiny.bundle.writer import check_destination
from monai_xtiny.bundled.locks import write_lock
from monai_xtiny.bundled.nnunet_preprocessing import Resampling
from monai_xtiny.networks.cost import network_cost
from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.nnunet.checkpoint import read_checkpoint, weights_from_nnunet
from monai_xtiny.nnunet.model import INTENSITIES, NATURAL, UNRESAMPLED, Source, read_source
from monai_xtiny.plan.nnunet import RAS_READER
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.table import Rung, ScoreTable
from monai_xtiny.selection.rule import Selection
from monai_xtiny.system.files import read_json, write_json


def import_checkpoint(
    checkpoint: str | os.PathLike[str],
    bundle_dir: str | os.PathLike[str],
    *,
    plans: str | os.PathLike[str] | None = None,
    mirroring: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write the network of an nnU-Net checkpoint as a MONAI bundle.

    Its ``inference.json`` gives what ``nnUNetv2_predict`` gives; its ``train.json`` fine-tunes. As
    nnU-Net does, plans and ``dataset.json`` are taken from the model folder that the checkpoint
    lies in; without one, from the checkpoint.

    Args:
        checkpoint: ``fold_0/checkpoint_final.pth`` for example.
        bundle_dir: folder to make; its name should end in ``_segmentation`` (MONAI Label).
        plans: plans file to take in place of those.
        mirroring: average over the flips that the training allows, as ``nnUNetv2_predict`` does by
            default; ``mirror_axes`` in ``inference.json`` can be changed later.
        overwrite: replace a bundle that is there.

    Returns:
        The bundle's absolute path.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no such plans.
        FileExistsError: there is something that is not to be overwritten.
        ValueError: the checkpoint is damaged or holds code, or is of a network or of a processing
            that the bundle could not repeat.
    """
    target = check_destination(bundle_dir, overwrite=overwrite)
    source = read_source(read_checkpoint(checkpoint), plans)
    weights = weights_from_nnunet(
        source.checkpoint.weights, source.plan, source.axes, source=str(checkpoint)
    )
    selection = _selection(source)
    settings = _bundle_settings(source, mirroring=mirroring)
    with write_lock(target), replaced_whole(target) as folder:
        check_destination(target, overwrite=overwrite)
        _write_files(source, selection, settings, folder, target.name)
        network = build_network(source.plan, None, seed=0)
        problems = network.load_state_dict(weights, strict=False)
        lacking = [name for name in problems.missing_keys if not name.startswith("skip_layers.")]
        if lacking or problems.unexpected_keys:
            raise ValueError(f"{str(checkpoint)!r} lacks {lacking}: its network is another")
        torch.save(network.state_dict(), folder / "models" / "model.pt")
        written = Bundle.open(folder)
        page = report_page(written, name=target.name)
        written.path(REPORT).write_text(page, encoding="utf-8")
        write_large_files(written)
    return target


def _selection(source: Source) -> Selection:
    """What stands for a search: the one network that there is."""
    plan = source.plan
    cost = network_cost(plan)
    width = max(plan.features_per_stage)
    rung = Rung(
        max_features=width,
        features_per_stage=plan.features_per_stage,
        num_parameters=cost.num_parameters,
        num_parameters_nnunet=cost.num_parameters_nnunet,
        gmacs=cost.gmacs,
        sensitivity=(),
    )
    environment = {
        "configuration": source.checkpoint.configuration,
        "trainer": source.checkpoint.trainer_name,
        "plans": str(source.plans.get("plans_name", "nnUNetPlans")),
        "dataset": str(source.plans.get("dataset_name", "")),
    }
    for what, text in environment.items():
        if not text.isprintable():
            raise ValueError(
                f"{str(source.checkpoint.source)!r}: the name of the {what}, {text!r}, holds "
                "control characters: rename it in the plans"
            )
    table = ScoreTable(plan, (rung,), (), (), {}, environment)
    return Selection(IMPORTED, width, {}, None, table)


def _bundle_settings(source: Source, *, mirroring: bool) -> dict[str, Any]:
    """Keys of the configs that say what the plans do: numbers, and texts that were checked."""
    processing = source.processing
    places = [list(source.axes).index(axis) for axis in source.checkpoint.mirror_axes]
    kept = {
        "image_reader_writer": source.plans["image_reader_writer"],
        "transpose_forward": list(processing.transpose_forward),
        "channel_names": list(source.channel_names),
        "file_ending": str(source.dataset.get("file_ending", ".nii.gz")),
        "foreground_intensity_properties_per_channel": {
            str(index): {key: float(item[key]) for key in INTENSITIES if key in item}
            for index, item in enumerate(processing.intensities)
        },
    }
    return {
        "nnunet_plans": kept,
        "nnunet_configuration": {
            "spacing": list(processing.spacing),
            "normalization_schemes": list(processing.normalization_schemes),
            "use_mask_for_norm": list(processing.use_mask_for_norm),
            "resampling_fn_data_kwargs": _in_nnunets_words(processing.image_resampling),
            "resampling_fn_probabilities_kwargs": _in_nnunets_words(processing.logits_resampling),
            **({} if processing.is_resampled else UNRESAMPLED),
        },
        "network_axes": list(source.axes),
        "mirror_axes": sorted(places) if mirroring else [],
    }


def _in_nnunets_words(resampling: Resampling) -> dict[str, Any]:
    """Arguments of nnU-Net's function."""
    return {"is_seg": False, **asdict(resampling)}


def _write_files(
    source: Source, selection: Selection, settings: Mapping[str, Any], folder: Path, name: str
) -> None:
    """Write all files of the bundle but the weights."""
    templates, kind = templates_dir(), data_kind(source.plan)
    for part in ("configs", "models", "docs", "scripts"):
        (folder / part).mkdir()
    for workflow, config in imported_configs(selection, kind, settings).items():
        write_json(folder / "configs" / f"{workflow}.json", config)
    write_json(folder / "configs" / "metadata.json", _metadata(source, selection, settings, name))
    shutil.copyfile(templates / "logging.conf", folder / "configs" / "logging.conf")
    shutil.copyfile(templates / "LICENSE", folder / "LICENSE")
    shutil.copyfile(templates / "data_license.txt", folder / "docs" / "data_license.txt")
    for file, text in script_sources(of_nnunet=True).items():
        (folder / "scripts" / file).write_text(text, encoding="utf-8")
    write_search(selection, folder / "docs" / "search.json")
    card = model_card(
        selection,
        name=name,
        label_names=source.label_names,
        origin=_origin(source, settings),
    )
    (folder / "docs" / "README.md").write_text(card, encoding="utf-8")


def _origin(source: Source, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the card says of where the network comes from."""
    order = source.processing.transpose_forward
    is_turned = settings["nnunet_plans"]["image_reader_writer"] == RAS_READER
    slices = source.plan.slice_axis
    return {
        "configuration": source.checkpoint.configuration,
        "dataset": str(source.plans.get("dataset_name", "a data set")),
        "num_epochs": source.checkpoint.num_epochs,
        "is_resampled": source.processing.is_resampled,
        "normalization": ", ".join(dict.fromkeys(source.processing.normalization_schemes)),
        "mirror_axes": ", ".join(
            _axis_names(source.plan)[axis] for axis in settings["mirror_axes"]
        ),
        "num_flips": 2 ** len(settings["mirror_axes"]),
        "orientation": ("turned to RAS" if is_turned else "as in the file, not turned to RAS")
        + (f"; nnU-Net's axes transposed by {list(order)}" if order != (0, 1, 2) else "")
        + (f"; slices along {'xyz'[slices]}" if slices is not None else ""),
    }


def _axis_names(plan: UNetPlan) -> str:
    """Names of the axes of the patch."""
    return "xyz".replace("xyz"[plan.slice_axis], "") if plan.slice_axis is not None else "xyz"


def _metadata(
    source: Source, selection: Selection, settings: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """``metadata.json``: the Model Zoo's, of a network that nnU-Net trained."""
    metadata = read_json(templates_dir() / "metadata.json")
    metadata.update(bundle_metadata(selection, name=name, label_names=source.label_names))
    kept, plan = settings["nnunet_plans"], source.plan
    schemes = ", ".join(dict.fromkeys(source.processing.normalization_schemes))
    is_natural = kept["image_reader_writer"] == NATURAL
    metadata["changelog"] = {"0.1.0": "imported from a checkpoint of nnU-Net"}
    metadata["description"] = (
        f"A {plan.spatial_dims}D U-Net of {selection.rung.num_parameters} parameters, trained by "
        f"nnU-Net, that segments {', '.join(source.label_names[1:])}"
    )
    if is_natural:
        metadata["data_type"] = kept["file_ending"].lstrip(".")
    metadata["image_classes"] = f"{plan.in_channels} channel data, nnU-Net's {schemes}"
    metadata["references"] = metadata["references"][1:]
    image = metadata["network_data_format"]["inputs"]["image"]
    image["value_range"] = []
    image["format"] = "RGB" if is_natural and plan.in_channels == 3 else "magnitude"
    image["channel_def"] = {str(i): text for i, text in enumerate(kept["channel_names"])}
    return metadata
