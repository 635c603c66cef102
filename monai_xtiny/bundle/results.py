"""What a trained bundle is worth on the cases held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """What ``models/model.pt`` is worth on the cases held out, each on its image's own grid.

    Args:
        cases: names of the labels: their paths relative to the folder that holds all of them.
        dice: one row per case, one value per foreground class; ``None`` where the label lacks the
            class.
        hd95: 95th percentile of the symmetric surface distance, likewise, in mm (pixels where
            images have no spacing); ``None`` where label or prediction is empty.
    """

    cases: tuple[str, ...]
    dice: tuple[tuple[float | None, ...], ...]
    hd95: tuple[tuple[float | None, ...], ...]

    @property
    def class_dice(self) -> tuple[float, ...]:
        """Mean Dice of each foreground class, over the cases that have it."""
        return tuple(mean_of_defined(column) for column in zip(*self.dice, strict=True))

    @property
    def class_hd95(self) -> tuple[float, ...]:
        """Mean HD95 of each foreground class, over the cases where it is defined."""
        return tuple(mean_of_defined(column) for column in zip(*self.hd95, strict=True))

    @property
    def mean_dice(self) -> float:
        """Mean of ``class_dice`` over the classes that any case has."""
        return mean_of_defined(self.class_dice)

    @property
    def case_dice(self) -> tuple[float, ...]:
        """Mean Dice of each case over the classes that it has; NaN where it has none."""
        return tuple(mean_of_defined(row) for row in self.dice)


def evaluation_from_dict(content: Mapping[str, Any]) -> Evaluation:
    """The evaluation that was written as a dictionary."""
    return Evaluation(
        tuple(content["cases"]),
        tuple(tuple(row) for row in content["dice"]),
        tuple(tuple(row) for row in content["hd95"]),
    )


def mean_of_defined(values: Sequence[float | None]) -> float:
    """Mean over the defined values; NaN where there is none."""
    defined = [value for value in values if value is not None and not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
