"""What a trained bundle is worth on the cases held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from monai_xtiny.bundled.summaries import summarize

# One value per case and foreground class; None where there is none.
Rows: TypeAlias = "tuple[tuple[float | None, ...], ...]"
MEASURES = ("dice", "nsd", "hd95", "volume", "label_volume", "ece")


@dataclass(frozen=True)
class Evaluation:
    """What ``models/model.pt`` is worth on the cases held out, each on its image's own grid.

    Args:
        cases: names of the labels: their paths relative to the folder that holds all of them.
        dice: one row per case, one value per foreground class; ``None`` where the label lacks the
            class.
        hd95: 95th percentile of the symmetric surface distance, likewise, in ``length_unit``;
            ``None`` where label or prediction is empty. It and what follows is empty where the Dice
            alone was measured.
        nsd: normalized surface Dice, likewise; ``None`` where the label lacks the class. It and
            what follows is empty in evaluations of earlier versions.
        volume: of the prediction, likewise, in ``volume_unit``; 0 where it is empty.
        label_volume: of the label.
        ece: expected calibration error of the class's probability over the voxels of the case.
        patients: of each case, where they are known.
        nsd_tolerance: distance that NSD still takes for near, in ``length_unit``.
        length_unit: ``mm``, or ``pixels`` where images have no spacing.
        volume_unit: ``ml``, in 2D ``mm2``, or ``pixels``.
    """

    cases: tuple[str, ...]
    dice: Rows
    hd95: Rows = ()
    nsd: Rows = ()
    volume: Rows = ()
    label_volume: Rows = ()
    ece: Rows = ()
    patients: tuple[str, ...] = ()
    nsd_tolerance: float | None = None
    length_unit: str = "mm"
    volume_unit: str = "ml"

    def summary(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Means with intervals, what was missed, and the worst cases, as JSON takes them.

        Args:
            class_names: of the foreground classes.
        """
        rows = {name: getattr(self, name) for name in MEASURES}
        return summarize(
            self.cases,
            {name: value for name, value in rows.items() if value},
            class_names=class_names,
            length_unit=self.length_unit,
            volume_unit=self.volume_unit,
            nsd_tolerance=self.nsd_tolerance,
            patients=self.patients or None,
        )

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
    """The evaluation that was written as a dictionary, by an earlier version too."""
    known: dict[str, Any] = {
        item.name: content[item.name] for item in fields(Evaluation) if item.name in content
    }
    for name in MEASURES:
        known[name] = tuple(tuple(row) for row in known.get(name, ()))
    for name in ("cases", "patients"):
        known[name] = tuple(known.get(name, ()))
    return Evaluation(**known)


def mean_of_defined(values: Sequence[float | None]) -> float:
    """Mean over the defined values; NaN where there is none."""
    defined = [value for value in values if value is not None and not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
