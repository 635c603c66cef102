"""The paper's comparison: full-width network, narrow ones and light ones of others, trained alike.

usage: python scripts/benchmarks/comparison.py train --data ROOT --work DIR [--tasks cardiac,...]
           [--networks full,pick,width_16,unext,...] [--seeds 0] [--updates 2000] [--jobs 2]
           [--learning_rate 0.01] [--whole] [--bfloat16] [--validations 10] [--device cuda]
           [--num_workers 8]
       python scripts/benchmarks/comparison.py latency --data ROOT --work DIR
       python scripts/benchmarks/report_comparison.py --work DIR --output docs/benchmarks

Every network is trained by the emitted train.json with nothing changed but network_def, and AdamW
in its fused form, on the same split, for the same number of updates, without deep supervision,
which that recipe does not have; with one seed all see the same crops in the same order, augmented
alike. The last weights are measured, as the learning rate falls to zero: none are chosen on the
cases held out. By default trainings on 2D images take 4 crops of 128 x 128 per update, or 2 whole
images where they share an orientation; with --whole they take the plan's patch and the recipe's
batch, as those on volumes do anyway. On a GPU the recipe's mixed precision is on; --bfloat16 trains
in bfloat16 on a CPU, as torch.autocast does; the trained network is measured in float32.

The pick is the width that the default search chooses from the images alone. Each finished training
is a line of DIR/comparison.jsonl and is not repeated; one that was stopped goes on from its last
epoch. 'latency' exports every network to DIR/onnx, where it is not there, and times all in one run:
DIR/comparison_latency.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from case_measures import count_instances, surface_dice
from selection import TASKS, Task
from trainings import in_processes, quiet, search_once, share_of_cores

if TYPE_CHECKING:
    from monai_xtiny.deploy.segmenter import InputFormat
    from monai_xtiny.deploy.timing import EngineModel, EngineTiming

SIX = (
    "fluorescence", "stain", "hippocampus_3d", "hippocampus_slices", "ultrasound", "cardiac",
)  # fmt: skip
# Of surfaces that count as equal, in mm, or pixels where images have no spacing.
TOLERANCE = {name: 1.0 if name.startswith("hippocampus") else 2.0 for name in SIX}
# Tasks whose objects are counted.
COUNTED = ("fluorescence", "stain")
WIDTHS = ("full", "width_32", "width_16", "pick", "width_8", "width_4")
# Of a light network: its definition without channels, its stride, and whether there is one in 3D.
LIGHT: dict[str, tuple[dict[str, Any], int, bool]] = {
    "unext": ({"_target_": "light_networks.UNeXt"}, 32, False),
    "cmunext_s": ({"_target_": "light_networks.CMUNeXt"}, 16, False),
    "tinyunet": ({"_target_": "light_networks.TinyUNet"}, 16, False),
    "basicunet": ({"_target_": "BasicUNet"}, 16, True),
    "basicunet_small": ({"_target_": "BasicUNet", "features": [8, 8, 16, 32, 64, 8]}, 16, True),
    "flexibleunet_b0": ({"_target_": "FlexibleUNet", "backbone": "efficientnet-b0"}, 32, True),
}


@dataclass(frozen=True)
class Comparison:
    """One training.

    Args:
        task: name of selection.py.
        network: "full", "width_N" or a name of ``LIGHT``.
        seed: of initialization and augmentation.
        updates: about how many; whole epochs are trained.
        learning_rate: of AdamW, at first.
        whole: whether the plan's patch and the recipe's batch are taken.
        bfloat16: whether the network computes in bfloat16 while it is trained.
    """

    task: str
    network: str
    seed: int
    updates: int
    learning_rate: float
    whole: bool
    bfloat16: bool

    @property
    def names(self) -> dict[str, Any]:
        """What the journal tells it by."""
        return dict(vars(self))

    @property
    def folder(self) -> str:
        """Name of its working folder, which MONAI can read."""
        rate = f"{self.learning_rate:g}".replace(".", "p")
        size = ("whole" if self.whole else "crops") + ("_bfloat16" if self.bfloat16 else "")
        return f"{self.task}_{self.network}_{self.seed}_{self.updates}_{rate}_{size}_segmentation"


def main() -> None:
    """The command line."""
    arguments = parse_arguments()
    tasks = names_of(arguments.tasks, SIX)
    networks = names_of(arguments.networks, (*WIDTHS, *LIGHT), prefix="width_")
    stages = {"train": train_all, "latency": time_all}
    stages[arguments.stage](arguments, tasks, networks)


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("train", "latency"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("comparison"))
    parser.add_argument("--tasks", help="names with commas (default: all six)")
    parser.add_argument("--networks", help="names with commas (default: all)")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--learning_rate", type=float, default=0.01)
    parser.add_argument("--whole", action="store_true", help="whole patches, the recipe's batch")
    parser.add_argument("--bfloat16", action="store_true", help="train in bfloat16 on a CPU")
    parser.add_argument("--validations", type=int, default=10, help="points of each curve")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of the latency")
    return parser.parse_args()


def names_of(text: str | None, known: tuple[str, ...], prefix: str | None = None) -> list[str]:
    """Names with commas between them; all if none are given."""
    names = list(known) if text is None else text.split(",")
    for name in names:
        is_width = prefix is not None and name.removeprefix(prefix).isdigit()
        if name not in known and not is_width:
            raise SystemExit(f"error: no {name!r}: give some of {', '.join(known)}")
    return names


def search_task(arguments: argparse.Namespace, name: str) -> Path:
    """The search.json of a task by the default search, which plans and picks; made once."""
    task = TASKS[name]
    root = arguments.data / task.folder
    if not (root / "dataset.json").is_file():
        raise SystemExit(f"error: no {str(root / 'dataset.json')!r}: give --data ROOT that has it")
    bundle = arguments.work / "searches" / f"{name}_segmentation"
    return search_once(root, bundle, *task.search)


def networks_of(search: Path, names: list[str]) -> list[str]:
    """Networks of a task, each once: the pick as a width, light ones where they exist."""
    from monai_xtiny.bundle.search_file import read_search

    selection = read_search(search)
    found = {}
    for name in names:
        if name in LIGHT:
            if selection.table.plan.spatial_dims == 2 or LIGHT[name][2]:
                found[name] = None
            continue
        found[f"width_{selection.max_features}" if name == "pick" else name] = None
    return list(found)


def definition(network: str, plan: Any) -> dict[str, Any]:
    """``network_def`` of a network, as MONAI's configs define one."""
    from monai_xtiny.networks.dynunet import network_definition

    if network not in LIGHT:
        return network_definition(plan, width_of(network))
    found = {
        **LIGHT[network][0],
        "in_channels": plan.in_channels,
        "out_channels": plan.out_channels,
    }
    if found["_target_"].startswith("light_networks"):
        return found
    return {**found, "spatial_dims": plan.spatial_dims}


def width_of(network: str) -> int | None:
    """The cap of a width; ``None`` for the full one."""
    return int(network.removeprefix("width_")) if network.startswith("width_") else None


def train_all(arguments: argparse.Namespace, tasks: list[str], networks: list[str]) -> None:
    """Train what the journal lacks."""
    from monai_xtiny.system.files import append_line, read_lines

    journal = arguments.work / "comparison.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    searches = {task: search_task(arguments, task) for task in tasks}
    units = [
        Comparison(
            task,
            network,
            int(seed),
            arguments.updates,
            arguments.learning_rate,
            arguments.whole,
            arguments.bfloat16,
        )
        for seed in arguments.seeds.split(",")
        for task in tasks
        for network in networks_of(searches[task], networks)
    ]
    work = [
        (unit, searches[unit.task], vars(arguments), share_of_cores(arguments.jobs))
        for unit in missing(units, read_lines(journal))
    ]
    failed = []
    for (unit, *_), result in in_processes(train_network, work, arguments.jobs):
        if isinstance(result, BaseException):
            failed.append(f"{unit.folder}: {result}")
            print(time.strftime("%H:%M:%S"), failed[-1], flush=True)
            continue
        append_line(journal, result)
        shutil.rmtree(arguments.work / unit.folder)
        words = f"best {result['best_dice']:.4f}, {result['seconds_per_update']:.2f} s per update"
        print(time.strftime("%H:%M:%S"), unit.folder, words, flush=True)
    if failed:
        raise SystemExit("\n".join([f"error: {len(failed)} trainings failed", *failed]))


def missing(units: list[Comparison], lines: list[dict[str, Any]]) -> list[Comparison]:
    """The trainings that no line of the journal is of."""
    done = [{name: line.get(name) for name in vars(units[0])} for line in lines] if units else []
    return [unit for unit in units if unit.names not in done]


def train_network(
    unit: Comparison, search: Path, options: dict[str, Any], threads: int
) -> dict[str, Any]:
    """One training: its line of the journal."""
    import torch

    from monai_xtiny.bundle.folder import Bundle, missing_file
    from monai_xtiny.bundle.search_file import read_search
    from monai_xtiny.bundle.writer import export_bundle
    from monai_xtiny.system.files import append_line, read_lines
    from monai_xtiny.training.train import train_bundle

    torch.set_num_threads(threads)
    folder = options["work"] / unit.folder
    with quiet():
        if missing_file(folder) is not None:
            export_bundle(read_search(search), folder, overwrite=True, report=False)
        bundle = Bundle.open(folder)
        root = options["data"] / TASKS[unit.task].folder
        keys = training_keys(bundle, unit, options)
        per_epoch, patients = split_facts(bundle, root, keys)
        epochs = max(1, round(unit.updates / per_epoch))
        points = folder / "curve.jsonl"
        former = {line["epoch"]: line["dice"] for line in read_lines(points)}
        training = train_bundle(
            bundle,
            data=root,
            epochs=epochs,
            val_interval=max(1, epochs // options["validations"]),
            seed=unit.seed,
            overrides=keys,
            progress=lambda epoch, dice: append_line(points, {"epoch": epoch, "dice": dice}),
        )
        measured = measure_last(bundle, unit.task, root, keys)
        trained = epochs - max([0, *former])
    curve = sorted({**former, **dict(training.curve)}.items())
    return {
        **unit.names,
        "images": images_of(unit),
        "pick": bundle.selection.max_features,
        **cost(definition(unit.network, bundle.plan), bundle.plan),
        "epochs": epochs,
        "num_updates": epochs * per_epoch,
        "device": device_name(options["device"]),
        "seconds_per_update": round(training.seconds / max(1, trained * per_epoch), 3),
        "curve": [(epoch * per_epoch, dice) for epoch, dice in curve],
        "best_dice": training.evaluation.mean_dice,
        "patients": patients,
        **measured,
    }


def training_keys(bundle: Any, unit: Comparison, options: dict[str, Any]) -> dict[str, Any]:
    """Keys of train.json that differ from the bundle's own."""
    task: Task = TASKS[unit.task]
    reduced = task.overrides if not unit.whole else {}
    group = {name: value for name, value in task.overrides.items() if name == "group"}
    network_def = definition(unit.network, bundle.plan)
    if unit.bfloat16:
        network_def = {"_target_": "trainings.InBfloat16", "network": network_def}
    return {
        "network_def": network_def,
        "learning_rate": unit.learning_rate,
        # The same steps in one pass over the weights.
        "optimizer#fused": True,
        "device": f"$torch.device('{options['device']}')",
        "num_workers": options["num_workers"],
        "tensorboard": False,
        # Seeded anew once the weights are drawn: all networks see the same crops.
        "initialize": [
            *bundle.config("train")["initialize"],
            "$@network_def",
            "$monai.utils.set_determinism(seed=@seed)",
        ],
        **reduced,
        **group,
    }


def images_of(unit: Comparison) -> str:
    """What an update sees, for the tables."""
    keys = TASKS[unit.task].overrides
    if unit.whole or "batch_size" not in keys:
        return "the recipe's patches"
    size = " x ".join(map(str, keys.get("crop_size", ())))
    return f"{keys['batch_size']} " + (f"crops of {size}" if size else "whole images")


def split_facts(bundle: Any, root: Path, keys: dict[str, Any]) -> tuple[int, list[str]]:
    """Updates per epoch, and the patient of each case held out."""
    import math

    from monai.bundle import ConfigParser

    from monai_xtiny.bundled.splits import find_patients
    from monai_xtiny.training.labeled import data_options

    parser = ConfigParser(bundle.config("train"))
    parser.update({"bundle_root": str(bundle.root), **data_options(root, None), **keys})
    training, held_out = (parser.get_parsed_content(f"{part}_cases") for part in ("train", "val"))
    batch = parser.get_parsed_content("batch_size")
    labeled = parser.get_parsed_content("labeled_cases")
    patients = find_patients(held_out, keys.get("group"), labeled=labeled)
    return math.ceil(len(training) / batch), patients


def measure_last(bundle: Any, task: str, root: Path, keys: dict[str, Any]) -> dict[str, Any]:
    """Dice, NSD and HD95 of every case by the last weights, and its instances if they count."""
    import torch
    from monai.bundle import ConfigParser

    from monai_xtiny.training.evaluate import evaluate_bundle
    from monai_xtiny.training.labeled import data_options

    state = torch.load(
        bundle.path("eval") / "checkpoints" / "training_state.pt",
        map_location="cpu",
        weights_only=True,
    )
    network = ConfigParser({"network_def": keys["network_def"]}).get_parsed_content("network_def")
    network.load_state_dict(state["network"])
    device = ConfigParser({"device": keys["device"]}).get_parsed_content("device")
    network.eval().to(device)
    nsd: list[list[float | None]] = []
    instances: list[list[float]] = []

    def on_case(_case: Any, label: Any, prediction: Any) -> None:
        nsd.append(surface_dice(prediction, label, TOLERANCE[task]))
        if task in COUNTED:
            instances.append(count_instances(prediction, label))

    with tempfile.TemporaryDirectory() as folder:
        evaluation = evaluate_bundle(
            bundle,
            {**data_options(root, None), **keys, "output_dir": folder},
            on_case=on_case,
            predict=network,
        )
    return {
        "cases": evaluation.cases,
        "dice": evaluation.dice,
        "hd95": evaluation.hd95,
        "nsd": nsd,
        "instances": instances,
    }


def cost(network_def: dict[str, Any], plan: Any) -> dict[str, Any]:
    """Parameters, and GMACs of a pass of one patch: convolutions and matrix products."""
    import torch
    from monai.bundle import ConfigParser
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = ConfigParser({"it": network_def}).get_parsed_content("it").eval()
        image = torch.zeros(1, plan.in_channels, *plan.patch_size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
    return {
        "num_parameters": sum(item.numel() for item in network.parameters()),
        "gmacs": counter.get_total_flops() / 2e9,
    }


def device_name(device: str) -> str:
    """What computed."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def time_all(arguments: argparse.Namespace, tasks: list[str], networks: list[str]) -> None:
    """Latency of every network, one task after the other; the networks of a task take turns."""
    from deploy import processor

    from monai_xtiny.system.files import write_text

    rows = []
    target = arguments.work / "comparison_latency.jsonl"
    for task in tasks:
        models = export_networks(arguments, task, networks)
        for name, size, timing in time_networks(models, arguments.threads):
            rows.append(
                {"task": task, "network": name, "size": size, "ms": timing.network_ms,
                 "p95_ms": timing.network_p95_ms, "threads": timing.num_threads,
                 "megabytes": timing.num_bytes / 1e6, "processor": processor(),
                 "date": time.strftime("%Y-%m-%d")}
            )  # fmt: skip
            print(task, name, f"{timing.network_ms:.1f} ms", flush=True)
        write_text(target, "".join(json.dumps(row) + "\n" for row in rows))
    print(target)


def export_networks(
    arguments: argparse.Namespace, task: str, networks: list[str]
) -> list[tuple[EngineModel, InputFormat]]:
    """Networks of a task at their initialization, as ONNX files; those in --work are kept.

    A patch that a network's stride does not divide is padded, which its latency includes.
    """
    import torch
    from monai.bundle import ConfigParser

    from monai_xtiny.bundle.folder import data_kind
    from monai_xtiny.bundle.search_file import read_search
    from monai_xtiny.deploy.onnx_model import write_onnx
    from monai_xtiny.deploy.segmenter import InputFormat
    from monai_xtiny.deploy.timing import ONNX, EngineModel

    search = search_task(arguments, task)
    plan = read_search(search).table.plan
    labels = tuple(str(number) for number in range(plan.out_channels))
    folder = arguments.work / "onnx" / task
    folder.mkdir(parents=True, exist_ok=True)
    models = []
    for name in networks_of(search, networks):
        stride = LIGHT[name][1] if name in LIGHT else 0
        divisor = (stride,) * plan.spatial_dims if stride else plan.divisor
        form = InputFormat(data_kind(plan), plan.in_channels, plan.patch_size, divisor, labels)
        form = replace(form, patch_size=form.padded(plan.patch_size))
        path = folder / f"{name}.onnx"
        if not path.is_file():
            torch.manual_seed(0)
            network = ConfigParser({"it": definition(name, plan)}).get_parsed_content("it")
            with quiet():
                write_onnx(network.eval(), form, path)
        models.append((EngineModel(name, width_of(name) or 0, ONNX, path), form))
    return models


def time_networks(
    models: list[tuple[EngineModel, InputFormat]], threads: int
) -> list[tuple[str, list[int], EngineTiming]]:
    """The size that each network takes, and its timing; those of one size take turns."""
    from monai_xtiny.deploy.timing import benchmark_engines

    groups: dict[tuple[int, ...], list[tuple[EngineModel, InputFormat]]] = {}
    for model, form in models:
        groups.setdefault(form.patch_size, []).append((model, form))
    return [
        (timing.network, list(size), timing)
        for size, group in groups.items()
        for timing in benchmark_engines(
            [model for model, _ in group], group[0][1], (), size, threads=(threads,)
        )
    ]


if __name__ == "__main__":
    main()
