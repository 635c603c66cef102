"""How often a search finds that images share an orientation: many draws of images from each task.

usage: python scripts/benchmarks/orientation.py --work DIR [--data ROOT] [--tasks cardiac,...]
           [--draws 400] [--output orientation.csv]

The tasks are those of selection.py whose images are 2D. Of a task with several images of a patient
there is a row of one image per patient too. A row says how the measure is distributed over draws of
so many images.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selection import TASKS, plan_task, task_root, wanted_tasks

if TYPE_CHECKING:
    import torch

HEADER = ("task", "images", "drawn", "q025", "median", "q975", "oriented")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("selection"))
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--tasks", help="names with commas (default: all)")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path("orientation.csv"))
    arguments = parser.parse_args()

    rows: list[list[Any]] = []
    for name in wanted_tasks(arguments):
        for title, images in load_images(arguments, name).items():
            for row in measure_draws(images, arguments.draws):
                rows.append([title, len(images), *row])
                print(*rows[-1], flush=True)
    with open(arguments.output, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    print(arguments.output)


def measure_draws(images: list[torch.Tensor], draws: int) -> list[list[Any]]:
    """Rows of as few images as the search measures, and as many: quantiles, share called so."""
    import numpy as np

    from monai_xtiny.data.orientation import MIN_IMAGES, NUM_IMAGES, shared_orientation
    from monai_xtiny.scores.table import MIN_SHARED_ORIENTATION

    rows = []
    for size in (MIN_IMAGES, NUM_IMAGES):
        if size > len(images):
            continue
        draw = np.random.default_rng(0)
        found = [
            shared_orientation([images[index] for index in chosen])
            for chosen in (draw.choice(len(images), size, replace=False) for _ in range(draws))
        ]
        share = np.mean(np.array(found) > MIN_SHARED_ORIENTATION)
        quantiles = (f"{value:.3f}" for value in np.quantile(found, (0.025, 0.5, 0.975)))
        rows.append([size, *quantiles, f"{share:.4f}"])
    return rows


def load_images(arguments: argparse.Namespace, name: str) -> dict[str, list[torch.Tensor]]:
    """Images of a task as they are read, made small; none of volumes."""
    from torch.nn.functional import adaptive_avg_pool2d

    from monai_xtiny.bundle.folder import data_kind
    from monai_xtiny.bundle.search_file import read_search
    from monai_xtiny.bundled.splits import find_patients
    from monai_xtiny.data.cases import find_cases
    from monai_xtiny.data.images import load_case, read_once

    if data_kind(read_search(plan_task(arguments, name)).table.plan) != "images":
        return {}
    cases = find_cases(task_root(arguments, name))
    reading = read_once(None, cases[0])
    images = [adaptive_avg_pool2d(load_case(case, reading.peek).double(), 64) for case in cases]
    group = TASKS[name].overrides.get("group")
    if group is None:
        return {name: images}
    patients = find_patients([{"label": case.name} for case in cases], group)
    first = dict(zip(reversed(patients), reversed(images), strict=True))
    return {name: images, f"{name}, one a patient": list(first.values())}


if __name__ == "__main__":
    main()
