"""Which process and which thread scores which unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch

from monai_xtiny.networks.cost import network_cost
from monai_xtiny.networks.ladder import width_ladder
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.search.journal import Journal, Unit, UnitScore
from monai_xtiny.search.memory import GB_PER_CORE
from monai_xtiny.search.scorer import Scorer
from monai_xtiny.system.threads import side_by_side

# Time besides arithmetic, in GMACs per megavoxel, measured on one CPU core: what a network spends
# on memory and calls whatever its width, and for each channel up to a number of them.
OVERHEAD_GMACS, OVERHEAD_GMACS_PER_CHANNEL, MAX_OVERHEAD_CHANNELS = 1.5, 1.5, 8


def score_side_by_side(
    scorer: Scorer, units: Sequence[Unit], journal: Journal | None = None
) -> Iterator[tuple[Unit, UnitScore]]:
    """Score units in threads with one core each, and write each down as it ends.

    Narrow networks keep no more than one core busy, and two kernel threads of one network that
    wait for each other lose much more than they gain where another program computes. Besides,
    kernels add up in an order that may follow the number of threads: with one core per network has
    the same scores whatever runs beside it. Those of volumes that take more than ``GB_PER_CORE``
    share all cores among the few that fit.

    Args:
        scorer: of the search.
        units: (width, seed) each, costly ones first.
        journal: of finished units.

    Yields:
        Each unit with its score, in the order of ``units`` among those that as many may run beside;
        the largest come first. Units that ran out of memory beside others are scored alone at the
        end.

    Raises:
        MemoryError: one image of one unit does not fit.
    """

    def score(unit: Unit) -> UnitScore | None:
        try:
            result = scorer.score(*unit)
        except MemoryError:
            return None
        if journal is not None:
            journal.add(unit, result)
        return result

    if not units:
        return
    num_cores = torch.get_num_threads()
    if scorer.align:
        scorer.prepare(lambda work, items: side_by_side(work, items, num_cores))
    if scorer.device.type != "cpu":
        num_cores = 1
    too_large = []
    for num_workers, threads_each, group in _groups(scorer, units, num_cores):
        scores = side_by_side(score, group, num_workers, threads_each=threads_each)
        for unit, result in zip(group, scores, strict=True):
            if result is None:
                too_large.append(unit)
            else:
                yield unit, result
    for unit in too_large:
        threads_each = _threads_each(scorer, unit[0])
        (result,) = side_by_side(
            lambda item: scorer.score(*item), [unit], 1, threads_each=threads_each
        )
        if journal is not None:
            journal.add(unit, result)
        yield unit, result


def share_out(
    units: Sequence[Unit],
    plan: UNetPlan,
    num_ranks: int,
    *,
    num_images: Callable[[int], int] | None = None,
) -> list[list[Unit]]:
    """Deal units to ranks so that all take about the same time, the costly ones first.

    The cost of a unit is its arithmetic plus what narrow networks spend besides.

    Args:
        units: (width, seed) each.
        plan: of the full network.
        num_ranks: processes.
        num_images: that each width is scored on; ``None`` for the same number.

    Returns:
        The units of each rank, costly ones first.
    """
    costs = unit_costs(plan)
    if num_images is not None:
        costs = {width: cost * num_images(width) for width, cost in costs.items()}
    loads = [0.0] * num_ranks
    shares: list[list[Unit]] = [[] for _ in range(num_ranks)]
    for unit in sorted(units, key=lambda item: -costs[item[0]]):
        rank = min(range(num_ranks), key=lambda index: loads[index])
        shares[rank].append(unit)
        loads[rank] += costs[unit[0]]
    return shares


def unit_costs(plan: UNetPlan) -> dict[int, float]:
    """Relative time that each width of the ladder takes for one initialization and image.

    The arithmetic, and what networks spend besides: on memory and on calls.
    """
    megavoxels = prod(plan.patch_size) / 1e6
    costs = {}
    for width in width_ladder(plan):
        channels = min(width, MAX_OVERHEAD_CHANNELS)
        overhead = OVERHEAD_GMACS + OVERHEAD_GMACS_PER_CHANNEL * channels
        costs[width] = network_cost(plan, width).gmacs + megavoxels * overhead
    return costs


def _groups(
    scorer: Scorer, units: Sequence[Unit], num_cores: int
) -> list[tuple[int, int | None, list[Unit]]]:
    """Units with how many of them may run side by side, fewest first, and the threads of each."""

    def setting(unit: Unit) -> tuple[int, int | None]:
        fits = int(scorer.limit_gb / scorer.memory_gb(unit[0]))
        return max(1, min(num_cores, fits)), _threads_each(scorer, unit[0])

    groups: dict[tuple[int, int | None], list[Unit]] = {}
    for unit in units:
        groups.setdefault(setting(unit), []).append(unit)
    return [(*key, groups[key]) for key in sorted(groups, key=lambda key: key[0])]


def _threads_each(scorer: Scorer, width: int) -> int | None:
    """Kernel threads of a network of that width: one, or none in particular where it is large."""
    if scorer.device.type != "cpu":
        return None
    is_large = not scorer.is_packed and scorer.memory_gb(width) > GB_PER_CORE
    return None if is_large else 1
