"""Train widths of the ladder by the emitted recipe, and tabulate what each is worth.

usage: python scripts/benchmarks/accuracy.py --data ROOT --widths 32,16,8,4,2,1 --folds 0
           --epochs 20 [--sets Dataset076_DSB2018Fluo,...] [--seeds 0] [--threads N] [--work DIR]
       python scripts/benchmarks/accuracy.py --data ROOT --work DIR --output docs/benchmarks

ROOT holds data sets in nnU-Net's layout. Each set is searched once, by default; each training is
the emitted train.json with nothing changed but epochs, fold, seed and width, and each finished one
is a line of WORK/trainings.jsonl that is not repeated, so that the benchmark can be stopped,
resumed and grown, by several processes on different sets too. With --output the tables, the figures
and the journal are written instead, with the CPU latency of every width measured then and there.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shutil
import statistics
import time
from collections import defaultdict
from pathlib import Path

import matplotlib
import torch
from trainings import Unit, search_once, train_missing

from monai_xtiny.bundle.search_file import read_search
from monai_xtiny.data.labels import read_label_names
from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.table import Rung
from monai_xtiny.selection.choice import Selection
from monai_xtiny.system.files import read_lines, write_text
from monai_xtiny.training.train import Training, training_from_dict

matplotlib.use("Agg")

PLATEAU = 0.01


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of nnU-Net data sets")
    parser.add_argument("--sets", help="names with commas (default: all in ROOT)")
    parser.add_argument("--widths", default="32,16,8,4,2,1")
    parser.add_argument("--folds", default="0")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--val_interval", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("accuracy"))
    parser.add_argument("--output", type=Path, help="folder for table, figures and journal")
    return parser.parse_args()


def main() -> None:
    """Train what the journal lacks, or write the report."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    roots = sorted(path.parent for path in arguments.data.glob("*/dataset.json"))
    wanted = [root.name for root in roots] if arguments.sets is None else arguments.sets.split(",")
    roots = [root for root in roots if root.name in wanted]
    if not roots:
        raise SystemExit(f"error: no data set in {str(arguments.data)!r}: give --data ROOT")
    if arguments.output is not None:
        write_report(arguments, roots)
        return
    units = []
    for root in roots:
        chosen = search(root, arguments)
        ladder = read_search(chosen).table.widths
        units += [
            Unit(
                {"set": root.name},
                chosen,
                width,
                root,
                arguments.work / root.name / f"width{width}_{fold}_{seed}_segmentation",
                arguments.epochs,
                arguments.val_interval,
                fold,
                seed,
            )
            for width in numbers_of(arguments.widths)
            if width in ladder
            for fold in numbers_of(arguments.folds)
            for seed in numbers_of(arguments.seeds)
        ]
    train_missing(units, arguments.work / "trainings.jsonl", threads=arguments.threads)


def numbers_of(text: str) -> list[int]:
    """Numbers with commas between them."""
    return [int(number) for number in text.split(",")]


def search(root: Path, arguments: argparse.Namespace) -> Path:
    """The search.json of one data set, made once."""
    return search_once(root, arguments.work / root.name / "search_segmentation")


def write_report(arguments: argparse.Namespace, roots: list[Path]) -> None:
    """Table, figures and journal, from what has been trained so far."""
    lines = read_lines(arguments.work / "trainings.jsonl")
    arguments.output.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Tables: accuracy against width",
        "",
        f"Latency: {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.machine()}, "
        f"{arguments.threads} threads, torch {torch.__version__.split('+')[0]}, eager, float32, "
        "one patch, median of 15 forward passes.",
    ]
    for root in roots:
        trainings = [training_from_dict(line) for line in lines if line["set"] == root.name]
        if trainings:
            selection = read_search(search(root, arguments))
            figure = arguments.output / "images" / f"accuracy_{root.name}.png"
            draw(trainings, selection, root.name, figure)
            parts += section(root, trainings, selection, figure.relative_to(arguments.output))
    write_text(arguments.output / "accuracy_tables.md", "\n".join(parts) + "\n")
    shutil.copyfile(arguments.work / "trainings.jsonl", arguments.output / "accuracy.jsonl")
    print(arguments.output / "accuracy_tables.md")


def by_width(trainings: list[Training]) -> dict[int, list[Training]]:
    """Trainings of each width, widest first."""
    groups: dict[int, list[Training]] = defaultdict(list)
    for training in sorted(trainings, key=lambda item: -item.max_features):
        groups[training.max_features].append(training)
    return dict(groups)


def section(root: Path, trainings: list[Training], selection: Selection, figure: Path) -> list[str]:
    """Markdown of one data set."""
    labels = read_label_names(str(root), None)
    groups = by_width(trainings)
    means = {
        width: statistics.mean(item.evaluation.mean_dice for item in items)
        for width, items in groups.items()
    }
    best = max(means.values())
    oracle = min(width for width, mean in means.items() if mean >= best - PLATEAU)
    first = trainings[0]
    classes = [f"Dice, {label}" for label in labels[1:]]
    distances = [f"HD95, {label}" for label in labels[1:]]
    header = ["width", "parameters", "of full", "GMACs", "latency, ms", "runs", "Dice", *classes]
    header += [*distances, "last epoch"]
    rows = [
        "",
        f"## {root.name}",
        "",
        f"{len(first.evaluation.cases)} cases held out of each fold; epochs "
        f"{numbers(trainings, 'epochs')}; folds {numbers(trainings, 'fold')}; seeds "
        f"{numbers(trainings, 'seed')}. Selected by the default search (`{selection.method}`, "
        f"confidence {selection.confidence or 0:.0%}): **{selection.max_features}**. "
        f"Smallest width within {PLATEAU} of the best: **{oracle}**.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---:|" * len(header),
    ]
    full = selection.table.ladder[0]
    for rung in selection.table.ladder:
        if rung.max_features in groups or rung is full:
            items = groups.get(rung.max_features, [])
            cells = row(rung, full, items, selection.table.plan)
            cells += ["-"] * (len(header) - len(cells))
            rows.append("| " + " | ".join(cells) + " |")
    return [*rows, "", f"![Dice against width and epochs]({figure.as_posix()})"]


def numbers(trainings: list[Training], field: str) -> str:
    """Distinct values of a field, with commas."""
    return ", ".join(map(str, sorted({getattr(training, field) for training in trainings})))


def row(rung: Rung, full: Rung, items: list[Training], plan: UNetPlan) -> list[str]:
    """One width: cost, and what its trainings reached."""
    cells = [
        f"{rung.max_features}",
        f"{rung.num_parameters:,}",
        "1" if rung is full else f"1/{full.num_parameters / rung.num_parameters:,.0f}",
        f"{rung.gmacs:.3g}",
        f"{latency(plan, rung.max_features):.1f}",
        f"{len(items)}",
    ]
    if items:
        dice = [item.evaluation.mean_dice for item in items]
        spread = f" ± {statistics.stdev(dice):.3f}" if len(dice) > 1 else ""
        cells.append(f"{statistics.mean(dice):.4f}{spread}")
        for columns, form in (("class_dice", ".3f"), ("class_hd95", ".2f")):
            values = [getattr(item.evaluation, columns) for item in items]
            means = [statistics.mean(part) for part in zip(*values, strict=True)]
            cells += [format(mean, form) if math.isfinite(mean) else "n/a" for mean in means]
        cells.append(f"{statistics.mean(item.curve[-1][1] for item in items):.4f}")
    return cells


def latency(plan: UNetPlan, width: int) -> float:
    """Median milliseconds of a forward pass of one patch."""
    network = build_network(plan, width, seed=0).eval()
    image = torch.randn(1, plan.in_channels, *plan.patch_size)
    times = []
    with torch.inference_mode():
        for _ in range(18):
            start = time.perf_counter()
            network(image)
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[3:])


def draw(trainings: list[Training], selection: Selection, name: str, path: Path) -> None:
    """Dice against width, and against the epoch for every width."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    groups = by_width(trainings)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for width, items in groups.items():
        left.plot(
            [width] * len(items), [item.evaluation.mean_dice for item in items], "k.", alpha=0.5
        )
        for index, item in enumerate(items):
            right.plot(
                *zip(*item.curve, strict=True),
                color=pyplot.colormaps["viridis"](1 - list(groups).index(width) / len(groups)),
                label=f"{width}" if index == 0 else None,
            )
    means = [
        statistics.mean(item.evaluation.mean_dice for item in items) for items in groups.values()
    ]
    left.plot(list(groups), means, "-", color="tab:blue")
    left.axvline(selection.max_features, color="tab:orange", ls="--", label="selected")
    left.axhline(max(means) - PLATEAU, color="gray", lw=0.8, ls=":", label=f"best - {PLATEAU}")
    left.set(xscale="log", xlabel="width cap", ylabel="Dice on cases held out", title=name)
    left.set_xscale("log", base=2)
    left.invert_xaxis()
    left.legend()
    right.set(xlabel="epoch", ylabel="Dice on cases held out", title="every width's training")
    right.legend(title="width cap")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
