"""Labeled data sets that hold names alone."""

from __future__ import annotations

from pathlib import Path

import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, from_engine
from torch import nn

from monai_xtiny.bundled.cases import LabeledCases, find_labeled_cases
from monai_xtiny.bundled.checkpoints import TrainingState
from monai_xtiny.bundled.splits import split_cases

NIFTI = {"file_endings": ["nii.gz", "nii"], "in_channels": 2}


PNG = {"file_endings": ["png", "bmp"], "in_channels": 1}


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def find(root: Path, form: dict, **options) -> LabeledCases:
    return find_labeled_cases(root, None, root, **form, **options)


def labeled(count: int, validation: int = 0) -> LabeledCases:
    cases = [
        {"image": [f"imagesTr/c{i}.png"], "label": f"labelsTr/c{i}.png"}
        for i in range(count + validation)
    ]
    return LabeledCases("data", cases[:count], cases[count:], {}, [], [])


def numbers(cases: list[dict]) -> list[int]:
    return [int(Path(case["label"]).stem[1:]) for case in cases]


def of_patients(*names: str) -> list[dict]:
    return [{"image": [f"i/{name}_0000.png"], "label": f"l/{name}.png"} for name in names]


class Setup:
    """A tiny training: one voxel, two classes, a convolution."""

    def __init__(self, folder: Path, *, epochs: int, lr: float = 0.1, decay: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        data = [
            {
                "image": torch.randn(1, 4, 4, generator=generator),
                "label": torch.randint(0, 2, (1, 4, 4), generator=generator),
            }
            for _ in range(4)
        ]
        torch.manual_seed(1)
        self.network = nn.Conv2d(1, 2, 1)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr, weight_decay=decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda epoch: 1 / (1 + epoch)
        )
        loader = DataLoader(data, batch_size=2, num_workers=0)
        cpu = torch.device("cpu")
        self.trainer = SupervisedTrainer(
            cpu, epochs, loader, self.network, self.optimizer,
            lambda logits, label: nn.functional.cross_entropy(logits, label[:, 0]),
        )  # fmt: skip
        self.evaluator = SupervisedEvaluator(
            cpu, loader, self.network,
            key_val_metric={"dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
        )  # fmt: skip
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.scheduler.step())
        self.trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: self.evaluator.run(self.trainer.state.epoch)
        )
        self.file = str(folder / "deep" / "state.pt")
        self.split = split_cases(labeled(4), fold=0, val_fraction=0.5, split_seed=0)

    def state(self, **options) -> TrainingState:
        options = {"split": self.split, "network": self.network, "resume": True, **options}
        return TrainingState(self.file, **options)

    def run(self, *, save: bool = True, resume: bool = True) -> TrainingState:
        state = self.state(resume=resume)
        state.check(self.trainer.state.max_epochs)
        state.attach(
            self.trainer, self.evaluator, self.optimizer, self.scheduler, seed=0, save=save
        )
        self.trainer.run()
        return state
