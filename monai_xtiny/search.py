"""The (width, seed) units of a search, shared out and written down, and the table they make."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, cast

import ignite.distributed as idist
import torch
from tqdm import tqdm

from monai_xtiny.data import Sample
from monai_xtiny.journal import Journal, Unit, UnitScore
from monai_xtiny.networks import cap_features, network_cost, width_ladder
from monai_xtiny.plan import UNetPlan
from monai_xtiny.scheduling import score_side_by_side, share_out
from monai_xtiny.scoring import Scorer, describe_environment

MIN_LADDER = 5


@dataclass(frozen=True)
class Rung:
    """One width of the ladder with its cost and scores.

    Args:
        max_features: the width cap.
        features_per_stage: channels of each stage under the cap.
        num_parameters: of the DynUNet.
        num_parameters_nnunet: of nnU-Net's network of these widths, biases included.
        gmacs: multiply-accumulates of one forward pass on one patch, in 1e9.
        sensitivity: one row a seed of the table, one value an image.
        alignment: one row an initialisation, those of the table's first ``alignment_seeds``, one
            value an image; no rows where it was not measured.
    """

    max_features: int
    features_per_stage: tuple[int, ...]
    num_parameters: int
    num_parameters_nnunet: int
    gmacs: float
    sensitivity: tuple[tuple[float, ...], ...]
    alignment: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class ScoreTable:
    """Every score of a search.

    Args:
        plan: of the full network.
        ladder: one rung a width, widest first.
        seeds: of the initialisations, in the order of the rungs' rows.
        images: names of the images, in the order of the rows' values.
        seconds: wall time of loading, scoring and both.
        environment: versions, and the device that computed the scores.
        alignment_seeds: of the initialisations that were aligned; narrow widths with more of them
            than wide ones.
    """

    plan: UNetPlan
    ladder: tuple[Rung, ...]
    seeds: tuple[int, ...]
    images: tuple[str, ...]
    seconds: Mapping[str, float]
    environment: Mapping[str, str]
    alignment_seeds: tuple[int, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Width caps, widest first."""
        return tuple(rung.max_features for rung in self.ladder)

    def curve(self, seed_index: int) -> tuple[float, ...]:
        """Mean sensitivity over the images at each width, for one initialisation."""
        rows = [rung.sensitivity[seed_index] for rung in self.ladder]
        return tuple(sum(row) / len(row) for row in rows)


def select_device(device: str = "auto") -> torch.device:
    """Resolve a device name; ``auto`` takes CUDA where there is one, a GPU a rank of a machine.

    Raises:
        ValueError: the name is unknown, or the machine has no such device.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", idist.get_local_rank() if idist.get_world_size() > 1 else 0)
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {device!r} is unknown or not available here: give auto, cpu or cuda"
        ) from error
    return resolved


def run_search(
    sample: Sample,
    plan: UNetPlan,
    *,
    seeds: Sequence[int] = (369,),
    refine: Callable[[ScoreTable], Mapping[int, int]] | None = None,
    align: bool = False,
    device: str = "auto",
    journal: str | os.PathLike[str] | None = None,
    max_memory_gb: float | None = None,
    progress: bool = True,
) -> ScoreTable:
    """Score every width of the plan's ladder at initialisation.

    A unit is one width with one seed, reset before each width as published; its network sees the
    images through an ignite engine. Under ``torchrun`` the units are shared out over the ranks by
    their cost, and every rank returns the whole table.

    Args:
        sample: preprocessed images, each of shape (in_channels, *patch_size).
        plan: of the full network.
        seeds: of the initialisations that every width is scored with.
        refine: asked after each round of scoring how many initialisations of a width should be
            aligned; seeds after the given ones count on from the last. It ends the search by asking
            for no more than there are.
        align: also measure what widths up to ``max_aligned_width`` keep of the images.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        journal: file to which every finished unit is appended, and from which an interrupted search
            goes on; see :class:`monai_xtiny.journal.Journal`.
        max_memory_gb: what this process may hold; see
            :func:`monai_xtiny.memory.scoring_limit_gb`.
        progress: show a bar on stderr.

    Returns:
        The table of scores.

    Raises:
        ValueError: there are no images or seeds, an image does not fit the plan, the ladder has
            fewer than 5 widths, the device is unknown, a score is not finite, ``max_memory_gb`` is
            too little, or the journal is of another search.
        MemoryError: not even one image fits.
    """
    check_ladder(plan)
    _check_sample(sample, plan, seeds)
    target = select_device(device)
    start = time.perf_counter()
    scorer = Scorer(sample, plan, seeds, target, align=align, max_memory_gb=max_memory_gb)
    done = _open_journal(journal, scorer)
    all_seeds = list(seeds)
    counts = {width: len(seeds) for width in width_ladder(plan)}
    while True:
        all_seeds += range(
            all_seeds[-1] + 1, all_seeds[-1] + 1 + max(counts.values()) - len(all_seeds)
        )
        units = [(width, seed) for width, count in counts.items() for seed in all_seeds[:count]]
        try:
            scores = _score_units(scorer, units, done, progress=progress)
        except ValueError:  # bad input: nothing to go on from
            if done is not None:
                done.discard()
            raise
        # One clock, so that all ranks decide alike.
        seconds = sample.seconds + time.perf_counter() - start
        if idist.get_world_size() > 1:
            seconds = float(cast(float, idist.broadcast(seconds, src=0)))
        table = ScoreTable(
            plan=plan,
            ladder=tuple(
                _make_rung(plan, width, [scores[width, seed] for seed in all_seeds[:count]])
                for width, count in counts.items()
            ),
            seeds=tuple(seeds),
            images=sample.names,
            seconds={"load": sample.seconds, "score": seconds - sample.seconds, "total": seconds},
            environment=describe_environment(target),
            alignment_seeds=tuple(all_seeds) if align else (),
        )
        wanted = {} if refine is None else refine(table)
        more = {width: max(count, wanted.get(width, 0)) for width, count in counts.items()}
        if more == counts:
            return table
        counts = more


def check_ladder(plan: UNetPlan) -> None:
    """Refuse a plan whose ladder is too short to choose from.

    Raises:
        ValueError: the ladder has fewer than 5 widths.
    """
    widths = width_ladder(plan)
    if len(widths) < MIN_LADDER:
        raise ValueError(
            f"the ladder {', '.join(map(str, widths))} has {len(widths)} widths, and a choice "
            f"needs {MIN_LADDER}: the full network must have at least 16 features"
        )


def table_to_dict(table: ScoreTable) -> dict[str, Any]:
    """A table in JSON's types, as ``docs/search.json`` holds it."""
    return {
        "plan": asdict(table.plan),
        "images": list(table.images),
        "seeds": list(table.seeds),
        **({"alignment_seeds": list(table.alignment_seeds)} if table.alignment_seeds else {}),
        "ladder": [_rung_to_dict(rung) for rung in table.ladder],
        "seconds": dict(table.seconds),
        "environment": dict(table.environment),
    }


def _rung_to_dict(rung: Rung) -> dict[str, Any]:
    """A rung in JSON's types; alignment only where it was measured."""
    content = asdict(rung)
    if not rung.alignment:
        del content["alignment"]
    return content


def table_from_dict(content: Mapping[str, Any]) -> ScoreTable:
    """The table that :func:`table_to_dict` wrote.

    Raises:
        ValueError: a field is missing or has another form, the widths do not descend, or a score
            is not finite.
    """
    try:
        ladder = tuple(
            Rung(
                max_features=int(row["max_features"]),
                features_per_stage=tuple(int(width) for width in row["features_per_stage"]),
                num_parameters=int(row["num_parameters"]),
                num_parameters_nnunet=int(row["num_parameters_nnunet"]),
                gmacs=float(row["gmacs"]),
                sensitivity=tuple(tuple(map(float, values)) for values in row["sensitivity"]),
                alignment=tuple(tuple(map(float, values)) for values in row.get("alignment", ())),
            )
            for row in content["ladder"]
        )
        table = ScoreTable(
            plan=UNetPlan(**content["plan"]),
            ladder=ladder,
            seeds=tuple(int(seed) for seed in content["seeds"]),
            images=tuple(str(name) for name in content["images"]),
            seconds=dict(content["seconds"]),
            environment=dict(content["environment"]),
            alignment_seeds=tuple(int(seed) for seed in content.get("alignment_seeds", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"no table of scores ({error}): write it with monai_xtiny score"
        ) from error
    if list(table.widths) != sorted(set(table.widths), reverse=True):
        raise ValueError(f"the ladder {table.widths} must descend: write the table again")
    num_seeds, num_images = len(table.seeds), len(table.images)
    for rung in table.ladder:
        sizes = {len(row) for row in (*rung.sensitivity, *rung.alignment)}
        if sizes != {num_images} or len(rung.sensitivity) != num_seeds or 0 in sizes:
            raise ValueError(
                f"width {rung.max_features} lacks scores: expected {num_seeds} seeds of "
                f"{num_images} images"
            )
        scores = [value for row in (*rung.sensitivity, *rung.alignment) for value in row]
        if not all(map(isfinite, scores)):
            raise ValueError(
                f"width {rung.max_features} has a score that is not finite: score again"
            )
        if len(rung.alignment) > len(table.alignment_seeds):
            raise ValueError(
                f"width {rung.max_features} has {len(rung.alignment)} rows of alignment and the "
                f"table {len(table.alignment_seeds)} alignment_seeds: write the table again"
            )
    return table


def _check_sample(sample: Sample, plan: UNetPlan, seeds: Sequence[int]) -> None:
    """Refuse a sample that does not fit the plan, before any network is made."""
    if not sample.images or not seeds:
        raise ValueError(
            f"{len(sample.images)} images and {len(seeds)} seeds: give at least one of each"
        )
    expected = (plan.in_channels, *plan.patch_size)
    for name, image in zip(sample.names, sample.images, strict=True):
        if tuple(image.shape) != expected:
            raise ValueError(
                f"{name}: shape {tuple(image.shape)} after the transforms, the plan needs "
                f"{expected}: crop and pad to the patch size"
            )


def _open_journal(path: str | os.PathLike[str] | None, scorer: Scorer) -> Journal | None:
    """The journal of this process, with what all ranks have finished."""
    if path is None:
        return None
    journal = Journal(path, scorer.subject(), rank=idist.get_rank())
    # Nobody writes before everybody has read the same.
    if idist.get_world_size() > 1:
        idist.barrier()
    return journal


def _score_units(
    scorer: Scorer,
    units: Sequence[Unit],
    journal: Journal | None,
    *,
    progress: bool,
) -> dict[Unit, UnitScore]:
    """Score what is not yet known, shared out over the ranks; everything is returned."""
    scores = journal.scores if journal is not None else scorer.known
    missing = [unit for unit in units if unit not in scores]
    mine = share_out(missing, scorer.plan, idist.get_world_size())[idist.get_rank()]
    show = progress and idist.get_rank() == 0
    fresh: dict[Unit, UnitScore] = {}
    with tqdm(
        total=len(mine), desc="scoring", unit="network", disable=None if show else True, leave=False
    ) as bar:
        for unit, score in score_side_by_side(scorer, mine, journal):
            fresh[unit] = score
            bar.update()
    if idist.get_world_size() > 1:
        for part in cast(list[dict[Unit, UnitScore]], idist.all_gather(fresh)):
            fresh.update(part)
    scores.update(fresh)
    return scores


def _make_rung(plan: UNetPlan, width: int, scores: Sequence[UnitScore]) -> Rung:
    """Join scores and costs of a width."""
    cost = network_cost(plan, width)
    return Rung(
        max_features=width,
        features_per_stage=cap_features(plan, width),
        num_parameters=cost.num_parameters,
        num_parameters_nnunet=cost.num_parameters_nnunet,
        gmacs=cost.gmacs,
        sensitivity=tuple(score.sensitivity for score in scores if score.sensitivity),
        alignment=tuple(score.alignment for score in scores if score.alignment),
    )
