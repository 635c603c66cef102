"""nnUNetv2_train for a few iterations on the cores; runs in nnU-Net's environment.

usage: python scripts/nnunet/train.py DATASET_ID CONFIGURATION FOLD NUM_ITERATIONS
"""

from __future__ import annotations

import sys

import torch
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler


def shorten_training(num_iterations: int) -> None:
    """Give nnU-Net's trainer one short epoch, and no validation of whole images after it.

    nnU-Net's momentum of 0.99 needs hundreds of iterations to find anything; Adam does not.
    """
    run_training = nnUNetTrainer.run_training

    def configure_optimizers(self: nnUNetTrainer) -> tuple[Optimizer, LRScheduler]:
        optimizer = Adam(self.network.parameters(), lr=3e-3)
        return optimizer, ConstantLR(optimizer, factor=1)

    def run_short(self: nnUNetTrainer) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)  # nnUNetv2_train takes all, which wait for other processes
        self.num_epochs = self.num_val_iterations_per_epoch = 1
        self.num_iterations_per_epoch = num_iterations
        run_training(self)

    nnUNetTrainer.configure_optimizers = configure_optimizers
    nnUNetTrainer.run_training = run_short
    nnUNetTrainer.perform_actual_validation = lambda *_: None


if __name__ == "__main__":
    shorten_training(int(sys.argv[4]))
    # What the command runs, with its arguments. Of other trainers, nnU-Net would import timm.
    sys.argv = ["nnUNetv2_train", *sys.argv[1:4], "-device", "cpu"]
    run_training_entry()
