"""nnU-Net's own trainer for a few iterations on the cores; runs in nnU-Net's environment.

usage: python scripts/nnunet/train.py DATASET_ID CONFIGURATION FOLD NUM_ITERATIONS
"""

from __future__ import annotations

import sys

import torch
from nnunetv2.run.run_training import get_trainer_from_args
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler


def train(dataset_id: str, configuration: str, fold: str, num_iterations: int) -> None:
    """What nnUNetv2_train starts, of one short epoch.

    nnU-Net's momentum of 0.99 needs hundreds of iterations to find anything; Adam does not.
    """
    torch.manual_seed(0)
    device = torch.device("cpu")
    trainer = get_trainer_from_args(
        dataset_id, configuration, int(fold), "nnUNetTrainer", "nnUNetPlans", device=device
    )
    trainer.num_epochs = 1
    trainer.num_iterations_per_epoch = num_iterations
    trainer.num_val_iterations_per_epoch = 1

    def configure_optimizers() -> tuple[Optimizer, LRScheduler]:
        optimizer = Adam(trainer.network.parameters(), lr=3e-3)
        return optimizer, ConstantLR(optimizer, factor=1)

    trainer.configure_optimizers = configure_optimizers
    trainer.run_training()


if __name__ == "__main__":
    train(*sys.argv[1:4], int(sys.argv[4]))
