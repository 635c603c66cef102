"""Compare training recipes at one width: the table behind the emitted train.json.

usage: python scripts/benchmarks/recipes.py --data ROOT/DATASET --search search.json --width 8
           --epochs 30 [--recipes sgd_poly,adamw_onecycle] [--seeds 0,1,2] [--crop 128]
           [--val_interval 5] [--work DIR] [--jobs 2] [--teacher BUNDLE [--unlabeled DIR]]
       python scripts/benchmarks/recipes.py --table recipes.jsonl

Every recipe is the emitted train.json with the overrides below, on the same fold and the same
number of updates. Each finished training is a line of WORK/recipes.jsonl and is not repeated;
the table is printed from all its lines. With a --val_interval of all epochs the last weights are
measured, and none are chosen on the cases held out.

With --teacher the recipes "distill" and, with --unlabeled too, "plain_unlabeled" and
"distill_unlabeled" are compared with the emitted one, "plain": see distillation.py. The teacher is
to be trained on the same fold of the same data; with one seed all see the same crops.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from distillation import distill, label_by_teacher, write_datalist
from report_comparison import interval, mean_defined, mean_over_seeds, shown
from trainings import Unit, quiet, train_missing

from monai_xtiny.system.files import read_lines
from monai_xtiny.training.train import Training, training_from_dict

POLY = "$lambda epoch: (1 - min(epoch / @train#trainer#max_epochs, 1)) ** 0.9"
NO_CLIP: dict[str, Any] = {"max_grad_norm": 1e9}


def adamw(learning_rate: float, weight_decay: float = 3e-5) -> dict[str, Any]:
    """AdamW with the emitted schedule."""
    return {"learning_rate": learning_rate, "weight_decay": weight_decay, "lr_factor": POLY}


def sgd(learning_rate: float, momentum: float) -> dict[str, Any]:
    """nnU-Net's optimizer: Nesterov momentum and polynomial decay."""
    return {
        "learning_rate": learning_rate,
        "lr_factor": POLY,
        "optimizer": {
            "_target_": "torch.optim.SGD",
            "params": "$@network.parameters()",
            "lr": "@learning_rate",
            "momentum": momentum,
            "nesterov": True,
            "weight_decay": "@weight_decay",
        },
    }


def one_cycle(max_lr: float, weight_decay: float = 1e-2) -> dict[str, Any]:
    """AdamW under PyTorch's one-cycle schedule, stepped at every update."""
    return {
        "learning_rate": max_lr,
        "weight_decay": weight_decay,
        "lr_scheduler": {
            "_target_": "torch.optim.lr_scheduler.OneCycleLR",
            "optimizer": "@optimizer",
            "max_lr": max_lr,
            "epochs": "@epochs",
            "steps_per_epoch": "$len(@train#dataloader)",
        },
        "train#handlers#0#epoch_level": False,
        "train#handlers#0#print_lr": False,
    }


def ema(momentum: float) -> dict[str, Any]:
    """Validate and keep an exponential moving average of the weights."""
    return {
        "averaged": {
            "_target_": "ignite.handlers.EMAHandler",
            "model": "@network",
            "momentum": momentum,
            "momentum_warmup": 0.2,
            "warmup_iters": 100,
        },
        "validate#evaluator#network": "$@averaged.ema_model",
        "weights": "$lambda: {n: v.cpu() for n, v in @averaged.ema_model.state_dict().items()}",
        "initialize": [
            "$monai.utils.set_determinism(seed=@seed)",
            "$@averaged.attach(@train#trainer)",
        ],
    }


def deep_supervision(levels: int) -> dict[str, Any]:
    """Losses at the coarser decoder levels too, halved at each."""
    return {
        "network_def#deep_supervision": True,
        "network_def#deep_supr_num": levels,
        "plain_loss": {
            "_target_": "DiceCELoss",
            "include_background": False,
            "to_onehot_y": True,
            "softmax": True,
            "batch": "@batch_dice",
        },
        "deep_loss": {"_target_": "monai.losses.DeepSupervisionLoss", "loss": "@plain_loss"},
        "loss": "$lambda pred, label: @deep_loss(list(torch.unbind(pred, dim=1)), label)",
        "train#trainer#key_train_metric": None,
        "train#trainer#postprocessing": None,
    }


RECIPES: dict[str, dict[str, Any]] = {
    "adamw_poly": adamw(1e-2),
    "adamw_poly_3e-3": adamw(3e-3),
    "adamw_poly_3e-2": adamw(3e-2),
    "adamw_poly_noclip": {**adamw(1e-2), **NO_CLIP},
    "adamw_poly_clip1": {**adamw(1e-2), "max_grad_norm": 1.0},
    "adamw_poly_mirror": {**adamw(1e-2), "mirror_prob": 0.5},
    "adamw_poly_nomirror": {**adamw(1e-2), "mirror_prob": 0.0},
    "adamw_poly_ema": {**adamw(1e-2), **ema(0.005)},
    "adamw_onecycle": one_cycle(1e-2),
    "adamw_onecycle_3e-2": one_cycle(3e-2),
    "adamw_poly_deep": {**adamw(1e-2), **deep_supervision(2)},
    "sgd_poly": sgd(1e-2, 0.99),
    "sgd_poly_1e-1": sgd(1e-1, 0.9),
}


# What others are compared with.
EMITTED = ("adamw_poly", "plain")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="journal to print, without a training")
    parser.add_argument("--data", type=Path, help="nnU-Net data set root")
    parser.add_argument("--search", type=Path, help="search.json of the data set")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--recipes", help="names with commas (default: all)")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--crop", type=int, help="4 square crops an update in place of patches")
    parser.add_argument("--val_interval", type=int, default=5, help="epochs between validations")
    parser.add_argument("--teacher", type=Path, help="trained bundle, of the same fold")
    parser.add_argument("--unlabeled", type=Path, help="images for the teacher to label")
    parser.add_argument("--work", type=Path, default=Path("recipes"))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    arguments = parser.parse_args()
    for option in ("data", "search", "epochs"):
        if arguments.table is None and getattr(arguments, option) is None:
            parser.error(f"give --{option}")
    return arguments


def main() -> None:
    """Train what the journal lacks, then print the table."""
    arguments = parse_arguments()
    if arguments.table is not None:
        print(table(read_lines(arguments.table)))
        return
    name = arguments.data.resolve().name
    journal = arguments.work / "recipes.jsonl"
    recipes = RECIPES if arguments.teacher is None else taught_recipes(arguments, name)
    wanted = list(recipes) if arguments.recipes is None else arguments.recipes.split(",")
    side = arguments.crop
    crop = {} if side is None else {"crop_size": [side, side], "batch_size": 4}
    units = [
        Unit(
            {"set": name, "recipe": recipe, **({} if side is None else {"crop": str(side)})},
            arguments.search,
            arguments.width,
            arguments.data,
            arguments.work / name / f"{recipe}_{seed}_segmentation",
            arguments.epochs,
            val_interval=arguments.val_interval,
            seed=int(seed),
            overrides={**recipes[recipe], **crop},
        )
        for seed in arguments.seeds.split(",")
        for recipe in wanted
    ]
    train_missing(units, journal, jobs=arguments.jobs)
    print(table(read_lines(journal)))


def taught_recipes(arguments: argparse.Namespace, name: str) -> dict[str, dict[str, Any]]:
    """The emitted recipe, and what a teacher makes of it."""
    taught = distill(arguments.teacher)
    # Seeded anew once the weights of both are there.
    seeding = "$monai.utils.set_determinism(seed=@seed)"
    recipes: dict[str, dict[str, Any]] = {
        "plain": {"initialize": [seeding, "$@network_def", seeding]},
        "distill": {
            **taught,
            "initialize": [seeding, "$@network_def", "$@train#inferer", seeding],
        },
    }
    if arguments.unlabeled is None:
        return recipes
    from monai.bundle import ConfigParser

    from monai_xtiny.bundle.folder import Bundle
    from monai_xtiny.system.config_text import PlainPath
    from monai_xtiny.training.labeled import data_options

    folder = arguments.work / name
    with quiet():
        unlabeled = label_by_teacher(arguments.teacher, arguments.unlabeled, folder / "labels")
    parser = ConfigParser(Bundle.open(arguments.teacher).config("train"))
    root = str(arguments.teacher.resolve())
    parser.update({"bundle_root": root, **data_options(arguments.data, None)})
    training, held_out = (parser.get_parsed_content(f"{part}_cases") for part in ("train", "val"))
    datalist, common = write_datalist([*training, *unlabeled], held_out, folder / "datalist.json")
    batch = parser.get_parsed_content("batch_size")
    files = {
        "datalist": PlainPath(str(datalist.resolve())),
        "dataset_dir": PlainPath(str(common)),
        # As many updates as without the unlabeled images.
        "train#trainer#epoch_length": math.ceil(len(training) / batch),
    }
    taught = {f"{key}_unlabeled": {**options, **files} for key, options in recipes.items()}
    return {**recipes, **taught}


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: the last validation of every recipe, and what it gains on the emitted one."""
    rows = [
        "| data set | width | epochs | crop | recipe | seeds | last Dice | best Dice "
        "| cases: Dice gained [95 %] |",
        "|---|---:|---:|---|---|---:|---:|---:|---|",
    ]
    groups: dict[tuple[Any, ...], dict[str, list[Training]]] = {}
    for line in lines:
        training = training_from_dict(line)
        key = (line["set"], training.max_features, training.epochs, line.get("crop", "patch"))
        groups.setdefault(key, {}).setdefault(line["recipe"], []).append(training)
    for key, recipes in sorted(groups.items(), key=lambda item: tuple(map(str, item[0]))):
        emitted = next((recipes[name] for name in EMITTED if name in recipes), [])
        for recipe, trainings in sorted(recipes.items(), key=lambda item: -mean_last(item[1])):
            best = np.mean([max(dice for _, dice in training.curve) for training in trainings])
            gain = "" if trainings is emitted else gained(trainings, emitted)
            cells = (*key, recipe, len(trainings), f"{mean_last(trainings):.4f}", f"{best:.4f}")
            rows.append(f"| {' | '.join(map(str, cells))} | {gain} |")
    return "\n".join(rows)


def mean_last(trainings: list[Training]) -> float:
    """Mean over seeds of the last validation's Dice."""
    return float(np.mean([training.curve[-1][1] for training in trainings]))


def gained(trainings: list[Training], emitted: list[Training]) -> str:
    """Dice of the cases gained on the emitted recipe, of the seeds that both have."""
    groups = [
        {item.seed: item.evaluation for item in group if item.evaluation.cases}
        for group in (trainings, emitted)
    ]
    seeds = sorted(groups[0].keys() & groups[1].keys())
    if not seeds:
        return ""
    dice, plain = (
        mean_over_seeds([[mean_defined(row) for row in group[seed].dice] for seed in seeds])
        for group in groups
    )
    return shown(interval(dice - plain, groups[0][seeds[0]].cases), sign="+")


if __name__ == "__main__":
    main()
