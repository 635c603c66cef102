"""Judge races and what is known without labels, each task by what was fitted on the others.

usage: python scripts/benchmarks/report_race.py --output docs/benchmarks

Reads race.jsonl of race.py and the CSV files of selection.py in the folder, and writes
race_tables.md there. The oracle of a task is the smallest width within 0.01 Dice of the best that
was trained to the end; its test cases have no part in a race. The last table holds the constants of
monai_xtiny/selection/posterior.py and monai_xtiny/training/race.py, fitted on all tasks.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from report_selection import NUM_VOTES, REAL, Run, Truth, paper_votes, read_scores, read_trainings

from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.selection.alignment import THRESHOLD, select_alignment
from monai_xtiny.selection.bayes import SHARE_OF_SEEDS
from monai_xtiny.selection.budget import first_seeds
from monai_xtiny.selection.paper import select_paper
from monai_xtiny.selection.posterior import (
    ALIGNMENT_BIAS,
    ALIGNMENT_SD,
    PRIOR_MEAN,
    PRIOR_SD,
    PRIOR_SLOPE,
    WIDE_LOSS,
    Belief,
    crossing,
    expected_dice_lost,
    least_loss,
)
from monai_xtiny.system.files import read_lines
from monai_xtiny.training.compare import Verification
from monai_xtiny.training.race import (
    TOLERANCE,
    brief_tolerance,
    discounted,
    leader,
    mean_dice,
    race_steps,
)
from monai_xtiny.training.train import Training
from monai_xtiny.training.verify import MAX_HELD_OUT, race_widths, spread_over_patients

LADDER = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
# Ten further real tasks of one to four classes that are not in this repository, trained for 480
# updates: how many needed which width ("8 or 16" nine times, counted half to each).
ELSEWHERE = {32: 1.0, 16: 4.5, 8: 4.5}
DOUBLINGS_ELSEWHERE = 0.2
# Whose oracle the next seed may change: six patients are held out, and trainings of one width have
# standard deviations of 0.05 to 0.08.
DOUBTFUL = ("cardiac",)
# Of a race's deviation, in steps, so that few tasks do not seem to be sure.
MIN_SD = 0.4
FACTORS = tuple(0.6 * 1.1**power for power in range(20))

RACED = (32, 16, 8, 4)
VERIFIED = (120, 2)  # updates and seeds of what `verify` runs
STOPPED_AFTER = (1, 2, 3, 4, 5, 6, 8)  # trainings

Dice = dict[int, np.ndarray]
Kind = tuple[int, int]  # of a race: number of updates and of seeds
MEASURED: dict[tuple[object, ...], tuple[float, float]] = {}


@dataclass(frozen=True)
class Task:
    """What is known of a task.

    Args:
        truth: of whole trainings.
        doublings: of the number of classes, from two.
        crossings: of every search, in log2 of the width.
        runs: of every search.
        brief: Dice of brief trainings, by number of updates and seed; of the held-out cases one of
            each patient, then a second of each, as `verify` takes them.
        patients: of each of these cases; empty where each is of its own.
    """

    truth: Truth
    doublings: float
    crossings: list[float]
    runs: list[Run]
    brief: dict[tuple[int, int], Dice]
    patients: tuple[str, ...] = ()

    @property
    def needed(self) -> float:
        """Log2 of the oracle."""
        return math.log2(self.truth.oracle)

    @property
    def kinds(self) -> list[Kind]:
        """Numbers of updates, with the numbers of seeds that a race may have had."""
        updates = [number for number, _ in self.brief]
        return sorted({(n, k + 1) for n in updates for k in range(min(updates.count(n), 3))})

    def races(self, kind: Kind) -> list[Dice]:
        """Every race of so many updates and seeds that the brief trainings make."""
        return [
            {
                width: np.concatenate([self.brief[kind[0], seed][width] for seed in group])
                for width in RACED
            }
            for group in combinations(self.seeds(kind[0]), kind[1])
        ]

    def seeds(self, updates: int) -> list[int]:
        """Of the brief trainings of so many updates."""
        return sorted(seed for number, seed in self.brief if number == updates)


@dataclass(frozen=True)
class Fit:
    """What some tasks say: the constants of the package.

    Args:
        mean: of the prior.
        slope: a doubling of the classes.
        sd: of the prior.
        alignment: bias and deviation of the crossing.
        races: deviation, by number of updates and of seeds.
        flat: the prior of one that does not look at the classes.
    """

    mean: float
    slope: float
    sd: float
    alignment: tuple[float, float]
    races: dict[Kind, float]
    flat: Belief

    def prior(self, task: Task) -> Belief:
        """Before anything of a task is looked at but its classes."""
        return Belief(self.mean + self.slope * task.doublings, self.sd)

    def unlabeled(self, task: Task, step: float) -> Belief:
        """By one search of it too."""
        return self.prior(task).updated(step - self.alignment[0], self.alignment[1])

    def raced(self, belief: Belief, task: Task, dice: Dice, kind: Kind) -> Belief:
        """By a race of it too, beside which the belief counts as it is given."""
        steps, spread = measured_steps(dice, brief_tolerance(kind[0]), task.patients)
        return belief.updated(steps, math.hypot(spread, self.races[kind]))


# Fitted before stained outlines, ultrasound, cardiac MR and the hippocampus in 3D or merged.
OF_PACKAGE = Fit(
    PRIOR_MEAN, PRIOR_SLOPE, PRIOR_SD, (ALIGNMENT_BIAS, ALIGNMENT_SD), {},
    Belief(PRIOR_MEAN, PRIOR_SD),
)  # fmt: skip


def main() -> None:
    """Read, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    folder = parser.parse_args().output
    warnings.filterwarnings("ignore", "Mean of empty slice")
    tasks = read_tasks(folder)
    lines = ["# Tables: a race on labels", "", "## Tasks", "", *tasks_table(tasks)]
    fits = {name: fit([task for other, task in tasks.items() if other != name]) for name in tasks}
    sure = {name: task for name, task in tasks.items() if name not in DOUBTFUL}
    sure_fits = {
        name: fit([task for other, task in sure.items() if other != name]) for name in sure
    }
    for title, among, constants_of in (
        ("All tasks", tasks, fits),
        (f"All tasks but {', '.join(DOUBTFUL)}", sure, sure_fits),
        ("Real data", {name: task for name, task in tasks.items() if is_real(name)}, fits),
    ):
        lines += ["", f"## {title}", "", *judge(among, constants_of)]
    lines += ["", f"## `verify`, {kind_name(VERIFIED)}, task by task", ""]
    lines += verified_table(tasks, fits, VERIFIED)
    lines += ["", f"## `verify` stopped by time, {kind_name(VERIFIED)} at most", ""]
    lines += stopped_table(tasks, fits, VERIFIED)
    lines += ["", "## Behind the best, after brief and after whole trainings", "", *gaps(tasks)]
    lines += ["", "## Probabilities", "", *calibration(tasks, fits)]
    lines += ["", "## Dice lost beyond 0.01 by widths narrower than the oracle", "", *narrow(tasks)]
    lines += ["", "## Constants, fitted on all tasks", "", *constants(fit(list(tasks.values())))]
    (folder / "race_tables.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(folder / "race_tables.md")


def is_real(name: str) -> bool:
    """Whether a task is a real data set."""
    return name in REAL


def read_tasks(folder: Path) -> dict[str, Task]:
    """Tasks that have whole trainings and races."""
    truths = read_trainings(folder / "selection_trainings.csv", folder / "selection_ladders.csv")
    runs = read_scores(folder / "selection_scores.csv")
    brief: dict[str, dict[tuple[int, int], Dice]] = defaultdict(lambda: defaultdict(dict))
    patients = {}
    refuse_seen(folder)
    for line in read_lines(folder / "race.jsonl"):
        names = line["evaluation"].get("patients", ())
        order = spread_over_patients(names or line["evaluation"]["cases"])
        patients[line["task"]] = tuple(names[place] for place in order) if names else ()
        dice = np.array(line["evaluation"]["dice"], dtype=float)[None, order]
        brief[line["task"]][line["updates"], line["seed"]][line["max_features"]] = dice
    widths = set(RACED)
    tasks = {}
    for name, truth in truths.items():
        found = {key: dice for key, dice in brief[name].items() if widths <= set(dice)}
        if found and name in runs and widths <= set(truth.dice):
            tasks[name] = Task(
                truth,
                math.log2(runs[name][0].classes) - 1,
                [crossing(first_means(run), THRESHOLD) for run in runs[name]],
                runs[name],
                found,
                patients[name],
            )
    return tasks


def refuse_seen(folder: Path) -> None:
    """Refuse journals in which a case of an oracle has had a part in a race.

    Raises:
        ValueError: with the task.
    """
    tested = defaultdict(set)
    for line in read_lines(folder / "selection.jsonl"):
        tested[line["task"]] |= set(line["evaluation"]["cases"])
    for line in read_lines(folder / "race.jsonl"):
        seen = tested[line["task"]] & set(line["evaluation"]["cases"])
        if seen:
            raise ValueError(f"{line['task']}: {min(seen)} is of the oracle's test cases")


def first_means(run: Run, *, share: float = SHARE_OF_SEEDS) -> dict[int, float]:
    """Mean alignment by width over as many initializations as a search takes.

    Args:
        run: a search, which may have had more.
        share: of the numbers that the rule `alignment` starts with.
    """
    return {
        width: float(np.mean(values[: first_seeds(width, share=share)]))
        for width, values in run.values["alignment"].items()
    }


def fit(tasks: Sequence[Task]) -> Fit:
    """The constants that some tasks give, with deviations that hold for tasks that are left out.

    Few tasks are fitted better than new ones will be, so what is stated of each by the others is
    compared with its oracle: the deviations are multiplied by what makes the oracles likeliest.
    """
    others = [fit_closely(tasks[:place] + tasks[place + 1 :]) for place in range(len(tasks))]
    return widened(fit_closely(tasks), best_factor(tasks, others))


def best_factor(tasks: Sequence[Task], fits: Sequence[Fit]) -> float:
    """The factor of deviations under which the oracles of tasks are likeliest, without labels.

    Args:
        tasks: to be looked at.
        fits: of each task by the others.
    """

    def likelihood(factor: float) -> float:
        shares = []
        for task, fitted in zip(tasks, fits, strict=True):
            wide = widened(fitted, factor)
            beliefs = [wide.unlabeled(task, step) for step in task.crossings]
            shares += [belief.shares(LADDER)[task.truth.oracle] for belief in beliefs]
        return float(np.mean(np.log(np.maximum(shares, 1e-9))))

    return max(FACTORS, key=likelihood)


def widened(fitted: Fit, factor: float) -> Fit:
    """A fit whose deviations without labels are larger."""
    bias, sd = fitted.alignment
    return replace(
        fitted,
        sd=factor * fitted.sd,
        alignment=(bias, factor * sd),
        flat=Belief(fitted.flat.mean, factor * fitted.flat.sd),
    )


def fit_closely(tasks: Sequence[Task]) -> Fit:
    """The constants that some tasks give, as if these were all."""
    doublings = np.array([task.doublings for task in tasks] + [DOUBLINGS_ELSEWHERE] * 3)
    needed = np.array([task.needed for task in tasks] + [math.log2(item) for item in ELSEWHERE])
    weights = np.array([1.0] * len(tasks) + list(ELSEWHERE.values()))
    center, level = (np.average(item, weights=weights) for item in (doublings, needed))
    spread = doublings - center
    # A little ridge: few tasks have many classes.
    slope = (weights * spread * (needed - level)).sum() / ((weights * spread**2).sum() + 1)
    rest = needed - level - slope * spread
    sd = math.sqrt((weights * rest**2).sum() / (weights.sum() - 2))
    off = [float(np.mean(task.crossings)) - task.needed for task in tasks]
    within = float(np.mean([np.std(task.crossings) for task in tasks]))
    alignment = (float(np.mean(off)), math.hypot(float(np.std(off, ddof=1)), within))
    races = {kind: race_error(tasks, kind) for kind in kinds_of(tasks)}
    flat = math.sqrt((weights * (needed - level) ** 2).sum() / (weights.sum() - 1))
    return Fit(level - slope * center, slope, sd, alignment, races, Belief(level, flat))


def measured_steps(
    dice: Dice, margin: float, patients: tuple[str, ...] = ()
) -> tuple[float, float]:
    """What a race says with a margin, measured once."""
    of_cases = patients[: next(iter(dice.values())).shape[1]]
    runs = tuple((width, runs.shape, runs.tobytes()) for width, runs in dice.items())
    key = (runs, margin, of_cases)
    if key not in MEASURED:
        MEASURED[key] = race_steps(dice, tolerance=margin, patients=of_cases or None)
    return MEASURED[key]


def kinds_of(tasks: Iterable[Task], *, least: int = 1) -> list[Kind]:
    """Kinds of races that so many of the tasks have; two, if each is judged by the others."""
    counts = Counter(kind for task in tasks for kind in task.kinds)
    return sorted(kind for kind, count in counts.items() if count >= least)


def race_error(tasks: Sequence[Task], kind: Kind) -> float:
    """What races of 16 cases, as verify has, are off by in steps, besides their own spread."""
    squares = []
    for task in tasks:
        for dice in task.races(kind):
            margin = brief_tolerance(kind[0])
            few = some_cases(dice, MAX_HELD_OUT)
            step, spread = measured_steps(few, margin, task.patients)
            squares.append((step - task.needed) ** 2 - spread**2)
    return math.sqrt(max(float(np.mean(squares)), MIN_SD**2))


def judge(tasks: dict[str, Task], fits: dict[str, Fit]) -> list[str]:
    """A row a rule: steps from the oracle, within one, Dice lost, regret.

    The mean over tasks counts each task once, however many answers it has.
    """
    rows = [
        "| rule | steps | within one halving | mean over tasks | Dice lost | mean over tasks "
        "| at most | regret | answers |",
        f"|---|{'---:|' * 8}",
    ]

    def add(name: str, picks: Callable[[str, Task, Fit], list[int]]) -> None:
        groups = [
            np.array([outcome(task, width) for width in found])
            for task_name, task in tasks.items()
            if (found := picks(task_name, task, fits[task_name]))
        ]
        if groups:
            steps, near, lost, regret = np.concatenate(groups).T
            by_task = np.mean([group.mean(axis=0) for group in groups], axis=0)
            rows.append(
                f"| {name} | {steps.mean():.2f} | {near.mean():.0%} | {by_task[1]:.0%} | "
                f"{lost.mean():.4f} | {by_task[2]:.4f} | {lost.max():.4f} | {regret.mean():.4f} "
                f"| {len(steps)} |"
            )

    for width in (32, 16, 8, 4):
        add(f"always {width}", lambda _, task, fitted, width=width: [width])
    add("`paper`, one initialization", lambda _, task, fitted: [published(r) for r in task.runs])
    add(
        f"`paper`, vote of {NUM_VOTES}",
        lambda _, task, fitted: [paper_votes(task.runs, place) for place in range(len(task.runs))],
    )
    add("`alignment`", lambda _, task, fitted: [aligned(run) for run in task.runs])
    add("prior without the classes", lambda _, task, fitted: [pick(fitted.flat)])
    add("prior", lambda _, task, fitted: [pick(fitted.prior(task))])
    add(
        "prior without the classes, alignment",
        lambda _, task, fitted: [
            pick(fitted.flat.updated(step - fitted.alignment[0], fitted.alignment[1]))
            for step in task.crossings
        ],
    )
    add(
        "`bayes`: prior, classes, alignment",
        lambda _, task, fitted: [pick(fitted.unlabeled(task, step)) for step in task.crossings],
    )
    add(
        "`bayes` with the constants of the package",
        lambda _, task, fitted: [pick(OF_PACKAGE.unlabeled(task, step)) for step in task.crossings],
    )
    for name, share in (("twice", 2 * SHARE_OF_SEEDS), ("four times", 4 * SHARE_OF_SEEDS)):
        add(
            f"`bayes`, {name} the initializations",
            lambda _, task, fitted, share=share: [
                pick(fitted.unlabeled(task, crossing(first_means(run, share=share), THRESHOLD)))
                for run in task.runs
            ],
        )
    for kind in kinds_of(tasks.values(), least=2):
        margin = brief_tolerance(kind[0])
        add(
            f"race alone, {kind_name(kind)}, all cases, margin 0.01",
            lambda _, task, fitted, k=kind: leaders(task, k, None, TOLERANCE),
        )
        for count in (4, 8, 16, None):
            name = f"{kind_name(kind)}, {'all' if count is None else count} cases"
            add(
                f"race alone, {name}, margin {margin:.3f}",
                lambda _, task, fitted, k=kind, c=count, m=margin: leaders(task, k, c, m),
            )
            add(
                f"**race and `bayes`**, {name}",
                lambda _, task, fitted, k=kind, c=count: raced_picks(task, fitted, k, c),
            )
        add(
            f"race and `bayes` of full weight, {kind_name(kind)}, {MAX_HELD_OUT} cases",
            lambda _, task, fitted, k=kind: raced_picks(
                task, fitted, k, MAX_HELD_OUT, known=lambda belief: belief
            ),
        )
        add(
            f"**`verify`**, {kind_name(kind)}, {MAX_HELD_OUT} cases",
            lambda _, task, fitted, k=kind: verified_picks(task, fitted, k),
        )
    return rows


def outcome(task: Task, width: int) -> tuple[float, bool, float, float]:
    """Steps of an answer from the oracle, whether it is within one, Dice lost, and the regret.

    The regret is the Dice lost beyond 0.01, and 0.01 for each step wider than the oracle.
    """
    step = math.log2(width) - task.needed
    lost = max(0.0, task.truth.dice_lost(min(width, 32)))
    regret = max(lost - TOLERANCE, 0.0) + WIDE_LOSS * max(step, 0.0)
    return abs(step), abs(step) <= 1, lost, regret


def verified_table(tasks: dict[str, Task], fits: dict[str, Fit], kind: Kind) -> list[str]:
    """What the package's own race recommends for each task, what that loses, and how sure it is."""
    rows = [
        "| task | oracle | it loses | recommended | steps | Dice lost | at most | races | decided "
        "| of these the oracle | within one |",
        f"|---|---:|---:|---|{'---:|' * 7}",
    ]
    total: Counter[str] = Counter()
    for name, task in tasks.items():
        found = verified(task, fits[name], kind)
        if not found:
            continue
        widths = [item.recommended for item in found]
        counts = ", ".join(f"{width} x {count}" for width, count in Counter(widths).most_common())
        steps, _, lost, _ = np.array([outcome(task, width) for width in widths]).T
        sure = [outcome(task, item.recommended)[0] for item in found if item.is_decided]
        hits = {"races": len(found), "decided": len(sure), "right": sure.count(0)}
        hits["near"] = sum(step <= 1 for step in sure)
        total.update(hits)
        oracle = task.truth.dice_lost(task.truth.oracle)
        rows.append(
            f"| {name} | {task.truth.oracle} | {oracle:.4f} | {counts} | {steps.mean():.2f} | "
            f"{lost.mean():.4f} | {lost.max():.4f} | {' | '.join(map(str, hits.values()))} |"
        )
    return [*rows, f"| all | | | | | | | {' | '.join(map(str, total.values()))} |"]


def kind_name(kind: Kind) -> str:
    """A kind of race in words."""
    return f"{kind[0]} updates, {kind[1]} seed{'' if kind[1] == 1 else 's'}"


def leaders(task: Task, kind: Kind, count: int | None, margin: float) -> list[int]:
    """The smallest width within a margin of the best, of every race."""
    return [leader(some_cases(dice, count), tolerance=margin) for dice in task.races(kind)]


def raced_picks(
    task: Task,
    fitted: Fit,
    kind: Kind,
    count: int | None,
    known: Callable[[Belief], Belief] = discounted,
) -> list[int]:
    """What races choose, each after some searches, of which so much is believed beside a race."""
    found = []
    for dice in task.races(kind):
        for step in task.crossings[:5]:
            belief = known(fitted.unlabeled(task, step))
            found.append(pick(fitted.raced(belief, task, some_cases(dice, count), kind), dice))
    return found


def verified_picks(task: Task, fitted: Fit, kind: Kind) -> list[int]:
    """What the package's own race recommends, each after some searches."""
    return [item.recommended for item in verified(task, fitted, kind)]


def verified(
    task: Task, fitted: Fit, kind: Kind, *, most: int = len(LADDER) * 3
) -> list[Verification]:
    """The package's own races, each after some searches, of recorded trainings.

    Each begins with what a search picks, and does not train every width. Its deviation of a race is
    the package's own, of all tasks.

    Args:
        task: of the trainings.
        fitted: by which the search picks.
        kind: of the races.
        most: trainings after which the time of a race is over.
    """
    updates, num_seeds = kind
    found = []
    for seeds in combinations(task.seeds(updates), num_seeds):
        recorded_widths = set.intersection(*(set(task.brief[updates, seed]) for seed in seeds))
        for step in task.crossings[:5]:
            belief = fitted.unlabeled(task, step)
            done: set[tuple[int, int]] = set()

            def train(width: int, seed: int, done: set[tuple[int, int]] = done) -> Training:
                done.add((width, seed))
                return recorded(task, width, seed, updates)

            verification = race_widths(
                pick(belief, recorded_widths),
                ladder=LADDER,
                among=sorted(recorded_widths, reverse=True),
                belief=belief,
                train=train,
                has_time=lambda *trainings, done=done: len(done | {*trainings}) <= most,
                seeds=seeds,
                num_updates=updates,
            )
            found.append(verification)
    return found


def stopped_table(tasks: dict[str, Task], fits: dict[str, Fit], kind: Kind) -> list[str]:
    """A row a number of trainings after which the time of a race is over; one is the search's."""
    rows = [
        "| trainings | steps | within one halving | Dice lost | regret "
        "| probability of the pick, mean | it was the oracle | real data: steps "
        "| within one halving | Dice lost | regret |",
        f"|---:|{'---:|' * 10}",
    ]
    for most in STOPPED_AFTER:
        stated, outcomes, of_real = [], [], []
        for name, task in tasks.items():
            for item in verified(task, fits[name], kind, most=most):
                found = outcome(task, item.recommended)
                outcomes.append(found)
                of_real += [found] if is_real(name) else []
                stated.append(item.probabilities.get(item.recommended, 0.0))
        (steps, near, lost, regret), real = np.transpose(outcomes), np.mean(of_real, axis=0)
        rows.append(
            f"| {most} | {steps.mean():.2f} | {near.mean():.0%} | {lost.mean():.4f} "
            f"| {regret.mean():.4f} | {np.mean(stated):.0%} | {np.mean(steps == 0):.0%} "
            f"| {real[0]:.2f} | {real[1]:.0%} | {real[2]:.4f} | {real[3]:.4f} |"
        )
    return rows


def recorded(task: Task, width: int, seed: int, updates: int) -> Training:
    """A brief training as verify would have had it, with its number of held-out cases."""
    dice = some_cases({width: task.brief[updates, seed][width]}, MAX_HELD_OUT)[width][0]
    evaluation = Evaluation(
        tuple(map(str, range(len(dice)))),
        tuple(map(tuple, dice)),
        patients=task.patients[: len(dice)],
    )
    return Training(width, 0, seed, 0, (), evaluation, 0.0)


def pick(belief: Belief, among: Iterable[int] | None = None) -> int:
    """The width of the least expected loss."""
    return least_loss(belief.shares(LADDER), among=None if among is None else list(among))


def published(run: Run) -> int:
    """The published rule on the first initialization of a search."""
    curve = {width: values[0] for width, values in run.values["sensitivity"].items()}
    return select_paper(list(curve), list(curve.values()))


def aligned(run: Run) -> int:
    """The rule alignment on a search."""
    means = run.mean("alignment")
    return select_alignment(list(means), list(means.values()))


def some_cases(dice: Dice, count: int | None) -> Dice:
    """The first of the held-out cases; more where fewer than two have a class."""
    if count is None:
        return dice
    first = next(iter(dice.values()))
    while count < first.shape[1] and np.isfinite(first[0, :count]).any(axis=1).sum() < 2:
        count += 1
    return {width: runs[:, :count] for width, runs in dice.items()}


def calibration(tasks: dict[str, Task], fits: dict[str, Fit]) -> list[str]:
    """Stated probabilities, and how often they were right."""
    rows = [
        "| what states it | probability of the pick, mean | it was the oracle | "
        "of pick and neighbors, mean | the oracle was one of them |",
        "|---|---:|---:|---:|---:|",
    ]
    stated: dict[str, list[tuple[float, bool, float, bool]]] = defaultdict(list)
    for name, task in tasks.items():
        fitted = fits[name]
        for step in task.crossings:
            belief = fitted.unlabeled(task, step)
            stated["`bayes`"].append(state(belief, task, LADDER))
            if step in task.crossings[:5]:
                for kind in (item for item in task.kinds if item in fitted.races):
                    for dice in task.races(kind):
                        raced = fitted.raced(discounted(belief), task, dice, kind)
                        stated[f"race of {kind_name(kind)}"].append(state(raced, task, RACED))
        for item in verified(task, fitted, VERIFIED):
            shares, width = item.probabilities, item.recommended
            stated[f"`verify`, {kind_name(VERIFIED)}"].append(truth_of(shares, width, task))
    for label, items in stated.items():
        means = np.mean(np.array(items, dtype=float), axis=0)
        rows.append(f"| {label} | " + " | ".join(f"{mean:.0%}" for mean in means) + " |")
    return rows


def state(belief: Belief, task: Task, among: Sequence[int]) -> tuple[float, bool, float, bool]:
    """Probability and truth of a pick, and of it with its neighbors."""
    shares = belief.shares(LADDER)
    return truth_of(shares, least_loss(shares, among=among), task)


def truth_of(
    shares: Mapping[int, float], width: int, task: Task
) -> tuple[float, bool, float, bool]:
    """Probability and truth of a width, and of it with its neighbors."""
    near = [item for item in LADDER if abs(math.log2(item / width)) <= 1]
    oracle = task.truth.oracle
    stated = sum(shares.get(item, 0.0) for item in near)
    return shares.get(width, 0.0), oracle == width, stated, oracle in near


def gaps(tasks: dict[str, Task], *, most: float = 0.04) -> list[str]:
    """A row a width that loses no more than some Dice in the end: how far it is behind before."""
    updates = sorted({number for task in tasks.values() for number, _ in task.brief})
    found = []
    for name, task in tasks.items():
        best = max(task.truth.dice[width] for width in RACED)
        for width in RACED[1:]:
            behind = [
                [
                    max(mean_dice(dice[other]) for other in RACED) - mean_dice(dice[width])
                    for (number, _), dice in task.brief.items()
                    if number == wanted
                ]
                for wanted in updates
            ]
            if best - task.truth.dice[width] <= most:
                found.append((best - task.truth.dice[width], name, width, behind))
    rows = [
        f"| task | width | {' | '.join(f'{n} updates, mean of seeds' for n in updates)} | whole |",
        f"|---|---:|{'---:|' * len(updates)}---:|",
    ]
    for whole, name, width, behind in sorted(found):
        cells = [f"{np.mean(seeds):.4f}" if seeds else "-" for seeds in behind]
        rows.append(f"| {name} | {width} | {' | '.join(cells)} | {whole:.4f} |")
    for index, number in enumerate(updates):
        near = [
            np.mean(item[3][index])
            for item in found
            if 0.005 <= item[0] <= 0.015 and item[3][index]
        ]
        rows += ["", f"Median after {number} updates of those 0.005 to 0.015 behind in the end: "
                 f"{np.median(near):.3f} ({len(near)} of them)."]  # fmt: skip
    return [*rows, "", lagging(tasks)]


def lagging(tasks: dict[str, Task], *, updates: int = 120, share: float = 0.75) -> str:
    """How near to the best widths come in the end that have much less Dice in a race."""
    behind: dict[str, list[float]] = {}
    for name, task in tasks.items():
        for (number, _), dice in task.brief.items():
            means = {width: mean_dice(values) for width, values in dice.items()}
            for width, mean in means.items():
                if number == updates and mean < share * max(means.values()):
                    gap = max(task.truth.dice.values()) - task.truth.dice[width]
                    behind.setdefault(name, []).append(gap)
    nearest = ", ".join(
        f"{gap:.3f} ({name})"
        for gap, name in sorted((min(behind[name]), name) for name in behind)[:3]
    )
    return (
        f"Below {share:.0%} of the best of the race after {updates} updates: "
        f"{sum(map(len, behind.values()))} trainings of {len(behind)} tasks. "
        f"The nearest widths in the end are behind by {nearest or '-'}."
    )


def narrow(tasks: dict[str, Task], *, most: int = 3) -> list[str]:
    """A row a number of steps too narrow: what that loses, beside what the package expects."""
    rows = [
        "| steps too narrow | tasks | mean | median | the package expects |",
        "|---:|---:|---:|---:|---:|",
    ]
    for steps in range(1, most + 1):
        lost = [
            max(0.0, task.truth.dice_lost(width) - TOLERANCE)
            for task in tasks.values()
            if (width := task.truth.oracle >> steps) in task.truth.dice
        ]
        expected = expected_dice_lost({2**steps: 1.0}, 1)
        rows.append(
            f"| {steps} | {len(lost)} | {np.mean(lost):.4f} | {np.median(lost):.4f} "
            f"| {expected:.4f} |"
        )
    return rows


def tasks_table(tasks: dict[str, Task]) -> list[str]:
    """A row a task: oracle, crossing, and the widths that races lead with."""
    rows = [
        "| task | classes | oracle | alignment crosses at | leaders of races (margin 0.01) |",
        "|---|---:|---:|---:|---|",
    ]
    for name, task in tasks.items():
        leaders = ", ".join(
            f"{leader(dice)} ({updates})" for (updates, _), dice in sorted(task.brief.items())
        )
        rows.append(
            f"| {name} | {2 ** (task.doublings + 1):.0f} | {task.truth.oracle} | "
            f"{2 ** np.mean(task.crossings):.1f} | {leaders} |"
        )
    return rows


def constants(fitted: Fit) -> list[str]:
    """The constants of the package."""
    rows = [
        f"- `PRIOR_MEAN, PRIOR_SLOPE, PRIOR_SD`: {fitted.mean:.2f}, {fitted.slope:.2f}, "
        f"{fitted.sd:.2f}",
        f"- `ALIGNMENT_BIAS, ALIGNMENT_SD`: {fitted.alignment[0]:.2f}, {fitted.alignment[1]:.2f}",
    ]
    return rows + [f"- {kind_name(kind)}: `RACE_SD` {sd:.2f}" for kind, sd in fitted.races.items()]


if __name__ == "__main__":
    main()
