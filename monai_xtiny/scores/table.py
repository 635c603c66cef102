"""Every score of a search: the table that choices are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from monai_xtiny.plan.unet_plan import UNetPlan

# More parameters than any network has; whatever is less can be divided and printed.
_MAX_COUNT = 10**15
# More than 24 images in any orientation show by chance (docs/benchmarks/recipes.md).
MIN_SHARED_ORIENTATION = 0.1


@dataclass(frozen=True)
class Rung:
    """One width of the ladder with its cost and scores.

    Args:
        max_features: the width cap.
        features_per_stage: channels of each stage under the cap.
        num_parameters: of the DynUNet.
        num_parameters_nnunet: of nnU-Net's network of these widths, biases included.
        gmacs: multiply-accumulates of one forward pass on one patch, in 1e9.
        sensitivity: one row per seed of the table, one value per image; of a width that is wider
            than all aligned ones, perhaps for the first images of the table alone.
        alignment: one row per initialization, those of the table's first ``alignment_seeds``, one
            value per image; no rows where it was not measured.
    """

    max_features: int
    features_per_stage: tuple[int, ...]
    num_parameters: int
    num_parameters_nnunet: int
    gmacs: float
    sensitivity: tuple[tuple[float, ...], ...]
    alignment: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class ScoreTable:
    """Every score of a search.

    Args:
        plan: of the full network.
        ladder: one rung per width, widest first.
        seeds: of the initializations, in the order of the rungs' rows.
        images: names of the images, in the order of the rows' values.
        seconds: wall time of loading, scoring and both.
        environment: versions, and the device that computed the scores.
        alignment_seeds: of the initializations that were aligned; narrow widths with more of them
            than wide ones.
        shared_orientation: of the images, as
            :func:`monai_xtiny.data.orientation.shared_orientation` defines it, from -2 to 2;
            ``None`` where it was not measured.
    """

    plan: UNetPlan
    ladder: tuple[Rung, ...]
    seeds: tuple[int, ...]
    images: tuple[str, ...]
    seconds: Mapping[str, float]
    environment: Mapping[str, str]
    alignment_seeds: tuple[int, ...] = ()
    shared_orientation: float | None = None

    @property
    def is_oriented(self) -> bool:
        """Whether the images share an orientation, so that a network can learn where to look."""
        return (self.shared_orientation or 0.0) > MIN_SHARED_ORIENTATION

    @property
    def widths(self) -> tuple[int, ...]:
        """Width caps, widest first."""
        return tuple(rung.max_features for rung in self.ladder)

    @property
    def num_compared(self) -> int:
        """How many of the images, the first ones, every width was scored on."""
        return min((len(row) for rung in self.ladder for row in rung.sensitivity), default=0)

    def compared(self, rung: Rung) -> tuple[tuple[float, ...], ...]:
        """Sensitivity of a rung on the images that every width was scored on, one row per seed.

        Images differ as much as wide widths do, so that means over different ones make no curve.
        """
        return tuple(row[: self.num_compared] for row in rung.sensitivity)

    def curve(self, seed_index: int) -> tuple[float, ...]:
        """Mean sensitivity at each width, for one initialization.

        Over the images that every width was scored on.
        """
        rows = [self.compared(rung)[seed_index] for rung in self.ladder]
        return tuple(sum(row) / len(row) for row in rows)


def table_to_dict(table: ScoreTable) -> dict[str, Any]:
    """A table in JSON's types, as ``docs/search.json`` holds it."""
    return {
        "plan": asdict(table.plan),
        "images": list(table.images),
        "seeds": list(table.seeds),
        **({"alignment_seeds": list(table.alignment_seeds)} if table.alignment_seeds else {}),
        **(
            {}
            if table.shared_orientation is None
            else {"shared_orientation": table.shared_orientation}
        ),
        "ladder": [_rung_to_dict(rung) for rung in table.ladder],
        "seconds": dict(table.seconds),
        "environment": dict(table.environment),
    }


def _rung_to_dict(rung: Rung) -> dict[str, Any]:
    """A rung in JSON's types; alignment only where it was measured."""
    content = asdict(rung)
    if not rung.alignment:
        del content["alignment"]
    return content


def table_from_dict(content: Mapping[str, Any]) -> ScoreTable:
    """The table that :func:`table_to_dict` wrote.

    Raises:
        ValueError: a field is missing or has another form, the widths do not descend, a score is
            not finite, or a network has no size.
    """
    try:
        ladder = tuple(
            Rung(
                max_features=int(row["max_features"]),
                features_per_stage=tuple(int(width) for width in row["features_per_stage"]),
                num_parameters=int(row["num_parameters"]),
                num_parameters_nnunet=int(row["num_parameters_nnunet"]),
                gmacs=float(row["gmacs"]),
                sensitivity=tuple(tuple(map(float, values)) for values in row["sensitivity"]),
                alignment=tuple(tuple(map(float, values)) for values in row.get("alignment", ())),
            )
            for row in content["ladder"]
        )
        table = ScoreTable(
            plan=UNetPlan(**content["plan"]),
            ladder=ladder,
            seeds=tuple(int(seed) for seed in content["seeds"]),
            images=tuple(str(name) for name in content["images"]),
            seconds=dict(content["seconds"]),
            environment=dict(content["environment"]),
            alignment_seeds=tuple(int(seed) for seed in content.get("alignment_seeds", ())),
            shared_orientation=_read_orientation(content.get("shared_orientation")),
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"no table of scores ({error}): write it with monai_xtiny score"
        ) from error
    if list(table.widths) != sorted(set(table.widths), reverse=True):
        raise ValueError(f"the ladder {table.widths} must descend: write the table again")
    for rung in table.ladder:
        _check_rung(rung, table)
    return table


def _read_orientation(value: Any) -> float | None:
    """What was measured, refused where it cannot be."""
    if value is None:
        return None
    if isinstance(value, bool) or not -2 <= value <= 2:
        raise ValueError(f"shared_orientation is {value!r}, not from -2 to 2")
    return float(value)


def _check_rung(rung: Rung, table: ScoreTable) -> None:
    """Refuse a row of a table that lacks scores, or is of no network."""
    counts = (*rung.features_per_stage, rung.num_parameters, rung.num_parameters_nnunet)
    if not all(1 <= count <= _MAX_COUNT for count in (rung.max_features, *counts)):
        raise ValueError(
            f"width {rung.max_features} has sizes {counts} that no network has: score again"
        )
    num_seeds, num_images = len(table.seeds), len(table.images)
    aligned = [other.max_features for other in table.ladder if other.alignment]
    fewest = 1 if aligned and rung.max_features > max(aligned) else num_images
    sizes = {len(row) for row in (*rung.sensitivity, *rung.alignment)}
    is_whole = len(sizes) == 1 and max(fewest, 1) <= min(sizes) <= num_images
    lacks = not is_whole or len(rung.sensitivity) != num_seeds
    is_scored = bool(num_seeds or num_images)  # a network that was imported never was
    if lacks and (is_scored or sizes):
        raise ValueError(
            f"width {rung.max_features} lacks scores: expected {num_seeds} seeds of "
            f"{num_images} images"
        )
    scores = [value for row in (*rung.sensitivity, *rung.alignment) for value in row]
    if not all(map(isfinite, scores)):
        raise ValueError(f"width {rung.max_features} has a score that is not finite: score again")
    if len(rung.alignment) > len(table.alignment_seeds):
        raise ValueError(
            f"width {rung.max_features} has {len(rung.alignment)} rows of alignment and the "
            f"table {len(table.alignment_seeds)} alignment_seeds: write the table again"
        )
