"""From an nnU-Net data set to a configuration of the chosen width in its plans."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_xtiny.bundle.search_file import write_search
from monai_xtiny.bundle.summary import budget_sentence
from monai_xtiny.bundled.locks import write_lock
from monai_xtiny.data.case import Case, Sample
from monai_xtiny.data.cases import sample_cases
from monai_xtiny.data.images import load_sample
from monai_xtiny.nnunet.cases import Images, find_nnunet_images, patch_transform
from monai_xtiny.nnunet.folders import NnunetDataSet, find_data_set
from monai_xtiny.nnunet.plans_file import (
    BACKUP_SUFFIX,
    add_configuration,
    check_layout,
    check_processing,
    check_writable,
    read_channels_and_labels,
)
from monai_xtiny.plan.nnunet import load_nnunet_plan, read_nnunet_plans, resolve_configuration
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.search.journal import journal_path, remove_journal
from monai_xtiny.search.run import check_ladder, run_search
from monai_xtiny.search.workers import unit_costs
from monai_xtiny.selection.limits import check_budget, checked_limits, select_within
from monai_xtiny.selection.rule import Rule, Selection
from monai_xtiny.selection.rules import find_rule, refinement
from monai_xtiny.system.devices import select_device


@dataclass(frozen=True)
class PlannedData:
    """A configuration of an nnU-Net data set that can be searched.

    Args:
        data_set: its folders.
        plans_path: of the plans file.
        configuration: ``2d`` for example.
        plan: of its network, in MONAI's array order.
        label_names: of the classes, background first.
        cases: of the data set.
        images: dictionary transform that reads a case as nnU-Net's network sees it.
        transpose_forward: of the plans.
    """

    data_set: NnunetDataSet
    plans_path: Path
    configuration: str
    plan: UNetPlan
    label_names: tuple[str, ...]
    cases: tuple[Case, ...]
    images: Images
    transpose_forward: tuple[int, ...]

    def describe(self) -> str:
        """Say what was found before it is worked on, in two lines."""
        plan, kind = self.plan, self.cases[0].kind
        found = "preprocessed" if kind == "nnunet" else "raw"
        return (
            f"{self.data_set.name}, configuration {self.configuration}: {len(self.cases)} {found} "
            f"cases, {plan.in_channels} channel{'s' * (plan.in_channels > 1)}, "
            f"{plan.out_channels} classes\n"
            f"patch {' x '.join(map(str, plan.patch_size))} voxels, {len(plan.strides)} stages, "
            f"at most {max(plan.features_per_stage)} features"
        )


@dataclass(frozen=True)
class Configured:
    """What was added to the plans of a data set.

    Args:
        planned: what was searched.
        selection: the choice.
        name: of the added configuration, ``2d_xtiny8`` for example.
        is_new: whether the plans were changed; they had it already otherwise.
        record: the choice and all scores, a ``search.json``.
    """

    planned: PlannedData
    selection: Selection
    name: str
    is_new: bool
    record: Path

    @property
    def summary(self) -> str:
        """The choice, where it was written, and nnU-Net's commands that come next."""
        rung, full = self.selection.rung, self.selection.table.ladder[0]
        path, number = self.planned.plans_path, self.planned.data_set.number
        confidence = self.selection.confidence
        sure = "" if confidence is None else f", confidence {confidence:.0%}"
        doubt = find_rule(self.selection.method).doubt(self.selection)
        advice = f"{doubt}: score more initializations (--num_seeds) or images (--num_images)"
        times = full.num_parameters_nnunet / rung.num_parameters_nnunet
        done = "added to" if self.is_new else "was already in"
        plans = "" if path.stem == "nnUNetPlans" else f" -p {path.stem}"
        folders = "-i IMAGES -o LABELS"
        budget = self.selection.budget
        lines = [
            f"selected width {rung.max_features}: {rung.num_parameters_nnunet:,} parameters in "
            f"nnU-Net, {times:.0f} times fewer than {full.num_parameters_nnunet:,} (method "
            f"{self.selection.method}{sure})",
            "" if budget is None else budget_sentence(self.selection),
            advice if doubt else "",
            f"configuration {self.name} {done} {str(path)!r} (as it was before: "
            f"{path.name}{BACKUP_SUFFIX}); all scores: {self.record.name}",
            "next:",
            f"  nnUNetv2_train {number} {self.name} 0{plans}",
            f"  nnUNetv2_predict -d {number} -c {self.name} -f 0{plans} {folders}",
        ]
        return "\n".join(line for line in lines if line)


def plan_nnunet_data_set(
    dataset_id: str | int, configuration: str = "2d", plans_identifier: str = "nnUNetPlans"
) -> PlannedData:
    """Find a configuration of an nnU-Net data set, and refuse one that cannot be searched.

    Args:
        dataset_id: or the data set's name.
        configuration: of the plans.
        plans_identifier: name of the plans file, without ``.json``.

    Raises:
        FileNotFoundError: a folder, the data set, its plans or its images are not there.
        ValueError: environment variables are not set, or the plans ask for what is not supported.
        PermissionError: the plans cannot be written.
        ImportError: the cases cannot be read without blosc2.
    """
    data_set = find_data_set(dataset_id)
    path = data_set.plans_path(plans_identifier)
    if re.search(r"_xtiny\d+$", configuration):
        raise ValueError(
            f"configuration {configuration!r} is a chosen width: give the one it inherits from"
        )
    plans = read_nnunet_plans(path)
    in_channels, labels = read_channels_and_labels(data_set.preprocessed / "dataset.json")
    plan = load_nnunet_plan(
        path,
        configuration,
        in_channels=in_channels,
        out_channels=len(labels),
        of_images=_is_of_images(plans),
        any_normalization=True,
    )
    settings = resolve_configuration(plans, configuration)
    where = f"configuration {configuration!r} of {str(path)!r}"
    check_layout(settings, plans.get("transpose_forward"), where)
    check_processing(settings, in_channels, where)
    check_ladder(plan)
    check_writable(path.parent)
    cases, images = find_nnunet_images(data_set, plans, settings)
    order = tuple(int(axis) for axis in plans["transpose_forward"])
    return PlannedData(data_set, path, configuration, plan, labels, cases, images, order)


def configure_data_set(
    planned: PlannedData,
    *,
    method: str = "bayes",
    num_images: int | str | None = None,
    seed: int = 369,
    num_seeds: int | None = None,
    max_seconds: float | None = None,
    max_memory_gb: float | None = None,
    max_parameters: int | None = None,
    max_gmacs: float | None = None,
    max_latency_ms: float | None = None,
    measure: Callable[[UNetPlan, int], float] | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Configured:
    """Search the width of a planned data set, and add its configuration to the plans.

    The choice and its scores are kept beside the plans. A search that was interrupted goes on.

    Args:
        planned: of :func:`plan_nnunet_data_set`.
        method: rule that chooses.
        num_images: to score, or ``all``; ``None`` for as many as the rule asks for.
        seed: of the first initialization and of the draw of images.
        num_seeds: initializations of every width; ``None`` for as many as make the choice sure.
        max_seconds: time after which no further initializations are asked for.
        max_memory_gb: what the process may hold.
        max_parameters: the best width within the limits is chosen, as
            :func:`monai_xtiny.select_within` does; likewise the next two.
        max_gmacs: of one forward pass on one patch, in 1e9 multiply-accumulates.
        max_latency_ms: of one forward pass on one patch, ms.
        measure: latency of a plan's network under a width cap, ms.
        device: auto, cpu, cuda, cuda:1, ...
        progress: show bars on stderr.

    Raises:
        ValueError: an option is unknown, an image cannot be scored, no width keeps to the limits,
            or the plans have another configuration of this name.
        BlockingIOError: another process configures the same data set.
    """
    rule = find_rule(method)
    select_device(device)
    path, plan = planned.plans_path, planned.plan
    limits = checked_limits(max_parameters, max_gmacs, max_latency_ms)
    check_budget(plan, **limits)
    journal = journal_path(path.with_name(f"{path.stem}_{planned.configuration}"))
    with write_lock(path):
        table = run_search(
            _load_patches(planned, _number_of_images(num_images, rule), seed, progress=progress),
            plan,
            seeds=range(seed, seed + (num_seeds or 1)),
            refine=refinement(
                method,
                num_seeds=num_seeds,
                max_seconds=max_seconds,
                unit_cost=unit_costs(plan).__getitem__,
            ),
            align=rule.needs_alignment,
            num_wide_images=rule.num_wide_images,
            device=device,
            journal=journal,
            max_memory_gb=max_memory_gb,
            progress=progress,
        )
        selection = select_within(table, method, **limits, measure=measure)
        features = selection.rung.features_per_stage
        name, is_new = add_configuration(path, planned.configuration, features)
        record = write_search(selection, path.with_name(f"{path.stem}_{name}_search.json"))
        remove_journal(journal)
    return Configured(planned, selection, name, is_new, record)


def _is_of_images(plans: Mapping[str, Any]) -> bool:
    """Whether nnU-Net planned 2D images, its volumes of one slice, and no volumes."""
    shape = plans.get("original_median_shape_after_transp")
    return isinstance(shape, list) and shape[:1] == [1]


def _load_patches(
    planned: PlannedData, num_images: int | None, seed: int, *, progress: bool
) -> Sample:
    """What is scored of a seeded draw of cases."""
    cases = sample_cases(planned.cases, num_images, seed=seed)
    transform = patch_transform(planned.images, planned.plan, planned.transpose_forward)
    return load_sample(cases, transform, progress=progress)


def _number_of_images(num_images: int | str | None, rule: Rule) -> int | None:
    """How many images are scored; ``None`` for all."""
    if num_images is None:
        return rule.num_images
    return None if num_images == "all" else int(num_images)
