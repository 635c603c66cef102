"""How long a training takes, and how many epochs end in a given time."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

from ignite.engine import Events

from monai_xtiny.bundle.folder import Bundle

# Of the time of the epochs, what validations may take; and their least distance in epochs.
VALIDATION_SHARE = 0.2
MIN_INTERVAL = 5


@dataclass(frozen=True)
class Pace:
    """Seconds that the parts of a training take.

    Args:
        start: before the first epoch, reading and preparing the cases for example.
        epoch: of training.
        validation: on the cases held out.
    """

    start: float
    epoch: float
    validation: float

    @property
    def interval(self) -> int:
        """Epochs from one validation to the next.

        >>> Pace(start=10, epoch=2, validation=5).interval
        13
        """
        if self.epoch <= 0:
            return MIN_INTERVAL
        return max(MIN_INTERVAL, math.ceil(self.validation / (VALIDATION_SHARE * self.epoch)))

    def epochs_within(self, seconds: float) -> int:
        """Epochs of a training that ends in some seconds; 0 where not even one fits.

        >>> Pace(start=10, epoch=2, validation=5).epochs_within(300)
        121
        """
        rate = self.epoch + self.validation / self.interval
        return max(0, int((seconds - self.start) / rate)) if rate > 0 else 0


def measure_pace(bundle: Bundle, options: Mapping[str, Any]) -> Pace:
    """Train a copy of a bundle for two epochs, and look at the clock.

    Args:
        bundle: which stays as it is.
        options: keys of ``train.json`` that say where the data are.
    """
    begun: list[float] = []
    validated: list[float] = []
    with tempfile.TemporaryDirectory(prefix="monai_xtiny_") as folder:
        copy = Path(folder).resolve() / bundle.name
        copytree(bundle.root, copy, ignore=ignore_patterns("eval", "former_*"))
        brief = {"epochs": 2, "val_interval": 2, "tensorboard": False, "log_iterations": False}
        start = time.monotonic()
        train = Bundle.open(copy).workflow(("train",), {**options, **brief})
        trainer = train.parser.get_parsed_content("train#trainer")
        evaluator = train.parser.get_parsed_content("validate#evaluator")
        for event in (Events.EPOCH_STARTED, Events.COMPLETED):
            trainer.add_event_handler(event, lambda: begun.append(time.monotonic()))
        for event in (Events.STARTED, Events.COMPLETED):
            evaluator.add_event_handler(event, lambda: validated.append(time.monotonic()))
        train.run()
        train.finalize()
    validation = validated[1] - validated[0] if len(validated) > 1 else 0.0
    # The first epoch is longer by what is prepared in it, the second has the validation.
    first, second = begun[1] - begun[0], begun[2] - begun[1] - validation
    return Pace(begun[0] - start + max(0.0, first - second), second, validation)
