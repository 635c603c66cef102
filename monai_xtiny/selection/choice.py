"""From scores to a width. NumPy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monai_xtiny.selection.alignment import (
    THRESHOLD,
    alignment_values,
    bootstrap_votes,
    select_alignment,
)
from monai_xtiny.selection.paper import select_paper

if TYPE_CHECKING:
    from monai_xtiny.scores.table import Rung, ScoreTable


METHODS = ("paper", "alignment")
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Selection:
    """The chosen width, and what speaks for it.

    Args:
        method: the rule that chose.
        max_features: the chosen width cap.
        votes: share of the initialisations (``paper``) or of bootstrap resamples of initialisations
            and images (``alignment``) that chose each width; they sum to 1, or to less where
            resamples found no width that is wide enough.
        confidence: share that chose this one, in [0, 1]; ``None`` where one initialisation alone
            cannot tell.
        table: the scores that the choice was made from.
        threshold: that ``alignment`` chose with.
    """

    method: str
    max_features: int
    votes: Mapping[int, float]
    confidence: float | None
    table: ScoreTable
    threshold: float | None = None

    @property
    def rung(self) -> Rung:
        """The row of the table that was chosen."""
        return next(rung for rung in self.table.ladder if rung.max_features == self.max_features)


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
    }


def selection_from_dict(content: Mapping[str, Any], table: ScoreTable) -> Selection:
    """The selection that :func:`selection_to_dict` wrote.

    Raises:
        ValueError: a field is missing, has another form, or names a width that is not in the table.
    """
    try:
        confidence, threshold = content["confidence"], content.get("threshold")
        selection = Selection(
            method=str(content["method"]),
            max_features=int(content["selected"]["max_features"]),
            votes={int(width): float(share) for width, share in content["votes"].items()},
            confidence=None if confidence is None else float(confidence),
            table=table,
            threshold=None if threshold is None else float(threshold),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"no selection ({error}): write it with monai_xtiny select") from error
    if selection.max_features not in table.widths:
        raise ValueError(
            f"the selected width {selection.max_features} is not in the ladder {table.widths}"
        )
    for share in (*selection.votes.values(), selection.confidence or 0.0):
        if not 0 <= share <= 1:
            raise ValueError(f"votes and confidence are shares from 0 to 1, and one is {share}")
    return selection


def check_method(method: str) -> str:
    """Return the name of a rule, or refuse it.

    Raises:
        ValueError: there is no such rule.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: give one of {', '.join(METHODS)}")
    return method


def suited_method(table: ScoreTable) -> str:
    """The rule that a table was scored for."""
    return "alignment" if any(rung.alignment for rung in table.ladder) else "paper"


def select_width(table: ScoreTable, method: str = "paper") -> Selection:
    """Choose a width from a table of scores.

    ``alignment`` applies :func:`select_alignment` to the mean over all
    initialisations and images; bootstrap resamples of both vote. ``paper`` applies
    :func:`select_paper` to each initialisation's mean curve and takes the width with the most
    votes, the wider on a tie; with one initialisation it is the published rule.

    Args:
        table: scores of every width and initialisation.
        method: name of the rule.

    Raises:
        ValueError: the method is unknown, or the table lacks what it needs.
    """
    check_method(method)
    if method == "alignment":
        values = alignment_values(table)
        chosen = select_alignment(list(values), [array.mean() for array in values.values()])
        votes = bootstrap_votes(values)
        is_sure = min(len(array) for array in values.values()) > 1
    else:
        curves = [table.curve(index) for index in range(len(table.seeds))]
        counts = Counter(select_paper(table.widths, curve) for curve in curves)
        chosen = max(counts, key=lambda width: (counts[width], width))
        votes = {width: counts[width] / len(curves) for width in sorted(counts, reverse=True)}
        is_sure = len(curves) > 1
    return Selection(
        method=method,
        max_features=chosen,
        votes=votes,
        confidence=votes.get(chosen, 0.0) if is_sure else None,
        table=table,
        threshold=THRESHOLD if method == "alignment" else None,
    )
