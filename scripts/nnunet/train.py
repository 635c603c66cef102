"""nnU-Net's own trainer for a few iterations on the cores; runs in nnU-Net's environment.

usage: python scripts/nnunet/train.py DATASET_ID CONFIGURATION FOLD NUM_ITERATIONS
"""

from __future__ import annotations

import sys

import torch
from nnunetv2.run.run_training import get_trainer_from_args


def train(dataset_id: str, configuration: str, fold: str, num_iterations: int) -> None:
    """What nnUNetv2_train starts, of one short epoch."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    trainer = get_trainer_from_args(
        dataset_id,
        configuration,
        int(fold),
        "nnUNetTrainer",
        "nnUNetPlans",
        device=torch.device("cpu"),
    )
    trainer.num_epochs = 1
    trainer.num_iterations_per_epoch = num_iterations
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()


if __name__ == "__main__":
    train(*sys.argv[1:4], int(sys.argv[4]))
