"""What a rule is, and what it gives: the nouns of this layer. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from monai_xtiny.scores.table import Rung, ScoreTable

# Confidence under which the user is told what to do.
LOW_CONFIDENCE = 0.8


@dataclass(frozen=True)
class RacedWidth:
    """What brief trainings of one width reached.

    Args:
        max_features: width cap.
        dice: mean over trainings, held-out cases and foreground classes.
        difference: of that from the chosen width's.
        low: lower end of the 95 % interval of the difference.
        high: its upper end.
    """

    max_features: int
    dice: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Race:
    """Brief trainings on labeled cases that a choice rests on.

    Args:
        searched: width that was chosen without labels.
        num_updates: of each training.
        num_cases: held out.
        is_decided: whether the intervals tell the chosen width from its neighbors.
        widths: that were trained, widest first.
    """

    searched: int
    num_updates: int
    num_cases: int
    is_decided: bool
    widths: tuple[RacedWidth, ...]


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
        race: brief trainings that moved or kept the choice; votes and confidence are probabilities
            then. ``None``: there were none.
    """

    method: str
    max_features: int
    votes: Mapping[int, float]
    confidence: float | None
    table: ScoreTable
    threshold: float | None = None
    race: Race | None = None

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

    Raises:
        ValueError: it asks for aligned initializations, and needs no alignment.
    """

    name: str
    choose: Callable[[ScoreTable], Selection]
    describe: Callable[[ScoreTable], str]
    voters: Callable[[ScoreTable], str]
    num_images: int
    needs_alignment: bool = False
    refine: Callable[[ScoreTable, Callable[[int], float]], Mapping[int, int]] | None = None
    doubt: Callable[[Selection], str] = low_confidence

    def __post_init__(self) -> None:
        if self.refine is not None and not self.needs_alignment:
            raise ValueError(
                f"the rule {self.name!r} refines the alignment and does not need it: set "
                "needs_alignment"
            )
