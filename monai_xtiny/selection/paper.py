"""The rule `paper`: the published one, on the curve of sensitivities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.rule import Rule, Selection

MIN_WIDTHS = 5


def select_paper(widths: Sequence[int], sensitivities: Sequence[float]) -> int:
    r"""Choose a width from one curve by the published rule.

    Over the min-max normalized curve :math:`\tilde S`, with
    :math:`d_i = |\tilde S(c_{i+1}) - \tilde S(c_i)|`, the split is where the variation grows most:

    .. math:: k^* = \arg\max_{2 \le k \le n-3}
        \left[ \mathrm{mean}(d_{k-1} .. d_{n-2}) - \mathrm{mean}(d_0 .. d_{k-1}) \right]

    (the first on a tie; :math:`d_{k-1}` is in both means), and the width is :math:`c_{k^*-1}`.
    Kimbowa et al. 2026, arXiv:2605.09639.

    Args:
        widths: width caps, descending.
        sensitivities: mean sensitivity at each width.

    Returns:
        The chosen width.

    Raises:
        ValueError: the lengths differ, the widths do not descend, or fewer than 5 are finite.

    >>> select_paper([512, 256, 128, 64, 32, 16, 8, 4, 2, 1], [1, 1, 1, 1, 1, 1, 1, 1, 1, 5])
    8
    """
    caps = np.asarray(widths)
    curve = np.asarray(sensitivities, dtype=np.float64)
    if caps.ndim != 1 or caps.shape != curve.shape:
        raise ValueError(f"{caps.size} widths and {curve.size} sensitivities: give one each")
    if np.any(np.diff(caps) >= 0):
        raise ValueError(f"the widths {list(widths)} must descend")
    finite = np.isfinite(curve)
    caps, curve = caps[finite], curve[finite]
    count = len(caps)
    if count < MIN_WIDTHS:
        raise ValueError(
            f"{count} widths with finite scores are too few to choose from: the rule needs "
            f"{MIN_WIDTHS} (a ladder from at least 16 features)"
        )
    span = curve.max() - curve.min()
    normalized = (curve - curve.min()) / span if span > 0 else np.zeros_like(curve)
    variation = np.abs(np.diff(normalized))
    splits = range(2, count - 2)
    gains = [variation[k - 1 :].mean() - variation[:k].mean() for k in splits]
    return int(caps[splits[int(np.argmax(gains))] - 1])


def _choose_paper(table: ScoreTable) -> Selection:
    """The width that most initializations choose by their mean curves, the wider on a tie.

    With one initialization it is the published rule. A table that another rule had scored on fewer
    images at wide widths is taken for one of these images: the choice is that of a search on them.
    """
    curves = [table.curve(index) for index in range(len(table.seeds))]
    counts = Counter(select_paper(table.widths, curve) for curve in curves)
    chosen = max(counts, key=lambda width: (counts[width], width))
    votes = {width: counts[width] / len(curves) for width in sorted(counts, reverse=True)}
    return Selection(
        method=PAPER.name,
        max_features=chosen,
        votes=votes,
        confidence=votes[chosen] if len(curves) > 1 else None,
        table=table,
    )


def _describe_paper(table: ScoreTable) -> str:
    """The model card's paragraph on the choice."""
    return (
        "The width was chosen from unlabeled images and without training (XTinyU-Net, see "
        "References): the Jacobian sensitivity of each width at initialization, and the rule "
        f"`{PAPER.name}`."
    )


def _voters_paper(table: ScoreTable) -> str:
    """Whose votes the confidence counts."""
    return f"{len(table.seeds)} initializations"


PAPER = Rule(
    "paper", choose=_choose_paper, describe=_describe_paper, voters=_voters_paper, num_images=16
)
