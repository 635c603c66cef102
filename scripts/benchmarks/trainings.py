"""Searches and trainings of a benchmark, none of which is done twice.

Each finished training is a line of a journal, so that a benchmark can be stopped, resumed and
grown, by several processes on different data sets too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Unit:
    """One training of a benchmark.

    Args:
        names: what the journal tells it by, besides the fields of a training: ``{"set": ...}``.
        search: the search.json whose plan is trained.
        max_features: width cap.
        data: nnU-Net data set root.
        bundle: folder of the trained bundle.
        epochs: to train.
        val_interval: epochs between two validations.
        fold: of the split by case.
        seed: of initialization and augmentation.
        overrides: keys of train.json.
    """

    names: Mapping[str, str]
    search: Path
    max_features: int
    data: Path
    bundle: Path
    epochs: int
    val_interval: int = 5
    fold: int = 0
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        names = " ".join(self.names.values())
        return f"{names} width {self.max_features} fold {self.fold} seed {self.seed}"

    def is_done(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Whether one of the journal's lines is this training."""
        wanted = {
            **self.names,
            "max_features": self.max_features,
            "fold": self.fold,
            "seed": self.seed,
            "epochs": self.epochs,
        }
        return any(wanted == {name: line.get(name) for name in wanted} for line in lines)


def train_missing(
    units: Sequence[Unit], journal: Path, *, jobs: int = 1, threads: int | None = None
) -> None:
    """Train what the journal lacks, in processes of their own.

    Args:
        units: trainings, in the order in which they are begun.
        journal: file that a line is added to for each finished training.
        jobs: trainings at a time.
        threads: intra-op threads of each (default: an equal share of the cores).

    Raises:
        SystemExit: some failed; the others are in the journal.
    """
    from monai_xtiny.system.files import append_line, read_lines

    journal.parent.mkdir(parents=True, exist_ok=True)
    done = read_lines(journal)
    missing = [unit for unit in units if not unit.is_done(done)]
    failed = []
    work = [(unit, threads or share_of_cores(jobs)) for unit in missing]
    for (unit, _), result in in_processes(train_unit, work, jobs):
        if isinstance(result, BaseException):
            failed.append(f"{unit}: {result}")
            continue
        line, summary = result
        append_line(journal, line)
        print(time.strftime("%H:%M:%S"), summary, flush=True)
    if failed:
        raise SystemExit("\n".join([f"error: {len(failed)} trainings failed", *failed]))


def train_unit(unit: Unit, threads: int) -> tuple[dict[str, Any], str]:
    """Train one width: its line of the journal, and a word about it."""
    import torch

    from monai_xtiny.bundle.search_file import read_search
    from monai_xtiny.training.train import train_width

    torch.set_num_threads(threads)
    with quiet():
        training = train_width(
            read_search(unit.search),
            unit.max_features,
            data=unit.data,
            bundle_dir=unit.bundle,
            epochs=unit.epochs,
            val_interval=unit.val_interval,
            fold=unit.fold,
            seed=unit.seed,
            overrides={"num_workers": 0, **unit.overrides},
        )
    summary = f"{unit}: {training.evaluation.mean_dice:.4f} in {training.seconds:.0f} s"
    return {**unit.names, **asdict(training)}, summary


def search_once(images: Path, bundle: Path, *options: str) -> Path:
    """The search.json of a data set; searched unless the bundle is there."""
    from monai_xtiny.cli.commands import main as command_line

    if not (bundle / "docs" / "search.json").is_file():
        with quiet():
            command_line(["search", "--images", str(images), "--bundle", str(bundle), *options])
    return bundle / "docs" / "search.json"


def in_processes(
    work: Callable[..., Any], units: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Arguments and results of calls in fresh processes, as they end; an error is its result."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(work, *arguments): arguments for arguments in units}
        for future in as_completed(futures):
            yield futures[future], future.exception() or future.result()


def share_of_cores(jobs: int) -> int:
    """Threads of each of some jobs."""
    return max(1, (os.cpu_count() or 1) // jobs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither logs nor prints."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


class InBfloat16(torch.nn.Module):
    """A network that computes in bfloat16 while it is trained, where autocast does.

    Its weights, its output and all that is done in evaluation mode are float32.

    Args:
        network: any.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The network's output, float32."""
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.training):
            output: torch.Tensor = self.network(image)
        return output.float()
