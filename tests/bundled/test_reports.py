from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine
from monai.handlers import MetricsSaver

from monai_xtiny.bundled.cases import LabeledCases
from monai_xtiny.bundled.reports import MetricsWriter, SummaryWriter, foreground_names

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
    return MetricsWriter(str(folder), ["dice"])


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


def summarized(folder: Path, *dice: float, **options: Any) -> dict[str, Any]:
    """The summary of cases of one class, which the engine has in another order than the list."""
    names = [f"p{index}.png" for index in range(len(dice))]
    cases = [{"image": [f"/i/{name}"], "label": f"/l/{name}"} for name in names]
    writer = SummaryWriter(
        str(folder / "new"), cases, class_names=["cell"], unit="pixels", spatial_dims=2,
        nsd_tolerance=1.0, **options,
    )  # fmt: skip
    engine = Engine(lambda engine, batch: None)
    vars(engine.state)["metric_details"] = {"val_mean_dice": torch.tensor([dice]).T}
    writer.attach(engine)
    batches = [[{"label": SimpleNamespace(meta={"filename_or_obj": f"/l/{n}"})}] for n in names]
    engine.run(batches[::-1])
    return json.loads((folder / "new" / "summary.json").read_text(encoding="utf-8"))


def test_summary_writer_names_cases_in_the_order_of_the_engine(tmp_path, caplog) -> None:
    with caplog.at_level("INFO"):
        found = summarized(tmp_path, 0.25, 0.75, 0.5)
    assert found["worst"][0] == {"case": "p2.png", "dice": 0.25}
    assert (found["num_cases"], found["num_patients"], found["volume_unit"]) == (3, None, "pixels")
    assert "lowest Dice of cell: p2.png 0.250" in caplog.text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["summary.json"]


def test_summary_writer_draws_patients(tmp_path) -> None:
    found = summarized(tmp_path, 0.25, 0.75, 0.5, group="p[0-9]")
    assert found["num_patients"] == 3
    found = summarized(tmp_path, 0.25, 0.75, 0.5, group="(p)")
    assert found["num_patients"] == 1 and found["mean"]["dice"]["low"] is None


def test_summary_writer_names_patients_as_the_data_do(tmp_path) -> None:
    labels = ("/k/p0.png", "/l/p0.png", "/l/p1.png", "/l/p2.png")  # two cases are called p0
    cases = [{"image": [label], "label": label} for label in labels]
    data = LabeledCases("list.json", cases[:1], cases[1:], {}, [], [])
    found = summarized(tmp_path, 0.25, 0.75, 0.5, group="^([kl])/", labeled=data)
    assert found["num_patients"] == 1


def test_summary_writer_writes_on_one_rank(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    with pytest.raises(FileNotFoundError):
        summarized(tmp_path, 0.25)


def test_foreground_names_are_those_of_the_metadata_or_numbers(tmp_path) -> None:
    file = tmp_path / "metadata.json"
    assert foreground_names(file, 3) == ["class 1", "class 2"]
    names = {"0": "background", "1": "cell"}
    content = {"network_data_format": {"outputs": {"pred": {"channel_def": names}}}}
    file.write_text(json.dumps(content), encoding="utf-8")
    assert foreground_names(file, 3) == ["cell", "class 2"]
