"""Compare training recipes at one width: the table behind the emitted train.json.

usage: python scripts/benchmarks/recipes.py --data ROOT/DATASET --search search.json --width 8
           --epochs 30 [--recipes sgd_poly,adamw_onecycle] [--seeds 0,1,2] [--crop 128]
           [--batch_size 2] [--val_interval 5] [--num_labeled 48] [--group PATTERN] [--work DIR]
           [--jobs 2] [--teacher BUNDLE [--unlabeled DIR]]
       python scripts/benchmarks/recipes.py --table recipes.jsonl

Every recipe is the emitted train.json with the overrides below, on the same fold and the same
number of updates. Each finished training is a line of WORK/recipes.jsonl and is not repeated;
the table is printed from all its lines. With a --val_interval of all epochs the last weights are
measured, and none are chosen on the cases held out.

With --teacher the recipes "distill" and, with --unlabeled too, "plain_unlabeled" and
"distill_unlabeled" are compared with the emitted one, "plain". The teacher is
to be trained on the same fold of the same data; with one seed all see the same crops. With
--num_labeled only that many cases of the fold keep their labels, and the others are unlabeled.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from distillation import label_by_teacher, link_images, write_datalist
from report_comparison import interval, mean_defined, mean_over_seeds, shown
from trainings import Unit, quiet, train_missing

from monai_xtiny.system.files import read_lines
from monai_xtiny.training.train import Training, training_from_dict

Cases = list[dict[str, Any]]
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


# Seeded anew once the weights are drawn: with one seed all recipes see the same crops.
SEEDING = "$monai.utils.set_determinism(seed=@seed)"
PLAIN: dict[str, Any] = {"initialize": [SEEDING, "$@network_def", SEEDING]}
# Stepped at every update, to a rate near 0 at the last one; the emitted schedule steps by epoch.
DECAY_BY_UPDATE: dict[str, Any] = {
    **PLAIN,
    "num_updates": "$@train#trainer#max_epochs * @train#trainer#epoch_length",
    "lr_factor": "$lambda update: (1 - min(update / @num_updates, 1)) ** @lr_power",
    "train#handlers#0#epoch_level": False,
    "train#handlers#0#print_lr": False,
}


def trained_with(loss: str, **options: Any) -> dict[str, Any]:
    """The emitted recipe with another of MONAI's losses."""
    common = {"include_background": False, "to_onehot_y": True, "softmax": True}
    return {**PLAIN, "loss": {"_target_": loss, **common, "batch": "@batch_dice", **options}}


def expanded(ratio: int) -> dict[str, Any]:
    """Kernels that are products of three, until the last weights are measured (expansion.py).

    The optimizer alone refers to the expanded network: evaluation, which has none, does not expand.
    """
    return {
        **PLAIN,
        "val_interval": "@epochs",
        "expanded": {
            "_target_": "expansion.expand_until_validation",
            "network": "@network",
            "evaluator": "@validate#evaluator",
            "ratio": ratio,
            "seed": "@seed",
        },
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "params": "$@expanded.parameters()",
            "lr": "@learning_rate",
            "weight_decay": "@weight_decay",
        },
    }


RECIPES: dict[str, dict[str, Any]] = {
    "adamw_poly": adamw(1e-2),
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
    "plain": PLAIN,
    # As nnU-Net does with 2D patches that are about square.
    "mirrored": {**PLAIN, "mirror_prob": 0.5, "rotation_range": math.pi},
    # The same without mirroring.
    "turned": {**PLAIN, "mirror_prob": 0.0, "rotation_range": math.pi},
    # Of images that share an orientation.
    "oriented": {**PLAIN, "mirror_prob": 0.0, "rotation_range": math.radians(15)},
    "smoothed": trained_with("DiceCELoss", label_smoothing=0.1),
    "focal": trained_with("DiceFocalLoss"),
    "generalized": trained_with("GeneralizedDiceFocalLoss", include_background=True),
    "expand": expanded(2),
    "rate_0.003": {**PLAIN, "learning_rate": 3e-3},
    "rate_0.03": {**PLAIN, "learning_rate": 3e-2},
    "decay_by_update": DECAY_BY_UPDATE,
}


# What others are compared with.
EMITTED = ("plain", "mirrored", "turned", "adamw_poly")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="journal to print, without a training")
    parser.add_argument("--data", type=Path, help="nnU-Net data set root")
    parser.add_argument("--search", type=Path, help="docs/search.json of its bundle")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--recipes", help="names with commas (default: all)")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--crop", type=int, help="4 square crops an update in place of patches")
    parser.add_argument("--batch_size", type=int, help="patches an update (default: the recipe's)")
    parser.add_argument("--val_interval", type=int, default=5, help="epochs between validations")
    parser.add_argument("--teacher", type=Path, help="trained bundle, of the same fold")
    parser.add_argument("--unlabeled", type=Path, help="images for the teacher to label")
    parser.add_argument("--num_labeled", type=int, help="cases that keep labels (default: all)")
    parser.add_argument("--group", help="which cases are of one patient, as train.json takes it")
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
    journal = arguments.work / "recipes.jsonl"
    names = {"set": arguments.data.resolve().name}
    changes: dict[str, Any] = {}
    if arguments.crop is not None:
        names["crop"] = str(arguments.crop)
        changes = {"crop_size": [arguments.crop] * 2, "batch_size": 4}
    if arguments.batch_size is not None:
        names["batch"] = str(arguments.batch_size)
        changes["batch_size"] = arguments.batch_size
    if arguments.group is not None:
        names["group"] = changes["group"] = arguments.group
    folder = arguments.work / names["set"]
    cases, held_out, batch_size = split_cases(arguments, changes)
    if arguments.num_labeled is not None:
        names["labeled"] = str(arguments.num_labeled)
        changes |= listed(cases[: arguments.num_labeled], held_out, folder / "labeled.json")
    # As many updates however many cases there are.
    changes["train#trainer#epoch_length"] = math.ceil(len(cases) / batch_size)
    recipes = RECIPES
    if arguments.teacher is not None:
        recipes = taught_recipes(arguments, folder, cases, held_out)
    wanted = list(recipes) if arguments.recipes is None else arguments.recipes.split(",")
    teacher = {} if arguments.teacher is None else {"teacher": describe_teacher(arguments.teacher)}
    units = [
        Unit(
            {**names, "recipe": recipe, **({} if recipe in RECIPES else teacher)},
            arguments.search,
            arguments.width,
            arguments.data,
            folder / f"{recipe}_{seed}_segmentation",
            arguments.epochs,
            val_interval=arguments.val_interval,
            seed=int(seed),
            overrides={**changes, **recipes[recipe]},
        )
        for seed in arguments.seeds.split(",")
        for recipe in wanted
    ]
    train_missing(units, journal, jobs=arguments.jobs)
    print(table(read_lines(journal)))


def describe_teacher(bundle: Path) -> str:
    """Width and epochs of a trained bundle, and a few digits that tell its weights from others."""
    from monai_xtiny.bundle.folder import Bundle
    from monai_xtiny.bundle.measured import trained_epochs
    from monai_xtiny.bundled.teaching import teacher_digest

    teacher, digest = Bundle.open(bundle), teacher_digest(str(bundle), 0) or ""
    width, epochs = teacher.selection.max_features, trained_epochs(teacher)
    return f"width {width}, {epochs or 'unknown'} epochs, {digest[:6]}"


def taught_recipes(
    arguments: argparse.Namespace, folder: Path, cases: Cases, held_out: Cases
) -> dict[str, dict[str, Any]]:
    """The emitted recipe, and what a teacher makes of it."""
    from monai_xtiny.system.config_text import PlainPath

    recipes: dict[str, dict[str, Any]] = {
        "plain": PLAIN,
        "distill": {**PLAIN, "teacher": PlainPath(str(arguments.teacher.resolve()))},
    }
    images = arguments.unlabeled
    if arguments.num_labeled is not None:
        images = link_images(cases[arguments.num_labeled :], folder / "unlabeled")
    if images is None:
        return recipes
    with quiet():
        unlabeled = label_by_teacher(arguments.teacher, images, folder / "labels")
    labeled = cases[: arguments.num_labeled]
    files = listed([*labeled, *unlabeled], held_out, folder / "datalist.json")
    return {
        **recipes,
        **{f"{key}_unlabeled": {**options, **files} for key, options in recipes.items()},
    }


def split_cases(arguments: argparse.Namespace, changes: dict[str, Any]) -> tuple[Cases, Cases, int]:
    """Cases of the first fold: to train on, in an order drawn once; held out; how many a batch."""
    from monai.bundle import ConfigParser

    from monai_xtiny.bundle.folder import Bundle
    from monai_xtiny.training.labeled import data_options

    bundle = Bundle.open(arguments.search.parents[1])
    parser = ConfigParser(bundle.config("train"))
    parser.update(
        {"bundle_root": str(bundle.root), **data_options(arguments.data, None), **changes}
    )
    training, held_out = (parser.get_parsed_content(f"{part}_cases") for part in ("train", "val"))
    shuffled = random.Random(0).sample(training, len(training))
    return shuffled, held_out, parser.get_parsed_content("batch_size")


def listed(training: Cases, held_out: Cases, target: Path) -> dict[str, Any]:
    """Keys of train.json that make these the cases."""
    from monai_xtiny.system.config_text import PlainPath

    datalist, common = write_datalist(training, held_out, target)
    return {"datalist": PlainPath(str(datalist.resolve())), "dataset_dir": PlainPath(str(common))}


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: the last validation of every recipe, and what it gains on the emitted one."""
    rows = [
        "| data set | width | epochs | crop | batch | labels | recipe | seeds | last Dice "
        "| best Dice | Dice gained, over cases [95 %] |",
        "|---|---:|---:|---|---|---|---|---:|---:|---:|---|",
    ]
    groups: dict[tuple[Any, ...], dict[str, list[Training]]] = {}
    for line in lines:
        training = training_from_dict(line)
        data = (line.get("crop", "patch"), line.get("batch", "-"), line.get("labeled", "all"))
        key = (line["set"], training.max_features, training.epochs, *data)
        recipe = line["recipe"]
        if "teacher" in line:
            recipe += f" ({line['teacher']})"
        groups.setdefault(key, {}).setdefault(recipe, []).append(training)
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
    measured = groups[0][seeds[0]]
    return shown(interval(dice - plain, measured.patients or measured.cases), sign="+")


if __name__ == "__main__":
    main()
