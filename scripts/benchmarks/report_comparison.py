"""Tables of the paper's comparison, from the journal alone.

usage: python scripts/benchmarks/report_comparison.py --work DIR --output docs/benchmarks

Reads comparison.jsonl of comparison.py, and comparison_latency.jsonl if it is there, in --work (or,
without it, in the output folder), copies both to the output folder and writes
comparison_tables.md there. Intervals are percentiles of 10,000 bootstrap means; patients are drawn
where a data set has several cases of one. Values of a case are means over its classes and over the
seeds of a row; differences are of the seeds that both networks have.
"""

from __future__ import annotations

import argparse
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
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
READING = (
    "*Pick minus* is paired by case and by seed: only seeds count that both networks have. Bold: "
    "the interval does not hold zero. Less is better for HD95 alone. A case has no HD95 where the "
    "prediction lacks a class of its label: it is left out of the mean (*without*: how many), and "
    "of the difference if either network has none (*cases*: how many are left)."
)
Line = dict[str, Any]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """How trainings of a task were made, all networks alike."""

    task: str
    updates: int
    learning_rate: float
    images: str
    whole: bool
    bfloat16: bool
    device: str

    @classmethod
    def of(cls, line: Line) -> Setting:
        """That of a training."""
        return cls(*(line[field.name] for field in fields(cls)))

    def __str__(self) -> str:
        size = ", whole patches" if self.whole else ""
        rate = f"learning rate {self.learning_rate:g}"
        precision = ", bfloat16" if self.bfloat16 else ""
        return f"{self.updates} updates of {self.images}, {rate}{size}{precision}, {self.device}"


@dataclass(frozen=True)
class Measure:
    """What the tables have of each case.

    Args:
        name: in the tables.
        values: of a training's cases, (cases); NaN where one has none.
        digits: after the point.
    """

    name: str
    values: Callable[[Line], Values]
    digits: int


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
    parts += rates_table(main_settings, groups)
    parts += settings_table(main_settings, groups)
    parts += ["", "## How to read the tables of the tasks", "", READING]
    for setting in main_settings:
        networks = groups[setting]
        parts += ["", f"## {setting.task}", "", *task_table(setting, networks, latencies)]
        parts += differences_table(networks)
    return parts + commands_section(lines)


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


def class_means(line: Line, column: str) -> Values:
    """A value per case, (cases): mean over classes; NaN where one that the label has is undefined.

    Dice is undefined where the label lacks a class, HD95 where the prediction does too.
    """
    means = []
    for row, scores in zip(line[column], line["dice"], strict=True):
        pairs = zip(row, scores, strict=True)
        is_lacking = any(value is None and dice is not None for value, dice in pairs)
        means.append(float("nan") if is_lacking else mean_defined(row))
    values = np.array(means)
    return np.where(np.isfinite(values), values, np.nan)


def object_scores(line: Line) -> tuple[Values, Values]:
    """F1 and panoptic quality of each case; NaN where neither mask has an object."""
    found, wrong, missed, iou = np.array(line["instances"], dtype=float).T
    objects = found + (wrong + missed) / 2
    with np.errstate(invalid="ignore"):
        return found / objects, iou / objects


DICE = Measure("Dice", partial(class_means, column="dice"), 4)
NSD = Measure("NSD", partial(class_means, column="nsd"), 4)
HD95 = Measure("HD95", partial(class_means, column="hd95"), 2)
OBJECT_F1 = Measure("F1 of objects", lambda line: object_scores(line)[0], 3)
PANOPTIC = Measure("panoptic quality", lambda line: object_scores(line)[1], 3)
# By which networks are compared, case by case.
COMPARED = (DICE, NSD, HD95, OBJECT_F1)


def measures_of(line: Line) -> tuple[Measure, ...]:
    """What was measured of its cases: objects are not counted in every task."""
    return (DICE, NSD, HD95, *((OBJECT_F1, PANOPTIC) if line["instances"] else ()))


def case_means(lines: Sequence[Line], measure: Measure = DICE) -> Values:
    """A value per case, (cases): mean over classes and seeds; NaN where none is defined."""
    return mean_over_seeds([measure.values(line) for line in lines])


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
    """A mean with its interval; a dash for none."""
    if not np.isfinite(found[0]):
        return "-"
    return "{} [{}, {}]".format(*(format(number, f"{sign}.{digits}f") for number in found))


def pick_of(networks: dict[str, list[Line]]) -> tuple[int, list[Line]]:
    """The picked width, and its trainings."""
    pick = next(iter(networks.values()))[0]["pick"]
    return pick, networks.get(f"width_{pick}", [])


def seeds_of(*groups: Sequence[Line]) -> list[int]:
    """Seeds that all the networks have."""
    return sorted(set.intersection(*({line["seed"] for line in lines} for lines in groups)))


def listed(seeds: Sequence[int]) -> str:
    """Seeds in a cell."""
    return ", ".join(map(str, seeds)) or "-"


def paired(one: Sequence[Line], other: Sequence[Line], measure: Measure = DICE) -> Values:
    """Difference per case, (cases): mean over the seeds that both have; NaN where none is defined.

    Args:
        one: trainings of a network.
        other: of the one that is subtracted.
        measure: a value of each case.

    Raises:
        ValueError: they were measured on different cases.
    """
    cases = one[0]["cases"]
    if any(line["cases"] != cases for line in (*one, *other)):
        raise ValueError(f"other cases were held out of {one[0]['task']}: remove its older lines")
    first, second = ({line["seed"]: line for line in lines} for lines in (one, other))
    seeds = seeds_of(one, other)
    if not seeds:
        return np.full(len(cases), np.nan)
    return mean_over_seeds(
        [measure.values(first[seed]) - measure.values(second[seed]) for seed in seeds]
    )


def difference(
    one: Sequence[Line], other: Sequence[Line], measure: Measure = DICE
) -> tuple[float, float, float]:
    """Mean of the paired differences, with its interval; NaN without a common seed."""
    return interval(paired(one, other, measure), one[0]["patients"])


def mean_cell(lines: Sequence[Line], measure: Measure) -> str:
    """Mean with its interval, and how many cases have none."""
    values = case_means(lines, measure)
    return shown(interval(values, lines[0]["patients"]), measure.digits) + lacking_note(values)


def both_means(groups: Sequence[Sequence[Line]], measure: Measure) -> str:
    """Means of two networks without intervals; dashes for what was not measured."""
    cells = []
    for lines in groups:
        values = case_means(lines, measure) if measured(lines, measure) else np.array([])
        defined = values[np.isfinite(values)]
        text = f"{defined.mean():.{measure.digits}f}" if defined.size else "-"
        cells.append(text + lacking_note(values))
    return " / ".join(cells) if set(cells) != {"-"} else "-"


def measured(lines: Sequence[Line], measure: Measure) -> bool:
    """Whether trainings have a measure."""
    return bool(lines) and measure in measures_of(lines[0])


def lacking_note(values: Values) -> str:
    """How many cases have no value, if any."""
    lacking = int((~np.isfinite(values)).sum())
    return f" ({lacking} without)" if lacking else ""


def difference_cell(one: Sequence[Line], other: Sequence[Line], measure: Measure = DICE) -> str:
    """Difference with its interval, bold if that does not hold zero; of how many cases if fewer."""
    if not measured(one, measure) or not measured(other, measure) or not seeds_of(one, other):
        return "-"
    values = paired(one, other, measure)
    found = interval(values, one[0]["patients"])
    text = shown(found, measure.digits, "+")
    if found[1] > 0 or found[2] < 0:
        text = f"**{text}**"
    num_cases = int(np.isfinite(values).sum())
    return text + (f" ({num_cases} cases)" if num_cases < len(values) else "")


def header(columns: Sequence[str]) -> list[str]:
    """Two lines of a table whose first column is of words and the others of numbers."""
    return ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]


def by_size(networks: dict[str, list[Line]]) -> list[tuple[str, list[Line]]]:
    """Networks and their trainings, the largest first."""
    return sorted(networks.items(), key=lambda item: -item[1][0]["num_parameters"])


def task_table(
    setting: Setting, networks: dict[str, list[Line]], latencies: Sequence[Line]
) -> list[str]:
    """Markdown of one task: a row a network, the largest first."""
    pick, _ = pick_of(networks)
    times = {line["network"]: line for line in latencies if line["task"] == setting.task}
    first = next(iter(networks.values()))[0]
    measures = measures_of(first)
    names = [measure.name for measure in measures]
    rows = [
        f"{len(first['cases'])} cases of {len(set(first['patients']))} patients held out; "
        f"{setting} ({first['num_updates']} updates in whole epochs).",
        "",
        *header(["network", "parameters", "GMACs", "ONNX Runtime, ms", "seeds", *names]),
    ]
    for network, lines in by_size(networks):
        cells = [
            title(network, pick),
            f"{lines[0]['num_parameters']:,}",
            f"{lines[0]['gmacs']:.3g}",
            f"{times[network]['ms']:.1f}" if network in times else "-",
            listed(seeds_of(lines)),
            *(mean_cell(lines, measure) for measure in measures),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return [*rows, *latency_note(times)]


def differences_table(networks: dict[str, list[Line]]) -> list[str]:
    """Markdown of one task: the pick minus each network by each measure, the largest first."""
    pick, picked = pick_of(networks)
    others = [item for item in by_size(networks) if item[0] != f"width_{pick}"]
    if not picked or not others:
        return []
    measures = [measure for measure in COMPARED if measure in measures_of(picked[0])]
    rows = header(["pick minus", "common seeds", *(measure.name for measure in measures)])
    for network, lines in others:
        cells = [title(network, pick), listed(seeds_of(picked, lines))]
        cells += [difference_cell(picked, lines, measure) for measure in measures]
        rows.append("| " + " | ".join(cells) + " |")
    return ["", *rows]


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
        "*better*, *worse*: it does not hold zero; *open*: neither. All by Dice, of the seeds that "
        "both have; the tables of the tasks have the other measures. The longest trainings of "
        "both count (updates in brackets; of the others if not those of the column), each at the "
        "learning rate that suits it best (against the full width in brackets if not the task's: "
        "pick / full width). The full width no longer gains where the last doubling gained it less "
        f"than {MARGIN}, by its interval too.",
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
        rows.append(
            f"| {setting.task} | {pick} | {against_full(setting, groups)} | "
            f"{doubling_verdict(setting, groups)} | {num_updates(networks)} | "
            f"{against_others(setting, groups)} |"
        )
    return rows


def against_others(setting: Setting, groups: dict[Setting, dict[str, list[Line]]]) -> str:
    """Three cells: the networks that the pick is better than, worse than, and the open ones."""
    networks = groups[setting]
    pick, _ = pick_of(networks)
    sides: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
    for network, _ in others_of(networks):
        pairs = rated_pairs(network, setting, groups)
        if not pairs:
            sides["open"].append(title(network, pick) + " (no common seed)")
            continue
        both = pairs[max(pairs)]
        found = difference(*both)
        side = "better" if found[1] > 0 else "worse" if found[2] < 0 else "open"
        note = f" ({both[0][0]['num_updates']})" if max(pairs) != setting.updates else ""
        sides[side].append(title(network, pick) + note)
    return " | ".join(", ".join(sides[side]) or "-" for side in ("better", "worse", "open"))


def others_of(networks: dict[str, list[Line]]) -> list[tuple[str, list[Line]]]:
    """Networks but the full width and the pick, and their trainings, the largest first."""
    pick, _ = pick_of(networks)
    return [item for item in by_size(networks) if item[0] not in (f"width_{pick}", "full")]


def against_full(setting: Setting, groups: dict[Setting, dict[str, list[Line]]]) -> str:
    """Two cells: share of the full width's parameters; difference to it where trained longest."""
    pairs = rated_pairs("full", setting, groups)
    if not pairs:
        return "- | not trained"
    both = pairs[max(pairs)]
    ratio = both[1][0]["num_parameters"] / both[0][0]["num_parameters"]
    found = difference(*both)
    note = f"({both[0][0]['num_updates']}{rates_note(setting, *both)})"
    return f"1/{ratio:,.0f} | {shown(found, sign='+')} {note}: {full_verdict(found)}"


def rated_pairs(
    network: str, setting: Setting, groups: dict[Setting, dict[str, list[Line]]]
) -> dict[int, tuple[list[Line], list[Line]]]:
    """The pick's trainings and another network's by updates, each at the rate that suits it.

    Only what has a common seed.
    """
    pick, _ = pick_of(groups[setting])
    picked, other = (rated(name, setting, groups) for name in (f"width_{pick}", network))
    return {
        updates: (picked[updates], other[updates])
        for updates in sorted(picked.keys() & other.keys())
        if seeds_of(picked[updates], other[updates])
    }


def rates_note(setting: Setting, *networks: list[Line]) -> str:
    """Learning rates of networks, if one is not the setting's."""
    rates = [lines[0]["learning_rate"] for lines in networks]
    if set(rates) == {setting.learning_rate}:
        return ""
    return ", rate " + " / ".join(f"{rate:g}" for rate in rates)


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
    """Settings of a task that differ in updates and have the full width, shortest first.

    Of two that differ in precision alone, the one in float32.
    """
    found: dict[int, Setting] = {}
    for item in sorted(groups, key=lambda item: item.bfloat16):
        if "full" in groups[item] and alike(item, setting):
            found.setdefault(item.updates, item)
    return [item for _, item in sorted(found.items())]


def alike(item: Setting, setting: Setting) -> bool:
    """Whether settings differ in updates and precision alone."""
    return replace(item, updates=setting.updates, bfloat16=setting.bfloat16) == setting


def trainings_of(
    network: str, setting: Setting, groups: dict[Setting, dict[str, list[Line]]]
) -> dict[int, list[Line]]:
    """Trainings of a network by updates, otherwise as the setting; in float32 if any is."""
    found: dict[int, list[Line]] = {}
    for item in sorted(groups, key=lambda item: (item.bfloat16, item.updates)):
        if network in groups[item] and alike(item, setting):
            found.setdefault(item.updates, groups[item][network])
    return found


def rated(
    network: str, setting: Setting, groups: dict[Setting, dict[str, list[Line]]]
) -> dict[int, list[Line]]:
    """Trainings of a network by updates, each at the learning rate that suits it best.

    That is the one of the highest Dice after so many updates. Beyond the most updates that all its
    rates were trained for, if there are any, only the best rate there counts: a longer training at
    a worse one tells nothing of it.
    """
    rates = {
        rate: trainings_of(network, replace(setting, learning_rate=rate), groups)
        for rate in sorted({item.learning_rate for item in groups})
    }
    rates = {rate: trainings for rate, trainings in rates.items() if trainings}
    if not rates:
        return {}

    def best(updates: int) -> dict[int, list[Line]]:
        trained = [trainings for trainings in rates.values() if updates in trainings]
        return max(trained, key=lambda item: float(np.nanmean(case_means(item[updates]))))

    lengths = sorted({updates for trainings in rates.values() for updates in trainings})
    limit = max(set.intersection(*map(set, rates.values())), default=lengths[-1])
    longer = {updates: lines for updates, lines in best(limit).items() if updates > limit}
    return {updates: best(updates)[updates] for updates in lengths if updates <= limit} | longer


def gain_of(trainings: dict[int, list[Line]], updates: int) -> tuple[float, float, float] | None:
    """Dice that a network has more than with half of the updates, or fewer; ``None``: unknown."""
    if updates not in trainings:
        return None
    shorter = [
        number
        for number, lines in trainings.items()
        if 2 * number <= updates and seeds_of(lines, trainings[updates])
    ]
    return difference(trainings[updates], trainings[max(shorter)]) if shorter else None


def doubling_verdict(setting: Setting, groups: dict[Setting, dict[str, list[Line]]]) -> str:
    """Whether the last doubling of the updates still gained the full width anything."""
    trainings = rated("full", setting, groups)
    if not trainings:
        return "not measured"
    longest = max(trainings)
    lines = trainings[longest]
    alike_trained = replace(setting, learning_rate=lines[0]["learning_rate"])
    found = gain_of(trainings_of("full", alike_trained, groups), longest)
    if found is None:
        return "not measured"
    verdict = "no longer gains" if found[2] < MARGIN else "gains" if found[1] > 0 else "open"
    note = f"(to {lines[0]['num_updates']}{rates_note(setting, lines)})"
    return f"{shown(found, sign='+')} {note}: {verdict}"


def lengths_table(
    settings: Sequence[Setting], groups: dict[Setting, dict[str, list[Line]]]
) -> list[str]:
    """Full width and pick against the number of updates, where there is more than one."""
    items = []
    for setting in settings:
        lengths = lengths_of(setting, groups)
        items += lengths if len(lengths) > 1 else []
    if not items:
        return []
    names = [measure.name for measure in COMPARED]
    return [
        "",
        "## How long is long enough",
        "",
        "Means of the full width / of the pick, each over its own seeds. Gains are of Dice against "
        "half of the updates, paired by case and seed. All have the learning rate of the task's "
        "table below. *b*: trained in bfloat16.",
        "",
        *header(["task", "updates", "seeds", *names, "full width's gain", "pick's gain"]),
        *(length_means(item, groups) for item in items),
        "",
        "Pick minus full width, paired likewise. Bold: the interval does not hold zero.",
        "",
        *header(["task", "updates", "common seeds", *names]),
        *(length_differences(item, groups[item]) for item in items),
    ]


def length_cell(setting: Setting, networks: dict[str, list[Line]]) -> str:
    """Updates, and a letter for bfloat16."""
    return f"{num_updates(networks)}{' b' if setting.bfloat16 else ''}"


def length_means(setting: Setting, groups: dict[Setting, dict[str, list[Line]]]) -> str:
    """A row: means of both networks, and what each has gained."""
    networks = groups[setting]
    pick, picked = pick_of(networks)
    both = networks["full"], picked
    cells = [setting.task, length_cell(setting, networks)]
    cells.append(" / ".join(listed(seeds_of(lines)) for lines in both))
    cells += [both_means(both, measure) for measure in COMPARED]
    for network in ("full", f"width_{pick}"):
        gain = gain_of(trainings_of(network, setting, groups), setting.updates)
        cells.append(shown(gain, sign="+") if gain else "-")
    return "| " + " | ".join(cells) + " |"


def length_differences(setting: Setting, networks: dict[str, list[Line]]) -> str:
    """A row: the pick minus the full width."""
    _, picked = pick_of(networks)
    full = networks["full"]
    cells = [setting.task, length_cell(setting, networks), listed(seeds_of(picked, full))]
    cells += [difference_cell(picked, full, measure) for measure in COMPARED]
    return "| " + " | ".join(cells) + " |"


def rates_table(
    settings: Sequence[Setting], groups: dict[Setting, dict[str, list[Line]]]
) -> list[str]:
    """Networks at other learning rates; the pick and each, both at the rates that suit them."""
    rows, compared = [], []
    for setting in settings:
        pick, _ = pick_of(groups[setting])
        others = [item for item in groups if is_rated(item, setting)]
        names = ["full", f"width_{pick}", *(name for name, _ in others_of(groups[setting]))]
        for network in names:
            trained = [item for item in others if network in groups[item]]
            for item in sorted(trained, key=lambda item: (item.learning_rate, item.updates)):
                rows.append(rate_row(network, item, setting, groups))
            if network != f"width_{pick}":
                compared += rated_differences(network, setting, groups)
    if not rows and not compared:
        return []
    return [
        "",
        "## Other learning rates",
        "",
        "Differences are paired by case and by common seed. *The main rate* is that of the task's "
        "table below. *b*: trained in bfloat16.",
        "",
        *header(
            ["task", "network", "learning rate", "updates", "Dice", "minus itself, main rate",
             "minus itself, half of the updates"]
        ),
        *rows,
        "",
        "The pick minus other networks, each at the rate that suits it: that of the highest Dice "
        "after so many updates, where a longer training at another rate than the best of the most "
        "updates that all its rates were trained for does not count.",
        "",
        *header(
            ["task", "pick minus", "updates", "rate, pick / other",
             *(measure.name for measure in COMPARED)]
        ),
        *compared,
    ]  # fmt: skip


def is_rated(item: Setting, setting: Setting) -> bool:
    """Whether a setting has another rate, and differs in updates and precision alone besides."""
    is_other = item.learning_rate != setting.learning_rate
    return is_other and alike(replace(item, learning_rate=setting.learning_rate), setting)


def rate_row(
    network: str, item: Setting, setting: Setting, groups: dict[Setting, dict[str, list[Line]]]
) -> str:
    """A row: a training at another learning rate than the main setting's."""
    pick, _ = pick_of(groups[setting])
    lines = groups[item][network]
    same = trainings_of(network, setting, groups).get(item.updates, [])
    gain = gain_of(trainings_of(network, item, groups), item.updates)
    cells = [
        setting.task,
        title(network, pick),
        f"{item.learning_rate:g}",
        length_cell(item, groups[item]),
        mean_cell(lines, DICE),
        difference_cell(lines, same),
        shown(gain, sign="+") if gain else "-",
    ]
    return "| " + " | ".join(cells) + " |"


def rated_differences(
    network: str, setting: Setting, groups: dict[Setting, dict[str, list[Line]]]
) -> list[str]:
    """Rows: the pick minus another network after each number of updates that both have.

    But those that other tables have: both at the main rate, for as long as the main setting or for
    a length of the full width.
    """
    pick, _ = pick_of(groups[setting])
    rows = []
    for updates, both in rated_pairs(network, setting, groups).items():
        is_main_rate = not rates_note(setting, *both)
        if is_main_rate and (network == "full" or updates == setting.updates):
            continue
        cells = [setting.task, title(network, pick), str(both[0][0]["num_updates"])]
        cells.append(" / ".join(f"{lines[0]['learning_rate']:g}" for lines in both))
        cells += [difference_cell(*both, measure) for measure in COMPARED]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


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
            if is_rated(setting, main_setting) and (reference or network == "full"):
                continue
            is_pick = network == f"width_{pick}" or not picked
            rows.append(
                f"| {setting.task} | {title(network, pick)} | {setting} | "
                f"{listed(seeds_of(lines))} | {mean_cell(lines, DICE)} | "
                f"{difference_cell(lines, reference) if reference else '-'} | "
                f"{'-' if is_pick else difference_cell(picked, lines)} |"
            )
    if not rows:
        return []
    return [
        "",
        "## Other settings",
        "",
        "Difference to the main setting of the task, paired by case and by common seed.",
        "",
        "| task | network | setting | seeds | Dice | minus that of the main setting | "
        "Dice of the pick, trained alike, minus its own |",
        "|---|---|---|---:|---:|---:|---:|",
        *rows,
    ]


def commands_section(lines: Sequence[Line]) -> list[str]:
    """What was run: a command for all trainings that differ in task and network alone."""
    seeds: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for line in lines:
        seeds[options_of(line), line["task"], line["network"]].add(line["seed"])
    networks: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (options, task, network), found in seeds.items():
        drawn = f" --seeds {','.join(map(str, sorted(found)))}" if found != {0} else ""
        networks[options + drawn, task].append(network)
    tasks: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (options, task), names in networks.items():
        tasks[options, ",".join(sorted(names))].append(task)
    command = "python scripts/benchmarks/comparison.py train --data DATA --work WORK"
    return [
        "",
        "## Commands",
        "",
        "All trainings of these tables. `--validations`, how often a curve was measured, is left "
        "out: it changes no training.",
        "",
        "*Not run by the tests: they train for hours to days.*",
        "",
        "```bash",
        *(
            f"{command} --tasks {','.join(names)} {options} --networks {listed_networks}"
            for (options, listed_networks), names in tasks.items()
        ),
        "```",
    ]


def options_of(line: Line) -> str:
    """Options of comparison.py that a training had besides its task, its network and its seed."""
    options = [f"--updates {line['updates']} --learning_rate {line['learning_rate']:g}"]
    options += [f"--{name}" for name in ("whole", "bfloat16") if line[name]]
    if line["device"] != "CPU":
        options.append("--device cuda")
    return " ".join(options)


if __name__ == "__main__":
    main()
