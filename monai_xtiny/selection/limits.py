"""The best width within limits of parameters, GMACs or latency, and what that costs. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from monai_xtiny.networks.cost import network_cost
from monai_xtiny.networks.ladder import width_ladder
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.bayes import unlabeled_belief
from monai_xtiny.selection.choice import select_width
from monai_xtiny.selection.posterior import expected_dice_lost
from monai_xtiny.selection.rule import Budget, Selection


def select_within(
    table: ScoreTable,
    method: str = "paper",
    *,
    max_parameters: int | None = None,
    max_gmacs: float | None = None,
    max_latency_ms: float | None = None,
    measure: Callable[[UNetPlan, int], float] | None = None,
) -> Selection:
    """Choose the best width that keeps to some limits.

    Where the rule's own choice does, it stays. Otherwise see :func:`monai_xtiny.select_width`. Of
    the widths that the other limits allow, the latency is measured from the rule's choice on down,
    until one is fast enough.

    Args:
        table: scores of every width and initialization.
        method: name of the rule.
        max_parameters: of the network; default: no limit, as below.
        max_gmacs: of one forward pass on one patch, in 1e9 multiply-accumulates.
        max_latency_ms: of one forward pass on one patch, ms.
        measure: latency of a plan's network under a width cap, ms.

    Returns:
        The choice; with limits it has a ``budget``.

    Raises:
        ValueError: the method is unknown, the table lacks what it needs, a limit is no number above
            0, nothing measures the latency, or no width keeps to the limits.
    """
    limits = checked_limits(max_parameters, max_gmacs, max_latency_ms)
    free = select_width(table, method)
    if not limits:
        return free
    narrowest = table.ladder[-1]
    _check_narrowest(limits, narrowest.max_features, narrowest.num_parameters, narrowest.gmacs)
    budget = Budget(free.max_features, 0.0, 0.0, **limits)
    if max_latency_ms is not None:
        if measure is None:
            raise ValueError("max_latency_ms is given, and nothing measures it: give measure")
        budget = _with_latencies(free, budget, measure, max_latency_ms)
    fitting = replace(free, budget=budget).fitting_widths
    chosen = select_width(table, method, among=fitting)
    shares = unlabeled_belief(table).shares(table.widths)
    return replace(chosen, budget=renewed_budget(budget, shares, chosen.max_features))


def renewed_budget(budget: Budget, shares: Mapping[int, float], width: int) -> Budget:
    """A budget with what a width is expected to lose, by what is known now.

    Args:
        budget: with the width that was searched.
        shares: probability of each width to be the smallest that suffices.
        width: that is chosen.
    """
    return replace(
        budget,
        expected_dice_lost=round(expected_dice_lost(shares, width), 5),
        searched_dice_lost=round(expected_dice_lost(shares, budget.searched), 5),
    )


def check_budget(
    plan: UNetPlan,
    *,
    max_parameters: int | None = None,
    max_gmacs: float | None = None,
    max_latency_ms: float | None = None,
) -> None:
    """Refuse, before anything is scored, limits that no network of a plan keeps to.

    Args:
        plan: of the full network.
        max_parameters: as :func:`select_within` takes it; likewise the others.
        max_gmacs: see there.
        max_latency_ms: see there; it is not measured yet.

    Raises:
        ValueError: a limit is no number above 0, or the narrowest network exceeds one.
    """
    limits = checked_limits(max_parameters, max_gmacs, max_latency_ms)
    width = width_ladder(plan)[-1]
    cost = network_cost(plan, width)
    _check_narrowest(limits, width, cost.num_parameters, cost.gmacs)


def checked_limits(max_parameters: Any, max_gmacs: Any, max_latency_ms: Any) -> dict[str, Any]:
    """The limits that are given, by name; ``None`` is none.

    Raises:
        ValueError: one is no number above 0; the message names the option.

    >>> checked_limits(6000, None, 2.5)
    {'max_parameters': 6000, 'max_latency_ms': 2.5}
    """
    values: dict[str, Any] = {
        "max_parameters": max_parameters,
        "max_gmacs": max_gmacs,
        "max_latency_ms": max_latency_ms,
    }
    limits = {name: value for name, value in values.items() if value is not None}
    for name, value in limits.items():
        is_whole = name == "max_parameters"
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or (is_whole and not isinstance(value, int)) or not 0 < value < inf:
            what = "a whole number" if is_whole else "a number"
            raise ValueError(f"--{name} is {value!r}: give {what} above 0")
    return limits


def _check_narrowest(
    limits: Mapping[str, Any], width: int, num_parameters: int, gmacs: float
) -> None:
    """Refuse limits that the narrowest width exceeds."""
    for name, value, text in (
        ("max_parameters", num_parameters, f"{num_parameters:,} parameters"),
        ("max_gmacs", gmacs, f"{gmacs:.3g} GMACs"),
    ):
        if name in limits and value > limits[name]:
            raise ValueError(
                f"--{name} is {limits[name]}, and the narrowest network, width {width}, has "
                f"{text}: give more, or leave the limit out"
            )


def _with_latencies(
    free: Selection, budget: Budget, measure: Callable[[UNetPlan, int], float], limit: float
) -> Budget:
    """A budget with the latencies of widths, from the rule's choice on down until one fits."""
    sized = replace(budget, max_latency_ms=None)
    latencies: dict[int, float] = {}
    for rung in free.table.ladder:
        width = rung.max_features
        if width > free.max_features or not sized.fits(rung):
            continue
        latencies[width] = round(measure(free.table.plan, width), 3)
        if latencies[width] <= limit:
            return replace(budget, latencies_ms=latencies)
    raise ValueError(
        f"--max_latency_ms is {limit}, and the narrowest network, width {width}, takes "
        f"{latencies[width]} ms per patch here: give more, or plan a smaller patch (--plans); the "
        "same command goes on from the scores"
    )
