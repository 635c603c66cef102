"""How often a search finds that images lie alike: many draws of images from each task.

usage: python scripts/benchmarks/orientation.py --work DIR [--data ROOT] [--tasks cardiac,...]
           [--draws 400] [--output docs/benchmarks/orientation.csv]

The tasks are those of selection.py, volumes cut into slices. Every image is preprocessed as the
search does it; the rows say how the measure is distributed over draws of so many images.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from selection import plan_task, task_root, wanted_tasks
from trainings import quiet

MAX_IMAGES = 128
SIZES = (16, 32)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("selection"))
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--tasks", help="names with commas (default: all)")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/orientation.csv"))
    arguments = parser.parse_args()

    import numpy as np

    from monai_xtiny.data.orientation import shared_orientation
    from monai_xtiny.scores.table import MIN_SHARED_ORIENTATION

    rows: list[list[Any]] = []
    for name in wanted_tasks(arguments):
        images = load_images(arguments, name)
        if images is None:
            continue
        draw = np.random.default_rng(0)
        for size in SIZES:
            found = [
                shared_orientation([images[index] for index in chosen])
                for chosen in (
                    draw.choice(len(images), size, replace=False) for _ in range(arguments.draws)
                )
            ]
            low, middle, high = np.quantile(found, (0.025, 0.5, 0.975))
            share = float(np.mean(np.array(found) > MIN_SHARED_ORIENTATION))
            row = [name, len(images), size, f"{low:.3f}", f"{middle:.3f}", f"{high:.3f}", share]
            rows.append(row)
            print(*row, flush=True)
    with open(arguments.output, "w", newline="") as file:
        header = ["task", "images", "drawn", "q025", "median", "q975", "alike"]
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    print(arguments.output)


def load_images(arguments: argparse.Namespace, name: str) -> list[Any] | None:
    """Images of a task as the search preprocesses them, at most 128; ``None`` of volumes."""
    from monai.bundle import ConfigParser

    from monai_xtiny.bundle.search_file import read_search
    from monai_xtiny.bundle.templates import configs_dir
    from monai_xtiny.system.config_text import PlainPath

    plan = read_search(plan_task(arguments, name)).table.plan
    if plan.spatial_dims == 3:
        return None
    parser = ConfigParser(ConfigParser.load_config_files([str(configs_dir() / "search.json")]))
    parser.update(
        {"images": PlainPath(str(task_root(arguments, name))), "plan": plan, "spatial_dims": 2,
         "num_images": MAX_IMAGES, "progress": False}
    )  # fmt: skip
    with quiet():
        return list(parser.get_parsed_content("sample").images)


if __name__ == "__main__":
    main()
