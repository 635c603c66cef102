"""Compare rules that choose a width, from the CSV files of selection.py alone.

usage: python scripts/benchmarks/report_selection.py --output docs/benchmarks

Reads selection_ladders.csv, selection_trainings.csv, selection_searches.csv and
selection_scores.csv in the folder, and writes there selection_tables.md and images/selection_*.png.
Every threshold is fitted on the synthetic tasks and then applied to the real ones; that of the
default rule once more with each task left out.

A rule is judged by the steps (halvings) between its pick and the oracle, the smallest width whose
mean Dice is within 0.01 of the best that was trained; by the Dice lost against the best; by the
parameters; and by its agreement with itself, the share of searches that give its commonest pick.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path

import matplotlib
import numpy as np

from monai_xtiny.selection.paper import select_paper

matplotlib.use("Agg")

PLATEAU = 0.01
# Dice that a fitted threshold may lose against the best, mean over the tasks.
MAX_LOST = 0.005
# Widths that a task must have been trained at, to take part; curves of a vote; and initializations
# of the dispersion of the sensitivity, one from each of neighboring searches.
MIN_TRAINED = 6
NUM_VOTES = 5
NUM_POOLED = 8
# Bounds of stated confidences.
CONFIDENCES = (0.5, 0.8, 0.95)
REAL = (
    "fluorescence", "stain", "hippocampus_slices", "hippocampus_3d", "hippocampus_merged",
    "ultrasound", "cardiac", "stain_outlines",
)  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What training says of one task.

    Args:
        dice: mean over seeds at each trained width, widest first.
        spread: standard deviation over seeds, 0 for one.
        counts: trainings of each width.
        sizes: parameters of each width of the ladder.
    """

    dice: dict[int, float]
    spread: dict[int, float]
    counts: dict[int, int]
    sizes: dict[int, int]

    @property
    def oracle(self) -> int:
        """The smallest width on the plateau."""
        best = max(self.dice.values())
        return min(width for width, dice in self.dice.items() if dice >= best - PLATEAU)

    def dice_lost(self, width: int) -> float:
        """Against the best; a width that was not trained counts as the widest that was."""
        return max(self.dice.values()) - self.dice[min(width, max(self.dice))]


@dataclass(frozen=True)
class Run:
    """The statistics of one search.

    Args:
        task: its name.
        classes: background included.
        values: by statistic and width (widest first), one value per initialization.
    """

    task: str
    classes: int
    values: dict[str, dict[int, list[float]]]

    def mean(self, statistic: str) -> dict[int, float]:
        """Mean over initializations, by width."""
        return {width: float(np.mean(v)) for width, v in self.values[statistic].items()}


Rule = Callable[[Sequence[Run], int], int]


def main() -> None:
    """Read, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    folder = parser.parse_args().output
    truths = read_trainings(folder / "selection_trainings.csv", folder / "selection_ladders.csv")
    runs = read_scores(folder / "selection_scores.csv")
    tasks = [task for task in truths if task in runs and len(truths[task].dice) >= MIN_TRAINED]
    synthetic = [task for task in tasks if task not in REAL]
    rules, fitted = make_rules(truths, runs, synthetic)
    lines = ["# Tables: rules that choose a width", "", *truth_tables(truths)]
    for name, part in (("Synthetic tasks", synthetic), ("Real data", [*filter(real, tasks)])):
        if part:
            lines += ["", f"## Rules: {name.lower()}", "", *compare(rules, truths, runs, part)]
    lines += ["", "## Thresholds", "", "Fitted on the synthetic tasks:", ""]
    lines += [f"- {name}: {value:.4g}" for name, value in fitted.items()]
    others = [
        fit(above("alignment"), candidates("alignment", runs, part), truths, runs, part)
        for part in ([task for task in synthetic if task != left] for left in synthetic)
    ]
    lines += ["", "That of `alignment` with each synthetic task left out in turn: "
              + ", ".join(f"{value:.3f}" for value in sorted(others)) + "."]  # fmt: skip
    searches = read_searches(folder / "selection_searches.csv")
    lines += ["", "## Default searches", "", *searches_table(searches, truths)]
    lines += ["", "## Confidence", "", *confidence_table(searches)]
    lines += ["", "## Picks", "", *picks_table(rules, truths, runs, tasks)]
    (folder / "selection_tables.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw_truths(truths, folder / "images" / "selection_dice.png")
    draw_statistics(truths, runs, tasks, folder / "images" / "selection_statistics.png")
    print(folder / "selection_tables.md")


def real(task: str) -> bool:
    """Whether a task is a real data set."""
    return task in REAL


def read_trainings(path: Path, ladders: Path) -> dict[str, Truth]:
    """Trainings and sizes by task."""
    dice: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    sizes: dict[str, dict[int, int]] = defaultdict(dict)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            width = int(row["max_features"])
            dice[row["task"]][width].append(float(row["dice"]))
    with open(ladders, newline="") as file:
        for row in csv.DictReader(file):
            sizes[row["task"]][int(row["max_features"])] = int(row["num_parameters"])
    return {
        task: Truth(
            {width: statistics.mean(widths[width]) for width in sorted(widths, reverse=True)},
            {w: statistics.stdev(v) if len(v) > 1 else 0.0 for w, v in widths.items()},
            {width: len(values) for width, values in widths.items()},
            sizes[task],
        )
        for task, widths in sorted(dice.items(), key=lambda item: (real(item[0]), item[0]))
    }


def read_scores(path: Path) -> dict[str, list[Run]]:
    """Searches by task, in the order of their numbers."""
    values: dict[tuple[str, int], dict[str, dict[int, list[float]]]] = {}
    classes: dict[str, int] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            run = values.setdefault((row["task"], int(row["run"])), {})
            widths = run.setdefault(row["statistic"], {})
            widths.setdefault(int(row["max_features"]), []).append(float(row["value"]))
            classes[row["task"]] = int(row["classes"])
    found: dict[str, list[Run]] = defaultdict(list)
    for task, number in sorted(values):
        found[task].append(Run(task, classes[task], values[task, number]))
    return dict(found)


def make_rules(
    truths: dict[str, Truth], runs: dict[str, list[Run]], synthetic: Sequence[str]
) -> tuple[dict[str, Rule], dict[str, float]]:
    """Every candidate, its threshold fitted where it has one."""
    rules: dict[str, Rule] = {
        "paper, one initialization": paper,
        f"paper, vote of {NUM_VOTES}": paper_votes,
        "log variation, published window": variation(window=True),
        "log variation, any split": variation(window=False),
        "log variation, any split, parsimony": variation(window=False, parsimony=0.1),
        "log variation, published window, parsimony": variation(window=True, parsimony=0.1),
        "dispersion of log S, change point": dispersion(),
        "dispersion of log S, change point, parsimony": dispersion(parsimony=0.1),
        "dispersion of log S, change point in the published window": dispersion(window=True),
        "dispersion of log S, published window, parsimony": dispersion(window=True, parsimony=0.1),
    }
    fitted = {}
    for statistic, title in (
        ("alignment", "share explained of image features (`alignment`)"),
        ("explained", "share explained of wide networks' features"),
        ("cka", "linear CKA with wide networks"),
        ("bottleneck", "linear CKA at the bottleneck"),
        ("rank", "effective rank"),
        ("dispersion", "dispersion of log S, threshold"),
    ):
        maker = above(statistic)
        fitted[title] = fit(maker, candidates(statistic, runs, synthetic), truths, runs, synthetic)
        rules[title] = maker(fitted[title])
    for width in (4, 8, 16, 32):
        rules[f"always {width}"] = constant(width)
    rules["always full"] = constant(None)
    rules["random"] = random_width
    return rules, fitted


def fit(
    maker: Callable[[float], Rule], values: Sequence[float], truths: dict[str, Truth],
    runs: dict[str, list[Run]], tasks: Sequence[str],
) -> float:  # fmt: skip
    """The threshold with fewest steps from the oracle and departures from a task's commonest pick.

    Of those that lose less than ``MAX_LOST`` Dice on average: the mean number of steps hardly
    changes over a wide range, in which they turn from the narrow side, where Dice is lost, to the
    wide side. The middle one of equals; the one that loses least if all lose more.
    """
    found = []
    for value in values:
        rule = maker(value)
        distance, lost = regret(rule, truths, runs, tasks)
        departures = 1 - statistics.mean(agreements(rule, runs, tasks))
        found.append((max(0.0, lost - MAX_LOST), round(distance + departures, 6)))
    best = [value for value, cost in zip(values, found, strict=True) if cost == min(found)]
    return best[len(best) // 2]


def agreements(rule: Rule, runs: dict[str, list[Run]], tasks: Sequence[str]) -> list[float]:
    """Share of each task's searches that give its commonest pick."""
    shares = []
    for task in tasks:
        picks = [rule(runs[task], index) for index in range(len(runs[task]))]
        shares.append(Counter(picks).most_common(1)[0][1] / len(picks))
    return shares


def paper(runs: Sequence[Run], index: int) -> int:
    """The published rule on one initialization."""
    curve = {width: v[0] for width, v in runs[index].values["sensitivity"].items()}
    return select_paper(list(curve), list(curve.values()))


def paper_votes(runs: Sequence[Run], index: int) -> int:
    """The published rule, voted by the initializations of neighboring searches; wider on a tie."""
    picks = [paper(runs, (index + step) % len(runs)) for step in range(min(NUM_VOTES, len(runs)))]
    counts = Counter(picks)
    return max(counts, key=lambda width: (counts[width], width))


def variation(*, window: bool, parsimony: float = 0.0) -> Rule:
    """Split where the variation of log S between widths grows most, all initializations together.

    With ``window`` the splits are the published ones. With ``parsimony`` the smallest width whose
    gain is within that share of the largest is taken.
    """

    def rule(runs: Sequence[Run], index: int) -> int:
        logs = list(pooled_logs(runs, index).values())
        widths = list(runs[index].values["sensitivity"])
        steps = [
            np.abs(first[:, None] - second[None]).mean()
            for first, second in zip(logs[:-1], logs[1:], strict=True)
        ]
        last = len(widths) - 2 if window else len(steps)
        gains = {
            k: np.mean(steps[k - window :]) - np.mean(steps[:k])
            for k in range(2 if window else 1, last)
        }
        top = max(gains.values())
        near = [k for k, gain in gains.items() if gain >= top - parsimony * abs(top)]
        # Before the k-th step stands width k; the published rule names the one before.
        return widths[max(near) - window]

    return rule


def pooled_logs(runs: Sequence[Run], index: int) -> dict[int, np.ndarray]:
    """Log S of a search and its neighbors, each with initializations of its own, by width."""
    near = [runs[(index + step) % len(runs)] for step in range(min(NUM_POOLED, len(runs)))]
    return {
        width: np.log([value for run in near for value in run.values["sensitivity"][width]])
        for width in runs[index].values["sensitivity"]
    }


def spreads(runs: Sequence[Run], index: int) -> dict[int, float]:
    """Standard deviation of log S over initializations, by width."""
    return {
        width: float(np.std(values, ddof=1)) for width, values in pooled_logs(runs, index).items()
    }


def dispersion(*, window: bool = False, parsimony: float = 0.0) -> Rule:
    """The width before the largest relative growth of the dispersion of log S.

    With ``window`` only widths that the published rule can choose. With ``parsimony`` the smallest
    width after which it grows within that share of the most.
    """

    def rule(runs: Sequence[Run], index: int) -> int:
        found = spreads(runs, index)
        widths = list(found)
        growth = {
            before: found[after] / max(found[before], 1e-9)
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        }
        if window:
            growth = {width: growth[width] for width in widths[1:-3]}
        top = max(growth.values())
        return min(width for width, value in growth.items() if value >= (1 - parsimony) * top)

    return rule


def above(statistic: str) -> Callable[[float], Rule]:
    """Rules that take the smallest width down to which a statistic stays above a threshold."""

    def maker(threshold: float) -> Rule:
        def rule(runs: Sequence[Run], index: int) -> int:
            values = series(statistic, runs, index)
            chosen = next(iter(values))
            for width, value in values.items():
                if value < threshold:
                    break
                chosen = width
            return chosen

        return rule

    return maker


def series(statistic: str, runs: Sequence[Run], index: int) -> dict[int, float]:
    """A statistic that falls with the width, by width."""
    if statistic == "dispersion":
        return {width: -value for width, value in spreads(runs, index).items()}
    return runs[index].mean(statistic)


def candidates(
    statistic: str, runs: dict[str, list[Run]], tasks: Sequence[str], number: int = 200
) -> list[float]:
    """Thresholds to try: quantiles of what was seen on the synthetic tasks."""
    seen = [
        value
        for task in tasks
        for index in range(len(runs[task]))
        for value in series(statistic, runs[task], index).values()
    ]
    return [float(value) for value in np.quantile(seen, np.linspace(0.01, 0.99, number))]


def constant(width: int | None) -> Rule:
    """A width whatever the data; the full network without one. The nearest below in 3D ladders."""

    def rule(runs: Sequence[Run], index: int) -> int:
        widths = list(runs[index].values["sensitivity"])
        return widths[0] if width is None else max(w for w in widths if w <= width)

    return rule


def random_width(runs: Sequence[Run], index: int) -> int:
    """Any width of the ladder."""
    widths = list(runs[index].values["sensitivity"])
    return widths[np.random.default_rng(index).integers(len(widths))]


def steps(pick: int, truth: Truth) -> float:
    """Halvings between a pick and the oracle; positive where the pick is wider."""
    return log2(pick / truth.oracle)


def regret(
    rule: Rule, truths: dict[str, Truth], runs: dict[str, list[Run]], tasks: Sequence[str]
) -> tuple[float, float]:
    """Mean steps from the oracle over tasks and searches, then mean Dice lost."""
    distance, lost = [], []
    for task in tasks:
        picks = [rule(runs[task], index) for index in range(len(runs[task]))]
        distance.append(np.mean([abs(steps(pick, truths[task])) for pick in picks]))
        lost.append(np.mean([truths[task].dice_lost(pick) for pick in picks]))
    return float(np.mean(distance)), float(np.mean(lost))


def compare(
    rules: dict[str, Rule], truths: dict[str, Truth], runs: dict[str, list[Run]],
    tasks: Sequence[str],
) -> list[str]:  # fmt: skip
    """Markdown: one row per rule, best first."""
    rows = []
    for name, rule in rules.items():
        distance, lost = regret(rule, truths, runs, tasks)
        worst, share, is_trained = [], [], []
        agreement = agreements(rule, runs, tasks)
        for task in tasks:
            picks = [rule(runs[task], index) for index in range(len(runs[task]))]
            worst.append(max(abs(steps(pick, truths[task])) for pick in picks))
            sizes = truths[task].sizes
            share += [sizes[pick] / sizes[truths[task].oracle] for pick in picks]
            is_trained += [pick in truths[task].dice for pick in picks]
        dice = f"{lost:.4f}" + ("" if all(is_trained) else " *") if any(is_trained) else "-"
        rows.append(
            (distance, lost, f"| {name} | {distance:.2f} | {max(worst):.0f} | {dice} | "
             f"{np.exp(np.mean(np.log(share))):.2f} | {min(agreement):.0%} | "
             f"{np.mean(agreement):.0%} |")
        )  # fmt: skip
    numbers = ", ".join(f"{task} {len(runs[task])}" for task in tasks)
    return [
        f"Searches of each task: {numbers}.",
        "",
        "| rule | mean steps from oracle | worst | mean Dice lost | parameters / oracle's | "
        "agreement, worst task | mean |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(row for _, _, row in sorted(rows)),
        "",
        "\\* Some picks are wider than what was trained, and count as the widest that was.",
    ]


def read_searches(path: Path) -> dict[str, list[tuple[int, float]]]:
    """What default searches of each task picked, and the confidence that they stated."""
    searches: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            searches[row["task"]].append((int(row["max_features"]), float(row["confidence"])))
    return dict(searches)


def searches_table(
    searches: dict[str, list[tuple[int, float]]], truths: dict[str, Truth]
) -> list[str]:
    """Markdown: what the default search, with the threshold that it ships with, is worth."""
    lines = [
        "With the threshold of the package.",
        "",
        "| task | oracle | picks | mean steps from oracle | mean Dice lost | agreement |",
        "|---|---:|---|---:|---:|---:|",
    ]
    rows: dict[bool, list[list[float]]] = {False: [], True: []}
    for task in (task for task in truths if task in searches):
        truth, counts = truths[task], Counter(pick for pick, _ in searches[task])
        number = len(searches[task])
        row = [
            sum(abs(steps(pick, truth)) * count for pick, count in counts.items()) / number,
            sum(truth.dice_lost(pick) * count for pick, count in counts.items()) / number,
            counts.most_common(1)[0][1] / number,
        ]
        rows[real(task)].append(row)
        picks = ", ".join(f"{pick} x {count}" for pick, count in counts.most_common())
        values = f"{row[0]:.2f} | {row[1]:.4f} | {row[2]:.0%}"
        lines.append(f"| {task} | {truth.oracle} | {picks} | {values} |")
    for is_real, name in ((False, "synthetic tasks"), (True, "real data")):
        if rows[is_real]:
            distance, lost, share = np.mean(rows[is_real], axis=0)
            lines.append(f"| {name}, mean | | | {distance:.2f} | {lost:.4f} | {share:.0%} |")
    return lines


def confidence_table(searches: dict[str, list[tuple[int, float]]]) -> list[str]:
    """Markdown: how often default searches of a stated confidence give the commonest pick."""
    stated: dict[int, list[bool]] = defaultdict(list)
    for found in searches.values():
        commonest = Counter(pick for pick, _ in found).most_common(1)[0][0]
        for pick, confidence in found:
            stated[sum(confidence >= bound for bound in CONFIDENCES)].append(pick == commonest)
    bounds = [0.0, *CONFIDENCES, 1.0]
    return [
        "Default searches by the confidence that they state, and how many of them give their "
        "task's commonest pick.",
        "",
        "| confidence | searches | commonest pick |",
        "|---|---:|---:|",
        *(
            f"| {bounds[index]:.0%} to {bounds[index + 1]:.0%} | {len(stated[index])} | "
            f"{np.mean(stated[index]):.0%} |"
            for index in sorted(stated, reverse=True)
        ),
    ]


def truth_tables(truths: dict[str, Truth]) -> list[str]:
    """Markdown: mean Dice of every task and width, with the oracle."""
    widths = sorted({width for truth in truths.values() for width in truth.dice}, reverse=True)
    lines = [
        "## Dice against width",
        "",
        "Mean ± standard deviation over seeds (number of trainings); the oracle in bold.",
        "",
        "| task | " + " | ".join(map(str, widths)) + " | oracle |",
        "|---|" + "---:|" * (len(widths) + 1),
    ]
    for task, truth in truths.items():
        cells = []
        for width in widths:
            if width not in truth.dice:
                cells.append("-")
                continue
            cell = f"{truth.dice[width]:.3f}"
            if truth.counts[width] > 1:
                cell += f" ± {truth.spread[width]:.3f} ({truth.counts[width]})"
            cells.append(f"**{cell}**" if width == truth.oracle else cell)
        lines.append(f"| {task} | " + " | ".join(cells) + f" | {truth.oracle} |")
    return lines


def picks_table(
    rules: dict[str, Rule], truths: dict[str, Truth], runs: dict[str, list[Run]],
    tasks: Sequence[str],
) -> list[str]:  # fmt: skip
    """Markdown: what every rule picked for every task, and how often."""
    lines = [
        "| rule | " + " | ".join(f"{task} ({truths[task].oracle})" for task in tasks) + " |",
        "|---|" + "---|" * len(tasks),
    ]
    for name, rule in rules.items():
        cells = []
        for task in tasks:
            counts = Counter(rule(runs[task], index) for index in range(len(runs[task])))
            cells.append(", ".join(f"{width} x {n}" for width, n in counts.most_common()))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def draw_truths(truths: dict[str, Truth], path: Path) -> None:
    """Dice lost against the best, against width, a line a task."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    for axes, is_real in zip(panels, (False, True), strict=True):
        for task, truth in truths.items():
            if real(task) == is_real:
                best = max(truth.dice.values())
                lost = [max(best - dice, 1e-3) for dice in truth.dice.values()]
                axes.plot(list(truth.dice), lost, "o-", label=f"{task}, oracle {truth.oracle}")
        axes.axhline(PLATEAU, color="gray", ls=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.invert_xaxis()
        axes.set(xlabel="width cap", title="real data" if is_real else "synthetic tasks")
        axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    panels[0].set_ylabel("Dice lost against the best")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def draw_statistics(
    truths: dict[str, Truth], runs: dict[str, list[Run]], tasks: Sequence[str], path: Path
) -> None:
    """Each statistic against width, a line a task, with the oracle marked."""
    from matplotlib import pyplot

    names = ("alignment", "explained", "cka", "bottleneck", "rank", "dispersion")
    figure, panels = pyplot.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axes, name in zip(panels.flat, names, strict=True):
        for number, task in enumerate(tasks):
            found = [series(name, runs[task], index) for index in range(len(runs[task]))]
            mean = {width: abs(np.mean([item[width] for item in found])) for width in found[0]}
            (line,) = axes.plot(
                list(mean), list(mean.values()), "-" if real(task) else "--", label=task,
                color=pyplot.colormaps["tab20"](number % 20),
            )  # fmt: skip
            oracle = truths[task].oracle
            if oracle in mean:
                axes.plot(oracle, mean[oracle], "o", color=line.get_color())
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.invert_xaxis()
        axes.set(title=name, xlabel="width cap")
    panels[0, 0].legend(fontsize=6)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
