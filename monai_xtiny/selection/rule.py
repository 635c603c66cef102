"""What a rule is, and what it gives: the nouns of this layer. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

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
class Budget:
    """What the network may cost at most, and what keeping to that costs in turn.

    The Dice lost is what trained tasks, the number of classes and the images say, beyond the
    tolerance of 0.01 (:func:`monai_xtiny.selection.posterior.expected_dice_lost`).

    Args:
        searched: width that the rule chose without limits.
        expected_dice_lost: that the chosen width is expected to lose.
        searched_dice_lost: that ``searched`` is expected to lose.
        max_parameters: of the network; ``None``: no limit, as below.
        max_gmacs: of one forward pass on one patch, in 1e9 multiply-accumulates.
        max_latency_ms: of one forward pass on one patch, ms.
        latencies_ms: of the widths that were measured, ms, widest first; a narrower width is no
            slower.
    """

    searched: int
    expected_dice_lost: float
    searched_dice_lost: float
    max_parameters: int | None = None
    max_gmacs: float | None = None
    max_latency_ms: float | None = None
    latencies_ms: Mapping[int, float] = field(default_factory=dict)

    def fits(self, rung: Rung) -> bool:
        """Whether a width is known to keep to every limit."""
        if self.max_parameters is not None and rung.num_parameters > self.max_parameters:
            return False
        if self.max_gmacs is not None and rung.gmacs > self.max_gmacs:
            return False
        limit = self.max_latency_ms
        return limit is None or any(
            rung.max_features <= width and latency <= limit
            for width, latency in self.latencies_ms.items()
        )


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
        budget: limits that the choice keeps to. ``None``: none were given.
        in_place_of: width that was chosen, where somebody asked for another one, which
            ``max_features`` is. ``None``: nobody did.
    """

    method: str
    max_features: int
    votes: Mapping[int, float]
    confidence: float | None
    table: ScoreTable
    threshold: float | None = None
    race: Race | None = None
    budget: Budget | None = None
    in_place_of: int | None = None

    @property
    def rung(self) -> Rung:
        """The row of the table that was chosen."""
        return next(rung for rung in self.table.ladder if rung.max_features == self.max_features)

    @property
    def fitting_widths(self) -> tuple[int, ...]:
        """Widths of the ladder that are known to keep to the budget, widest first."""
        if self.budget is None:
            return self.table.widths
        return tuple(rung.max_features for rung in self.table.ladder if self.budget.fits(rung))


def low_confidence(selection: Selection) -> str:
    """The doubt about a choice that too few voted for; empty where there is none."""
    if selection.confidence is None or selection.confidence >= LOW_CONFIDENCE:
        return ""
    return f"The confidence is under {LOW_CONFIDENCE:.0%}"


def widest_below(selection: Selection, among: Collection[int]) -> int:
    """The widest of some widths that is narrower than a choice.

    Raises:
        ValueError: there is none.
    """
    below = [width for width in among if width < selection.max_features]
    if not below:
        raise ValueError(
            f"none of the widths {sorted(among, reverse=True)} is narrower than the choice of the "
            f"rule {selection.method!r}, {selection.max_features}: allow narrower ones"
        )
    return max(below)


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
        among: the best of the widths that are allowed, from a choice that is not allowed.
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
    among: Callable[[Selection, Collection[int]], int] = widest_below
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
