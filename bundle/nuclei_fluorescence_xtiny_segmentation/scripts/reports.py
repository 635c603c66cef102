# Written by monai_xtiny 0.2.0, which need not be installed.
"""Tables and the summary of an evaluation, each written whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.handlers import MetricsSaver
from monai.utils import string_list_all_gather

from .cases import Case, LabeledCases
from .files import PathLike, written_whole
from .measures import volume_unit
from .splits import Split, find_patients
from .summaries import summarize, summary_table

# Values of a summary, and the metrics of the evaluator that they are.
METRIC_OF = {
    "dice": "val_mean_dice",
    "nsd": "val_nsd",
    "hd95": "val_hd95",
    "volume": "val_volume",
    "label_volume": "val_label_volume",
    "ece": "val_ece",
}


class MetricsWriter(MetricsSaver):
    """MONAI's ``MetricsSaver``, whose tables a kill cannot leave half written.

    Args:
        save_dir: folder of the tables.
        metrics: of the engine: their values, those of each case, and their summary are written.
    """

    def __init__(self, save_dir: str, metrics: Sequence[str] = tuple(METRIC_OF.values())) -> None:
        super().__init__(
            save_dir, list(metrics), list(metrics), batch_transform=_metadata_of, summary_ops="*"
        )

    def __call__(self, engine: Engine) -> None:
        """Write the tables of an epoch; on all ranks, of which one writes."""
        target = self.save_dir
        with tempfile.TemporaryDirectory() as folder:
            self.save_dir = folder
            try:
                super().__call__(engine)
            finally:
                self.save_dir = target
            if idist.get_rank() != self.save_rank:
                return
            os.makedirs(target, exist_ok=True)
            for name in sorted(os.listdir(folder)):
                with (
                    written_whole(os.path.join(target, name)) as part,
                    open(os.path.join(folder, name), "rb") as table,
                ):
                    part.write_bytes(table.read())


class SummaryWriter:
    """Writes ``summary.json`` at the end of an evaluation, and logs it as a table.

    Args:
        save_dir: folder of the summary.
        cases: that are evaluated, whose labels lie where the engine reads them.
        class_names: of the foreground classes.
        unit: of lengths.
        spatial_dims: of the images.
        nsd_tolerance: in that unit.
        group: which cases are of one patient, as :func:`find_patients` takes it.
        labeled: the data that the cases are some of, whose names tell the patients.
    """

    def __init__(
        self,
        save_dir: str,
        cases: Sequence[Case],
        *,
        class_names: Sequence[str],
        unit: str,
        spatial_dims: int,
        nsd_tolerance: float,
        group: str | None = None,
        labeled: LabeledCases | None = None,
    ) -> None:
        self.save_dir = save_dir
        names = Split([], list(cases)).label_names()[1]
        self._names = dict(zip(map(_label_of, cases), names, strict=True))
        patients = None if group is None else find_patients(cases, group, labeled=labeled)
        self._patients = None if patients is None else dict(zip(names, patients, strict=True))
        self._options: dict[str, Any] = {
            "class_names": list(class_names),
            "length_unit": unit,
            "volume_unit": volume_unit(unit, spatial_dims),
            "nsd_tolerance": nsd_tolerance,
        }
        self._labels: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Summarize what an engine measures."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the summary of an epoch; on all ranks, of which one writes."""
        several = idist.get_world_size() > 1
        labels = string_list_all_gather(self._labels) if several else self._labels
        if idist.get_rank() > 0:
            return
        names = [self._names[label] for label in labels]
        details = vars(engine.state)["metric_details"]
        summary = summarize(
            names,
            {key: details[name].cpu() for key, name in METRIC_OF.items() if name in details},
            patients=None if self._patients is None else [self._patients[name] for name in names],
            **self._options,
        )
        os.makedirs(self.save_dir, exist_ok=True)
        with written_whole(os.path.join(self.save_dir, "summary.json")) as part:
            part.write_text(json.dumps(summary, indent=4) + "\n", encoding="utf-8")
        logging.getLogger(__name__).info("\n%s", summary_table(summary))

    def _start(self, _engine: Engine) -> None:
        """Forget the epoch before."""
        self._labels = []

    def _note(self, engine: Engine) -> None:
        """Remember whose label is measured."""
        batch = cast("list[dict[str, Any]]", engine.state.batch)
        self._labels += [os.path.abspath(case["label"].meta["filename_or_obj"]) for case in batch]


def foreground_names(metadata_file: PathLike, num_classes: int) -> list[str]:
    """Names of the foreground classes in a bundle's metadata, numbered where it has none.

    Args:
        metadata_file: ``configs/metadata.json``.
        num_classes: with the background.
    """
    try:
        content = json.loads(Path(metadata_file).read_text(encoding="utf-8"))
        names = content["network_data_format"]["outputs"]["pred"]["channel_def"]
    except (OSError, ValueError, LookupError, TypeError):
        names = {}
    return [str(names.get(str(index), f"class {index}")) for index in range(1, num_classes)]


def _label_of(case: Case) -> str:
    """Where the label of a case lies."""
    return os.path.abspath(str(case["label"]))


def _metadata_of(batch: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Of the images of a batch, which name their files."""
    return [case["image"].meta for case in batch]
