from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from monai.handlers import MetricsSaver

from monai_xtiny.bundled.reports import MetricsWriter

TABLES = ["dice_raw.csv", "dice_summary.csv", "metrics.csv"]


def evaluate(saver: MetricsSaver, *dice: float) -> Path:
    """Let a handler write the Dice of one class of some cases."""
    folder = saver.save_dir
    metadata = [{"filename_or_obj": f"{index}.png"} for index in range(len(dice))]
    cases = [{"image": SimpleNamespace(meta=meta)} for meta in metadata]
    state: Any = SimpleNamespace(
        batch=cases, metrics={"dice": 0.5}, metric_details={"dice": torch.tensor([dice]).T}
    )
    engine: Any = SimpleNamespace(state=state)
    saver._started(engine)
    saver._get_filenames(engine)
    saver(engine)
    assert saver.save_dir == folder
    return Path(folder)


def ours(folder: Path) -> MetricsWriter:
    return MetricsWriter(str(folder), "dice")


def tables(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_metrics_writer_writes_what_monai_writes(tmp_path) -> None:
    saver = MetricsSaver(
        str(tmp_path / "monai"),
        metrics=["dice"],
        metric_details=["dice"],
        batch_transform=lambda batch: [case["image"].meta for case in batch],
        summary_ops="*",
    )
    expected = tables(evaluate(saver, 0.25, 0.75))
    found = tables(evaluate(ours(tmp_path / "new" / "ours"), 0.25, 0.75))
    assert found == expected and sorted(found) == TABLES


def test_metrics_writer_replaces_tables_that_others_still_read(tmp_path) -> None:
    folder = evaluate(ours(tmp_path), 0.25)
    with (folder / TABLES[0]).open() as former:
        evaluate(ours(tmp_path), 0.75)
        assert "0.25," in former.read()
    assert "0.75," in (folder / TABLES[0]).read_text()
    assert sorted(path.name for path in folder.iterdir()) == TABLES


def test_metrics_writer_writes_on_one_rank(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    evaluate(ours(tmp_path / "eval"), 0.25)
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize("name", TABLES)
def test_metrics_writer_names_a_table_that_cannot_be_written(tmp_path, name) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=name):
        evaluate(ours(tmp_path), 0.25)
