"""Tables of the paper's comparison, from the journal alone.

usage: python scripts/benchmarks/report_comparison.py --work DIR --output docs/benchmarks

Reads comparison.jsonl of comparison.py, and comparison_latency.jsonl if it is there, in --work (or,
without it, in the output folder), copies both to the output folder and writes
comparison_tables.md there. Intervals are percentiles of 10,000 bootstrap means; patients are drawn
where a data set has several cases of one. Values of a case are means over its classes and over the
seeds.
"""

from __future__ import annotations

import argparse
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_xtiny.system.files import read_lines, write_text

RESAMPLINGS = 10_000
MARGIN = 0.01
TITLES = {
    "unext": "UNeXt", "cmunext_s": "CMUNeXt-S", "tinyunet": "TinyU-Net", "basicunet": "BasicUNet",
    "basicunet_small": "BasicUNet, features / 4", "flexibleunet_b0": "FlexibleUNet, B0",
}  # fmt: skip
Line = dict[str, Any]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """How trainings of a task were made, all networks alike."""

    task: str
    updates: int
    learning_rate: float
    images: str

    @classmethod
    def of(cls, line: Line) -> Setting:
        """That of a training."""
        return cls(*(line[name] for name in ("task", "updates", "learning_rate", "images")))

    def __str__(self) -> str:
        return f"{self.updates} updates of {self.images}, learning rate {self.learning_rate:g}"


def main() -> None:
    """Read, tabulate, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    source = arguments.work or arguments.output
    lines = read_lines(source / "comparison.jsonl")
    if not lines:
        raise SystemExit(f"error: no trainings in {str(source / 'comparison.jsonl')!r}")
    latencies = read_lines(source / "comparison_latency.jsonl")
    arguments.output.mkdir(parents=True, exist_ok=True)
    target = arguments.output / "comparison_tables.md"
    write_text(target, "\n".join(report(lines, latencies)) + "\n")
    for name in ("comparison.jsonl", "comparison_latency.jsonl"):
        if arguments.work is not None and (source / name).is_file():
            shutil.copyfile(source / name, arguments.output / name)
    print(target)


def report(lines: Sequence[Line], latencies: Sequence[Line]) -> list[str]:
    """All tables: what holds first, then a task each."""
    groups: dict[Setting, dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        groups[Setting.of(line)][line["network"]].append(line)
    main_settings = main_of(list(groups), groups)
    parts = ["# Tables: the paper's comparison", "", "## In short", ""]
    parts += verdicts(main_settings, groups)
    parts += lengths_table(main_settings, groups)
    parts += settings_table(main_settings, groups)
    for setting in main_settings:
        parts += ["", f"## {setting.task}", "", *task_table(setting, groups[setting], latencies)]
    return parts


def main_of(
    settings: Sequence[Setting], groups: dict[Setting, dict[str, list[Line]]]
) -> list[Setting]:
    """Of each task the setting of most networks, and of these the longest."""
    best: dict[str, Setting] = {}
    for setting in settings:
        former = best.get(setting.task)

        def rank(item: Setting) -> tuple[int, int, float]:
            return len(groups[item]), item.updates, item.learning_rate

        if former is None or rank(setting) > rank(former):
            best[setting.task] = setting
    return list(best.values())


def title(network: str, pick: int) -> str:
    """A network's name in the tables."""
    if network.startswith("width_"):
        width = network.removeprefix("width_")
        return f"**width {width}, the pick**" if int(width) == pick else f"width {width}"
    return TITLES.get(network, "full width")


def case_means(lines: Sequence[Line], column: str) -> Values:
    """A value per case, (cases): mean over classes and seeds; NaN where none is defined."""
    return mean_over_seeds([[mean_defined(row) for row in line[column]] for line in lines])


def dice_means(lines: Sequence[Line]) -> Values:
    """Dice of each case."""
    return case_means(lines, "dice")


def instance_means(lines: Sequence[Line]) -> tuple[Values, Values]:
    """F1 and panoptic quality of each case; NaN where neither mask has an object."""
    scores = []
    for line in lines:
        found, wrong, missed, iou = np.array(line["instances"], dtype=float).T
        objects = found + (wrong + missed) / 2
        with np.errstate(invalid="ignore"):
            scores.append((found / objects, iou / objects))
    first, second = zip(*scores, strict=True)
    return mean_over_seeds(first), mean_over_seeds(second)


def object_f1(lines: Sequence[Line]) -> Values:
    """F1 of the objects of each case."""
    return instance_means(lines)[0]


def mean_over_seeds(rows: Sequence[Any]) -> Values:
    """Means of (seeds, cases) over the seeds, without undefined values."""
    values = np.array(rows, dtype=float)
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)


def mean_defined(row: Sequence[float | None]) -> float:
    """Mean of the values that are not ``None``; NaN of none."""
    defined = [value for value in row if value is not None]
    return sum(defined) / len(defined) if defined else float("nan")


def interval(values: Values, patients: Sequence[str], seed: int = 0) -> tuple[float, float, float]:
    """Mean over cases, and its 95 % percentile bootstrap interval, patients drawn whole.

    Args:
        values: of the cases; those not defined are left out.
        patients: of the cases.
        seed: of the resampling.
    """
    keep = np.isfinite(values)
    if not keep.any():
        return (float("nan"),) * 3
    names, members = np.unique(np.array(patients)[keep], return_inverse=True)
    sums = np.bincount(members, values[keep])
    counts = np.bincount(members)
    drawn = np.random.default_rng(seed).integers(len(names), size=(RESAMPLINGS, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(values[keep].mean()), float(low), float(high)


def shown(found: tuple[float, float, float], digits: int = 4, sign: str = "") -> str:
    """A mean with its interval."""
    return "{} [{}, {}]".format(*(format(number, f"{sign}.{digits}f") for number in found))


def pick_of(networks: dict[str, list[Line]]) -> tuple[int, list[Line]]:
    """The picked width, and its trainings."""
    pick = next(iter(networks.values()))[0]["pick"]
    return pick, networks.get(f"width_{pick}", [])


def difference(
    one: Sequence[Line],
    other: Sequence[Line],
    measure: Callable[[Sequence[Line]], Values] = dice_means,
) -> tuple[float, float, float]:
    """Difference of a measure, paired by case, with its interval.

    Args:
        one: trainings of a network.
        other: of the one that is subtracted.
        measure: a value of each case.

    Raises:
        ValueError: they were measured on different cases.
    """
    if one[0]["cases"] != other[0]["cases"]:
        raise ValueError(f"other cases were held out of {one[0]['task']}: remove its older lines")
    return interval(measure(one) - measure(other), one[0]["patients"])


def task_table(
    setting: Setting, networks: dict[str, list[Line]], latencies: Sequence[Line]
) -> list[str]:
    """Markdown of one task: a row a network, the largest first."""
    pick, picked = pick_of(networks)
    times = {line["network"]: line for line in latencies if line["task"] == setting.task}
    first = next(iter(networks.values()))[0]
    seeds = sorted({line["seed"] for lines in networks.values() for line in lines})
    counted = bool(first["instances"])
    columns = ["network", "parameters", "GMACs", "ONNX Runtime, ms", "Dice", "NSD", "HD95"]
    columns += ["F1 of objects", "panoptic quality"] * counted
    columns.append("Dice of the pick minus its own")
    columns += ["F1 of the pick minus its own"] * counted
    rows = [
        f"{len(first['cases'])} cases of {len(set(first['patients']))} patients held out; "
        f"{setting} ({first['num_updates']} updates in whole epochs); "
        f"seeds {', '.join(map(str, seeds))}; {first['device']}.",
        "",
        "| " + " | ".join(columns) + " |",
        "|---|" + "---:|" * (len(columns) - 1),
    ]
    for network, lines in sorted(networks.items(), key=lambda item: -item[1][0]["num_parameters"]):
        patients = lines[0]["patients"]
        distance = case_means(lines, "hd95")
        lacking = int((~np.isfinite(distance)).sum())
        cells = [
            title(network, pick),
            f"{lines[0]['num_parameters']:,}",
            f"{lines[0]['gmacs']:.3g}",
            f"{times[network]['ms']:.1f}" if network in times else "-",
            shown(interval(case_means(lines, "dice"), patients)),
            shown(interval(case_means(lines, "nsd"), patients)),
            shown(interval(distance, patients), 2) + (f" ({lacking} without)" if lacking else ""),
        ]
        if counted:
            cells += [shown(interval(item, patients), 3) for item in instance_means(lines)]
        if network == f"width_{pick}" or not picked:
            cells += ["-"] * (1 + counted)
        else:
            cells.append(shown(difference(picked, lines), sign="+"))
            if counted:
                cells.append(shown(difference(picked, lines, object_f1), 3, "+"))
        rows.append("| " + " | ".join(cells) + " |")
    return [*rows, *latency_note(times)]


def latency_note(times: dict[str, Line]) -> list[str]:
    """How the latencies were measured."""
    if not times:
        return []
    line = next(iter(times.values()))
    size = " x ".join(map(str, line["size"]))
    return [
        "",
        f"Latency: {line['date']}, {line['processor']}, {line['threads']} thread, float32, a patch "
        f"of {size} (padded where a network's stride does not divide it), median.",
    ]


def verdicts(
    settings: Sequence[Setting], groups: dict[Setting, dict[str, list[Line]]]
) -> list[str]:
    """The paper's claims, task by task: does the pick keep up, and who is worse than it."""
    rows = [
        "The paper claims that the pick is as good as the full width, and better than other light "
        f"networks. *Not worse*: the interval of the paired difference is above -{MARGIN}; "
        "*better*, *worse*: it does not hold zero; *open*: neither. Against the full width the "
        "longest trainings of both count (updates in brackets), and it no longer gains where the "
        f"last doubling gained it less than {MARGIN}, by its interval too.",
        "",
        "| task | pick | of the full width's parameters | against full width | "
        "full width, updates doubled | updates of the others | better than | worse than | open |",
        "|---|---:|---:|---|---|---:|---|---|---|",
    ]
    for setting in settings:
        networks = groups[setting]
        pick, picked = pick_of(networks)
        if not picked:
            rows.append(f"| {setting.task} | {pick} | not trained | | | | | | |")
            continue
        sides: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
        for network, lines in networks.items():
            if network in (f"width_{pick}", "full"):
                continue
            found = difference(picked, lines)
            side = "better" if found[1] > 0 else "worse" if found[2] < 0 else "open"
            sides[side].append(title(network, pick))
        names = [", ".join(sides[side]) or "-" for side in ("better", "worse", "open")]
        rows.append(
            f"| {setting.task} | {pick} | {against_full(setting, groups)} | "
            f"{doubling_verdict(setting, groups)} | {num_updates(networks)} | "
            f"{' | '.join(names)} |"
        )
    return rows


def against_full(setting: Setting, groups: dict[Setting, dict[str, list[Line]]]) -> str:
    """Two cells: share of the full width's parameters; difference to it where trained longest."""
    for item in reversed(lengths_of(setting, groups)):
        pick, picked = pick_of(groups[item])
        if picked:
            full = groups[item]["full"]
            ratio = full[0]["num_parameters"] / picked[0]["num_parameters"]
            found = difference(picked, full)
            verdict = f"({num_updates(groups[item])}): {full_verdict(found)}"
            return f"1/{ratio:,.0f} | {shown(found, sign='+')} {verdict}"
    return "- | not trained"


def full_verdict(found: tuple[float, float, float]) -> str:
    """What a paired difference to the full width says."""
    if found[1] > 0:
        return "better"
    if found[1] > -MARGIN:
        return "not worse"
    return "worse" if found[2] < 0 else "open"


def num_updates(networks: dict[str, list[Line]]) -> int:
    """Of each training, in whole epochs."""
    return int(next(iter(networks.values()))[0]["num_updates"])


def lengths_of(setting: Setting, groups: dict[Setting, dict[str, list[Line]]]) -> list[Setting]:
    """The settings that differ in updates alone and have the full width, shortest first."""
    found = [
        item
        for item in groups
        if "full" in groups[item] and replace(item, updates=setting.updates) == setting
    ]
    return sorted(found, key=lambda item: item.updates)


def gain_of(
    network: str, setting: Setting, groups: dict[Setting, dict[str, list[Line]]]
) -> tuple[float, float, float] | None:
    """Dice that a network has more than with half of the updates, or fewer; ``None``: unknown."""
    shorter = [
        item
        for item in lengths_of(setting, groups)
        if 2 * item.updates <= setting.updates and network in groups[item]
    ]
    if not shorter or network not in groups[setting]:
        return None
    return difference(groups[setting][network], groups[shorter[-1]][network])


def doubling_verdict(setting: Setting, groups: dict[Setting, dict[str, list[Line]]]) -> str:
    """Whether the last doubling of the updates still gained the full width anything."""
    lengths = lengths_of(setting, groups)
    found = gain_of("full", lengths[-1], groups) if lengths else None
    if found is None:
        return "not trained"
    verdict = "no longer gains" if found[2] < MARGIN else "gains" if found[1] > 0 else "open"
    return f"{shown(found, sign='+')} (to {num_updates(groups[lengths[-1]])}): {verdict}"


def lengths_table(
    settings: Sequence[Setting], groups: dict[Setting, dict[str, list[Line]]]
) -> list[str]:
    """Full width and pick against the number of updates, where there is more than one."""
    rows = []
    for setting in settings:
        lengths = lengths_of(setting, groups)
        for item in lengths if len(lengths) > 1 else ():
            networks = groups[item]
            pick, picked = pick_of(networks)
            full = networks["full"]
            cells = [setting.task, str(num_updates(networks))]
            cells += [
                f"{dice_means(lines).mean():.4f}" if lines else "-" for lines in (full, picked)
            ]
            cells.append(shown(difference(picked, full), sign="+") if picked else "-")
            for network in ("full", f"width_{pick}"):
                gain = gain_of(network, item, groups)
                cells.append(shown(gain, sign="+") if gain else "-")
            rows.append("| " + " | ".join(cells) + " |")
    if not rows:
        return []
    return [
        "",
        "## How long is long enough",
        "",
        "Gains are against half of the updates, paired by case.",
        "",
        "| task | updates | Dice, full width | Dice, pick | pick minus full width | "
        "full width's gain | pick's gain |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *rows,
    ]


def settings_table(
    settings: Sequence[Setting], groups: dict[Setting, dict[str, list[Line]]]
) -> list[str]:
    """Networks trained otherwise than the main setting and its lengths, against the main one."""
    rows = []
    by_task = {setting.task: setting for setting in settings}
    for setting, networks in groups.items():
        main_setting = by_task[setting.task]
        if setting in (main_setting, *lengths_of(main_setting, groups)):
            continue
        pick, picked = pick_of(networks)
        for network, lines in networks.items():
            reference = groups[main_setting].get(network)
            is_pick = network == f"width_{pick}" or not picked
            rows.append(
                f"| {setting.task} | {title(network, pick)} | {setting} | "
                f"{shown(interval(case_means(lines, 'dice'), lines[0]['patients']))} | "
                f"{shown(difference(lines, reference), sign='+') if reference else '-'} | "
                f"{'-' if is_pick else shown(difference(picked, lines), sign='+')} |"
            )
    if not rows:
        return []
    return [
        "",
        "## Other settings",
        "",
        "Difference to the main setting of the task, paired by case.",
        "",
        "| task | network | setting | Dice | minus that of the main setting | "
        "Dice of the pick, trained alike, minus its own |",
        "|---|---|---|---:|---:|---:|",
        *rows,
    ]


if __name__ == "__main__":
    main()
