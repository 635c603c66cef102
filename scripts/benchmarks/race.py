"""Brief trainings of every width on many tasks: what a race on labels would have seen.

usage: python scripts/benchmarks/race.py --work DIR [--data ROOT] [--jobs 2] [--tasks blobs,...]
           [--seeds 0,1,2] [--widths 32,16,8,4,2] [--updates 60,120,240] [--journal FILE]

The tasks are those of selection.py. The cases that its trainings hold out, which the oracle is made
of, have no part here: a quarter of the others, at most 32, is held out of these trainings. Each
finished training is a line of the journal (DIR/race.jsonl) and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from selection import TASKS, plan_task, task_root, wanted_tasks
from trainings import in_processes, quiet, share_of_cores

HELD_OUT = 32


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("selection"))
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--journal", type=Path, help="default: race.jsonl in --work")
    parser.add_argument("--tasks", help="names with commas (default: all)")
    parser.add_argument("--widths", default="32,16,8,4,2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--updates", default="60,120,240")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    arguments = parser.parse_args()

    from monai_xtiny.system.files import append_line, read_lines

    journal = arguments.journal or arguments.work / "race.jsonl"
    done = {key_of(line) for line in read_lines(journal)}
    units = [
        (task, int(width), int(seed), int(updates))
        for updates in arguments.updates.split(",")
        for seed in arguments.seeds.split(",")
        for task in wanted_tasks(arguments)
        for width in arguments.widths.split(",")
    ]
    work = []
    for unit in units:
        if unit not in done:
            name = unit[0]
            root, search = task_root(arguments, name), plan_task(arguments, name)
            datalist = split_of(name, root, search, arguments.work / "splits" / f"{name}.json")
            work.append((*unit, search, root, datalist, share_of_cores(arguments.jobs)))
    failed = []
    for unit, result in in_processes(train_briefly, work, arguments.jobs):
        if isinstance(result, BaseException):
            failed.append(f"{unit[:4]}: {result}")
            continue
        append_line(journal, result)
        print(time.strftime("%H:%M:%S"), *unit[:4], f"{result['seconds']:.0f} s", flush=True)
    if failed:
        raise SystemExit("\n".join([f"error: {len(failed)} trainings failed", *failed]))


def key_of(line: dict[str, Any]) -> tuple[str, int, int, int]:
    """What tells a training from the others of the journal."""
    return line["task"], line["max_features"], line["seed"], line["updates"]


def split_of(name: str, root: Path, search: Path, target: Path) -> Path:
    """A datalist of the cases that selection.py trains on: some of them held out; made once."""
    import numpy as np

    from monai_xtiny.bundle.folder import Bundle
    from monai_xtiny.bundled.splits import find_patients

    if target.is_file():
        return target
    options = {"dataset_dir": str(root), **TASKS[name].overrides}
    bundle = Bundle.open(search.parent.parent)
    with quiet():
        workflow = bundle.workflow(("train",), options)
        cases, labeled = map(workflow.parser.get_parsed_content, ("train_cases", "labeled_cases"))
    patients: dict[str, list[dict[str, Any]]] = {}
    found = find_patients(cases, options.get("group"), labeled=labeled)
    for case, patient in zip(cases, found, strict=True):
        entry = {
            "image": [os.path.relpath(file, root) for file in case["image"]],
            "label": os.path.relpath(case["label"], root),
        }
        patients.setdefault(patient, []).append(entry)
    names = sorted(patients)
    order = [names[index] for index in np.random.RandomState(1).permutation(len(names))]
    held_out: list[dict[str, Any]] = []
    while len(held_out) < min(HELD_OUT, len(cases) // 4):
        held_out += patients[order.pop()]
    content = {"training": [case for patient in order for case in patients[patient]],
               "validation": held_out[:HELD_OUT]}  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=1))
    return target


def train_briefly(
    task: str,
    width: int,
    seed: int,
    updates: int,
    search: Path,
    root: Path,
    datalist: Path,
    threads: int,
) -> dict[str, Any]:
    """One training of a race, as verify makes it: its line of the journal."""
    from dataclasses import asdict, replace

    import torch
    from monai.bundle import ConfigParser

    from monai_xtiny.bundle.folder import Bundle
    from monai_xtiny.bundle.search_file import read_search
    from monai_xtiny.bundle.writer import export_bundle
    from monai_xtiny.training.train import train_bundle
    from monai_xtiny.training.verify import EPOCH_LENGTH, brief_options

    torch.set_num_threads(threads)
    selection = replace(read_search(search), max_features=width)
    folder = search.parents[2] / f"{task}_{width}_{seed}_{updates}_segmentation"
    overrides = {name: value for name, value in TASKS[task].overrides.items() if name == "group"}
    with quiet():
        bundle = Bundle.open(export_bundle(selection, folder, overwrite=True, report=False))
        parser = ConfigParser(bundle.config("train"))
        keys = {"dataset_dir": str(root), "datalist": str(datalist), **overrides}
        parser.update({"bundle_root": str(bundle.root), **keys})
        options = brief_options(parser, bundle.plan, num_updates=updates)
        training = train_bundle(
            bundle,
            data=root,
            datalist=datalist,
            epochs=updates // EPOCH_LENGTH,
            seed=seed,
            overrides={
                **options,
                "validate#dataset#data": "$@val_cases",
                "num_workers": 0,
                **overrides,
            },
            only_dice=True,
        )
    shutil.rmtree(folder)
    return {"task": task, "updates": updates, **asdict(training)}


if __name__ == "__main__":
    main()
