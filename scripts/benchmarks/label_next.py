"""What label-next is worth: a network of few labeled cases ranks the rest, whose labels are known.

usage: python scripts/benchmarks/label_next.py --data ROOT/DATASET --work DIR
           (--search search.json [--labeled 15] [--folds 2] [--epochs 12] | --bundle BUNDLE)
           [--every 2] [--committees folds,flips,alone] [--seed 0]

A random draw of cases is trained on, each fold by the emitted train.json; of the others, each
--every'th is ranked by committees of the folds, of the flips of fold 0, and of fold 0 alone. The
tables show, for several scores of an image, their rank correlation with 1 - Dice and the Dice of
the ten cases ranked first; and what becomes of near-duplicates that are planted among the cases.
Trained folds in DIR are not trained again. With --bundle, a trained bundle ranks the cases that its
training held out.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from trainings import quiet

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.search_file import read_search
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.bundled.folds import fold_file
from monai_xtiny.deploy.committee import Committee, trained_files
from monai_xtiny.deploy.targets import Target, find_targets
from monai_xtiny.scores.diversity import rank_diverse
from monai_xtiny.scores.uncertainty import image_uncertainty, voxel_entropy
from monai_xtiny.training.train import train_bundle

TOP = 10
DRAWS = 2000
# Cases that are copied, and copies of each.
COPIED, COPIES = 3, 5


def summed_entropy(probabilities: torch.Tensor) -> float:
    """Sum of the entropy over all voxels."""
    return float(voxel_entropy(probabilities).sum())


def mean_entropy(probabilities: torch.Tensor) -> float:
    """Mean of the entropy over the image."""
    return float(voxel_entropy(probabilities).mean())


def object_entropy(probabilities: torch.Tensor) -> float:
    """Mean of the entropy over labels and two voxels around; without labels, over the image."""
    labeled = (probabilities.argmax(0) > 0).float()[None, None]
    pool = torch.nn.functional.max_pool2d if labeled.ndim == 4 else torch.nn.functional.max_pool3d
    near = pool(labeled, 5, 1, 2)[0, 0] > 0
    entropy = voxel_entropy(probabilities)
    return float(entropy[near].mean() if near.any() else entropy.mean())


SCORES: dict[str, Callable[[torch.Tensor], float]] = {
    "sum of entropy": summed_entropy,
    "mean entropy": mean_entropy,
    "mean entropy near labels": object_entropy,
    "1 - expected Dice": image_uncertainty,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="nnU-Net data set root")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--search", type=Path, help="search.json whose plan and width to train")
    source.add_argument("--bundle", type=Path, help="a trained one")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--labeled", type=int, default=15, help="cases that have labels")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--every", type=int, default=2, help="ranks each so many'th case")
    parser.add_argument("--committees", default="folds,flips,alone")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.bundle:
        trained = Bundle.open(arguments.bundle)
        held_out = trained.config("datalist")["validation"]
        names = {Path(entry["label"]).name.split(".")[0] for entry in held_out}
    else:
        with quiet():
            trained, names = train_folds(arguments)
    found = find_targets(arguments.data, reads=trained.kind, in_channels=trained.plan.in_channels)
    cases = [case for case in found.cases if case.name in names][:: arguments.every]
    wanted = arguments.committees.split(",")
    for kind, bundle in committees_of(trained, arguments.work).items():
        if kind not in wanted:
            continue
        with quiet():
            committee = Committee(bundle)
            judged = [judge(committee, case, arguments.data) for case in cases]
        pairs = [pair for pair in zip(cases, judged, strict=True) if pair[1] is not None]
        same_grid, known = [case for case, _ in pairs], [item for _, item in pairs]
        print(f"\n{kind}: {len(known)} cases ({len(cases) - len(known)} on another grid)\n")
        print(score_table(known, arguments.seed))
        if kind == "flips" and cases[0].kind == "raster":
            with quiet():
                copies = judge_copies(committee, same_grid, known, arguments.work / "copies")
            print("\n" + copies_table(known, copies))


def train_folds(arguments: argparse.Namespace) -> tuple[Bundle, set[str]]:
    """The bundle with its trained folds, and the names of the cases that they have not seen."""
    names = sorted(path.name for path in (arguments.data / "labelsTr").iterdir())
    drawn = random.Random(arguments.seed).sample(names, arguments.labeled)
    images = sorted(path.name for path in (arguments.data / "imagesTr").iterdir())
    entries = []
    for name in drawn:
        case = name.split(".")[0]
        files = [f"imagesTr/{image}" for image in images if image.startswith(f"{case}_00")]
        entries.append({"image": files, "label": f"labelsTr/{name}"})
    root = arguments.work / f"{arguments.data.name}_segmentation"
    if not root.exists():
        export_bundle(read_search(arguments.search), root)
    datalist = arguments.work / f"{arguments.data.name}.json"
    datalist.write_text(json.dumps({"training": entries}))
    bundle = Bundle.open(root)
    for fold in range(arguments.folds):
        if not bundle.path(fold_file("configs/datalist.json", fold)).is_file():
            train_bundle(
                bundle, data=arguments.data, datalist=datalist, epochs=arguments.epochs, fold=fold,
                overrides={"num_workers": 0},
            )  # fmt: skip
    return bundle, {name.split(".")[0] for name in names if name not in drawn}


def committees_of(trained: Bundle, work: Path) -> dict[str, Bundle]:
    """Bundles whose committees are the folds, the flips of fold 0, and fold 0 alone."""
    bundles = {"folds": trained} if len(trained_files(trained)) > 1 else {}
    mirrors = bool(trained.config("train")["mirror_prob"])
    for kind in ("flips", "alone") if mirrors else ("alone",):
        root = work / kind / trained.name
        shutil.rmtree(root.parent, ignore_errors=True)
        shutil.copytree(trained.root, root)
        for file in (root / "models").glob("model_fold*.pt"):
            file.unlink()
        config = json.loads((root / "configs" / "train.json").read_text(encoding="utf-8"))
        config["mirror_prob"] = 0.5 if kind == "flips" else 0.0
        (root / "configs" / "train.json").write_text(json.dumps(config), encoding="utf-8")
        bundles[kind] = Bundle.open(root)
    return bundles


class Judged:
    """A case: its scores, features, and true Dice."""

    def __init__(self, probabilities: torch.Tensor, features: torch.Tensor, dice: float) -> None:
        self.scores = {name: score(probabilities) for name, score in SCORES.items()}
        self.features, self.dice = features.double().numpy(), dice


def judge(committee: Committee, case: Target, data: Path) -> Judged | None:
    """What a committee says of a case; nothing if its label lies on another grid."""
    label = read_label(data / "labelsTr" / f"{case.name}{case.ending}")
    verdict = committee(case.files)
    drawn = verdict.probabilities.argmax(0).numpy()
    if label.shape != drawn.shape:
        return None
    classes = range(1, len(verdict.probabilities))
    return Judged(verdict.probabilities, verdict.features, mean_dice(drawn, label, classes))


def read_label(path: Path) -> np.ndarray:
    """Class indices as the network's axes have them."""
    if path.suffix == ".png":
        return np.asarray(Image.open(path)).T
    return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)


def mean_dice(drawn: np.ndarray, label: np.ndarray, classes: Sequence[int]) -> float:
    """Mean Dice of the classes that are in either; 1 where none is."""
    found = []
    for index in classes:
        one, other = drawn == index, label == index
        if one.any() or other.any():
            found.append(2 * (one & other).sum() / (one.sum() + other.sum()))
    return float(np.mean(found)) if found else 1.0


def score_table(known: Sequence[Judged], seed: int) -> str:
    """Of each score: rank correlation with 1 - Dice, and Dice of the first ten, with intervals."""
    error = 1 - np.array([item.dice for item in known])
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(known), size=(DRAWS, len(known)))
    drawn = [generator.choice(1 - error, TOP, replace=False).mean() for _ in range(DRAWS)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    lines = [
        f"| score | Spearman with 1 - Dice (95 %) | mean Dice of the first {TOP} |",
        "|---|---:|---:|",
    ]
    for name in SCORES:
        values = np.array([item.scores[name] for item in known])
        rho = spearmanr(values, error).statistic
        ends = np.percentile([spearmanr(values[d], error[d]).statistic for d in draws], (2.5, 97.5))
        first = 1 - error[np.argsort(-values, kind="stable")[:TOP]]
        lines.append(
            f"| {name} | {rho:.2f} ({ends[0]:.2f} to {ends[1]:.2f}) | {first.mean():.3f} |"
        )
    lines.append(f"| random | | {1 - error.mean():.3f} ({low:.3f} to {high:.3f}) |")
    return "\n".join(lines)


def judge_copies(
    committee: Committee, cases: Sequence[Target], known: Sequence[Judged], folder: Path
) -> list[tuple[int, Judged]]:
    """Near-duplicates of the most uncertain cases: moved, brighter, with noise."""
    folder.mkdir(parents=True, exist_ok=True)
    uncertain = np.argsort([-item.scores["1 - expected Dice"] for item in known])[:COPIED]
    generator = np.random.default_rng(0)
    found = []
    for index in map(int, uncertain):
        pixels = np.asarray(Image.open(cases[index].files[0])).astype(float)
        for number in range(COPIES):
            moved = np.roll(pixels, generator.integers(-3, 4, size=2), axis=(0, 1))
            noisy = moved * generator.uniform(0.9, 1.1) + generator.normal(0, 1, moved.shape)
            path = folder / f"{index}_{number}.png"
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
            verdict = committee([str(path)])
            copy = Judged(verdict.probabilities, verdict.features, known[index].dice)
            found.append((index, copy))
    return found


def copies_table(known: Sequence[Judged], copies: Sequence[tuple[int, Judged]]) -> str:
    """How many different images are among the first ten, with and without diversity."""
    every = [*known, *(copy for _, copy in copies)]
    origin = [*range(len(known)), *(index for index, _ in copies)]
    uncertainty = np.array([item.scores["1 - expected Dice"] for item in every])
    features = np.stack([item.features for item in every])
    orders = {
        "uncertainty alone": np.argsort(-uncertainty, kind="stable").tolist(),
        "uncertainty and distance": [item.index for item in rank_diverse(uncertainty, features)],
        "distance alone": [item.index for item in rank_diverse(np.ones(len(every)), features)],
    }
    lines = [
        f"| first {TOP} by | different images | mean Dice of these |",
        "|---|---:|---:|",
    ]
    for name, order in orders.items():
        different = dict.fromkeys(origin[index] for index in order[:TOP])
        dice = np.mean([known[index].dice for index in different])
        lines.append(f"| {name} | {len(different)} | {dice:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
