# Written by monai_xtiny 0.2.0, which need not be installed.
"""The table of a training, written whole or not at all."""

from __future__ import annotations

import csv
import math
import os
from typing import Any, cast

import ignite.distributed as idist
from ignite.engine import Engine, Events

from .files import written_whole


class CurveWriter:
    """A table of the epochs of a training, ``learning_curve.csv``: its loss and its validations.

    It is written anew after each epoch. A training that is gone on with keeps the rows of the
    epochs that it goes on from.

    Args:
        folder: of the results.
        metric: of the evaluator.
        former_epoch: that the training goes on from.
    """

    COLUMNS = ("epoch", "train_loss", "val_mean_dice")

    def __init__(self, folder: str, metric: str, former_epoch: int = 0) -> None:
        self.file, self.metric = os.path.join(folder, "learning_curve.csv"), metric
        self.rows = self._read(former_epoch) if former_epoch else []
        self.losses: list[float] = []
        self.validated = ""

    def attach(self, trainer: Engine, evaluator: Engine) -> None:
        """Act after each step and epoch of ``trainer``, and after each validation."""
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._add_loss)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._validate)

    def _add_loss(self, trainer: Engine) -> None:
        """Keep the loss of a step, which decollating has made a number."""
        output = cast(Any, trainer.state.output)
        self.losses.append(float(output[0]["loss"]))

    def _validate(self, evaluator: Engine) -> None:
        """Keep the value of a validation; a metric of no foreground is undefined."""
        value = float(cast(Any, evaluator.state.metrics[self.metric]))
        self.validated = repr(value) if math.isfinite(value) else ""

    def _write(self, trainer: Engine) -> None:
        """Write the row of an epoch after the others."""
        loss = math.fsum(self.losses) / len(self.losses)
        self.rows.append([str(trainer.state.epoch), repr(loss), self.validated])
        self.losses, self.validated = [], ""
        if idist.get_rank() > 0:
            return
        os.makedirs(os.path.dirname(self.file), exist_ok=True)
        with (
            written_whole(self.file) as part,
            open(part, "w", encoding="utf-8", newline="") as file,
        ):
            csv.writer(file).writerows([self.COLUMNS, *self.rows])

    def _read(self, former_epoch: int) -> list[list[str]]:
        """Rows of the file up to an epoch; none of a file that is no such table."""
        try:
            with open(self.file, encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
            is_ours = tuple(header) == self.COLUMNS
            return [row for row in rows if is_ours and int(row[0]) <= former_epoch]
        except (OSError, ValueError, IndexError, csv.Error):
            return []
