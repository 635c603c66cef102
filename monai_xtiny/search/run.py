"""The (width, seed) units of a search, shared out and written down, and the table they make."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import ignite.distributed as idist
from tqdm import tqdm

from monai_xtiny.data.case import Sample
from monai_xtiny.networks.cost import network_cost
from monai_xtiny.networks.ladder import cap_features, width_ladder
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.table import Rung, ScoreTable
from monai_xtiny.search.journal import Journal, Unit, UnitScore
from monai_xtiny.search.scorer import Scorer, describe_environment
from monai_xtiny.search.workers import score_side_by_side, share_out
from monai_xtiny.system.devices import select_device

# Initializations of a width, in a search that still ends.
MAX_SEEDS = 10_000
MIN_LADDER = 5


def run_search(
    sample: Sample,
    plan: UNetPlan,
    *,
    seeds: Sequence[int] = (369,),
    refine: Callable[[ScoreTable], Mapping[int, int]] | None = None,
    align: bool = False,
    num_wide_images: int | None = None,
    shared_orientation: float | None = None,
    device: str = "auto",
    journal: str | os.PathLike[str] | None = None,
    max_memory_gb: float | None = None,
    progress: bool = True,
) -> ScoreTable:
    """Score every width of the plan's ladder at initialization.

    A unit is one width with one seed, reset before each width as published; its network sees the
    images through an ignite engine. Under ``torchrun`` the units are shared out over the ranks by
    their cost, and every rank returns the whole table.

    Args:
        sample: preprocessed images, each of shape ``(in_channels, *patch_size)``.
        plan: of the full network.
        seeds: of the initializations that every width is scored with.
        refine: asked after each round of scoring how many initializations of a width should be
            aligned; seeds after the given ones count on from the last. It ends the search by asking
            for no more than there are.
        align: also measure what widths up to ``max_aligned_width`` keep of the images.
        num_wide_images: images, the first ones, that wider ones are scored on; ``None``, or more
            than there are, for all. Fewer save most of the time of a search whose choice does not
            rest on them.
        shared_orientation: of the images, for the table.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        journal: file to which every finished unit is appended, and from which an interrupted search
            goes on; see :class:`monai_xtiny.search.journal.Journal`.
        max_memory_gb: what this process may hold; see
            :func:`monai_xtiny.search.memory.scoring_limit_gb`.
        progress: show a bar on stderr.

    Returns:
        The table of scores.

    Raises:
        ValueError: there are no images or seeds, an image does not fit the plan, the ladder has
            fewer than 5 widths, the device is unknown, a score is not finite, ``num_wide_images``
            is below 1 or given without ``align``, ``max_memory_gb`` is too little, or the journal
            is of another search.
        MemoryError: not even one image fits.
    """
    check_ladder(plan)
    _check_sample(sample, plan, seeds)
    _check_wide_images(num_wide_images, align=align)
    target = select_device(device)
    start = time.perf_counter()
    scorer = Scorer(
        sample,
        plan,
        seeds,
        target,
        align=align,
        num_wide_images=num_wide_images,
        max_memory_gb=max_memory_gb,
    )
    record = _open_journal(journal, scorer)
    scores = {} if record is None else dict(record.scores)
    counts = {width: len(seeds) for width in width_ladder(plan)}
    while True:
        drawn = _extend_seeds(seeds, max(counts.values()))
        units = [(width, seed) for width, count in counts.items() for seed in drawn[:count]]
        missing = [unit for unit in units if unit not in scores]
        try:
            scores |= _score_units(scorer, missing, record, progress=progress)
        except ValueError:  # bad input: nothing to go on from
            if record is not None:
                record.discard()
            raise
        seconds = sample.seconds + _common_seconds(start)
        table = ScoreTable(
            plan=plan,
            ladder=tuple(
                _make_rung(plan, width, [scores[width, seed] for seed in drawn[:count]])
                for width, count in counts.items()
            ),
            seeds=tuple(seeds),
            images=sample.names,
            seconds={"load": sample.seconds, "score": seconds - sample.seconds, "total": seconds},
            environment=describe_environment(target),
            alignment_seeds=drawn if align else (),
            shared_orientation=shared_orientation,
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


def _check_sample(sample: Sample, plan: UNetPlan, seeds: Sequence[int]) -> None:
    """Refuse a sample that does not fit the plan, before any network is made."""
    if not sample.images or not seeds:
        raise ValueError(
            f"{len(sample.images)} images and {len(seeds)} seeds: give at least one of each"
        )
    if len(seeds) > MAX_SEEDS:
        raise ValueError(f"{len(seeds)} seeds: give at most {MAX_SEEDS}")
    expected = (plan.in_channels, *plan.patch_size)
    for name, image in zip(sample.names, sample.images, strict=True):
        if tuple(image.shape) != expected:
            raise ValueError(
                f"{name}: shape {tuple(image.shape)} after the transforms, the plan needs "
                f"{expected}: crop and pad to the patch size"
            )


def _check_wide_images(num_wide_images: int | None, *, align: bool) -> None:
    """Refuse numbers of images that no table could hold."""
    if num_wide_images is None:
        return
    if num_wide_images < 1:
        raise ValueError(f"num_wide_images is {num_wide_images}: give at least 1")
    if not align:
        raise ValueError(
            f"num_wide_images is {num_wide_images}, and without align every width needs the same "
            "images: give a smaller sample"
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


def _extend_seeds(seeds: Sequence[int], count: int) -> tuple[int, ...]:
    """At least ``count`` seeds: the given ones, then counting on from the last."""
    following = range(seeds[-1] + 1, seeds[-1] + 1 + count - len(seeds))
    return (*seeds, *following)


def _common_seconds(start: float) -> float:
    """Wall time since a moment of ``time.perf_counter``, by one clock: all ranks decide alike."""
    seconds = time.perf_counter() - start
    if idist.get_world_size() > 1:
        seconds = float(cast(float, idist.broadcast(seconds, src=0)))
    return seconds


def _score_units(
    scorer: Scorer, units: Sequence[Unit], journal: Journal | None, *, progress: bool
) -> dict[Unit, UnitScore]:
    """Score units, shared out over the ranks; every rank returns all of them."""
    shares = share_out(units, scorer.plan, idist.get_world_size(), num_images=scorer.num_images)
    mine = shares[idist.get_rank()]
    show = progress and idist.get_rank() == 0
    scores: dict[Unit, UnitScore] = {}
    with tqdm(
        total=len(mine), desc="scoring", unit="network", disable=None if show else True, leave=False
    ) as bar:
        for unit, score in score_side_by_side(scorer, mine, journal):
            scores[unit] = score
            bar.update()
    if idist.get_world_size() > 1:
        for part in cast(list[dict[Unit, UnitScore]], idist.all_gather(scores)):
            scores.update(part)
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
