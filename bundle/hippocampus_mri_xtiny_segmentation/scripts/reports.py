# Written by monai_xtiny 0.1.0, which need not be installed.
"""Tables of an evaluation, each written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine
from monai.handlers import MetricsSaver

from .files import written_whole


class MetricsWriter(MetricsSaver):
    """MONAI's ``MetricsSaver``, whose tables a kill cannot leave half written.

    Args:
        save_dir: folder of the tables.
        metric: of the engine: its value, that of each case, and their summary are written.
    """

    def __init__(self, save_dir: str, metric: str) -> None:
        super().__init__(
            save_dir, [metric], [metric], batch_transform=_metadata_of, summary_ops="*"
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


def _metadata_of(batch: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Of the images of a batch, which name their files."""
    return [case["image"].meta for case in batch]
