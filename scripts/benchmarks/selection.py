"""Ground truth for the choice of width: train the ladder on many tasks, then compare the rules.

usage: python scripts/benchmarks/selection.py train --work DIR [--data ROOT] [--jobs 2]
           [--tasks blobs,...] [--seeds 0,1,2] [--widths 32,16,8,4,2,1] [--device cpu]
       python scripts/benchmarks/selection.py score --work DIR [--data ROOT] [--runs 20]
       python scripts/benchmarks/selection.py tables --work DIR --data ROOT --output docs/benchmarks
       python scripts/benchmarks/report_selection.py --output docs/benchmarks

The tasks are the synthetic ones of make_synthetic_data.py and, with --data, the real sets: two of
microscopy, hippocampus MRI slice by slice and in 3D, breast ultrasound and cardiac MRI. 'train'
trains every width by the emitted recipe; each finished training is a line of DIR/trainings.jsonl
and is not repeated, so that the benchmark can be stopped, resumed and grown, on another machine
too. 'score' searches each task again and again, every run with its own images and initializations,
and measures what else untrained networks show: a file a run in DIR/scores. 'tables' writes both as
CSV, and report_selection.py makes every table and figure from the CSV alone.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainings import Unit, in_processes, quiet, search_once, share_of_cores, train_missing

SCRIPTS = Path(__file__).parent


@dataclass(frozen=True)
class Task:
    """One data set as the benchmark trains it.

    Args:
        folder: of the data set, below the synthetic or the real root.
        epochs: of each training; about 500 updates of the recipe.
        is_real: needs --data.
        search: further options of the search that plans.
        overrides: keys of train.json that reduce the cost, or suit the images.
    """

    folder: str
    epochs: int
    is_real: bool = False
    search: tuple[str, ...] = ()
    overrides: dict[str, Any] = field(default_factory=dict)


SYNTHETIC = (
    "blobs", "lesions", "vessels", "shapes4", "textures2", "textures4", "textures8", "textures12",
    "textures8in1",
)  # fmt: skip
CROP = {"crop_size": [128, 128], "batch_size": 4}
# Images that share an orientation: whole, neither mirrored nor rotated by more than 15 degrees.
ORIENTED = {"batch_size": 2, "mirror_prob": 0.0, "rotation_range": math.radians(15)}
TASKS = {
    **{name: Task(name, epochs=30) for name in SYNTHETIC},
    "fluorescence": Task("Dataset076_DSB2018Fluo", 10, is_real=True, overrides=CROP),
    "stain": Task("Dataset077_DSB2018Stain", 22, is_real=True, overrides=CROP),
    "hippocampus_slices": Task(
        "Dataset004_Hippocampus", 5, is_real=True, search=("--spatial_dims", "2")
    ),
    "hippocampus_3d": Task("Dataset004_Hippocampus", 8, is_real=True),
    # The same images with other labels, which relabel makes of theirs.
    "hippocampus_merged": Task(
        "hippocampus_merged", 5, is_real=True, search=("--spatial_dims", "2")
    ),
    "stain_outlines": Task("stain_outlines", 22, is_real=True, overrides=CROP),
    "ultrasound": Task("Dataset070_BUSIhalf", 4, is_real=True, overrides=ORIENTED),
    # Several frames of a patient, whose name comes first.
    "cardiac": Task(
        "Dataset078_SunnybrookLV",
        5,
        is_real=True,
        overrides={**ORIENTED, "group": r"(SC-.+-\d+)-\d+"},
    ),
}
# Of a task with labels made from those of another set: that set, and the classes.
RELABELED = {
    "hippocampus_merged": ("Dataset004_Hippocampus", ("hippocampus",)),
    "stain_outlines": ("Dataset077_DSB2018Stain", ("inside", "outline")),
}
OUTLINE = 2  # pixels

# Of each search; and the wide networks that some of the further statistics compare with.
NUM_IMAGES = 8
STATISTICS = ("cka", "explained", "bottleneck", "rank")
REFERENCE_WIDTH, NUM_REFERENCES, FIRST_REFERENCE_SEED = 32, 8, 1_000_000


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("train", "score", "tables"))
    parser.add_argument("--work", type=Path, default=Path("selection"))
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--tasks", help="names with commas (default: all)")
    parser.add_argument("--widths", default="32,16,8,4,2,1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--wide_seeds", type=int, default=2, help="seeds of widths over 16")
    parser.add_argument("--runs", type=int, default=20, help="searches of each task")
    parser.add_argument("--jobs", type=int, default=2, help="trainings or searches at a time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    stages = {"train": train_all, "score": score_all, "tables": write_tables}
    stages[arguments.stage](arguments)


def wanted_tasks(arguments: argparse.Namespace) -> list[str]:
    """Tasks that can be run with the data at hand."""
    names = list(TASKS) if arguments.tasks is None else arguments.tasks.split(",")
    for name in names:
        if name not in TASKS:
            raise SystemExit(f"error: no task {name!r}: give some of {', '.join(TASKS)}")
    missing = [name for name in names if TASKS[name].is_real and arguments.data is None]
    if missing:
        print(f"skipped without --data ROOT: {', '.join(missing)}", flush=True)
    return [name for name in names if name not in missing]


def task_root(arguments: argparse.Namespace, name: str) -> Path:
    """Folder of a task's data set; synthetic ones are drawn when they are first needed."""
    task = TASKS[name]
    if task.is_real and arguments.data is None:
        raise SystemExit(f"error: {name} is of real data: give --data ROOT")
    root = arguments.work / "data"
    if name in RELABELED:
        source, classes = RELABELED[name]
        return relabel(arguments.data / source, root / name, classes)
    if task.is_real:
        return arguments.data / task.folder
    if not (root / name / "dataset.json").is_file():
        command = [sys.executable, str(SCRIPTS / "make_synthetic_data.py"), "--output", str(root)]
        subprocess.run([*command, "--tasks", name], check=True)
    return root / task.folder


def relabel(source: Path, target: Path, classes: tuple[str, ...]) -> Path:
    """A data set of another one's images, as links, with its foreground as one class, or two.

    Args:
        source: root of the other set.
        target: root to write, unless it is there.
        classes: name of the whole foreground, or of its inside and its outline.
    """
    import json

    import nibabel
    import numpy as np
    from PIL import Image

    if (target / "dataset.json").is_file():
        return target
    divide = with_outlines if len(classes) == 2 else np.uint8
    (target / "labelsTr").mkdir(parents=True, exist_ok=True)
    if not (target / "imagesTr").exists():
        (target / "imagesTr").symlink_to((source / "imagesTr").resolve())
    for path in sorted((source / "labelsTr").iterdir()):
        if path.suffix == ".png":
            label = Image.open(path)
            Image.fromarray(divide(np.asarray(label) > 0)).save(target / "labelsTr" / path.name)
            continue
        volume = nibabel.load(path)
        header = volume.header.copy()
        header.set_data_dtype(np.uint8)
        divided = divide(np.asanyarray(volume.dataobj) > 0)
        nibabel.save(nibabel.Nifti1Image(divided, None, header), target / "labelsTr" / path.name)
    content = json.loads((source / "dataset.json").read_text())
    content["labels"] = {name: index for index, name in enumerate(("background", *classes))}
    (target / "dataset.json").write_text(json.dumps(content))
    return target


def with_outlines(mask: Any) -> Any:
    """1 inside of a mask, 2 within ``OUTLINE`` pixels of its edge; that of the image is none.

    >>> import numpy as np
    >>> with_outlines(np.arange(8) < 5)
    array([1, 1, 1, 2, 2, 0, 0, 0], dtype=uint8)
    """
    import numpy as np
    from scipy.ndimage import binary_erosion

    inside = binary_erosion(mask, iterations=OUTLINE, border_value=1)
    return (2 * mask - inside).astype(np.uint8)


def plan_task(arguments: argparse.Namespace, name: str) -> Path:
    """The search.json of a task, of which the trainings take the plan; made once."""
    options = ("--method", "paper", "--num_images", "4", *TASKS[name].search)
    bundle = arguments.work / "plans" / f"{name}_segmentation"
    return search_once(task_root(arguments, name), bundle, *options)


def train_all(arguments: argparse.Namespace) -> None:
    """Train what the journal lacks: first one seed of everything, then the others."""
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    widths = [int(width) for width in arguments.widths.split(",")]
    units = [
        training_of(arguments, name, width, seed)
        for index, seed in enumerate(seeds)
        for name in wanted_tasks(arguments)
        for width in widths
        if width <= 16 or index < arguments.wide_seeds
    ]
    train_missing(units, arguments.work / "trainings.jsonl", jobs=arguments.jobs)


def training_of(arguments: argparse.Namespace, name: str, width: int, seed: int) -> Unit:
    """The training of one width on a task."""
    task = TASKS[name]
    return Unit(
        {"task": name},
        plan_task(arguments, name),
        width,
        task_root(arguments, name),
        arguments.work / "bundles" / f"{name}_{width}_{seed}_segmentation",
        task.epochs,
        val_interval=max(1, task.epochs // 4),
        seed=seed,
        overrides={
            "tensorboard": False, "device": f"$torch.device('{arguments.device}')",
            **task.overrides,
        },
    )  # fmt: skip


def score_all(arguments: argparse.Namespace) -> None:
    """Search every task with fresh images and initializations; finished runs are not repeated."""
    folder = arguments.work / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for run in range(arguments.runs):
        for name in wanted_tasks(arguments):
            target = folder / f"{name}_{run}.json"
            if not target.is_file():
                jobs.append((plan_task(arguments, name), task_root(arguments, name), run, target))
    common = (share_of_cores(arguments.jobs), arguments.device)
    for _, result in in_processes(score_run, [(*job, *common) for job in jobs], arguments.jobs):
        if isinstance(result, BaseException):
            raise result
        print(time.strftime("%H:%M:%S"), result, flush=True)


def score_run(search: Path, root: Path, run: int, target: Path, threads: int, device: str) -> str:
    """One search as users run it, and further statistics of networks on its images."""
    import json

    import torch
    from monai.bundle import ConfigParser

    from monai_xtiny.bundle.search_file import read_search
    from monai_xtiny.bundle.templates import configs_dir
    from monai_xtiny.scores.table import table_to_dict
    from monai_xtiny.search.run import run_search
    from monai_xtiny.search.workers import unit_costs
    from monai_xtiny.selection.rules import refinement
    from monai_xtiny.system.config_text import PlainPath
    from monai_xtiny.system.files import write_text

    torch.set_num_threads(threads)
    plan = read_search(search).table.plan
    parser = ConfigParser(ConfigParser.load_config_files([str(configs_dir() / "search.json")]))
    seed = 1000 * run + 369
    parser.update(
        {"images": PlainPath(str(root)), "plan": plan, "spatial_dims": plan.spatial_dims,
         "num_images": NUM_IMAGES, "seed": seed, "progress": False}
    )  # fmt: skip
    refine = refinement("alignment", unit_cost=unit_costs(plan).__getitem__)
    with quiet():
        sample = parser.get_parsed_content("sample")
        table = run_search(
            sample, plan, seeds=(seed,), refine=refine, align=True, device=device, progress=False
        )
        statistics = measure_representations(sample.images, plan, seed, device)
    write_text(target, json.dumps({**table_to_dict(table), "statistics": statistics}))
    return f"{target.stem}: {table.seconds['total']:.0f} s"


def measure_representations(
    images: Any, plan: Any, seed: int, device: str
) -> dict[str, dict[int, list[float]]]:
    """Mean over the images of further label-free statistics, one value per initialization.

    ``cka``: linear alignment with eight wide networks, the same in every search; ``explained``:
    share of their features explained; ``bottleneck``: alignment at the bottleneck; ``rank``:
    effective rank.
    """
    import torch
    from representations import effective_rank, linear_cka

    from monai_xtiny.networks.dynunet import build_network
    from monai_xtiny.networks.ladder import max_aligned_width, width_ladder
    from monai_xtiny.networks.packed import CHANNELS_LAST
    from monai_xtiny.scores.alignment import (
        explained_variance,
        sample_voxels,
    )
    from monai_xtiny.search.scorer import NARROW_WIDTH, NUM_VOXELS
    from monai_xtiny.selection.budget import first_seeds

    batch = torch.stack([image.to(device) for image in images])
    voxels = [
        sample_voxels(batch[0, 0].numel(), NUM_VOXELS, seed=seed + index)
        for index in range(len(batch))
    ]
    wide = [
        last_and_deepest(
            build_network(plan, REFERENCE_WIDTH, seed=number, device=device), batch, voxels
        )
        for number in range(FIRST_REFERENCE_SEED, FIRST_REFERENCE_SEED + NUM_REFERENCES)
    ]
    last, deepest = (
        [
            torch.cat([network[depth][index] for network in wide], dim=1)
            for index in range(len(batch))
        ]
        for depth in range(2)
    )
    widths = [width for width in width_ladder(plan) if width <= max_aligned_width(plan)]
    found: dict[str, dict[int, list[float]]] = {
        name: {width: [] for width in widths} for name in STATISTICS
    }
    for width in widths:
        for number in range(first_seeds(width)):
            network = build_network(plan, width, seed=seed + number, device=device)
            if width <= NARROW_WIDTH:
                network = network.to(memory_format=CHANNELS_LAST[plan.spatial_dims])
            rows: dict[str, list[torch.Tensor]] = {name: [] for name in STATISTICS}
            for features, deep, wide_features, wide_deep in zip(
                *last_and_deepest(network, batch, voxels), last, deepest, strict=True
            ):
                rows["cka"].append(linear_cka(features, wide_features))
                rows["explained"].append(explained_variance(features, wide_features))
                rows["rank"].append(effective_rank(features))
                rows["bottleneck"].append(linear_cka(deep, wide_deep))
            for name, values in rows.items():
                found[name][width].append(float(torch.stack(values).mean()))
    return found


def last_and_deepest(network: Any, images: Any, voxels: Any) -> tuple[list[Any], list[Any]]:
    """Features of each image: last decoder stage at its voxels, bottleneck at all; (N, C) each."""
    from monai_xtiny.scores.alignment import sampled_features

    kept: list[Any] = []
    hook = network.bottleneck.register_forward_hook(lambda module, args, out: kept.append(out))
    try:
        features = sampled_features(network, images, voxels)
    finally:
        hook.remove()
    return features, [item.flatten(1).mT.double() for item in kept[0]]


def write_tables(arguments: argparse.Namespace) -> None:
    """Journal and scores of tasks that are trained enough as CSV.

    Rows stay of tasks that have none in --work, not of the others.
    """
    import json

    import numpy as np

    from monai_xtiny.bundle.search_file import read_search
    from monai_xtiny.scores.table import table_from_dict
    from monai_xtiny.selection.choice import select_width
    from monai_xtiny.system.files import read_lines
    from monai_xtiny.training.train import training_from_dict

    trained = wanted_tasks(arguments)
    journal = read_lines(arguments.work / "trainings.jsonl")
    lines = [line for line in journal if line["task"] in trained]
    scores = [
        path
        for path in sorted((arguments.work / "scores").glob("*.json"))
        if path.stem.rsplit("_", 1)[0] in trained
    ]
    write_rows(
        arguments.output / "selection_ladders.csv",
        ["task", "max_features", "num_parameters"],
        [
            [task, rung.max_features, rung.num_parameters]
            for task in sorted({line["task"] for line in lines})
            for rung in read_search(plan_task(arguments, task)).table.ladder
        ],
    )
    trainings = [(line["task"], training_from_dict(line)) for line in lines]
    write_rows(
        arguments.output / "selection_trainings.csv",
        ["task", "max_features", "seed", "epochs", "dice", "seconds"],
        [
            [task, training.max_features, training.seed, training.epochs,
             f"{training.evaluation.mean_dice:.5f}", training.seconds]
            for task, training in trainings
        ],
    )  # fmt: skip
    searches, values = [], []
    for path in scores:
        content = json.loads(path.read_text())
        task, run = path.stem.rsplit("_", 1)
        table = table_from_dict(content)
        selection = select_width(table, "alignment")
        seconds = f"{table.seconds['total']:.1f}"
        searches.append([task, run, selection.max_features, selection.confidence, seconds])
        series = {
            name: {rung["max_features"]: np.mean(rung.get(name, []), axis=-1)
                   for rung in content["ladder"] if rung.get(name)}
            for name in ("sensitivity", "alignment")
        }  # fmt: skip
        values += [
            [task, run, content["plan"]["out_channels"], name, width, seed, f"{value:.5g}"]
            for name, widths in {**series, **content["statistics"]}.items()
            for width, several in widths.items()
            for seed, value in enumerate(several)
        ]
    write_rows(
        arguments.output / "selection_searches.csv",
        ["task", "run", "max_features", "confidence", "seconds"],
        searches,
    )
    write_rows(
        arguments.output / "selection_scores.csv",
        ["task", "run", "classes", "statistic", "max_features", "initialization", "value"],
        values,
    )


def write_rows(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """A CSV file whose rows begin with a task, in place of all that it had of the same tasks."""
    import csv

    kept: list[list[str]] = []
    if path.is_file():
        with open(path, newline="") as file:
            tasks = {row[0] for row in rows}
            kept = [row for row in list(csv.reader(file))[1:] if row[0] not in tasks]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *kept, *rows])
    print(path)


if __name__ == "__main__":
    main()
