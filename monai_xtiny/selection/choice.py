"""From scores to a width, and how `docs/search.json` writes it down. NumPy only."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from math import inf, isfinite
from typing import Any

from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.rule import Budget, Race, RacedWidth, Selection
from monai_xtiny.selection.rules import check_method, find_rule, suited_method

__all__ = [
    "Selection",
    "check_method",
    "select_width",
    "selection_from_dict",
    "selection_to_dict",
    "suited_method",
    "with_width",
]

FORMAT_VERSION = 1


def select_width(
    table: ScoreTable, method: str = "paper", *, among: Collection[int] | None = None
) -> Selection:
    """Choose a width from a table of scores by one of the rules.

    ``alignment`` applies :func:`monai_xtiny.selection.select_alignment` to the mean over all
    initializations and images; bootstrap resamples of both vote. ``paper`` applies
    :func:`monai_xtiny.select_paper` to each initialization's mean curve and takes the width with
    the most votes, the wider on a tie; with one initialization it is the published rule.

    Args:
        table: scores of every width and initialization.
        method: name of the rule.
        among: widths that are allowed; default: all. Where the rule's own choice is not, ``bayes``
            takes the one of the least expected loss, the other rules the widest that is narrower.

    Raises:
        ValueError: the method is unknown, the table lacks what it needs, or no width is allowed.
    """
    if not table.seeds:
        raise ValueError("the table holds no scores, of a network that was imported: search anew")
    rule = find_rule(method)
    selection = rule.choose(table)
    if among is None or selection.max_features in among:
        return selection
    allowed = [width for width in table.widths if width in among]
    if not allowed:
        raise ValueError(f"none of the widths {sorted(among)} is in the ladder {table.widths}")
    width = rule.among(selection, allowed)
    is_stated = selection.confidence is not None
    return replace(
        selection,
        max_features=width,
        confidence=selection.votes.get(width, 0.0) if is_stated else None,
    )


def with_width(selection: Selection, max_features: int) -> Selection:
    """Another width of the same ladder, which neither a race nor a budget chose.

    Args:
        selection: of the ladder; its votes remain, but those that a race has changed: they are the
            rule's again.
        max_features: the width.

    Raises:
        ValueError: it is not in the ladder.
    """
    if max_features not in selection.table.widths:
        raise ValueError(
            f"width {max_features} is not in the ladder {selection.table.widths}: give one of it"
        )
    if max_features == selection.max_features:
        return selection
    chosen = selection.in_place_of or selection.max_features
    if selection.race is not None:
        chosen = selection.race.searched
        if selection.table.seeds:  # those of an imported network are the race's alone
            selection = select_width(selection.table, selection.method)
    share = None if selection.confidence is None else selection.votes.get(max_features, 0.0)
    return replace(
        selection,
        max_features=max_features,
        confidence=share,
        race=None,
        budget=None,
        in_place_of=None if max_features == chosen else chosen,
    )


def selection_to_dict(selection: Selection) -> dict[str, Any]:
    """What ``docs/search.json`` says of the choice; the table's own fields are not in it."""
    rung = selection.rung
    return {
        "format_version": FORMAT_VERSION,
        "method": selection.method,
        "selected": {
            "max_features": rung.max_features,
            "features_per_stage": list(rung.features_per_stage),
            "num_parameters": rung.num_parameters,
            "num_parameters_nnunet": rung.num_parameters_nnunet,
        },
        "confidence": selection.confidence,
        "votes": {str(width): share for width, share in selection.votes.items()},
        **({} if selection.threshold is None else {"threshold": selection.threshold}),
        **({} if selection.race is None else {"race": asdict(selection.race)}),
        **({} if selection.budget is None else {"budget": _budget_to_dict(selection.budget)}),
        **({} if selection.in_place_of is None else {"in_place_of": selection.in_place_of}),
    }


def selection_from_dict(content: Mapping[str, Any], table: ScoreTable) -> Selection:
    """The selection that :func:`selection_to_dict` wrote.

    Raises:
        ValueError: a field is missing, has another form, or names a width that is not in the table;
            or the method is no name.
    """
    try:
        confidence, threshold = content["confidence"], content.get("threshold")
        in_place_of = content.get("in_place_of")
        selection = Selection(
            method=str(content["method"]),
            max_features=int(content["selected"]["max_features"]),
            votes={int(width): float(share) for width, share in content["votes"].items()},
            confidence=None if confidence is None else float(confidence),
            table=table,
            threshold=None if threshold is None else float(threshold),
            race=None if content.get("race") is None else _race_from_dict(content["race"]),
            budget=None if content.get("budget") is None else _budget_from_dict(content["budget"]),
            in_place_of=None if in_place_of is None else int(in_place_of),
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"no selection ({error}): write it with monai_xtiny select") from error
    if not {selection.max_features, in_place_of or selection.max_features} <= set(table.widths):
        raise ValueError(
            f"the selected width {selection.max_features} is not in the ladder {table.widths}"
        )
    is_text = isinstance(content["method"], str)
    if not is_text or not re.fullmatch("[A-Za-z0-9_-]{1,50}", selection.method):
        raise ValueError(
            f"method is {selection.method[:50]!r}: it must be the name of a rule, such as paper"
        )
    if selection.race is not None:
        _check_race(selection.race, selection.max_features)
    for share in (*selection.votes.values(), selection.confidence or 0.0):
        if not 0 <= share <= 1:
            raise ValueError(f"votes and confidence are shares from 0 to 1, and one is {share}")
    _check_budget(selection)
    return selection


def _check_race(race: Race, max_features: int) -> None:
    """Refuse a race that says nothing of the width, or holds numbers that are not finite.

    Raises:
        ValueError: as above.
    """
    numbers = [value for row in race.widths for value in asdict(row).values()]
    if not all(map(isfinite, numbers)):
        raise ValueError(f"the race holds numbers that are not finite: {numbers}")
    widths = [row.max_features for row in race.widths]
    if max_features not in widths:
        raise ValueError(f"the race is of the widths {widths}, and {max_features} is selected")


def _budget_to_dict(budget: Budget) -> dict[str, Any]:
    """A budget in JSON's types."""
    latencies = {str(width): value for width, value in budget.latencies_ms.items()}
    return {**asdict(budget), "latencies_ms": latencies}


def _budget_from_dict(content: Mapping[str, Any]) -> Budget:
    """The budget of a selection."""
    count, gmacs, latency = (
        content[name] for name in ("max_parameters", "max_gmacs", "max_latency_ms")
    )
    return Budget(
        searched=int(content["searched"]),
        expected_dice_lost=float(content["expected_dice_lost"]),
        searched_dice_lost=float(content["searched_dice_lost"]),
        max_parameters=None if count is None else int(count),
        max_gmacs=None if gmacs is None else float(gmacs),
        max_latency_ms=None if latency is None else float(latency),
        latencies_ms={int(width): float(value) for width, value in content["latencies_ms"].items()},
    )


def _check_budget(selection: Selection) -> None:
    """Refuse a budget of odd numbers, and a choice that does not keep to it."""
    budget = selection.budget
    if budget is None:
        return
    limits = (budget.max_parameters, budget.max_gmacs, budget.max_latency_ms)
    numbers = [value for value in (*limits, *budget.latencies_ms.values()) if value is not None]
    lost = (budget.expected_dice_lost, budget.searched_dice_lost)
    if not all(0 < value < inf for value in numbers) or not all(0 <= value < inf for value in lost):
        raise ValueError(f"the budget holds numbers that are negative or not finite: {budget}")
    widths = selection.table.widths
    if not {budget.searched, *budget.latencies_ms} <= set(widths):
        raise ValueError(f"the budget names a width that is not in the ladder {widths}: {budget}")
    if selection.max_features not in selection.fitting_widths:
        raise ValueError(
            f"the selected width {selection.max_features} does not keep to its own budget: {budget}"
        )


def _race_from_dict(content: Mapping[str, Any]) -> Race:
    """The race of a selection."""
    return Race(
        searched=int(content["searched"]),
        num_updates=int(content["num_updates"]),
        num_cases=int(content["num_cases"]),
        is_decided=bool(content["is_decided"]),
        widths=tuple(
            RacedWidth(
                int(row["max_features"]),
                *(float(row[name]) for name in ("dice", "difference", "low", "high")),
            )
            for row in content["widths"]
        ),
    )
