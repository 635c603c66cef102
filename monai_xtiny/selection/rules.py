"""The table of rules, and what is asked of it by name. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.alignment import ALIGNMENT
from monai_xtiny.selection.bayes import BAYES
from monai_xtiny.selection.paper import PAPER
from monai_xtiny.selection.rule import Rule

# A new rule is a file beside these and its name here. No name in it may be one of another file of
# the package, helpers included: MONAI looks components up by bare name in all of them.
RULES = {rule.name: rule for rule in (PAPER, BAYES, ALIGNMENT)}


def find_rule(method: str) -> Rule:
    """The rule of a name.

    Raises:
        ValueError: there is no such rule.

    >>> find_rule("alignment").num_images
    8
    """
    if method not in RULES:
        raise ValueError(f"unknown method {method!r}: give one of {', '.join(RULES)}")
    return RULES[method]


def check_method(method: str) -> str:
    """Return the name of a rule, or refuse it.

    Raises:
        ValueError: there is no such rule.
    """
    return find_rule(method).name


def suited_method(table: ScoreTable) -> str:
    """Name of the first rule that needs what the table was scored with, and no more."""
    is_aligned = any(rung.alignment for rung in table.ladder)
    return next(rule.name for rule in RULES.values() if rule.needs_alignment == is_aligned)


def refinement(
    method: str,
    *,
    num_seeds: int | None = None,
    max_seconds: float | None = None,
    unit_cost: Callable[[int], float],
) -> Callable[[ScoreTable], Mapping[int, int]] | None:
    """What :func:`monai_xtiny.run_search` asks after each round: who needs more initializations.

    Without a limit in seconds the answer depends on the scores alone, so that a search repeats bit
    for bit.

    Args:
        method: name of the rule that answers.
        num_seeds: given, every width has had them already, and nothing more is asked for.
        max_seconds: wall time after which nothing more is asked for.
        unit_cost: of one initialization of a width on one image, in any unit.

    Returns:
        The question, or ``None`` where the rule asks for nothing.

    Raises:
        ValueError: there is no such rule.
    """
    ask = find_rule(method).refine
    if ask is None or num_seeds is not None:
        return None

    def refine(table: ScoreTable) -> Mapping[int, int]:
        if max_seconds is not None and table.seconds["total"] >= max_seconds:
            return {}
        return ask(table, unit_cost)

    return refine
