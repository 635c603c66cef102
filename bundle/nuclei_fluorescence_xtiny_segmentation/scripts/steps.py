# Written by monai_xtiny 0.2.0, which need not be installed.
"""What happens at each step of a training: clipping, rotation, interruption."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer
from monai.engines.utils import IterationEvents
from monai.handlers import StatsHandler, TensorBoardStatsHandler
from torch import nn
from torch.optim import Optimizer


def check_loss(trainer: Engine) -> None:
    """Stop a training whose loss is not a number, before it spoils the weights; a handler.

    Raises:
        ValueError: the loss of this iteration is not a number.
    """
    output = cast(Mapping[str, torch.Tensor], trainer.state.output)
    if torch.isnan(output["loss"]).any():
        raise ValueError(
            f"the loss is not a number in epoch {trainer.state.epoch}: lower --learning_rate, or "
            "look for broken images"
        )


def find_rotated_axes(patch_size: Sequence[int]) -> list[int]:
    """Axes to rotate about: those that are thin, if any, so that voxels stay in their slice.

    >>> find_rotated_axes([64, 64, 12])
    [2]
    >>> find_rotated_axes([64, 64, 48])
    [0, 1, 2]
    """
    thin = [axis for axis, size in enumerate(patch_size) if 3 * size < max(patch_size)]
    return thin or list(range(len(patch_size)))


def handlers_of_rank(handlers: Sequence[Any]) -> list[Any]:
    """All handlers on rank 0; elsewhere those that write no log."""
    logs = (StatsHandler, TensorBoardStatsHandler)
    return [item for item in handlers if idist.get_rank() == 0 or not isinstance(item, logs)]


class GradientClipping:
    """Scale gradients down to a norm, before each step of the optimizer.

    Args:
        network: whose gradients.
        optimizer: its optimizer, for gradients that mixed precision has scaled.
        max_norm: Euclidean norm over all gradients.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, max_norm: float) -> None:
        self.network, self.optimizer, self.max_norm = network, optimizer, max_norm

    def attach(self, trainer: Trainer) -> None:
        """Act after each backward pass of ``trainer``."""
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, trainer: Trainer) -> None:
        """Clip the gradients as they are now."""
        if trainer.scaler is not None:
            trainer.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class Interruption:
    """Stop a training at SIGINT, before its next iteration; at a second SIGINT where it is.

    A ``KeyboardInterrupt`` in the middle of a loader that starts or ends its workers is dropped by
    Python, or leaves them waiting for each other. Workers leave the signal to the process that they
    work for, which ends them.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.process = os.getpid()

    def attach(self, trainer: Trainer, evaluator: Evaluator) -> None:
        """Act while ``trainer`` runs, and in its validations."""
        trainer.add_event_handler(Events.STARTED, self._listen)
        trainer.add_event_handler(Events.COMPLETED, self._restore)
        for engine in (trainer, evaluator):
            for event in (Events.ITERATION_STARTED, Events.EPOCH_COMPLETED):
                engine.add_event_handler(event, self._stop)

    def _listen(self) -> None:
        """Take SIGINT over from Python or from a former training, and from nobody else."""
        former = signal.getsignal(signal.SIGINT)
        is_ours = getattr(former, "__name__", "") == self._remember.__name__
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and (is_ours or former is signal.default_int_handler):
            signal.signal(signal.SIGINT, self._remember)

    def _restore(self) -> None:
        """Give SIGINT back to Python."""
        if signal.getsignal(signal.SIGINT) == self._remember:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _remember(self, number: int, frame: Any) -> None:
        """The signal's handler, which forked workers inherit."""
        if os.getpid() != self.process:
            return
        if self.is_asked:
            signal.default_int_handler(number, frame)
        self.is_asked = True
        # Nothing buffered, which the signal may have interrupted.
        os.write(2, b"\nstopping before the next iteration\n")

    def _stop(self) -> None:
        """Do what was asked for."""
        if self.is_asked:
            raise KeyboardInterrupt
