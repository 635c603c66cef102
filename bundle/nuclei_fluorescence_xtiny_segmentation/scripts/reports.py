# Written by monai_xtiny 0.1.0, which need not be installed.
"""Tables of an evaluation, each written whole or not at all."""

from __future__ import annotations

import os
import tempfile

import ignite.distributed as idist
from ignite.engine import Engine
from monai.handlers import MetricsSaver

from .files import written_whole


class MetricsWriter(MetricsSaver):
    """MONAI's ``MetricsSaver``, whose tables a kill cannot leave half written."""

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
