"""What a rule is, and what it gives: the nouns of this layer. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from monai_xtiny.scores.table import Rung, ScoreTable

# Confidence under which the user is told what to do.
LOW_CONFIDENCE = 0.8


@dataclass(frozen=True)
class Selection:
    """The chosen width, and what speaks for it.

    Args:
        method: name of the rule that chose.
        max_features: the chosen width cap.
        votes: share of the votes of each width, by width; who votes is up to the rule. They sum to
            1, or to less where voters found no width that is wide enough.
        confidence: share that chose this one, in [0, 1]; ``None`` where one initialization alone
            cannot tell.
        table: the scores that the choice was made from.
        threshold: that the rule chose with, where it has one.
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


def low_confidence(selection: Selection) -> str:
    """The doubt about a choice that too few voted for; empty where there is none."""
    if selection.confidence is None or selection.confidence >= LOW_CONFIDENCE:
        return ""
    return f"The confidence is under {LOW_CONFIDENCE:.0%}"


@dataclass(frozen=True)
class Rule:
    """A way to choose a width from scores: everything that the package asks of one.

    Args:
        name: what ``--method`` and ``docs/search.json`` call it.
        choose: the choice from a table of scores; its ``method`` is ``name``.
        describe: how such a choice was made, from the table: a paragraph of the model card.
        voters: whose votes the confidence counts, from the table; the model card says "79 % of
            ``voters`` agree".
        num_images: images to score where the user gives no number.
        needs_alignment: whether the widths up to ``max_aligned_width`` must be aligned.
        refine: asked after each round of scoring, with the table and the cost of one
            initialization of a width on one image, how many initializations of each width should
            be aligned; the search ends when it asks for no more than there are. ``None`` asks for
            none.
        doubt: what is doubtful about a choice, as the beginning of a sentence that goes on with
            what to do; empty where nothing is.
        num_wide_images: images, the first of them, that widths which are not aligned are scored on;
            ``None`` for all. For a rule that looks at alignment alone: the curve of sensitivities
            is drawn over these images then.

    Raises:
        ValueError: it asks for aligned initializations or fewer images for other widths, and needs
            no alignment; or fewer images than one.
    """

    name: str
    choose: Callable[[ScoreTable], Selection]
    describe: Callable[[ScoreTable], str]
    voters: Callable[[ScoreTable], str]
    num_images: int
    needs_alignment: bool = False
    refine: Callable[[ScoreTable, Callable[[int], float]], Mapping[int, int]] | None = None
    doubt: Callable[[Selection], str] = low_confidence
    num_wide_images: int | None = None

    def __post_init__(self) -> None:
        if self.refine is not None and not self.needs_alignment:
            raise ValueError(
                f"the rule {self.name!r} refines the alignment and does not need it: set "
                "needs_alignment"
            )
        if self.num_wide_images is None:
            return
        if not self.needs_alignment:
            raise ValueError(
                f"the rule {self.name!r} takes fewer images for widths that are not aligned and "
                "aligns none: set needs_alignment"
            )
        if self.num_wide_images < 1:
            raise ValueError(
                f"num_wide_images of the rule {self.name!r} is {self.num_wide_images}: give at "
                "least 1"
            )
